from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.__main__ import ALL, parse
from benchmarks.conditions import Options


def test_without_arguments_everything_is_measured_five_times() -> None:
    assert parse([]) == (list(ALL), Options(runs=5))


def test_names_choose() -> None:
    assert parse(["memory", "publish"])[0] == ["memory", "publish"]


def test_quick_is_shorter_and_runs_may_still_be_said() -> None:
    _, quick = parse(["--quick"])
    assert quick.runs < 5 and quick.seconds < Options().seconds and quick.events < Options().events
    assert quick.slice < Options().slice and quick.streamed < Options().streamed
    assert parse(["--quick", "--runs", "7"])[1].runs == 7


def test_a_peer_gets_its_resources_and_its_pubsub(tmp_path: Path) -> None:
    program = tmp_path / "daprd"
    program.touch()
    _, options = parse(["--peer", str(program), "--peer-resources", "/etc/peer", "--peer-pubsub", "messages"])
    assert options.peer is not None
    assert options.peer.command == (str(program), "--resources-path", "/etc/peer")
    assert (options.peer.name, options.peer.pubsub) == ("daprd", "messages")
    assert options.peer.environ == {}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["speed"], "no benchmark named speed; there are: publish"),
        (["--runs", "0"], "whole number from 1"),
        (["--peer", "/nowhere/daprd"], "no program /nowhere/daprd"),
        (["--peer-resources", "/etc"], "--peer-resources needs --peer"),
    ],
)
def test_a_mistake_is_named(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        parse(arguments)
    assert exit.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("name", ALL)
def test_every_name_is_a_module_that_bears_it(name: str) -> None:
    module = import_module(f"benchmarks.{name.replace('-', '_')}")
    assert name == module.NAME
    assert callable(module.run)
