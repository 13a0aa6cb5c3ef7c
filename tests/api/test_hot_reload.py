"""Manifests that change while the sidecar runs."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from bindings.state import in_memory
from bindings.state.in_memory import MemoryStateStore
from mesh.ports.stores import StateChange, StoreError
from mesh.state import marker
from sidecar import folder_watch
from sidecar.runtime import End
from tests.e2e.mesh import App, call, subscription

COMPONENT = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: {name}}}
spec:
  type: {type}
  version: v1
  metadata: [{metadata}]
"""
SUBSCRIPTION = """\
apiVersion: dapr.io/v2alpha1
kind: Subscription
metadata: {name: more}
spec: {pubsubname: bus, topic: B, routes: {default: /B}}
"""


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_watch, "PERIOD", 0.02)
    monkeypatch.setattr(folder_watch, "QUIET", 0.02)


def component(folder: Path, name: str, type_: str, **metadata: str) -> None:
    entries = ", ".join(f"{{name: {key}, value: '{value}'}}" for key, value in metadata.items())
    (folder / f"{name}.yaml").write_text(COMPONENT.format(name=name, type=type_, metadata=entries))


async def until(condition) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.005)


async def names(api) -> set[str]:
    return {one["name"] for one in (await api.call("GET", "/v1.0/metadata")).json["components"]}


async def test_components_come_and_go(start, tmp_path):
    api = await start(f"--resources-path={tmp_path}")
    assert (await api.call("POST", "/v1.0/publish/bus/A", body=b"1")).status == 404
    component(tmp_path, "bus", "pubsub.in-memory")

    async def there() -> bool:
        return "bus" in await names(api)

    await until(there)
    assert (await api.call("POST", "/v1.0/publish/bus/A", body=b"1")).status == 204
    component(tmp_path, "bus", "pubsub.in-memory", allowedTopics="B")

    async def forbidden() -> bool:
        return (await api.call("POST", "/v1.0/publish/bus/A", body=b"1")).status == 403

    await until(forbidden)
    (tmp_path / "bus.yaml").unlink()

    async def gone() -> bool:
        return "bus" not in await names(api)

    await until(gone)
    assert (await api.call("POST", "/v1.0/publish/bus/A", body=b"1")).status == 404
    assert await api.stop() is End.STOPPED


async def test_a_default_comes_back(start, tmp_path):
    component(tmp_path, "statestore", "state.in-memory")
    api = await start(f"--resources-path={tmp_path}")

    async def type_() -> str:
        components = (await api.call("GET", "/v1.0/metadata")).json["components"]
        return next(one["type"] for one in components if one["name"] == "statestore")

    assert await type_() == "state.in-memory"
    (tmp_path / "statestore.yaml").unlink()

    async def back() -> bool:
        return await type_() == "state.meshwire"

    await until(back)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("kind: [", "0.yaml:2: did not find expected node content"),
        (
            COMPONENT.format(name="bus", type="pubsub.in-memory", metadata="{name: alowedTopics, value: x}"),
            "alowedTopics",
        ),
        (COMPONENT.format(name="bus", type="pubsub.none", metadata=""), "there are no components of type pubsub.none"),
        (COMPONENT.format(name="bus", type="pubsub", metadata=""), "incorrect type"),
    ],
)
async def test_a_mistake_changes_nothing(start, tmp_path, caplog, text, reason):
    (tmp_path / "0.yaml").write_text(COMPONENT.format(name="bus", type="pubsub.in-memory", metadata=""))
    api = await start(f"--resources-path={tmp_path}")
    (tmp_path / "0.yaml").write_text(text)

    async def told() -> bool:
        return reason in caplog.text

    await until(told)
    assert (await api.call("POST", "/v1.0/publish/bus/A", body=b"1")).status == 204
    (tmp_path / "0.yaml").write_text(COMPONENT.format(name="car", type="pubsub.in-memory", metadata=""))

    async def repaired() -> bool:
        return "bus" not in await names(api) and "car" in await names(api)

    await until(repaired)


class SlowStore(MemoryStateStore):
    """As a store of another process: an operation takes time, and fails once the store is closed."""

    closed = 0
    _open = True

    async def change(self, change: StateChange) -> None:
        await asyncio.sleep(0.01)
        if not self._open:
            raise StoreError("closed")
        await super().change(change)

    async def close(self) -> None:
        self._open = False
        SlowStore.closed += 1
        await super().close()


async def test_no_request_is_dropped(start, tmp_path, monkeypatch):
    """Thousands of requests to components that are exchanged again and again."""
    slow = replace(in_memory.SPEC, open=lambda setup: SlowStore(setup.clock))
    monkeypatch.setattr(in_memory, "SPEC", slow)
    component(tmp_path, "bus", "pubsub.in-memory")
    component(tmp_path, "store", "state.in-memory")
    api = await start(f"--resources-path={tmp_path}")
    statuses: list[int] = []
    over = False

    async def publish() -> None:
        while not over:
            statuses.append((await call(api.port, "POST", "/v1.0/publish/bus/A", body=b"1")).status)

    async def save() -> None:
        while not over:
            body = b'[{"key": "k", "value": 1}]'
            statuses.append((await call(api.port, "POST", "/v1.0/state/store", body=body)).status)

    users = [asyncio.create_task(work()) for work in (publish, save) for _ in range(8)]
    exchanged = 0
    held = None
    components = api.runtime._components
    async with asyncio.timeout(60):
        while len(statuses) < 2000 or exchanged < 10:
            held = components.loaded["bus"], components.loaded["store"]
            component(tmp_path, "bus", "pubsub.in-memory", allowedTopics=f"A,{exchanged}")
            component(tmp_path, "store", "state.in-memory", keyPrefix=f"p{exchanged}")
            while components.loaded["bus"] is held[0] or components.loaded["store"] is held[1]:
                await asyncio.sleep(0.005)
            exchanged += 1
    over = True
    await asyncio.gather(*users)
    assert set(statuses) == {204}
    assert SlowStore.closed > 0
    await until(lambda: asyncio.sleep(0, not components._retiring))


