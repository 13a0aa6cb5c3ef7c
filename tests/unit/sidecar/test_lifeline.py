import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

from mesh.errors import ConfigurationError
from sidecar import lifeline


@pytest.fixture
def line(monkeypatch):
    """The supervisor's end of a lifeline whose other end the environment names."""
    theirs, ours = os.pipe()
    monkeypatch.setenv(lifeline.DESCRIPTOR, str(theirs))
    with os.fdopen(ours, "wb", buffering=0) as line:
        yield line


@pytest.fixture
def app(request):
    """A process group of a shell and its child."""
    script = getattr(request, "param", "sleep 60 & wait")
    with subprocess.Popen(["sh", "-c", f"echo ready; {script}"], stdout=subprocess.PIPE, process_group=0) as app:
        app.stdout.readline()
        yield app
        lifeline.signal_group(app.pid, signal.SIGKILL)


def watch():
    orphaned = asyncio.Event()
    lifeline.watch(asyncio.get_running_loop(), orphaned.set)
    return orphaned


async def test_death_of_the_supervisor_ends_the_group_of_the_app(line, app):
    orphaned = watch()
    line.write(b"ap")
    await asyncio.sleep(0)
    line.write(b"p %d\n" % app.pid)
    line.close()
    await asyncio.wait_for(orphaned.wait(), 2)
    assert await asyncio.to_thread(app.wait, 2) == -signal.SIGTERM
    await asyncio.to_thread(app.stdout.read)  # ends when the shell's child is gone too


@pytest.mark.parametrize("app", ["trap '' TERM; sleep 60 & wait; sleep 60"], indirect=True)
async def test_app_that_ignores_the_request_is_killed(line, app, monkeypatch):
    monkeypatch.setattr(lifeline, "GRACE", 0.2)
    orphaned = watch()
    line.write(b"app %d\n" % app.pid)
    line.close()
    await asyncio.wait_for(orphaned.wait(), 2)
    assert await asyncio.to_thread(app.wait, 2) == -signal.SIGKILL


async def test_goodbye_means_that_nothing_is_wrong(line, app):
    orphaned = watch()
    line.write(b"app %d\nbye\n" % app.pid)
    line.close()
    await asyncio.sleep(0.05)
    assert not orphaned.is_set()
    assert app.poll() is None


async def test_supervisor_that_dies_before_the_app_starts(line, monkeypatch):
    monkeypatch.setattr(lifeline, "end_group", pytest.fail)
    orphaned = watch()
    line.close()
    await asyncio.wait_for(orphaned.wait(), 2)


async def test_sidecar_without_a_supervisor(monkeypatch):
    monkeypatch.delenv(lifeline.DESCRIPTOR, raising=False)
    orphaned = watch()
    await asyncio.sleep(0)
    assert not orphaned.is_set()


@pytest.mark.parametrize("text", ["", "x", "-1", "1000000"])
async def test_environment_that_names_no_pipe(text, monkeypatch):
    monkeypatch.setenv(lifeline.DESCRIPTOR, text)
    with pytest.raises(ConfigurationError, match=f"{lifeline.DESCRIPTOR}={text} names no open pipe"):
        watch()


def test_app_is_ended_even_if_the_sidecar_is_done_at_once():
    script = (
        "import asyncio, subprocess, sys\n"
        "from sidecar import lifeline\n"
        "lifeline.GRACE = 0.3\n"
        "async def main():\n"
        "    orphaned = asyncio.Event()\n"
        "    lifeline.watch(asyncio.get_running_loop(), orphaned.set)\n"
        "    await orphaned.wait()\n"
        "asyncio.run(main())\n"
    )
    shell = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"]
    with subprocess.Popen(shell, stdout=subprocess.PIPE, process_group=0) as app:
        app.stdout.readline()
        theirs, ours = os.pipe()
        environment = {**os.environ, lifeline.DESCRIPTOR: str(theirs)}
        os.write(ours, b"app %d\n" % app.pid)
        os.close(ours)
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", script], env=environment, pass_fds=(theirs,), check=True, timeout=10)
        os.close(theirs)
        assert app.wait(1) == -signal.SIGKILL
        assert time.monotonic() - started >= 0.3
