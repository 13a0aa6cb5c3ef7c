from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sidecar.cli import main
from tests.unit.sidecar.cli.conftest import Api

pytestmark = pytest.mark.usefixtures("folder")

Running = Callable[..., object]
Start = Callable[[str], subprocess.Popen[bytes]]

ENDS = "import sys; print(flush=True); sys.stdin.read()"
STAYS = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {ENDS}"


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def begin(script: str = ENDS) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_ends_a_sidecar_that_stands_alone(start: Start, running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    target, other = start(ENDS), start(ENDS)
    running("orders", daprd_pid=target.pid)
    running("billing", daprd_pid=other.pid)
    assert main(["stop", "--app-id", "orders"]) == 0
    assert target.wait(30) == -15
    assert other.poll() is None
    assert capsys.readouterr() == (f"✅ app stopped successfully: orders (process {target.pid})\n", "")


def test_ends_the_run_process_and_leaves_the_sidecar_to_it(start: Start, running: Running) -> None:
    supervisor, below = start(ENDS), start(ENDS)
    running("orders", daprd_pid=below.pid, cli_pid=supervisor.pid)
    assert main(["stop", "-a", "orders", "--timeout", "0.3"]) == 1  # nobody passes the signal on here
    assert supervisor.wait(30) == -15
    assert below.poll() is None


def test_a_sidecar_whose_run_process_is_gone(start: Start, running: Running) -> None:
    supervisor, below = start(ENDS), start(ENDS)
    supervisor.kill()
    supervisor.wait(30)
    running("orders", daprd_pid=below.pid, cli_pid=supervisor.pid)
    assert main(["stop", "-a", "orders"]) == 0
    assert below.wait(30) == -15


def test_of_several_apps_under_one_run_process_only_the_sidecar_is_signalled(start: Start, running: Running) -> None:
    supervisor, orders, billing = (start(ENDS) for _ in range(3))
    running("orders", daprd_pid=orders.pid, cli_pid=supervisor.pid)
    running("billing", daprd_pid=billing.pid, cli_pid=supervisor.pid)
    assert main(["stop", "-a", "orders"]) == 0
    assert orders.wait(30) == -15
    assert supervisor.poll() is billing.poll() is None


def test_apps_of_a_run_file_are_ended_by_one_signal(
    start: Start,
    running: Running,
    api: Api,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second one would kill."""
    supervisor = start(ENDS)
    file = tmp_path / "dapr.yaml"
    api.status, api.body = 200, json.dumps({"extended": {"runTemplatePath": str(file)}}).encode()
    for app_id in ("orders", "billing"):
        running(app_id, http_port=api.port, daprd_pid=supervisor.pid, cli_pid=supervisor.pid)
    sent: list[int] = []
    kill = os.kill
    monkeypatch.setattr("os.kill", lambda pid, number: (sent.append(number), kill(pid, number)))
    assert main(["stop", "-f", str(file)]) == 0
    assert sent.count(signal.SIGTERM) == 1
    assert supervisor.wait(30) == -15
    assert capsys.readouterr().out.count("✅") == 2
    monkeypatch.chdir(tmp_path)  # a long path would be shown shortened
    assert main(["stop", "-f", "other.yaml"]) == 1
    assert "other.yaml: no app of this run file runs in mesh 'default'" in capsys.readouterr().err


def test_ends_all_replicas_and_several_apps(start: Start, running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    processes = [start(ENDS) for _ in range(3)]
    for app_id, process in zip(("orders", "orders", "billing"), processes, strict=True):
        running(app_id, daprd_pid=process.pid)
    assert main(["stop", "-a", "orders", "-a", "billing", "-a", "orders"]) == 0
    assert [process.wait(30) for process in processes] == [-15] * 3
    assert capsys.readouterr().out.count("✅") == 3


def test_one_that_does_not_run_fails_but_the_others_are_stopped(
    start: Start, running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    target = start(ENDS)
    running("orders", daprd_pid=target.pid)
    assert main(["stop", "-a", "nobody", "-a", "orders"]) == 1
    assert target.wait(30) == -15
    assert capsys.readouterr().err == "❌ nobody: no such app runs in mesh 'default' (see: meshwire list)\n"


def test_one_that_stays_is_told(start: Start, running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    target = start(STAYS)
    running("orders", daprd_pid=target.pid)
    assert main(["stop", "-a", "orders", "--timeout", "0.2"]) == 1
    assert capsys.readouterr() == ("", f"❌ orders (process {target.pid}) still runs after 0.2 s\n")


@pytest.mark.parametrize("words", [[], ["--app-id"], ["-a", "x", "--timeout", "soon"]])
def test_wrong_use(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1
