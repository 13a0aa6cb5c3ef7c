"""The configuration API, answer by answer, and what the app is told (Dapr: configuration)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import pytest

from brokers.memory_tables import MemoryTables
from mesh import resources
from mesh.appconfig import block
from mesh.appconfig.backbone import MeshConfigurationStore
from mesh.appconfig.block import AppConfiguration
from mesh.clock import SystemClock
from mesh.ports.stores import (
    ConfigurationFeature,
    ConfigurationItem,
    ConfigurationStore,
    StoreError,
    StoreUnavailable,
)
from mesh.resiliency.manifest import ResiliencyManifest
from mesh.resiliency.targets import Resiliency
from sidecar.api.configuration import ConfigurationApi
from sidecar.channel import open_app_channel
from sidecar.http.responses import CatchErrors
from sidecar.http.routing import Router
from sidecar.http.server import HttpServer
from tests.e2e.mesh import Answer, App, call

V = "/v1.0/configuration"
OWN = "/mesh/v1/configuration"
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


def segment(key: str) -> str:
    return "%2E%2E" if key == ".." else quote(key, safe="")


class ScriptedStore:
    """Cannot be written. Shows what a test puts into `changes`; fails with what stands in `error`."""

    features: frozenset[ConfigurationFeature] = frozenset()

    def __init__(self) -> None:
        self.error: StoreError | None = None
        self.calls = 0
        self.watches = 0
        self.asked: list[tuple[Sequence[str], Mapping[str, str]]] = []
        self.changes: asyncio.Queue[Mapping[str, ConfigurationItem] | Exception] = asyncio.Queue()

    async def start(self) -> None: ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...

    def _fail(self) -> None:
        self.calls += 1
        if self.error is not None:
            raise self.error

    async def get(self, keys: Sequence[str], metadata: Mapping[str, str] = {}) -> dict[str, ConfigurationItem]:
        self._fail()
        self.asked.append((keys, metadata))
        return {}

    async def watch(
        self, keys: Sequence[str], metadata: Mapping[str, str] = {}
    ) -> AsyncGenerator[Mapping[str, ConfigurationItem], None]:
        self._fail()
        self.asked.append((keys, metadata))
        self.watches += 1
        try:
            yield {}
            while True:
                change = await self.changes.get()
                if isinstance(change, Exception):
                    raise change
                yield change
        finally:
            self.watches -= 1


class Server:
    """`configstore` on the backbone, `other` beside it, and `scripted`; with an app where one is given."""

    def __init__(self, app: App | None = None, resiliency: Sequence[ResiliencyManifest] = ()) -> None:
        self.clock = SystemClock()
        self.tables = MemoryTables(self.clock)
        self.scripted = ScriptedStore()
        self.stores: dict[str, ConfigurationStore] = {
            "configstore": MeshConfigurationStore(self.tables, "configstore"),
            "other": MeshConfigurationStore(self.tables, "other"),
            "scripted": self.scripted,
        }
        self.channel = None
        if app is not None:
            self.channel = open_app_channel("http", "127.0.0.1", app.port, token="t0ken", max_concurrency=None)
        self.configuration = AppConfiguration(
            self.stores, channel=self.channel, resiliency=Resiliency(resiliency, clock=self.clock), clock=self.clock
        )
        router = Router()
        ConfigurationApi(self.configuration, 1 << 20).add_to(router)
        self.server = HttpServer(CatchErrors(router))

    async def __aenter__(self) -> Self:
        await self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        async with asyncio.timeout(30):
            for store in list(self.stores.values()):
                await self.configuration.detach(store)
            await self.server.stop(5)
            if self.channel is not None:
                await self.channel.close()

    async def call(self, method: str, target: str, body: bytes = b"") -> Answer:
        assert self.server.port
        return await call(self.server.port, method, target, (), body)

    async def put(self, key: str, value: str, store: str = "configstore", query: str = "") -> str:
        answer = await self.call("PUT", f"{OWN}/{store}/{segment(key)}{query}", value.encode())
        assert answer.status == 200, answer
        return str(answer.json["version"])

    async def subscribe(self, *keys: str, store: str = "configstore", version: str = "v1.0") -> str:
        query = "&".join(f"key={quote(key, safe='')}" for key in keys)
        answer = await self.call("GET", f"/{version}/configuration/{store}/subscribe?{query}")
        assert answer.status == 200, answer
        [(name, id_)] = answer.json.items()
        assert name == "id"
        return str(id_)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server() as server:
        yield server


@pytest.fixture
async def app() -> AsyncIterator[App]:
    async with App() as app:
        yield app


@pytest.fixture
async def told(app: App) -> AsyncIterator[Server]:
    """A server with `app` beside it."""
    async with Server(app) as server:
        yield server


def failure(answer: Answer, status: int, code: str) -> str:
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["errorCode"] == code
    return str(answer.json["message"])


# Get


@pytest.mark.parametrize("version", ["v1.0", "v1.0-alpha1"])
async def test_get(server: Server, version: str) -> None:
    root = f"/{version}/configuration/configstore"
    for query in ("", "?key=a", "?key=a&key=b"):
        answer = await server.call("GET", root + query)
        assert (answer.status, answer.body) == (204, b"")
    first = await server.put("a", "1")
    second = await server.put("b", "☃", query="?metadata.unit=ms&metadata.a=b&other=x")
    await server.put("c", "")
    answer = await server.call("GET", f"{root}?key=a&key=nobody&metadata.x=y")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json == {"a": {"value": "1", "version": first}}
    everything = (await server.call("GET", root)).json
    assert everything["b"] == {"value": "☃", "version": second, "metadata": {"unit": "ms", "a": "b"}}
    assert everything["c"].keys() == {"version"}  # members that would be empty are left out
    assert everything.keys() == {"a", "b", "c"}
    assert (await server.call("GET", f"{V}/other")).status == 204


async def test_stores_that_are_not_there(server: Server) -> None:
    for method, target in (
        ("GET", f"{V}/nobody"),
        ("GET", f"{V}/nobody/subscribe"),
        ("GET", f"{V}/nobody/some-id/unsubscribe"),
        ("PUT", f"{OWN}/nobody/a"),
        ("GET", f"{V}/Configstore"),
    ):
        name = target.removeprefix(V).removeprefix(OWN).split("/")[1]
        message = failure(await server.call(method, target), 400, "ERR_CONFIGURATION_STORE_NOT_FOUND")
        assert message == f"configuration store {name} not found"
    server.stores.clear()
    for target in (f"{V}/configstore", f"{V}/configstore/subscribe", f"{V}/configstore/id/unsubscribe"):
        message = failure(await server.call("GET", target), 500, "ERR_CONFIGURATION_STORE_NOT_CONFIGURED")
        assert message == "configuration stores not configured"


async def test_a_store_that_fails(told: Server) -> None:
    told.scripted.error = StoreUnavailable("it is down")
    message = failure(await told.call("GET", f"{V}/scripted?key=a&key=b"), 500, "ERR_CONFIGURATION_GET")
    assert message == "failed to get [a b] from Configuration store scripted: it is down"
    message = failure(await told.call("GET", f"{V}/scripted/subscribe"), 500, "ERR_CONFIGURATION_SUBSCRIBE")
    assert message == "failed to subscribe [] from Configuration store scripted: it is down"
    told.scripted.error = None
    await told.subscribe("a", store="scripted")


async def test_what_is_asked_of_a_store(told: Server) -> None:
    query = "key=a&key=b&key=a&metadata.x=1&metadata.x=2&metadata.pgNotifyChannel=c&Key=no&metadata=no"
    await told.call("GET", f"{V}/scripted?{query}")
    await told.call("GET", f"{V}/scripted/subscribe?{query}")
    assert told.scripted.asked == [(["a", "b"], {"x": "1", "pgNotifyChannel": "c"})] * 2


@pytest.mark.parametrize("key", ["", "k" * 1100])
async def test_bad_keys(told: Server, key: str) -> None:
    assert "key" in failure(await told.call("GET", f"{V}/configstore?key={key}"), 400, "ERR_CONFIGURATION_GET")
    answer = await told.call("GET", f"{V}/configstore/subscribe?key={key}")
    assert "key" in failure(answer, 400, "ERR_CONFIGURATION_SUBSCRIBE")
    if key:
        for method in ("PUT", "DELETE"):
            failure(await told.call(method, f"{OWN}/configstore/{key}"), 400, "ERR_CONFIGURATION_WRITE")


# Subscriptions


@pytest.mark.parametrize("version", ["v1.0", "v1.0-alpha1"])
async def test_the_app_is_told(told: Server, app: App, version: str) -> None:
    await told.put("a", "before")
    id_ = await told.subscribe("a", "b", version=version)
    number = await told.put("a", "1", query="?metadata.unit=ms")
    await told.put("c", "not asked for")
    await told.call("DELETE", f"{OWN}/configstore/a")
    first, second = await app.got(2)
    assert (first.method, first.path) == ("POST", "/configuration/configstore/a")
    assert first.headers["content-type"] == "application/json"
    assert first.headers["dapr-api-token"] == "t0ken"
    item = {"value": "1", "version": number, "metadata": {"unit": "ms"}}
    assert json.loads(first.body) == {"id": id_, "items": {"a": item}}
    assert second.path == "/configuration/configstore/a"
    assert json.loads(second.body) == {"id": id_, "items": {"a": {"value": ""}}}
    answer = await told.call("GET", f"/{version}/configuration/configstore/{id_}/unsubscribe")
    assert (answer.status, answer.json) == (200, {"ok": True})
    await told.put("a", "2")
    following = await told.subscribe()
    await told.put("last", "1")
    assert json.loads((await app.got(3))[-1].body)["id"] == following
    assert len(app.events) == 3


@pytest.mark.parametrize("key", ["a/b", "..", "a b?c#d", "%2E", "é☃", "x\r\ny: z", "k" * 900])
async def test_keys_in_the_path(told: Server, app: App, key: str) -> None:
    await told.subscribe()
    await told.put(key, "1")
    [request] = await app.got()
    assert request.path == f"/configuration/configstore/{segment(key)}"
    assert json.loads(request.body)["items"].keys() == {key}


async def test_one_call_for_each_key_of_a_change(app: App, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is not exactly 200 is no success, and the other keys are told all the same."""
    app.answer = lambda request: 204 if request.path.endswith("/a") else 200
    async with Server(app) as server:
        id_ = await server.subscribe(store="scripted")
        items = {"a": ConfigurationItem(value="1", version="v"), "b": ConfigurationItem(value="secret 2")}
        server.scripted.changes.put_nowait(items)
        first, second = await app.got(2)
        assert [first.path, second.path] == ["/configuration/scripted/a", "/configuration/scripted/b"]
        whole = {"a": {"value": "1", "version": "v"}, "b": {"value": "secret 2"}}
        assert json.loads(first.body) == json.loads(second.body) == {"id": id_, "items": whole}
        assert caplog.text.count("the app was not told") == 1
        assert "a of the configuration store scripted has changed: it answered 204, and not 200" in caplog.text
        assert "secret" not in caplog.text
        server.scripted.changes.put_nowait({"b": ConfigurationItem(value="3")})
        await app.got(3)  # it was not tried again


