"""Finding, starting, exchanging and closing components, with types made for the purpose."""

import asyncio
import logging
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from bindings import registry
from brokers.memory import MemoryEventLog
from brokers.memory_alarms import MemoryAlarmClocks
from brokers.memory_tables import MemoryTables
from mesh.clock import SystemClock
from mesh.components import Category, ComponentSpec, Field, Setup
from mesh.errors import ConfigurationError
from mesh.ports.stores import StoreError, StoreUnavailable
from mesh.resources import Component, Metadata, SecretReference, Templates
from sidecar import components as module
from sidecar.components import Components, Surroundings, Upkeep


class Store:
    """A secret store, or whatever a test takes it for, that notes what happens to it."""

    log: list[str] = []  # noqa: RUF012 - one for all, emptied by the fixture

    def __init__(self, setup: Setup) -> None:
        self.name = setup.name
        self.settings = setup.settings
        self.secrets = {"key": {"key": f"secret of {setup.name}"}}

    async def start(self) -> None:
        match self.settings["on_start"]:
            case "fail":
                raise StoreUnavailable("out of reach")
            case "leak":
                raise RuntimeError(f"cannot log in with {self.settings['password']}")
            case "hang":
                await asyncio.Event().wait()
            case "import":
                raise ImportError("No module named 'libx'", name="libx")
            case "yield":
                Store.log.append(f"starting {self.name}")
                await asyncio.sleep(0)
        Store.log.append(f"start {self.name}")

    async def ping(self) -> None: ...

    async def close(self) -> None:
        Store.log.append(f"close {self.name}")

    async def get(self, name: str, metadata: Mapping[str, str] = {}) -> dict[str, str]:
        if name not in self.secrets:
            raise StoreError(f"no {name}")
        return self.secrets[name]


FIELDS = (Field("on_start", "What to do."), Field("password", "Secret.", secret=True))


def spec(type_: str, **more: Any) -> ComponentSpec:
    return ComponentSpec(type=type_, title="Test", about="Test.", open=Store, fields=FIELDS, **more)


@pytest.fixture(autouse=True)
def types(monkeypatch: pytest.MonkeyPatch) -> None:
    """`secretstores.test`, `configuration.test` of two versions and `lock.test`, and nothing by default."""
    Store.log = []
    found = {
        "secretstores.test": [spec("secretstores.test")],
        "configuration.test": [spec("configuration.test"), spec("configuration.test", versions=("v2",))],
        "lock.test": [spec("lock.test", needs="testing", features=("FAIR",))],
    }
    modules = {f"tests.{type_}": SimpleNamespace(SPECS=specs) for type_, specs in found.items()}
    monkeypatch.setattr(registry, "BUILT_IN", {type_: f"tests.{type_}" for type_ in found})
    monkeypatch.setattr(registry, "importlib", SimpleNamespace(import_module=modules.__getitem__))
    plain = {name: lambda name=name: Category(name=name, title="") for name in registry.CATEGORIES}
    monkeypatch.setattr(registry, "CATEGORIES", plain)
    monkeypatch.setattr(module, "DEFAULTS", {})


@pytest.fixture
def components() -> Components:
    around = Surroundings(
        app_id="app",
        namespace="",
        clock=SystemClock(),
        tables=MemoryTables(),
        alarms=MemoryAlarmClocks(),
        events=MemoryEventLog(),
        templates=Templates("app", "", None),
    )
    return Components(around)


def a(name: str, type_: str = "lock.test", *, secret_of: str = "", key: str = "key", **more: Any) -> Component:
    """A manifest; what is no field of `Component` is metadata."""
    own = {field: more.pop(field) for field in ("version", "ignore_errors", "init_timeout") if field in more}
    references = {"password": SecretReference(secret_of, key, key, f"{name}.yaml:9")} if secret_of else {}
    metadata = {**more, **dict.fromkeys(references, "")}
    return Component(
        name=name,
        type=type_,
        metadata=Metadata(metadata),
        references=references,
        origin=f"{name}.yaml:1",
        fingerprint=repr((type_, own, more, secret_of)),
        **own,
    )


def vault(name: str, **more: Any) -> Component:
    return a(name, "secretstores.test", **more)


