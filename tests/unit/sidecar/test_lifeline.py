import asyncio
import os

import pytest
import uvloop

from mesh.errors import ConfigurationError
from sidecar import lifeline


@pytest.fixture
def line(monkeypatch):
    """The supervisor's end of a lifeline whose other end the environment names."""
    theirs, ours = os.pipe()
    monkeypatch.setenv(lifeline.DESCRIPTOR, str(theirs))
    with os.fdopen(ours, "wb", buffering=0) as line:
        yield line


def watch():
    orphaned = asyncio.Event()
    lifeline.watch(asyncio.get_running_loop(), orphaned.set)
    return orphaned


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_death_of_the_supervisor_is_told_once(line, factory):
    async def main():
        calls = []
        lifeline.watch(asyncio.get_running_loop(), lambda: calls.append(1))
        await asyncio.sleep(0.05)
        assert calls == []
        line.close()
        async with asyncio.timeout(30):
            while not calls:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        assert calls == [1]

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


async def test_supervisor_that_is_dead_already(line):
    line.close()
    await asyncio.wait_for(watch().wait(), 30)


async def test_children_of_the_sidecar_see_nothing_of_the_line(line):
    descriptor = int(os.environ[lifeline.DESCRIPTOR])
    os.set_inheritable(descriptor, True)
    orphaned = watch()
    assert lifeline.DESCRIPTOR not in os.environ
    assert not os.get_inheritable(descriptor)
    line.close()
    await asyncio.wait_for(orphaned.wait(), 30)


async def test_sidecar_without_a_supervisor(monkeypatch):
    monkeypatch.delenv(lifeline.DESCRIPTOR, raising=False)
    orphaned = watch()
    await asyncio.sleep(0)
    assert not orphaned.is_set()


@pytest.mark.parametrize("text", ["", "x", "-1", "1000000", "9" * 30])
async def test_environment_that_names_no_pipe(text, monkeypatch):
    monkeypatch.setenv(lifeline.DESCRIPTOR, text)
    with pytest.raises(ConfigurationError, match=f"{lifeline.DESCRIPTOR}={text} names no pipe"):
        watch()


async def test_descriptor_of_something_else(tmp_path, monkeypatch):
    with (tmp_path / "file").open("w") as file:
        monkeypatch.setenv(lifeline.DESCRIPTOR, str(file.fileno()))
        with pytest.raises(ConfigurationError, match="something else is open there"):
            watch()
