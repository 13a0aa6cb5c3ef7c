"""Output bindings that another app hosts, between apps of one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from brokers.memory_requests import MemoryExchange, MemoryRequests
from mesh import addressing, persistence
from mesh.bindings import hosting
from mesh.bindings.component import BindingComponent
from mesh.bindings.hosting import Guest, Host
from mesh.bindings.output import OutputFailed, Outputs
from mesh.clock import SystemClock
from mesh.errors import BrokerError
from mesh.ports import NoResponder, Peer, Request, RequestHandler, Server
from mesh.ports.bindings import BindingError, InvalidOperation, Invocation, Result
from mesh.ports.stores import StoreUnavailable
from mesh.resiliency.targets import Resiliency
from mesh.resources import load

BILLING, SHOP = Peer("default", "billing"), Peer("default", "shop")
CREATE = Invocation(operation="create", data=b'"x"', metadata={"fileName": "ä.txt", "Zwei": "a\r\nb"})


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


def local(output: Recorder, *hosted_for: str) -> BindingComponent:
    return BindingComponent(name="files", input=None, output=output, route="/", ask=False, hosted_for=hosted_for)


def remote(host: str = "billing") -> BindingComponent:
    return BindingComponent(name="files", input=None, output=None, route="/", ask=False, host=host)


class Mesh:
    """Apps of one process."""

    def __init__(self) -> None:
        self.exchange = MemoryExchange()

    def requests(self, me: Peer) -> MemoryRequests:
        return MemoryRequests(self.exchange, me)

    @asynccontextmanager
    async def host(
        self, component: BindingComponent, *, beside: BindingComponent | None = None, limit: int = 0
    ) -> AsyncIterator[Host]:
        me, components = BILLING, {one.name: one for one in (component, beside) if one is not None}
        host = Host(me, components, self.requests(me), SystemClock(), max_body_size=limit)
        host.start()
        host.attach(component)
        async with asyncio.timeout(30):
            while component.hosted_for and (addressing.bindings_host(me), "") not in self.exchange.servers:
                await asyncio.sleep(0)
        try:
            yield host
        finally:
            await host.close()

    def outputs(self, me: Peer = SHOP, host: str = "billing", resiliency: Resiliency | None = None) -> Outputs:
        policies = resiliency or Resiliency([], clock=SystemClock())
        return Outputs({"files": remote(host)}, resiliency=policies, elsewhere=Guest(me, self.requests(me)).call)


@pytest.fixture
def mesh() -> Mesh:
    return Mesh()


@pytest.fixture
def output() -> Recorder:
    return Recorder()


async def failure(outputs: Outputs, invocation: Invocation = CREATE, name: str = "files") -> str:
    with pytest.raises(OutputFailed) as caught:
        await outputs.invoke(name, invocation)
    prefix = f"error invoking output binding {name}: "
    assert str(caught.value).startswith(prefix)
    return str(caught.value).removeprefix(prefix)


async def test_a_call_and_its_answer(mesh: Mesh, output: Recorder) -> None:
    answer = Result(data=b"\x00\xff", metadata={"Location": "/ä", "b": "1\n2"}, content_type="text/plain")
    output.outcome = lambda: answer
    async with mesh.host(local(output, "shop")):
        assert await mesh.outputs().invoke("files", CREATE) == answer
    assert output.asked == [CREATE]


async def test_no_answer_and_an_empty_one(mesh: Mesh, output: Recorder) -> None:
    async with mesh.host(local(output, "*")):
        assert (await mesh.outputs().invoke("files", CREATE)).data is None
        output.outcome = lambda: Result(data=b"")
        assert (await mesh.outputs().invoke("files", CREATE)).data == b""


@pytest.mark.parametrize(
    "error",
    [
        BindingError("received status code 404", {"statusCode": "404"}),
        InvalidOperation("fileName is missing", {"a": "b"}),
        StoreUnavailable("the disk is away"),
    ],
)
async def test_failures_are_those_of_the_binding(mesh: Mesh, output: Recorder, error: Exception) -> None:
    output.fail(error)
    async with mesh.host(local(output, "shop")):
        with pytest.raises(type(error)) as caught:
            await Guest(SHOP, mesh.requests(SHOP)).call("billing", "files", CREATE)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    assert getattr(caught.value, "metadata", {}) == getattr(error, "metadata", {})


@pytest.mark.parametrize(
    ("hosted_for", "caller", "served"),
    [
        (("shop",), SHOP, True),
        (("stock", "shop"), SHOP, True),
        (("*",), SHOP, True),
        (("stock",), SHOP, False),
        (("Shop",), SHOP, False),
        (("shop",), Peer("test", "shop"), False),
        (("*",), Peer("test", "shop"), False),
        (("shop.test",), Peer("test", "shop"), True),
        (("shop.test",), SHOP, False),
        (("shop.default",), SHOP, True),
    ],
)
async def test_who_may_call(
    mesh: Mesh, output: Recorder, hosted_for: tuple[str, ...], caller: Peer, served: bool
) -> None:
    async with mesh.host(local(output, *hosted_for)):
        outputs = mesh.outputs(caller, "billing.default")
        if served:
            await outputs.invoke("files", CREATE)
        else:
            found = await failure(outputs)
            assert found.startswith("app shop")
            assert found.endswith("may not call it: its hostedFor at app billing does not say so")
    assert bool(output.asked) is served


async def test_nobody_hosts_it(mesh: Mesh, output: Recorder) -> None:
    async with mesh.host(local(output)):  # for nobody
        found = await failure(mesh.outputs())
        assert found.startswith("app billing hosts it, and no sidecar of it takes the call; does one run")
    assert not output.asked


async def test_what_the_host_does_not_have(mesh: Mesh, output: Recorder) -> None:
    async with mesh.host(local(output, "shop")):
        outputs = Outputs(
            {"mail": remote()},
            resiliency=Resiliency([], clock=SystemClock()),
            elsewhere=Guest(SHOP, mesh.requests(SHOP)).call,
        )
        assert await failure(outputs, name="mail") == "app billing hosts no output binding mail"
        found = await failure(mesh.outputs(), Invocation(operation="list/ä"))
        assert found == "binding files does not support operation list/ä. supported operations:create get"
        assert await failure(mesh.outputs(), Invocation(operation="")) == "operation field is missing from request"


async def test_what_is_hosted_for_nobody_is_not_even_known(mesh: Mesh, output: Recorder) -> None:
    """While the app hosts something else."""
    own = BindingComponent(name="mail", input=None, output=output, route="/", ask=False)
    async with mesh.host(local(output, "shop"), beside=own):
        outputs = Outputs(
            {"mail": remote()},
            resiliency=Resiliency([], clock=SystemClock()),
            elsewhere=Guest(SHOP, mesh.requests(SHOP)).call,
        )
        assert await failure(outputs, name="mail") == "app billing hosts no output binding mail"
    assert not output.asked


async def test_a_host_passes_nothing_on(mesh: Mesh) -> None:
    """What it does not have itself it does not host: no circles."""
    async with mesh.host(hosted(remote("shop"), "*")):
        assert await failure(mesh.outputs()) == "app billing hosts no output binding files"


def hosted(component: BindingComponent, *hosted_for: str) -> BindingComponent:
    return BindingComponent(
        name=component.name, input=None, output=None, route="/", ask=False, host=component.host, hosted_for=hosted_for
    )


async def test_no_app_is_called_and_no_invocation_gets_there(mesh: Mesh, output: Recorder) -> None:
    async with mesh.host(local(output, "shop")):
        with pytest.raises(NoResponder):
            await mesh.requests(SHOP).request(BILLING, Request(method="POST", path="/files"))


async def test_data_that_are_too_large(mesh: Mesh, output: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    async with mesh.host(local(output, "shop"), limit=1 << 20):
        large = Invocation(operation="create", data=bytes(1 << 20))
        await mesh.outputs().invoke("files", large)
        assert output.asked == [large]
        too_large = Invocation(operation="create", data=bytes((1 << 20) + 1))
        assert await failure(mesh.outputs(), too_large) == "the data are larger than 1048576 bytes"
        found = await failure(mesh.outputs(), Invocation(operation="create", metadata={"a": "b" * (1 << 18)}))
        assert found.startswith("the metadata are too large to be sent to app billing: ")
        monkeypatch.setattr(hosting, "LARGEST_ANSWER", 1000)
        output.outcome = lambda: Result(data=bytes(1001))
        assert await failure(mesh.outputs()) == "the answer has more than 1000 bytes"


async def test_a_large_body_of_a_stranger_is_not_read_whole(mesh: Mesh, output: Recorder) -> None:
    sent = 0

    async def body() -> AsyncGenerator[bytes, None]:
        nonlocal sent
        for _ in range(1000):
            sent += 1 << 17
            yield bytes(1 << 17)

    async with mesh.host(local(output, "shop"), limit=1 << 20):
        for caller, status in ((SHOP, 413), (Peer("default", "stranger"), 403)):
            request = Request(method="POST", path="/files", headers=[(b"operation", b"create")], body=body())
            response = await mesh.requests(caller).request(addressing.bindings_host(BILLING), request)
            assert response.status == status
    assert sent < 20 << 20
    assert not output.asked


@pytest.mark.parametrize("metadata", [b"x", b"[]", b'{"a": 1}'])
async def test_metadata_that_cannot_be_read(mesh: Mesh, output: Recorder, metadata: bytes) -> None:
    async with mesh.host(local(output, "shop")):
        headers = [(b"operation", b"create"), (b"bindingmetadata", metadata)]
        request = Request(method="POST", path="/files", headers=headers)
        response = await mesh.requests(SHOP).request(addressing.bindings_host(BILLING), request)
    assert response.status == 400
    assert not output.asked


async def test_a_host_that_goes_while_it_works(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting, "CLOSE_LIMIT", 0.01)
    begun = asyncio.Event()

    class Slow(Recorder):
        async def invoke(self, invocation: Invocation) -> Result:
            begun.set()
            await asyncio.Event().wait()
            raise AssertionError

    async with mesh.host(local(Slow(), "shop")):
        calling = asyncio.create_task(failure(mesh.outputs()))
        await begun.wait()
    assert (await calling).startswith("app billing, which hosts it, gave no answer: ")


async def test_an_answer_that_does_not_come(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting, "LIMIT", 0.05)

    class Stuck(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.cancelled = asyncio.Event()

        async def invoke(self, invocation: Invocation) -> Result:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
            raise AssertionError

    stuck = Stuck()
    async with mesh.host(local(stuck, "shop")):
        assert await failure(mesh.outputs()) == "app billing, which hosts it, gave no answer within 0.05 s"
        await asyncio.wait_for(stuck.cancelled.wait(), 30)


POLICY = """
apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: {name: r}
spec:
  policies: {retries: {twice: {policy: constant, duration: 1ms, maxRetries: 2}}}
  targets: {components: {files: {outbound: {retry: twice}}}}
