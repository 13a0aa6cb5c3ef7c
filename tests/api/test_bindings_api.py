"""The bindings API, answer by answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from mesh.bindings.component import BindingComponent
from mesh.bindings.output import Outputs
from mesh.errors import ConfigurationError
from mesh.ports.bindings import BindingError, InvalidOperation, Invocation, Result
from mesh.ports.stores import StoreUnavailable
from mesh.resiliency.targets import Resiliency
from mesh.resources import load
from sidecar.api.bindings import BindingsApi
from sidecar.http.responses import CatchErrors
from sidecar.http.routing import Router
from sidecar.http.server import HttpServer
from tests.api.conftest import Api, Start
from tests.e2e.mesh import JSON, Answer, call
from tests.virtual_clock import VirtualClock

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Recorder:
    """An output binding that does what the test says."""

    operations = ("create", "get")

    def __init__(self) -> None:
        self.asked: list[Invocation] = []
        self.outcome: Callable[[], Result] = Result

    async def start(self) -> None: ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...

    async def invoke(self, invocation: Invocation) -> Result:
        self.asked.append(invocation)
        return self.outcome()

    def fail(self, error: Exception) -> None:
        def outcome() -> Result:
            raise error

        self.outcome = outcome


class BindingServer:
    def __init__(self, output: Recorder, resiliency: Resiliency | None = None) -> None:
        component = BindingComponent(name="out", input=None, output=output, route="/out", ask=True)
        source = BindingComponent(name="in", input=None, output=None, route="/in", ask=True)
        outputs = Outputs(
            {"out": component, "in": source}, resiliency=resiliency or Resiliency([], clock=VirtualClock())
        )
        router = Router()
        BindingsApi(outputs, 4096).add_to(router)
        self._server = HttpServer(CatchErrors(router))

    async def __aenter__(self) -> BindingServer:
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        async with asyncio.timeout(30):
            await self._server.stop(5)

    async def invoke(self, body: object, *headers: tuple[str, str], name: str = "out", method: str = "POST") -> Answer:
        assert self._server.port
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await call(self._server.port, method, f"/v1.0/bindings/{name}", [JSON, *headers], content)


@pytest.fixture
def output() -> Recorder:
    return Recorder()


@pytest.fixture
async def server(output: Recorder) -> AsyncIterator[BindingServer]:
    async with BindingServer(output) as server:
        yield server


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_an_invocation_without_a_response(server: BindingServer, output: Recorder, method: str) -> None:
    answer = await server.invoke({"operation": "create", "metadata": {"key": "k"}}, method=method)
    assert (answer.status, answer.body) == (204, b"")
    assert output.asked == [Invocation(operation="create", data=b"", metadata={"key": "k"})]


async def test_a_response_is_called_json_whatever_it_is(server: BindingServer, output: Recorder) -> None:
    output.outcome = lambda: Result(data=b"\xff", metadata={"ETag": "a\r\nb", "no token": "1"}, content_type="x/y")
    answer = await server.invoke({"operation": "get"})
    assert (answer.status, answer.body, answer.headers["content-type"]) == (200, b"\xff", "application/json")
    assert answer.headers["metadata.etag"] == "a%0D%0Ab"
    assert not any("token" in name for name in answer.headers)


async def test_an_empty_response(server: BindingServer, output: Recorder) -> None:
    output.outcome = lambda: Result(data=b"")
    answer = await server.invoke({"operation": "get"})
    assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize(
    ("text", "data"),
    [
        (b'"x"', b'"x"'),
        (b"null", b"null"),
        (b'{"b": 1.0, "a":\n[12345678901234567890]}', b'{"b":1.0,"a":[12345678901234567890]}'),
        (b' "\\u00fc" ', b'"\\u00fc"'),
    ],
)
async def test_data_is_json(server: BindingServer, output: Recorder, text: bytes, data: bytes) -> None:
    """A string keeps its quotes (Dapr)."""
    answer = await server.invoke(b'{"Operation": "create", "DATA": ' + text + b"}")
    assert answer.status == 204, answer
    assert output.asked[0].data == data


async def test_the_component_is_told_of_the_trace(server: BindingServer, output: Recorder) -> None:
    answer = await server.invoke(
        {"operation": "create", "metadata": {"traceparent": "mine", "a": "b"}},
        ("traceparent", TRACE),
        ("tracestate", "v=1"),
        ("baggage", "k=v"),
    )
    trace = {"traceparent": TRACE, "tracestate": "v=1", "baggage": "k=v"}
    assert output.asked[0].metadata == {"a": "b"} | trace
    assert answer.headers.items() >= trace.items()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "failed deserializing HTTP body: the body"),
        (b"{", "failed deserializing HTTP body"),
        (b"[]", "failed deserializing HTTP body"),
        (b'{"operation": 1}', "failed deserializing HTTP body"),
        (b'{"operation": "get", "metadata": {"a": 1}}', "failed deserializing HTTP body"),
        (b'{"operation": "get", "data": "\xff"}', "failed deserializing HTTP body: JSON must be UTF-8"),
    ],
)
async def test_a_body_that_cannot_be_read(server: BindingServer, output: Recorder, body: bytes, message: str) -> None:
    answer = await server.invoke(body)
    assert (answer.status, answer.json["errorCode"]) == (400, "ERR_MALFORMED_REQUEST")
    assert answer.json["message"].startswith(message)
    assert output.asked == []


async def test_baggage_that_cannot_be_read(server: BindingServer) -> None:
    answer = await server.invoke({"operation": "get"}, ("baggage", "=="))
    assert (answer.status, answer.json["errorCode"]) == (400, "ERR_MALFORMED_REQUEST")
    assert answer.json["message"].startswith("invalid baggage header: ")


@pytest.mark.parametrize(
    ("name", "body", "cause"),
    [
        ("out", {}, "operation field is missing from request"),
        ("none", {"operation": "get"}, "couldn't find output binding none"),
        ("in", {"operation": "get"}, "couldn't find output binding in"),
        (
            "out",
            {"operation": "Get"},
            "binding out does not support operation Get. supported operations:create get",
        ),
    ],
)
async def test_what_cannot_be_invoked(server: BindingServer, name: str, body: Any, cause: str) -> None:
    answer = await server.invoke(body, name=name)
    assert answer.status == 500
    assert answer.json == {
        "errorCode": "ERR_INVOKE_OUTPUT_BINDING",
        "message": f"error invoking output binding {name}: {cause}",
    }


async def test_a_failure_has_metadata_too(server: BindingServer, output: Recorder) -> None:
    output.fail(BindingError("received status code 404", {"statusCode": "404"}))
    answer = await server.invoke({"operation": "get"})
    assert (answer.status, answer.headers["metadata.statuscode"]) == (500, "404")
    assert answer.json["message"] == "error invoking output binding out: received status code 404"


RETRIES = """
apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: {name: r}
spec:
  policies: {retries: {twice: {policy: constant, duration: 1ms, maxRetries: 2}}}
  targets: {components: {out: {outbound: {retry: twice}}}}
