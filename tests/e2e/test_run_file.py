"""`meshwire run -f`: several real apps and sidecars under one supervisor, on an embedded server."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.mesh import MESHWIRE, Process, running, until
from tests.ports import free_port

TALKS = "echo hello; trap 'exit 0' TERM; while :; do sleep 0.05; done"
STUBBORN = "trap '' TERM; echo hello; while :; do sleep 0.05; done"

Start = Callable[..., Process]


def app(name: str, *command: str, **keys: object) -> dict[str, object]:
    return {"appDirPath": name, "command": list(command), **keys}


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts `meshwire run -f` on a template with these apps; sees that nothing is left at the end."""
    home = tmp_path / "home"
    runs: list[Process] = []

    def start(*apps: dict[str, object], meshwire: list[str] = MESHWIRE, **template: object) -> Process:
        for one in apps:
            (tmp_path / str(one["appDirPath"])).mkdir(exist_ok=True)
        # JSON is YAML, too
        (tmp_path / "dapr.yaml").write_text(json.dumps({"version": 1, "name": "shop", **template, "apps": apps}))
        command = [*meshwire, "run", "-f", str(tmp_path)]
        runs.append(Process(tmp_path, "run", command, {"MESHWIRE_HOME": str(home), "NO_COLOR": "1"}).start())
        return runs[-1]

    yield start
    await asyncio.gather(*(run.end() for run in runs))
    await until(lambda: not running(home), lambda: f"left behind: {running(home)}")