async def test_subscriptions_are_exchanged(start, tmp_path):
    component(tmp_path, "bus", "pubsub.in-memory")
    async with App([subscription("A", pubsubname="bus")]) as app:
        api = await start(f"--resources-path={tmp_path}", app=app)

        async def delivered(topic: str, *, before: int) -> bool:
            await api.call("POST", f"/v1.0/publish/bus/{topic}", body=b"1")
            await asyncio.sleep(0.01)
            return len([event for event in app.events if event.path == f"/{topic}"]) > before

        await until(lambda: delivered("A", before=0))
        (tmp_path / "more.yaml").write_text(SUBSCRIPTION)
        await until(lambda: delivered("B", before=0))

        # A new component has a log of its own: whoever was subscribed to the old one is to the new one.
        old = api.runtime._components.loaded["bus"]
        component(tmp_path, "bus", "pubsub.in-memory", allowedTopics="A,B")
        await until(lambda: asyncio.sleep(0, api.runtime._components.loaded["bus"] is not old))
        for topic in "AB":
            before = len([event for event in app.events if event.path == f"/{topic}"])
            await until(lambda topic=topic, before=before: delivered(topic, before=before))

        (tmp_path / "more.yaml").unlink()

        async def forgotten() -> bool:
            known = (await api.call("GET", "/v1.0/metadata")).json["subscriptions"]
            return [one["topic"] for one in known] == ["A"]

        await until(forgotten)
        before = len(app.events)
        assert (await api.call("POST", "/v1.0/publish/bus/B", body=b"1")).status == 204
        await until(lambda: delivered("A", before=len([event for event in app.events if event.path == "/A"])))
        assert {event.path for event in app.events[before:]} == {"/A"}


async def test_an_outbox_follows_its_pubsub_component(start, tmp_path, monkeypatch):
    monkeypatch.setattr(marker, "PAUSES", (0.01, 0.1))
    component(tmp_path, "bus", "pubsub.in-memory")
    component(tmp_path, "store", "state.in-memory", outboxPublishPubsub="bus", outboxPublishTopic="A")
    body = b'{"operations": [{"operation": "upsert", "request": {"key": "k", "value": 1}}]}'
    async with App([subscription("A", pubsubname="bus")]) as app:
        api = await start(f"--resources-path={tmp_path}", app=app)
        old = api.runtime._components.loaded["bus"]
        component(tmp_path, "bus", "pubsub.in-memory", allowedTopics="A")
        await until(lambda: asyncio.sleep(0, api.runtime._components.loaded["bus"] is not old))
        assert (await api.call("POST", "/v1.0/state/store/transaction", body=body)).status == 204
        await app.got(1)


async def test_what_nobody_thought_of_does_not_end_the_watch(start, tmp_path, caplog, monkeypatch):
    api = await start(f"--resources-path={tmp_path}")
    apply = api.runtime._apply

    async def failing(found) -> None:
        monkeypatch.setattr(api.runtime, "_apply", apply)
        raise ZeroDivisionError("nobody thought of this")

    monkeypatch.setattr(api.runtime, "_apply", failing)
    component(tmp_path, "bus", "pubsub.in-memory")

    async def told() -> bool:
        return "nobody thought of this" in caplog.text

    await until(told)
    component(tmp_path, "car", "pubsub.in-memory")

    async def both() -> bool:
        return {"bus", "car"} <= await names(api)

    await until(both)


async def test_some_changes_need_a_new_start(start, tmp_path, caplog):
    api = await start(f"--resources-path={tmp_path}")
    head = "apiVersion: dapr.io/v1alpha1\nkind: Resiliency\nmetadata: {name: r}\n"
    resiliency = head + "spec: {targets: {apps: {a: {timeout: x}}}}\n"
    (tmp_path / "r.yaml").write_text(resiliency)

    async def told() -> bool:
        return "no manifest has a policy 'x'" in caplog.text

    await until(told)
    assert not api.running.done()
    (tmp_path / "r.yaml").write_text(resiliency.replace("{targets", "{policies: {timeouts: {x: 1s}}, targets"))
    async with asyncio.timeout(30):
        assert await api.running is End.RELOAD


async def test_a_new_start_is_not_made_with_a_mistake(start, tmp_path, caplog):
    """It would be the end."""
    api = await start(f"--resources-path={tmp_path}")
    (tmp_path / "r.yaml").write_text("apiVersion: dapr.io/v1alpha1\nkind: Resiliency\nmetadata: {name: r}\nspec: {}\n")
    component(tmp_path, "bus", "pubsub.none")

    async def told() -> bool:
        return "there are no components of type pubsub.none" in caplog.text

    await until(told)
    assert not api.running.done()
    component(tmp_path, "bus", "pubsub.in-memory")
    async with asyncio.timeout(30):
        assert await api.running is End.RELOAD


async def test_it_can_be_switched_off(start, tmp_path):
    configuration = tmp_path / "configuration.yaml"
    configuration.write_text("spec: {features: [{name: HotReload, enabled: false}]}\n")
    folder = tmp_path / "resources"
    folder.mkdir()
    api = await start(f"--resources-path={folder}", f"--config={configuration}")
    component(folder, "bus", "pubsub.in-memory")
    await asyncio.sleep(0.2)
    assert "bus" not in await names(api)