async def test_an_app_that_cannot_be_reached(caplog: pytest.LogCaptureFixture) -> None:
    app = App()
    async with Server(app) as server:
        await server.subscribe(store="scripted")
        server.scripted.changes.put_nowait({"a": ConfigurationItem(value="1")})
        async with asyncio.timeout(30):
            while "the app was not told" not in caplog.text:
                await asyncio.sleep(0.01)
        async with app:
            server.scripted.changes.put_nowait({"a": ConfigurationItem(value="2")})
            [request] = await app.got()
            assert json.loads(request.body)["items"] == {"a": {"value": "2"}}


def policies(folder: Path, text: str) -> Sequence[ResiliencyManifest]:
    (folder / "resiliency.yaml").write_text(
        f"apiVersion: dapr.io/v1alpha1\nkind: Resiliency\nmetadata: {{name: r}}\nspec:\n{text}"
    )
    return resources.load([folder], app_id="app1", namespace="", environ={}).resiliency


RETRIES = """\
  policies: {retries: {thrice: {policy: constant, duration: 10ms, maxRetries: 2}}}
  targets: {components: {scripted: {%s: {retry: thrice}}}}
"""


async def test_an_inbound_policy_tries_again(app: App, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([500, 404, 200, 500, 500, 500, 200])
    app.answer = lambda _: next(answers)
    async with Server(app, policies(tmp_path, RETRIES % "inbound")) as server:
        await server.subscribe(store="scripted")
        for key in "abc":
            server.scripted.changes.put_nowait({key: ConfigurationItem(value="1")})
        assert "".join(request.path[-1] for request in await app.got(7)) == "aaabbbc"
        assert caplog.text.count("the app was not told") == 1


async def test_an_outbound_policy_tries_again(told: Server, app: App, tmp_path: Path) -> None:
    async with Server(app, policies(tmp_path, RETRIES % "outbound")) as server:
        server.scripted.error = StoreUnavailable("it is down")
        failure(await server.call("GET", f"{V}/scripted"), 500, "ERR_CONFIGURATION_GET")
        assert server.scripted.calls == 3
        failure(await server.call("GET", f"{V}/scripted/subscribe"), 500, "ERR_CONFIGURATION_SUBSCRIBE")
        assert server.scripted.calls == 6


async def test_without_an_app(server: Server) -> None:
    message = failure(await server.call("GET", f"{V}/configstore/subscribe?key=a"), 500, "ERR_APP_CHANNEL_NIL")
    assert message == "app channel is not initialized. cannot subscribe to configuration updates"


async def test_unsubscribing_from_what_there_is_not(told: Server) -> None:
    id_ = await told.subscribe("a")
    for store, wrong in (("configstore", "some-id"), ("other", id_), ("configstore", id_.upper())):
        answer = await told.call("GET", f"{V}/{store}/{wrong}/unsubscribe")
        assert answer.status == 500
        assert answer.headers["content-type"] == "application/json"
        message = f"failed to unsubscribe to configuration request {wrong}: subscription with id {wrong} does not exist"
        assert answer.json == {"message": message}
    for expected in (200, 500):
        assert (await told.call("GET", f"{V}/configstore/{id_}/unsubscribe")).status == expected


async def test_the_number_of_subscriptions_is_bounded(told: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "MAX_SUBSCRIPTIONS", 2)
    first, _ = await told.subscribe("a"), await told.subscribe("a", store="scripted")
    message = failure(await told.call("GET", f"{V}/other/subscribe?key=a"), 500, "ERR_CONFIGURATION_SUBSCRIBE")
    assert "the app has 2 subscriptions already" in message
    await told.call("GET", f"{V}/configstore/{first}/unsubscribe")
    await told.subscribe("a")


async def test_a_store_that_does_not_begin(told: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(ScriptedStore):
        async def watch(self, keys: Sequence[str], metadata: Mapping[str, str] = {}) -> AsyncGenerator[Any, None]:
            await asyncio.sleep(60)
            yield {}

    monkeypatch.setattr("mesh.appconfig.updates.BEGIN_LIMIT", 0.05)
    told.stores["silent"] = Silent()
    message = failure(await told.call("GET", f"{V}/silent/subscribe?key=a"), 500, "ERR_CONFIGURATION_SUBSCRIBE")
    assert message.endswith("context deadline exceeded")


async def test_a_refusal_later_on(told: Server, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.appconfig.updates.FIRST_PAUSE", 0.01)
    await told.subscribe("a", store="scripted")
    told.scripted.error = StoreError("no permission any more")
    told.scripted.changes.put_nowait(StoreError("no permission any more"))
    async with asyncio.timeout(30):
        while told.scripted.calls < 3:
            await asyncio.sleep(0.01)
    told.scripted.error = None
    told.scripted.changes.put_nowait({"a": ConfigurationItem(value="1")})
    await app.got()


async def test_a_fault_that_nobody_has_thought_of(
    told: Server, app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends no subscription silently."""
    monkeypatch.setattr("mesh.appconfig.updates.FIRST_PAUSE", 0.01)
    await told.subscribe("a", store="scripted")
    told.scripted.changes.put_nowait(RuntimeError("dictionary changed size during iteration"))
    told.scripted.changes.put_nowait({"a": ConfigurationItem(value="2")})
    await app.got()
    assert "dictionary changed size" in caplog.text


async def test_subscriptions_go_over_to_a_new_component(told: Server, app: App) -> None:
    """As when its manifest was changed: the earlier one is closed once nobody uses it."""
    id_ = await told.subscribe("a", store="scripted")
    await told.subscribe("a")
    earlier, told.stores["scripted"] = told.scripted, ScriptedStore()
    new = told.stores["scripted"]
    assert isinstance(new, ScriptedStore)
    told.configuration.attach(new)
    async with asyncio.timeout(30):
        while earlier.watches or not new.watches:
            await asyncio.sleep(0)
    new.changes.put_nowait({"a": ConfigurationItem(value="1")})
    [request] = await app.got()
    assert json.loads(request.body) == {"id": id_, "items": {"a": {"value": "1"}}}
    await told.configuration.detach(earlier)
    new.changes.put_nowait({"a": ConfigurationItem(value="2")})
    await app.got(2)
    await told.put("a", "1")
    await app.got(3)


async def test_the_earlier_component_is_followed_until_the_new_one_can_be(told: Server, app: App) -> None:
    await told.subscribe("a", store="scripted")
    new = ScriptedStore()
    new.error = StoreUnavailable("not yet")
    told.stores["scripted"] = new
    told.configuration.attach(new)
    async with asyncio.timeout(30):
        while not new.calls:
            await asyncio.sleep(0)
    told.scripted.changes.put_nowait({"a": ConfigurationItem(value="1")})
    await app.got()


async def test_subscriptions_end_with_their_component(told: Server) -> None:
    id_ = await told.subscribe("a", store="scripted")
    other = await told.subscribe("a")
    del told.stores["scripted"]
    await told.configuration.detach(told.scripted)
    assert told.scripted.watches == 0
    told.stores["scripted"] = ScriptedStore()
    assert (await told.call("GET", f"{V}/scripted/{id_}/unsubscribe")).status == 500
    assert (await told.call("GET", f"{V}/configstore/{other}/unsubscribe")).status == 200


# Beyond Dapr


async def test_lists(server: Server) -> None:
    for number in range(5):
        await server.put(f"a{number}", str(number), query="?metadata.n=1")
    await server.put("b", "1")
    found: list[Any] = []
    cursor = ""
    while True:
        page = (await server.call("GET", f"{OWN}/configstore?prefix=a&limit=2{cursor}")).json
        found += page["items"]
        if "cursor" not in page:
            break
        cursor = f"&cursor={quote(page['cursor'])}"
    assert sorted((item["key"], item["value"], item["metadata"]["n"]) for item in found) == [
        (f"a{number}", str(number), "1") for number in range(5)
    ]
    assert (await server.call("GET", f"{OWN}/other")).json == {"items": []}
    for query in ("limit=0", "limit=1001", "limit=x", "limit=", "prefx=a"):
        failure(await server.call("GET", f"{OWN}/configstore?{query}"), 400, "ERR_MALFORMED_REQUEST")
    failure(await server.call("GET", f"{OWN}/configstore?cursor=nonsense"), 410, "ERR_CONFIGURATION_WRITE")


async def test_bad_puts(server: Server) -> None:
    answer = await server.call("PUT", f"{OWN}/configstore/a", b"ab\xff")
    assert "byte 2" in failure(answer, 400, "ERR_MALFORMED_REQUEST")
    failure(await server.call("PUT", f"{OWN}/configstore/a", b"x" * (1 << 20)), 413, "ERR_CONFIGURATION_WRITE")
    failure(await server.call("PUT", f"{OWN}/configstore/a", b"x" * (2 << 20)), 413, "ERR_CONFIGURATION_WRITE")
    assert (await server.call("DELETE", f"{OWN}/configstore/a")).status == 204
    assert (await server.call("GET", f"{V}/configstore")).status == 204


@pytest.mark.parametrize(("method", "target"), [("PUT", "/a"), ("DELETE", "/a"), ("GET", "")])
async def test_stores_that_cannot_be_written(server: Server, method: str, target: str) -> None:
    answer = await server.call(method, f"{OWN}/scripted{target}")
    message = failure(answer, 501, "ERR_CONFIGURATION_READ_ONLY")
    assert message == "configuration store scripted cannot be written or listed here: use its own tools"
    kinds = {detail["@type"].rpartition(".")[2]: detail for detail in answer.json["details"]}
    assert kinds["ErrorInfo"]["reason"] == "MESHWIRE_CONFIGURATION_READ_ONLY"
    assert kinds["ResourceInfo"]["resource_type"] == "configuration"


async def test_a_broker_that_does_not_answer(server: Server) -> None:
    await server.tables.close()
    failure(await server.call("PUT", f"{OWN}/configstore/a", b"1"), 503, "ERR_CONFIGURATION_WRITE")
    failure(await server.call("GET", f"{V}/configstore"), 500, "ERR_CONFIGURATION_GET")


# A whole sidecar


async def test_no_store_at_all(start: Callable[..., Any], tmp_path: Path) -> None:
    configuration = tmp_path / "configuration.yaml"
    configuration.write_text("spec: {components: {deny: [configuration.meshwire]}}\n")
    api = await start(f"--config={configuration}")
    failure(await api.call("GET", f"{V}/configstore"), 500, "ERR_CONFIGURATION_STORE_NOT_CONFIGURED")


async def test_subscriptions_end_with_the_sidecar(start: Callable[..., Any], app: App) -> None:
    api = await start(app=app)
    assert (await api.call("GET", f"{V}/configstore/subscribe")).status == 200
    assert (await api.call("PUT", f"{OWN}/configstore/a", body=b"1")).status == 200
    await app.got()
    await api.stop()
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert not [name for name in names if name.startswith("configuration")]
