from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar import logs
from sidecar.http.api_log import ApiLog


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    for handler in before:
        root.removeHandler(handler)
    yield tmp_path / "log"
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    for handler in before:
        root.addHandler(handler)
    root.setLevel(level)


def test_scopes_do_not_depend_on_where_a_module_is() -> None:
    """What users filter logs by must survive that a module is moved."""
    root = Path(__file__).parents[3]
    named = {
        name
        for folder in ("mesh", "brokers", "bindings", "sidecar")
        for module in (root / folder).rglob("*.py")
        for name in re.findall(r"getLogger\(([^)]+)\)", module.read_text())
    }
    ours = {name for name in named if name.startswith('"meshwire.')}
    assert named - ours == {'"dapr.runtime.http-info"', "library"}
    assert len(ours) > 5


def test_text_lines_have_daprs_fields_in_their_order(log_file: Path) -> None:
    logs.configure("shop", "info", as_json=False, file=log_file)
    logging.getLogger("meshwire.x").info('he said "%s"', "hi")
    logging.getLogger("meshwire.x").debug("not shown")
    (line,) = log_file.read_text().splitlines()
    assert line.startswith('time="20')
    assert ' level=info msg="he said \\"hi\\"" app_id=shop instance=' in line
    assert " scope=meshwire.x type=log ver=" in line


def test_json_lines_hold_one_event_each(log_file: Path) -> None:
    logs.configure("shop", "debug", as_json=True, file=log_file)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("meshwire.x").exception("failed")
    (line,) = log_file.read_text().splitlines()
    event = json.loads(line)
    assert (event["level"], event["app_id"], event["type"]) == ("error", "shop", "log")
    assert "ValueError: two\nlines" in event["msg"]


async def test_api_calls_are_logged_without_their_query(log_file: Path) -> None:
    logs.configure("shop", "info", as_json=True, file=log_file)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b"abc"})

    async def nothing(*_: Any) -> None:
        return None

    scope = {
        "method": "POST",
        "raw_path": b"/v1.0/publish/a/b",
        "query_string": b"metadata.secret=1",
        "headers": [(b"user-agent", b"me/1")],
    }
    await ApiLog(app)(scope, nothing, nothing)
    event = json.loads(log_file.read_text())
    assert (
        event.items()
        >= {
            "msg": "HTTP API Called",
            "method": "POST /v1.0/publish/a/b",
            "useragent": "me/1",
            "code": 204,
            "size": 3,
        }.items()
    )
    assert "secret" not in log_file.read_text()


@pytest.mark.parametrize("level", ["info", "debug"])
def test_libraries_say_nothing_by_themselves(log_file: Path, level: str) -> None:
    """Our connections say it in one line; at DEBUG aiokafka would show the password that signs in."""
    logs.configure("shop", level, as_json=False, file=log_file)
    for library in ("nats.aio.client", "aiokafka.conn"):
        logging.getLogger(library).error("Unable connect to node")
        logging.getLogger(library).debug("Request: SaslAuthenticateRequest(password)")
    assert log_file.read_text() == ""
