from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.cli import main

ROOT = Path(__file__).parents[4]
SCRIPT = "import sys; from sidecar.cli import main; sys.exit(main(['reset']))"

Running = Callable[..., object]


@pytest.fixture
def stored(folder: Path) -> Path:
    """The log of an embedded broker that ran in the mesh."""
    folder.mkdir(parents=True, mode=0o700)
    file = folder / "server.log"
    file.write_bytes(bytes(3000))
    return file


def test_yes_deletes_and_says_what(stored: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reset", "--yes"]) == 0
    assert not stored.exists()
    asked, done = capsys.readouterr().out.splitlines()
    assert str(folder) in asked
    assert done == "✅ deleted 3 KiB of mesh 'default'"
    assert main(["reset", "-y"]) == 0
    assert capsys.readouterr().out == f"Mesh 'default' has stored nothing in {folder}.\n"


def test_without_a_terminal_it_does_not_guess(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reset"]) == 1
    assert "there is no terminal to ask at; say --yes if this is meant" in capsys.readouterr().err
    assert stored.exists()


@pytest.mark.parametrize(("answer", "code", "kept"), [(b"y\n", 0, False), (b"\n", 1, True), (b"\x04", 1, True)])
def test_asks_at_a_terminal(stored: Path, answer: bytes, code: int, kept: bool) -> None:
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", SCRIPT],
            stdin=theirs,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        os.write(ours, answer)
        out, _ = process.communicate(timeout=30)
    finally:
        os.close(ours)
        os.close(theirs)
    assert (process.returncode, stored.exists()) == (code, kept)
    assert b"Go on? [y/N]" in out
    assert (b"Nothing was deleted." in out) == kept


def test_refuses_while_apps_run(stored: Path, running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    running("orders")
    running("billing")
    assert main(["reset", "--yes"]) == 1
    assert stored.exists()
    assert capsys.readouterr().err == (
        "meshwire reset: apps of mesh 'default' still run; first: meshwire stop --app-id billing --app-id orders\n"
    )


def test_touches_no_other_mesh(stored: Path) -> None:
    assert main(["reset", "--yes", "--mesh", "other"]) == 0
    assert stored.exists()


def test_a_name_that_would_leave_the_home(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reset", "--yes", "--mesh", "../mesh/default"]) == 1
    assert "is no name for a mesh" in capsys.readouterr().err
    assert stored.exists()