async def test_secret_stores_start_first_and_in_their_order(components: Components) -> None:
    manifests = [a("l", secret_of="v1"), vault("v1", secret_of="v2"), vault("v2", secret_of="v3"), vault("v3")]
    components.check(manifests)
    await components.load(manifests)
    assert Store.log == ["start v3", "start v2", "start v1", "start l"]
    assert components.of("lock")["l"].settings["password"] == "secret of v1"
    assert components.of("lock")["l"].settings.reference("password") == "key"
    assert components.loaded["l"].capabilities == ("FAIR",)
    await components.close()
    assert sorted(Store.log[4:]) == ["close l", "close v1", "close v2", "close v3"]
    await components.close()
    assert len(Store.log) == 8


async def test_components_of_a_category_start_side_by_side(components: Components) -> None:
    await components.load([a("one", on_start="yield"), a("two", on_start="yield")])
    assert Store.log == ["starting one", "starting two", "start one", "start two"]


@pytest.mark.parametrize(
    ("manifests", "message"),
    [
        (
            [a("c", "lock.redis")],
            r"\[CREATE_COMPONENT_FAILURE\]: initialization error occurred for c \(lock\.redis/v1\): c\.yaml:1: "
            r"there are no components of type lock\.redis \(there are: lock\.test\)",
        ),
        ([a("c", "bindings.http")], r"no components of type bindings\.http; the category bindings is not there yet"),
        ([a("c", version="v3")], r"components of type lock\.test have no version v3 \(there is: v1\)"),
        ([a("c", "configuration.test", version="v3")], r"no version v3 \(there is: v1, v2\)"),
        (
            [a("c", passwort="x")],
            r"\[INIT_COMPONENT_FAILURE\]: .*c\.yaml:1: metadata\.passwort: .*did you mean 'password'",
        ),
    ],
)
async def test_what_is_wrong_is_found_before_anything_starts(
    components: Components, manifests: list[Component], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        components.check(manifests)
    assert Store.log == []


@pytest.mark.parametrize("version", ["v0", "v1", "v2"])
async def test_versions(components: Components, version: str) -> None:
    await components.load([a("c", "configuration.test", version=version)])
    assert components.loaded["c"].spec.versions == (("v2",) if version == "v2" else ("v1",))


@pytest.mark.parametrize(
    ("manifests", "message"),
    [
        (
            [a("c", on_start="fail")],
            r"\[INIT_COMPONENT_FAILURE\]: initialization error occurred for c \(lock\.test/v1\): out of reach",
        ),
        (
            [a("c", on_start="hang", init_timeout=0.01)],
            r"\[INIT_COMPONENT_FAILURE\]: .*: init timeout for component c \(lock\.test/v1\) after 0\.01 s",
        ),
        (
            [a("c", on_start="import")],
            r'a library that is not installed: pip install "meshwire\[testing\]" \(No module',
        ),
        (
            [a("c", secret_of="x"), vault("v")],
            r"c\.yaml:9: secretKeyRef: there is no secret store 'x'.*\(there is: v\)",
        ),
        ([a("c", secret_of="v", key="k"), vault("v")], r"the secret 'k' of 'v' cannot be read: no k"),
        (
            [vault("v", secret_of="w"), vault("w", secret_of="v")],
            r"for v .*: v\.yaml:9: secretKeyRef: the secret store 'w' cannot start: it needs a secret of 'v' in turn",
        ),
        (
            [vault("v", on_start="fail", ignore_errors=True), a("c", secret_of="v")],
            r"for c .*: c\.yaml:9: secretKeyRef: the secret store 'v' could not be started",
        ),
    ],
)
async def test_a_component_that_cannot_be_had_ends_the_start(
    components: Components, manifests: list[Component], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        await components.load(manifests)
    await components.close()
    started = {line.removeprefix("start ") for line in Store.log if line.startswith("start ")}
    assert started <= {line.removeprefix("close ") for line in Store.log if line.startswith("close ")}


async def test_a_component_may_be_left_out(components: Components, caplog: pytest.LogCaptureFixture) -> None:
    bad = [a("bad", on_start="fail", ignore_errors=True), a("worse", "lock.none", ignore_errors=True)]
    components.check(bad)
    await components.load([*bad, a("good")])
    assert list(components.of("lock")) == ["good"]
    left_out = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(left_out) == 2
    assert all("the component is left out (ignoreErrors)" in line for line in left_out)


async def test_an_error_does_not_tell_a_secret(components: Components) -> None:
    with pytest.raises(ConfigurationError, match=r"RuntimeError: cannot log in with \*\*\*$"):
        await components.load([vault("v"), a("c", on_start="leak", secret_of="v")])
    with pytest.raises(ConfigurationError, match=r"RuntimeError: cannot log in with \*\*\*$"):
        await components.load([a("c", on_start="leak", password="hunter2")])


async def test_a_default_makes_room(components: Components, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEFAULTS", {"lockstore": "lock.test"})
    await components.load([])
    assert components.loaded["lockstore"].manifest.type == "lock.test"
    await components.apply([vault("lockstore")])
    assert (list(components.of("lock")), list(components.of("secretstores"))) == ([], ["lockstore"])
    await components.apply([])
    assert (list(components.of("lock")), list(components.of("secretstores"))) == (["lockstore"], [])
    await components.close()


@pytest.mark.parametrize("denied", ["lock.test", "lock.test/v1"])
async def test_a_default_may_be_denied(components: Components, monkeypatch: pytest.MonkeyPatch, denied: str) -> None:
    monkeypatch.setattr(module, "DEFAULTS", {"lockstore": "lock.test"})
    components._denied = [denied]
    await components.load([])
    assert not components.loaded


async def test_exchange_and_removal(components: Components) -> None:
    under_way = asyncio.Event()

    async def settled(_limit: float) -> None:
        await under_way.wait()

    async def detach(store: Store) -> None:
        Store.log.append(f"detach {store.name}")

    changes: list[tuple[str, str]] = []
    components.settled = settled
    components.changed.append(lambda category, name: changes.append((category, name)))
    components.upkeep["lock"] = Upkeep(lambda store: Store.log.append(f"attach {store.name}"), detach)
    locks = components.of("lock")
    await components.load([a("kept"), a("changed"), a("removed")])
    kept, changed = locks["kept"], locks["changed"]
    Store.log.clear()
    assert changes == []

    await components.apply([a("kept"), a("changed", password="new"), a("new")])
    assert Store.log == ["start changed", "start new", "attach changed", "attach new"]
    assert set(locks) == {"kept", "changed", "new"}
    assert locks["kept"] is kept
    assert locks["changed"] is not changed
    assert sorted(changes) == [("lock", "changed"), ("lock", "new"), ("lock", "removed")]

    Store.log.clear()
    under_way.set()
    async with asyncio.timeout(30):
        await asyncio.gather(*components._retiring)
    assert sorted(Store.log) == ["close changed", "close removed", "detach changed", "detach removed"]
    await components.apply([a("kept"), a("changed", password="new"), a("new")])
    assert len(Store.log) == 4
    await components.close()


@pytest.mark.parametrize(
    "successor", [a("c", on_start="fail"), a("c", "lock.none"), a("c", password="x", passwort="x")]
)
async def test_a_successor_that_cannot_be_had_changes_nothing(
    components: Components, caplog: pytest.LogCaptureFixture, successor: Component
) -> None:
    await components.load([a("c")])
    store = components.of("lock")["c"]
    await components.apply([successor, a("d")])
    assert components.of("lock")["c"] is store
    assert "d" in components.of("lock")
    assert "the earlier one stays" in caplog.text
    assert ("close c" in Store.log) == ("on_start" in successor.metadata)  # what was opened is closed at once
    await components.close()


async def test_closing_waits_for_nobody(components: Components) -> None:
    async def settled(_limit: float) -> None:
        await asyncio.Event().wait()

    components.settled = settled
    await components.load([a("c")])
    await components.apply([])
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await components.close()
    assert Store.log == ["start c", "close c"]


async def test_what_is_shared_is_in_use_before_any_start(
    components: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = SimpleNamespace(SPEC=spec("lock.shared", shared=True))
    monkeypatch.setattr(registry, "BUILT_IN", {**registry.BUILT_IN, "lock.shared": "x"})
    monkeypatch.setattr(registry, "importlib", SimpleNamespace(import_module=lambda _: shared))
    components.use_shared([a("c", "lock.shared")])
    made = components.of("lock")["c"]
    await components.load([a("c", "lock.shared")])
    assert components.of("lock")["c"] is made
    await components.apply([])
    await components.close()
    assert Store.log == []  # it is somebody else's to start and close