"""


@pytest.mark.parametrize(
    ("error", "attempts"), [(StoreUnavailable("down"), 3), (BindingError("no"), 3), (InvalidOperation("never"), 1)]
)
async def test_invocations_are_under_policies(tmp_path: Any, error: Exception, attempts: int) -> None:
    (tmp_path / "r.yaml").write_text(RETRIES)
    manifests = load([tmp_path], app_id="app1", namespace="", environ={}).resiliency
    output, clock = Recorder(), VirtualClock()
    output.fail(error)
    async with BindingServer(output, Resiliency(manifests, clock=clock)) as server:
        asking = asyncio.create_task(server.invoke({"operation": "get"}))
        while not asking.done():
            await asyncio.sleep(0.001)
            await clock.advance(0.01)
        assert asking.result().status == 500
    assert len(output.asked) == attempts


async def test_in_a_whole_sidecar(start: Start) -> None:
    api = await start()
    answer = await api.call("POST", "/v1.0/bindings/none", [JSON], b'{"operation": "get"}')
    assert (answer.status, answer.json["errorCode"]) == (500, "ERR_INVOKE_OUTPUT_BINDING")


HOSTED = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: queue}
auth: {secretStore: vault of the host}
spec:
  type: bindings.http
  version: v1
  metadata:
    - {name: url, secretKeyRef: {name: address}}
    - {name: hostedBy, value: HOST}
    - {name: hostedFor, value: app1}
"""


async def test_one_that_another_app_hosts_needs_nothing_here(start: Start, tmp_path: Path) -> None:
    """Neither its settings nor its secrets."""
    (tmp_path / "queue.yaml").write_text(HOSTED.replace("HOST", "billing"))
    api = await start(f"--resources-path={tmp_path}")
    answer = await api.call("POST", "/v1.0/bindings/queue", [JSON], b'{"operation": "get"}')
    assert (answer.status, answer.json["errorCode"]) == (500, "ERR_INVOKE_OUTPUT_BINDING")
    assert answer.json["message"].startswith(
        "error invoking output binding queue: app billing hosts it, and no sidecar of it takes the call"
    )
    metadata = (await api.call("GET", "/v1.0/metadata")).json["components"]
    assert next(one for one in metadata if one["name"] == "queue")["capabilities"] == ["OUTPUT_BINDING"]


async def test_at_its_host_it_needs_all(tmp_path: Path) -> None:
    (tmp_path / "queue.yaml").write_text(HOSTED.replace("HOST", "app1"))
    with pytest.raises(ConfigurationError, match="no secret store 'vault of the host'"):
        await Api(f"--resources-path={tmp_path}").running
