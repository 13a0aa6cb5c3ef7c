from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.cli import api as cli_api
from sidecar.cli import main
from tests.unit.sidecar.cli.conftest import Api

pytestmark = pytest.mark.usefixtures("folder")

Running = Callable[..., object]


@pytest.fixture
def through(api: Api, running: Running) -> Api:
    running("orders", http_port=api.port)
    api.status, api.body = 200, b"\x00answer"
    return api


def test_body_goes_to_stdout_as_it_came(through: Api, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["invoke", "-a", "orders", "-m", "/a/b?c=d e&f=%2F", "-d", '{"a": 1}']) == 0
    assert capfdbinary.readouterr().out == b"\x00answer"
    (request,) = through.requests
    assert (request.method, request.path) == ("POST", "/v1.0/invoke/orders/method/a/b?c=d%20e&f=%2F")
    assert (request.body, request.headers["content-type"]) == (b'{"a": 1}', "application/json")


def test_an_answer_that_is_too_long_is_not_cut_short(
    through: Api, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_api, "LONGEST_ANSWER", 1 << 20)
    through.body = b"x" * (1 << 20)
    assert main(["invoke", "-a", "orders", "-m", "x"]) == 0
    assert len(capfd.readouterr().out) == 1 << 20
    through.body += b"x"
    assert main(["invoke", "-a", "orders", "-m", "x"]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert "is longer than 1 MiB" in err


def test_text_is_told_from_json(through: Api) -> None:
    assert main(["invoke", "-a", "orders", "-m", "x", "-d", "two words"]) == 0
    assert through.requests[0].headers["content-type"] == "text/plain"


def test_verb_and_no_body(through: Api) -> None:
    assert main(["invoke", "-a", "orders", "-m", "status", "-v", "get"]) == 0
    (request,) = through.requests
    assert (request.method, request.body) == ("GET", b"")
    assert "content-type" not in request.headers


@pytest.mark.parametrize("from_stdin", [True, False])
def test_body_from_a_file(through: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, from_stdin: bool) -> None:
    file = tmp_path / "body"
    file.write_bytes(b"\xff\x00")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\x00")))
    assert main(["invoke", "-a", "orders", "-m", "x", "-f", "-" if from_stdin else str(file)]) == 0
    assert through.requests[0].body == b"\xff\x00"
    assert through.requests[0].headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(("status", "code"), [(200, 0), (204, 0), (304, 0), (399, 0), (400, 1), (404, 1), (503, 1)])
def test_exit_code_by_status(through: Api, capfdbinary: pytest.CaptureFixture[bytes], status: int, code: int) -> None:
    through.status = status
    through.body = b"" if status in (204, 304) else b'{"errorCode": "ERR_X", "message": "it is so"}'
    assert main(["invoke", "-a", "orders", "-m", "x"]) == code
    out, err = capfdbinary.readouterr()
    if code:
        assert out == b""
        assert err == b"meshwire invoke: orders: it is so (%d ERR_X)\n" % status


def test_the_sidecar_of_the_app_itself_is_preferred(through: Api, running: Running) -> None:
    running("other", http_port=1)
    assert main(["invoke", "-a", "orders", "-m", "x"]) == 0


def test_an_app_elsewhere_is_called_through_any_sidecar(through: Api) -> None:
    assert main(["invoke", "-a", "far/away", "-m", "x"]) == 0
    assert through.requests[0].path == "/v1.0/invoke/far%2Faway/method/x"


def test_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["invoke", "-a", "orders", "-m", "x"]) == 1
    assert "no sidecar runs in mesh 'default' to call through; start one" in capsys.readouterr().err


def test_socket_is_the_one_of_the_app(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["invoke", "-a", "orders", "-m", "x", "-u", str(tmp_path)]) == 1
    assert f"nothing answers at {tmp_path}/dapr-orders-http.socket" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["GET /x", "", "G\r\nET"])
def test_a_verb_that_is_none(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["invoke", "-a", "orders", "-m", "x", "-v", verb]) == 2
    assert "is no HTTP verb" in capsys.readouterr().err
