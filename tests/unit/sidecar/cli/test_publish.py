from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from sidecar.cli import main, publish
from tests.unit.sidecar.cli.conftest import Api

pytestmark = pytest.mark.usefixtures("folder")

Running = Callable[..., object]


def test_goes_through_the_only_sidecar_there_is(api: Api, running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    running("orders", http_port=api.port)
    assert main(["publish", "--topic", "A", "--data", '{"status": "completed"}']) == 0
    assert capsys.readouterr() == ("✅ Event published successfully\n", "")
    (request,) = api.requests
    assert (request.method, request.path, request.body) == (
        "POST",
        "/v1.0/publish/pubsub/A",
        b'{"status": "completed"}',
    )
    assert request.headers["content-type"] == "application/json"
    assert "dapr-api-token" not in request.headers


EVENT = '{"id": "1", "source": "/s", "specversion": "1.0", "type": "t", "data": 1}'


@pytest.mark.parametrize(
    ("payload", "content_type"),
    [
        (EVENT.encode(), "application/cloudevents+json"),
        (EVENT.replace("data", "date").encode(), "application/json"),
        (b"[1, 2]", "application/json"),
        (b'"text"', "application/json"),
        ("grüße".encode(), "text/plain"),
        (b"{broken", "text/plain"),
        (b"", "text/plain"),
        (b"\x00\xff", "application/octet-stream"),
    ],
)
def test_the_payload_tells_its_content_type(
    api: Api, running: Running, tmp_path: Path, payload: bytes, content_type: str
) -> None:
    running("orders", http_port=api.port)
    file = tmp_path / "payload"
    file.write_bytes(payload)
    assert main(["publish", "-t", "A", "-f", str(file)]) == 0
    assert (api.requests[0].headers["content-type"], api.requests[0].body) == (content_type, payload)


def test_reads_stdin(api: Api, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    running("orders", http_port=api.port)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"piped")))
    assert main(["publish", "-t", "A", "-f", "-"]) == 0
    assert api.requests[0].body == b"piped"


def test_names_and_metadata_are_encoded(api: Api, running: Running) -> None:
    running("orders", http_port=api.port)
    metadata = '{"ttlInSeconds": 60, "rawPayload": true, "cloudevent.type": "a&b c"}'
    assert main(["publish", "-p", "my pubsub", "-t", "a/b?c#d%ü", "-m", metadata]) == 0
    assert api.requests[0].path == (
        "/v1.0/publish/my%20pubsub/a%2Fb%3Fc%23d%25%C3%BC"
        "?metadata.ttlInSeconds=60&metadata.rawPayload=true&metadata.cloudevent.type=a%26b%20c"
    )


