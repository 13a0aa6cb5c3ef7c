from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import sidecar.cli
from mesh import __version__
from mesh.errors import ConfigurationError
from sidecar.cli import COMMANDS, main
from sidecar.cli import version as version_command

ROOT = Path(__file__).parents[4]
MESHWIRE = [sys.executable, "-P", "-c", "import sys; from sidecar.cli import main; sys.exit(main())"]


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **changes}


def test_help_names_each_command_and_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.summary)}$", shown, re.MULTILINE)
    for piece in ("examples:", "exit codes:", "MESHWIRE_BROKER", "DAPR_API_TOKEN"):
        assert piece in shown
    assert all(len(line) <= 100 for line in shown.splitlines())


def test_without_a_command_the_help_is_shown_and_it_counts_as_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().out


@pytest.mark.parametrize("asked", [["version", "--help"], ["help", "version"], ["version", "-h"]])
def test_help_of_a_command(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(asked) == 0
    shown = capsys.readouterr().out
    assert "usage: meshwire version" in shown
    assert "meshwire version -o json" in shown
    assert "exit codes:" in shown


def test_every_command_but_the_sidecar_has_its_module() -> None:
    folder = Path(sidecar.cli.__file__).parent
    assert {name for name in COMMANDS if not (folder / f"{name}.py").exists()} == {"sidecar"}


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert main(["version"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [f"meshwire {__version__}"] * 2


def test_the_command_may_run_again_in_the_same_process(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("sidecar.cli.list")  # binds `list` in the package
    assert main(["version"]) == main(["version"]) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["pubish"], "meshwire: there is no command 'pubish'; did you mean 'publish'? (see meshwire --help)"),
        (["LIST"], "meshwire: there is no command 'LIST'; did you mean 'list'? (see meshwire --help)"),
        (["xyzzy"], "meshwire: there is no command 'xyzzy' (see meshwire --help)"),
        (["help", "xyzzy"], "meshwire: there is no command 'xyzzy' (see meshwire --help)"),
        (["a\nb"], "meshwire: there is no command 'a\\nb' (see meshwire --help)"),
        (["--verbose"], "meshwire: there is no flag --verbose before the command (see meshwire --help)"),
        (["version", "--no"], "meshwire version: unrecognized arguments: --no (see meshwire version --help)"),
        (
            ["version", "--out", "json"],
            "meshwire version: unrecognized arguments: --out json (see meshwire version --help)",
        ),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err == told + "\n"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConfigurationError("x.yaml:3 says a,\n  which is no b"), "x.yaml:3 says a, which is no b"),
        (PermissionError(13, "Permission denied", "/nowhere/x"), "Permission denied: /nowhere/x"),
        (KeyError("gone"), "unexpected KeyError: 'gone' (a bug; --debug shows where)"),
    ],
)
def test_a_failure_is_one_line_and_exit_code_1(
    error: Exception, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> int:
        raise error

    monkeypatch.delenv("MESHWIRE_DEBUG", raising=False)
    monkeypatch.setattr(version_command, "execute", fail)
    assert main(["version"]) == 1
    assert capsys.readouterr().err == f"meshwire version: {told}\n"
    for words in (["--debug", "version"], ["version", "--debug"]):
        assert main(words) == 1
        assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("MESHWIRE_DEBUG", "1")
    assert main(["version"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--help"], ["--app-id", "x", "--debug", "-unknown", "--", "a b"]])
def test_the_sidecar_gets_its_words_untouched(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(given: list[str]) -> int:
        assert given == words
        return 7

    monkeypatch.setitem(sys.modules, "sidecar.serve", SimpleNamespace(main=serve))
    assert main(["sidecar", *words]) == 7


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(version_command, "execute", interrupted)
    assert main(["version"]) == 130


def test_a_reader_that_went_away_is_no_complaint() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*MESHWIRE, "--help"], stdout=writing, stderr=subprocess.PIPE, env=environment(), timeout=30)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_output_survives_a_terminal_without_unicode() -> None:
    script = "import sys; from sidecar.cli import main; main(['version']); print('✅')"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, env=environment(PYTHONIOENCODING="ascii"), timeout=30
    )
    assert done.stdout.endswith(b"\\u2705\n")


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["list", "--help"]])
def test_a_folder_named_mesh_is_the_users_own(tmp_path: Path, command: list[str]) -> None:
    """The installed script does not look for modules in the current folder."""
    for name in ("mesh", "sidecar", "brokers", "bindings"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package')")
    script = Path(sys.executable).parent / "meshwire"
    done = subprocess.run([script, *command], cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def test_start_up_imports_only_what_the_command_needs() -> None:
    heavy = ["asyncio", "msgspec", "http.client", "json", "nats", "aiokafka", "starlette", "uvicorn", "yaml"]
    heavy.append("sidecar.registry")
    script = (
        f"import sys, sidecar.cli; sidecar.cli.main(['--version']); print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, env=environment(), timeout=30
    )
    assert done.stdout.splitlines()[-1] == "[]"
