from __future__ import annotations

import json
import re
import time
from collections.abc import Callable

import pytest
import yaml

from sidecar.cli import list as list_command
from sidecar.cli import main
from tests.unit.sidecar.cli.conftest import Api

pytestmark = pytest.mark.usefixtures("folder")

Running = Callable[..., object]


@pytest.fixture
def answering(api: Api) -> Api:
    api.status = 200
    extended = {"appCommand": "python app.py", "appPID": "77", "cliPID": "78", "daprRuntimeVersion": "1"}
    api.body = json.dumps({"id": "orders", "extended": extended, "actors": []}).encode()
    return api


def test_json_has_the_members_of_dapr_list(
    answering: Api, running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    running("orders", http_port=answering.port, app_port=6001, daprd_pid=79, created=time.time() - 125)
    assert main(["list", "-o", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d\.\d\d", row.pop("created"))
    assert row == {
        "appId": "orders",
        "httpPort": answering.port,
        "grpcPort": 0,
        "appPort": 6001,
        "command": "python app.py",
        "age": "2m",
        "daprdPid": 79,
        "cliPid": 78,
        "appPid": 77,
        "status": "running",
    }


def test_yaml_says_the_same(answering: Api, running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    running("orders", http_port=answering.port, created=1.0)
    assert main(["list", "-o", "json"]) == main(["list", "--output", "yaml"]) == 0
    out = capsys.readouterr().out
    as_json, end = json.JSONDecoder().raw_decode(out)
    assert yaml.safe_load(out[end:]) == as_json


def test_table(answering: Api, running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    running("orders", http_port=answering.port, cli_pid=5)
    assert main(["list"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "APP ID"
    assert row.startswith(f"orders  {answering.port}")
    assert "python app.py" in row
    assert row.index("running") == head.index("STATUS")


def test_what_came_from_a_run_file(api: Api, running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    running("orders", http_port=api.port)
    extended = {"runTemplatePath": "/x/dapr.yaml", "runTemplateName": "shop", "appLogPath": "/a", "daprdLogPath": "/d"}
    api.status, api.body = 200, json.dumps({"extended": extended}).encode()
    assert main(["list", "-o", "json"]) == main(["list"]) == 0
    out = capsys.readouterr().out
    (row,), end = json.JSONDecoder().raw_decode(out)
    assert {name: row[name] for name in extended} == extended
    head, line = out[end:].strip().splitlines()
    assert head.endswith("RUN TEMPLATE  RUN TEMPLATE PATH")
    assert line.endswith("shop          /x/dapr.yaml")


def test_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert capsys.readouterr() == ("", "No sidecar runs in mesh 'default'.\n")
    assert main(["list", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (401, b"invalid api token\n", "refuses: invalid api token (401); set DAPR_API_TOKEN"),
        (200, b"hello", "answers, but not as a sidecar does"),
    ],
)
def test_a_sidecar_that_tells_nothing_is_shown_as_such(
    api: Api, running: Running, capsys: pytest.CaptureFixture[str], status: int, body: bytes, told: str
) -> None:
    api.status, api.body = status, body
    running("orders", http_port=api.port)
    assert main(["list", "-o", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["status"].startswith(told)
    assert row["appId"] == "orders"


def test_stuck_sidecars_hold_up_neither_the_list_nor_each_other(
    api: Api, running: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(list_command, "TIMEOUT", 0.5)
    api.dribble.set()
    for number in range(8):
        running(f"app{number}", http_port=api.port)
    began = time.monotonic()
    assert main(["list", "-o", "json"]) == 0
    assert time.monotonic() - began < 8 * list_command.TIMEOUT
    rows = json.loads(capsys.readouterr().out)
    assert [row["appId"] for row in rows] == [f"app{number}" for number in range(8)]
    assert {row["status"].split(":")[0] for row in rows} == {"does not answer"}


def test_the_mesh_is_chosen(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    running("orders")
    assert main(["list", "--mesh", "other"]) == 0
    assert "mesh 'other'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(-1, "0s"), (0, "0s"), (59.9, "59s"), (60, "1m"), (3600, "1h"), (86399, "23h"), (200000, "2d")],
)
def test_age(seconds: float, told: str) -> None:
    assert list_command.age(seconds) == told