def test_the_token_is_sent(api: Api, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    running("orders", http_port=api.port)
    monkeypatch.setenv("DAPR_API_TOKEN", "secret")
    assert main(["publish", "-t", "A"]) == 0
    assert api.requests[0].headers["dapr-api-token"] == "secret"


def test_an_app_id_picks_its_newest_sidecar(api: Api, running: Running) -> None:
    running("orders", http_port=1)
    running("orders", http_port=api.port)
    running("billing", http_port=2)
    assert main(["publish", "-i", "orders", "-t", "A"]) == 0
    assert len(api.requests) == 1


def test_a_port_needs_no_registry(api: Api, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    running("orders", http_port=1)
    assert main(["publish", "--dapr-http-port", str(api.port), "-t", "A"]) == 0
    monkeypatch.setenv("DAPR_HTTP_PORT", str(api.port))
    assert main(["publish", "-t", "A"]) == 0
    assert len(api.requests) == 2
    running("billing", http_port=api.port)
    monkeypatch.setenv("DAPR_HTTP_PORT", "2")
    assert main(["publish", "-i", "billing", "-t", "A"]) == 0


def test_a_unix_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, running: Running) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path may have 108 bytes at most
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("dapr-orders-http.socket")
        listening.listen()
        heard: list[bytes] = []

        def answer() -> None:
            for _ in range(2):
                caller = listening.accept()[0]
                with caller:
                    heard.append(caller.recv(65536))
                    caller.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

        answering = threading.Thread(target=answer)
        answering.start()
        assert main(["publish", "-u", ".", "-i", "orders", "-t", "A"]) == 0
        running("orders", http_port=None, socket="dapr-orders-http.socket")
        assert main(["publish", "-t", "A"]) == 0
        answering.join(30)
    assert all(request.startswith(b"POST /v1.0/publish/pubsub/A HTTP/1.1\r\nHost: localhost\r\n") for request in heard)


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (
            404,
            json.dumps({"errorCode": "ERR_PUBSUB_NOT_FOUND", "message": "pubsub x is not found", "details": []}),
            "pubsub x is not found (404 ERR_PUBSUB_NOT_FOUND)",
        ),
        (401, "invalid api token\n", "invalid api token (401); set DAPR_API_TOKEN to the token of the sidecar"),
        (502, "", "Bad Gateway (502)"),
        (302, "[]", "[] (302)"),
    ],
)
def test_a_refusal_is_told(
    api: Api, running: Running, capsys: pytest.CaptureFixture[str], status: int, body: str, told: str
) -> None:
    running("orders", http_port=api.port)
    api.status, api.body = status, body.encode()
    assert main(["publish", "-t", "A"]) == 1
    assert capsys.readouterr() == ("", f"meshwire publish: not published: {told}\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "the following arguments are required: --topic/-t"),
        (["-t", "A", "-d", "x", "-f", "y"], "not allowed with argument"),
        (["-t", "A", "-i", "x", "--dapr-http-port", "1"], "not allowed with argument"),
        (["-t", "A", "--dapr-http-port", "65536"], "'65536' is no port (1 to 65535)"),
        (["-t", "A", "-m", "[1]"], "--metadata must be a JSON object of plain values: Expected `object`, got `array`"),
        (["-t", "A", "-m", '{"a": {}}'], "--metadata must be a JSON object of plain values"),
        (["-t", "A", "-m", "a=b"], "--metadata must be a JSON object of plain values"),
        (["-t", "A", "-u", "/tmp"], "--unix-domain-socket needs --publish-app-id"),
    ],
)
def test_wrong_use(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_no_sidecar(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", "-t", "A"]) == 1
    assert "no sidecar runs in mesh 'default'; start one with: meshwire run" in capsys.readouterr().err
    running("orders")
    assert main(["publish", "-t", "A", "-i", "other"]) == 1
    assert "no sidecar of app id 'other' runs in mesh 'default' (running: orders)" in capsys.readouterr().err
    running("billing")
    assert main(["publish", "-t", "A"]) == 1
    assert "several apps run here (billing, orders); name one with --publish-app-id" in capsys.readouterr().err


def test_a_missing_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", "-t", "A", "-f", "/no/such/file"]) == 1
    assert capsys.readouterr().err == "meshwire publish: No such file or directory: /no/such/file\n"


def test_a_bad_port_in_the_environment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DAPR_HTTP_PORT", "many")
    assert main(["publish", "-t", "A"]) == 1
    assert capsys.readouterr().err == "meshwire publish: DAPR_HTTP_PORT: 'many' is no port (1 to 65535)\n"


def test_nobody_listens(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as bound:  # bound and not listening: nobody else can take the port
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        running("orders", http_port=port)
        assert main(["publish", "-t", "A"]) == 1
    assert f"nothing answers at 127.0.0.1:{port}: Connection refused" in capsys.readouterr().err


def test_an_answer_that_dribbles_is_given_up(
    api: Api, running: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "TIMEOUT", 0.3)
    api.dribble.set()
    running("orders", http_port=api.port)
    assert main(["publish", "-t", "A"]) == 1
    assert f"no answer within 0.3 s from the sidecar at 127.0.0.1:{api.port}" in capsys.readouterr().err


def test_an_answer_that_breaks_off(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def hang_up() -> None:
            caller = listening.accept()[0]
            caller.recv(65536)
            caller.close()

        hanging = threading.Thread(target=hang_up)
        hanging.start()
        running("orders", http_port=port)
        assert main(["publish", "-t", "A"]) == 1
        hanging.join(30)
    assert f"the answer of the sidecar at 127.0.0.1:{port} broke off" in capsys.readouterr().err