"""


@pytest.mark.parametrize(
    ("error", "attempts"), [(StoreUnavailable("down"), 3), (BindingError("no"), 3), (InvalidOperation("never"), 1)]
)
async def test_the_caller_s_policies_hold(
    mesh: Mesh, output: Recorder, tmp_path: Path, error: Exception, attempts: int
) -> None:
    (tmp_path / "r.yaml").write_text(POLICY)
    resiliency = Resiliency(load([tmp_path], app_id="shop", namespace="", environ={}).resiliency, clock=SystemClock())
    output.fail(error)
    async with mesh.host(local(output, "shop")):
        assert await failure(mesh.outputs(resiliency=resiliency)) == str(error)
    assert len(output.asked) == attempts


async def test_a_broker_that_refuses_at_first(mesh: Mesh, output: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistence, "FIRST_PAUSE", 0.01)
    refusals = 2

    class Refusing(MemoryRequests):
        async def serve(self, app_id: str, handler: RequestHandler, *, concurrency: int) -> Server:  # type: ignore[override]
            nonlocal refusals
            refusals -= 1
            if refusals >= 0:
                raise BrokerError("no permission")
            return await super().serve(app_id, handler, concurrency=concurrency)

    monkeypatch.setattr(mesh, "requests", lambda me: Refusing(mesh.exchange, me))
    async with mesh.host(local(output, "shop")):
        await mesh.outputs().invoke("files", CREATE)
    assert refusals == -1