def meshwire(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MESHWIRE_HOME": str(tmp_path / "home")}
    return subprocess.run([*MESHWIRE, *words], env=environment, capture_output=True, text=True, timeout=60)


def listed(tmp_path: Path) -> dict[str, dict[str, Any]]:
    return {row["appId"]: row for row in json.loads(meshwire(tmp_path, "list", "-o", "json").stdout)}


async def test_all_start_are_told_apart_and_end_together(start: Start, tmp_path: Path) -> None:
    shows = "echo $APP_ID at $DAPR_HTTP_PORT in $(basename $PWD): $COLOUR $SIZE"
    run = start(
        app("one", "sh", "-c", f"{shows}; {TALKS}", env={"COLOUR": "red"}),
        app("two", "sh", "-c", f"{shows}; {TALKS}", appID="second", appLogDestination="file"),
        app("three", daprdLogDestination="fileAndConsole"),
        common={"env": {"COLOUR": "blue", "SIZE": "5"}},
    )
    for name in ("one", "second", "three"):
        await run.says(rf"{name}: ✅  You're up and running!")
    rows = listed(tmp_path)
    assert f"== APP - one == one at {rows['one']['httpPort']} in one: red 5\n" in run.log
    assert "second at" not in run.log  # its lines go to a file
    assert re.search(r"== DAPRD - three == .*HTTP server is running", run.log)
    assert "DAPRD - one" not in run.log
    assert sorted(rows) == ["one", "second", "three"]
    for row in rows.values():
        assert (row["runTemplatePath"], row["runTemplateName"]) == (str(tmp_path / "dapr.yaml"), "shop")
        assert row["cliPid"] == run.pid
    log = Path(rows["second"]["appLogPath"])
    assert re.fullmatch(rf"{tmp_path}/two/\.dapr/logs/second_app_\d{{14}}\.log", str(log))
    assert log.read_text() == f"second at {rows['second']['httpPort']} in two: blue 5\nhello\n"
    assert "HTTP server is running" in Path(rows["one"]["daprdLogPath"]).read_text()
    assert "== APP" not in Path(rows["one"]["appLogPath"]).read_text()
    table = meshwire(tmp_path, "list").stdout
    assert re.search(r"RUN TEMPLATE +RUN TEMPLATE PATH\n", table)
    assert "shop" in table
    assert await run.end(signal.SIGINT) == 0


async def test_stop_of_one_leaves_the_others_and_stop_of_the_file_ends_all(start: Start, tmp_path: Path) -> None:
    run = start(app("one", "sh", "-c", TALKS), app("two", "sleep", "60"), app("three", "sh", "-c", TALKS))
    for name in ("one", "two", "three"):
        await run.says(rf"{name}: ✅  You're up and running!")
    before = listed(tmp_path)
    stopped = meshwire(tmp_path, "stop", "-a", "two")
    assert (stopped.returncode, stopped.stderr) == (0, "")
    await until(lambda: before["two"]["appPid"] not in running(tmp_path / "home"), lambda: "the app of two runs on")
    assert sorted(listed(tmp_path)) == ["one", "three"]
    assert run.runs
    stopped = meshwire(tmp_path, "stop", "-f", str(tmp_path / "dapr.yaml"))
    assert (stopped.returncode, stopped.stdout.count("✅")) == (0, 2)
    assert await run.end(None) == 0
    again = meshwire(tmp_path, "stop", "-f", str(tmp_path))
    assert (again.returncode, "no app of this run file runs" in again.stderr) == (1, True)


async def test_what_cannot_start_or_fails_does_not_stop_the_others(start: Start, tmp_path: Path) -> None:
    broken = tmp_path / "no-program"
    broken.write_bytes(b"\x7fELF")
    broken.chmod(0o700)
    run = start(
        app("absent", "no-such-program"),
        app("broken", str(broken), appPort=free_port()),
        app("failing", "sh", "-c", "exit 3"),
        app("refused", maxBodySize="many"),
        app("fine", "sh", "-c", TALKS),
    )
    await run.says("fine: ✅  You're up and running!")
    await run.says("broken: '.*/no-program' cannot be started")
    await run.says("failing: The app exited with exit status 3")
    await until(lambda: list(listed(tmp_path)) == ["fine"], lambda: f"{listed(tmp_path)} run\n{run.log}")
    assert "absent: there is no program 'no-such-program' on the PATH\n" in run.log
    assert re.search("refused: The sidecar exited with exit status", run.log)
    await run.says("== APP - fine == hello\n")
    assert await run.end(signal.SIGINT) == 1


async def test_ends_when_every_app_has_ended(start: Start) -> None:
    run = start(app("one", "sh", "-c", "echo 1"), app("two", "sh", "-c", "echo 2"))
    assert await run.end(None) == 0
    assert {"== APP - one == 1", "== APP - two == 2"} <= {*run.log.splitlines()}


async def test_second_ctrl_c_kills_all(start: Start, tmp_path: Path) -> None:
    patient = "import sys; from sidecar import cli, supervisor; supervisor.GRACE = 300.0; sys.exit(cli.main())"
    apps = [app(name, "sh", "-c", STUBBORN) for name in ("one", "two")]
    run = start(*apps, meshwire=[sys.executable, "-P", "-c", patient])
    for name in ("one", "two"):
        await run.says(rf"{name}: ✅  You're up and running!")
    run.send(signal.SIGINT)
    await until(lambda: not listed(tmp_path), lambda: "the sidecars do not end")
    assert run.runs
    assert await run.end(signal.SIGINT) == 1  # sooner than the grace


def test_a_wrong_file_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "dapr.yaml").write_text("version: 1\napps:\n- appDirPath: .\n  comand: [x]\n")
    done = meshwire(tmp_path, "run", "-f", str(tmp_path))
    told = f"meshwire run: {tmp_path}/dapr.yaml:4: apps[0].comand: unknown field, did you mean 'command'?\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", told)
    assert not (tmp_path / "home").exists()


def test_colours_on_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "dapr.yaml").write_text("version: 1\napps: [{appDirPath: ., appID: one, command: [echo, hello]}]")
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    environment["MESHWIRE_HOME"] = str(tmp_path / "home")
    process = subprocess.Popen(
        [*MESHWIRE, "run", "-f", str(tmp_path), "--app-id", "x", "--log-level=debug"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # how a terminal ends
        pass
    os.close(ours)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"\x1b[36m== APP - one ==\x1b[0m hello" in shown
    assert told.decode().splitlines() == [
        f"--{flag} has no effect with -f: the run file says it for each app" for flag in ("app-id", "log-level")
    ]
