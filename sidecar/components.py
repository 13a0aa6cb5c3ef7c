"""The components of one sidecar: found, started in order, exchanged while it runs, closed at its end.

What uses a component asks for it by its name in each request, in a mapping that always has the current one. A
component that is replaced or taken out is closed when the requests that were under way then have ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from bindings import registry
from mesh import secrets
from mesh.components import Category, ComponentSpec, Elsewhere, Field, Setup, read_settings
from mesh.errors import ConfigurationError, MeshError
from mesh.ports import Clock, EventLog
from mesh.ports.alarms import AlarmClocks
from mesh.ports.tables import Tables
from mesh.resources import Component, SecretReference, Templates
from mesh.telemetry import NO_METER, Meter

logger = logging.getLogger("meshwire.runtime")

SETTLE_LIMIT = 60.0
"""Seconds for which a component that was replaced is kept for requests that are under way."""
CLOSE_LIMIT = 5.0
"""Seconds that a component may take to let go."""
SHORTEST_SECRET = 4
"""Characters of a secret that is worth looking for in an error."""
CREATION_FAILURE, INIT_FAILURE = "CREATE_COMPONENT_FAILURE", "INIT_COMPONENT_FAILURE"
"""Dapr's tags in errors: there is no such type; it could not be started."""

DEFAULTS: Mapping[str, str] = {
    "pubsub": "pubsub.meshwire",
    "statestore": "state.meshwire",
    "lockstore": "lock.meshwire",
    "configstore": "configuration.meshwire",
}
"""Components that are there without any file, unless a manifest takes the name."""


class Opened(Protocol):
    """What `ComponentSpec.open` returns: a store, or an event log."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What components are made with."""

    app_id: str
    namespace: str
    """As the environment has it; may be empty."""
    clock: Clock
    tables: Tables
    alarms: AlarmClocks
    events: EventLog
    templates: Templates


class Loaded(NamedTuple):
    """A component that is in use."""

    manifest: Component
    spec: ComponentSpec
    opened: Opened
    made: Any
    """What its category makes of it: what its building block uses."""
    capabilities: Sequence[str]


class Upkeep(NamedTuple):
    """Work in the background that belongs to a component, such as the relay of an outbox."""

    attach: Callable[[Any], None]
    """The component is in use from now on."""
    detach: Callable[[Any], Awaitable[None]]
    """No request uses it any more. To be awaited before it is closed; safe for one that was never attached."""


async def _nothing_under_way(_limit: float) -> None: ...


class Components:
    def __init__(self, surroundings: Surroundings, *, denied: Sequence[str] = (), meter: Meter = NO_METER) -> None:
        """`denied` is `components.deny` of the configuration, for the defaults."""
        self._surroundings = surroundings
        self._denied = denied
        self._meter = meter
        self._current: dict[str, dict[str, Any]] = {name: {} for name in registry.CATEGORIES}
        self._categories: dict[str, Category] = {}
        self._loaded: dict[str, Loaded] = {}
        self._open: dict[int, Opened] = {}
        self._stores_missing: dict[str, str] = {}
        """Secret stores that have a manifest and cannot be used, with the reason."""
        self._retiring: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        """Set, and made anew, whenever those who wait in `arrival` should look again."""
        self.started = False
        """Whether all were started that are to be had."""
        self.given_up = False
        """Whether nothing will be started any more."""
        self.upkeep: dict[str, Upkeep] = {}
        """By category."""
        self.settled: Callable[[float], Awaitable[None]] = _nothing_under_way
        """Returns when the requests that are under way at the call have ended, or after so many seconds."""
        self.changed: list[Callable[[str, str], None]] = []
        """Each called when a component was replaced or taken out, or one was added after the start: category and name.
        The earlier one is still open."""

    def of(self, category: str) -> Mapping[str, Any]:
        """The components of a category by their names, always the current ones."""
        return self._current[category]

    @property
    def loaded(self) -> Mapping[str, Loaded]:
        """All components by their names."""
        return self._loaded

    def check(self, manifests: Sequence[Component]) -> None:
        """Whether there are such types with such settings, as far as can be told without secrets and without I/O.

        Raises `ConfigurationError`.
        """
        for manifest in map(self._as_used_here, manifests):
            if not manifest.ignore_errors:
                self._prepared(manifest)

    def use_shared(self, manifests: Sequence[Component]) -> None:
        """Have in use already what needs no start, being the backbone's: it can be asked to wait for the broker.

        Raises `ConfigurationError`.
        """
        for manifest in self._with_defaults(manifests):
            if manifest.ignore_errors or manifest.references:
                continue
            spec, category, setup = self._prepared(manifest)
            if spec.shared and setup is not None:
                with self._tagged(manifest):
                    loaded = self._made(setup, manifest, spec, category)
                self._use(loaded)

    def preview(self, category: str, manifests: Sequence[Component]) -> list[Any]:
        """What `manifests` and the defaults make of a category, to be looked at and never started. Those that need a
        secret, or may be left out, are left out. Raises `ConfigurationError`."""
        made: list[Any] = []
        for manifest in self._with_defaults(manifests):
            if manifest.type.startswith(f"{category}.") and not manifest.references and not manifest.ignore_errors:
                spec, kind, setup = self._prepared(manifest)
                if setup is not None:
                    with self._tagged(manifest):
                        made.append(self._made(setup, manifest, spec, kind).made)
        return made

    def categories(self, manifests: Sequence[Component]) -> dict[str, str]:
        """The category of each component that `manifests` and the defaults make, by its name."""
        return {manifest.name: manifest.type.partition(".")[0] for manifest in self._with_defaults(manifests)}

    async def load(self, manifests: Sequence[Component]) -> None:
        """Start all components: secret stores before those that refer to them, those of a category side by side.

        Raises `ConfigurationError` for the first that cannot be had, unless it says `ignoreErrors`.
        """
        wanted = [manifest for manifest in self._with_defaults(manifests) if manifest.name not in self._loaded]
        for batch in self._in_order(wanted):
            for manifest, outcome in await self._bring_up(batch):
                if isinstance(outcome, Loaded):
                    self._use(outcome)
                elif not manifest.ignore_errors:
                    raise outcome
                else:
                    logger.error("%s; the component is left out (ignoreErrors)", outcome)
        self.started = True
        self._wake()

    async def arrival(self, category: str, name: str) -> None:
        """Returns once the component is in use, or all that are to be had, or when it will not come any more."""
        while not (self.started or self.given_up or name in self._current[category]):
            await self._news.wait()

    def give_up(self) -> None:
        """The sidecar ends: nobody needs to wait for a component any longer."""
        self.given_up = True
        self._wake()

    async def apply(self, manifests: Sequence[Component]) -> None:
        """Make the components those of `manifests`, while requests go on.

        A component that has changed is replaced once its successor has started. One that cannot be had is logged, and
        what there was under its name stays (Dapr: the process ends).
        """
        wanted = {manifest.name: manifest for manifest in self._with_defaults(manifests)}
        for name in self._loaded.keys() - wanted.keys():
            self._take_out(name)
        for batch in self._in_order([manifest for manifest in wanted.values() if self._is_news(manifest)]):
            for manifest, outcome in await self._bring_up(batch):
                if isinstance(outcome, Loaded):
                    self._use(outcome)
                    self._tell(outcome.spec.category, manifest.name)
                else:
                    stays = manifest.name in self._loaded
                    logger.error("%s; %s", outcome, "the earlier one stays" if stays else "it is left out")

    async def fetch(self, references: Iterable[SecretReference]) -> Mapping[SecretReference, str]:
        """As `mesh.secrets.fetch`, from the secret stores that are loaded."""
        return await secrets.fetch(references, self.of("secretstores"))

    async def close(self) -> None:
        """Close every component, whoever uses it."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await asyncio.gather(*(self._detach(loaded) for loaded in self._loaded.values()))
        await asyncio.gather(*map(self._close, list(self._open.values())))

    def _with_defaults(self, manifests: Sequence[Component]) -> list[Component]:
        taken = {manifest.name for manifest in manifests}
        defaults = [
            Component(name=name, type=type_, origin="built in")
            for name, type_ in DEFAULTS.items()
            if name not in taken and not {type_, f"{type_}/v1"} & set(self._denied)
        ]
        return [*defaults, *map(self._as_used_here, manifests)]

    def _as_used_here(self, manifest: Component) -> Component:
        """Of a component that another app hosts, only what all of its category have in common."""
        category = self._category(manifest.type.partition(".")[0])
        if category is None or not category.is_elsewhere(manifest, self._surroundings.app_id):
            return manifest
        common = {field.name.lower() for field in category.fields}
        return replace(
            manifest,
            metadata=manifest.metadata.only(common),
            references={key: value for key, value in manifest.references.items() if key in common},
        )

    def _category(self, name: str) -> Category | None:
        if name not in self._categories and name in registry.CATEGORIES:
            self._categories[name] = registry.CATEGORIES[name]()
        return self._categories.get(name)

    def _is_news(self, manifest: Component) -> bool:
        loaded = self._loaded.get(manifest.name)
        return loaded is None or loaded.manifest.fingerprint != manifest.fingerprint

    def _in_order(self, manifests: Sequence[Component]) -> Iterator[Sequence[Component]]:
        """Batches of what can start side by side, once those before are started."""
        stores = {manifest.name: manifest for manifest in manifests if manifest.type.startswith("secretstores.")}
        while stores:
            ready = [name for name, store in stores.items() if not _stores_of(store) & stores.keys()]
            if not ready:
                ready = list(stores)
                for name, store in stores.items():
                    needed = ", ".join(sorted(_stores_of(store)))
                    self._stores_missing[name] = f"cannot start: it needs a secret of '{needed}' in turn"
            yield [stores.pop(name) for name in ready]
        for category in registry.CATEGORIES:
            if category != "secretstores":
                yield [manifest for manifest in manifests if manifest.type.startswith(f"{category}.")]
        yield [manifest for manifest in manifests if manifest.type.partition(".")[0] not in registry.CATEGORIES]

    def _use(self, loaded: Loaded) -> None:
        """From now on, in place of the one that has its name."""
        manifest, category = loaded.manifest, loaded.spec.category
        earlier = self._loaded.get(manifest.name)
        if earlier is not None:
            del self._current[earlier.spec.category][manifest.name]
        self._current[category][manifest.name] = loaded.made
        self._loaded[manifest.name] = loaded
        if category in self.upkeep:
            self.upkeep[category].attach(loaded.made)
        if earlier is not None:
            self._retire(earlier)
        self._meter.component_loaded(manifest.type)
        self._wake()
        logger.info("Component loaded: %s (%s/%s)", manifest.name, manifest.type, manifest.version)

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _take_out(self, name: str) -> None:
        loaded = self._loaded.pop(name)
        del self._current[loaded.spec.category][name]
        logger.info("Component removed: %s (%s/%s)", name, loaded.manifest.type, loaded.manifest.version)
        self._tell(loaded.spec.category, name)
        self._retire(loaded)

    def _tell(self, category: str, name: str) -> None:
        for tell in self.changed:
            tell(category, name)

    def _retire(self, loaded: Loaded) -> None:
        task = asyncio.get_running_loop().create_task(self._let_go(loaded), name=f"close {loaded.manifest.name}")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _let_go(self, loaded: Loaded) -> None:
        try:
            await self.settled(SETTLE_LIMIT)
        finally:
            await self._detach(loaded)
            if not loaded.spec.shared:
                await self._close(loaded.opened)

    async def _detach(self, loaded: Loaded) -> None:
        upkeep = self.upkeep.get(loaded.spec.category)
        if upkeep is not None:
            await _within(CLOSE_LIMIT, upkeep.detach(loaded.made), loaded.manifest.name)

    # One component

    async def _bring_up(self, batch: Sequence[Component]) -> list[tuple[Component, Loaded | ConfigurationError]]:
        """Side by side. Each is started, or the error says why not."""

        async def one(manifest: Component) -> Loaded | ConfigurationError:
            try:
                return await self._started(manifest)
            except ConfigurationError as error:
                if manifest.type.startswith("secretstores."):
                    self._stores_missing.setdefault(manifest.name, "could not be started")
                return error

        return list(zip(batch, await asyncio.gather(*map(one, batch)), strict=True))

    def _prepared(self, manifest: Component) -> tuple[ComponentSpec, Category, Setup | None]:
        """Without a `Setup` where settings are still to come."""
        spec, category = self._found(manifest)
        if manifest.references:
            return spec, category, None
        with self._tagged(manifest):
            return spec, category, self._setup(manifest, spec, category)

    @contextmanager
    def _tagged(self, manifest: Component) -> Iterator[None]:
        try:
            yield
        except ConfigurationError as error:
            raise self._fault(manifest, INIT_FAILURE, str(error)) from error

    async def _started(self, manifest: Component) -> Loaded:
        spec, category = self._found(manifest)
        opened: Opened | None = None
        resolved = manifest
        try:
            async with asyncio.timeout(manifest.init_timeout) as limit:
                self._check_stores_of(manifest)
                resolved = await secrets.resolve(manifest, self.of("secretstores"), self._surroundings.templates)
                loaded = self._made(self._setup(resolved, spec, category), manifest, spec, category)
                if not spec.shared:
                    opened = loaded.opened
                    self._open[id(opened)] = opened
                    await opened.start()
                return loaded
        except Exception as error:
            if opened is not None:
                await self._close(opened)
            if isinstance(error, TimeoutError) and limit.expired():
                kind = f"{manifest.type}/{manifest.version}"
                reason = f"init timeout for component {manifest.name} ({kind}) after {manifest.init_timeout:g} s"
            else:
                reason = _without_secrets(_reason(error, spec), resolved, fields_of(category, spec))
            raise self._fault(manifest, INIT_FAILURE, reason) from None

    def _check_stores_of(self, manifest: Component) -> None:
        for reference in manifest.references.values():
            why = self._stores_missing.get(reference.store)
            if why is not None and reference.store not in self.of("secretstores"):
                raise ConfigurationError(f"{reference.where}: secretKeyRef: the secret store '{reference.store}' {why}")

    def _found(self, manifest: Component) -> tuple[ComponentSpec, Category]:
        try:
            spec = registry.find(manifest.type, manifest.version)
        except ConfigurationError as error:
            raise self._fault(manifest, CREATION_FAILURE, f"{manifest.origin}: {error}") from error
        category = self._category(spec.category)
        assert category is not None  # noqa: S101 - the registry has found it
        if category.is_elsewhere(manifest, self._surroundings.app_id):
            spec = replace(spec, open=lambda _: Elsewhere(), fields=(), shared=False)
        return spec, category

    def _setup(self, manifest: Component, spec: ComponentSpec, category: Category) -> Setup:
        around = self._surroundings
        return Setup(
            name=manifest.name,
            version=manifest.version,
            settings=read_settings(manifest, fields_of(category, spec)),
            app_id=around.app_id,
            namespace=around.namespace,
            clock=around.clock,
            tables=around.tables,
            alarms=around.alarms,
            events=around.events,
        )

    @staticmethod
    def _made(setup: Setup, manifest: Component, spec: ComponentSpec, category: Category) -> Loaded:
        opened = spec.open(setup)
        made = category.make(setup, spec, opened)
        return Loaded(manifest, spec, opened, made, category.capabilities(spec, made))

    def _fault(self, manifest: Component, tag: str, reason: str) -> ConfigurationError:
        self._meter.component_failed(manifest.type, manifest.name, "creation" if tag == CREATION_FAILURE else "init")
        return ConfigurationError(
            f"[{tag}]: initialization error occurred for {manifest.name} ({manifest.type}/{manifest.version}): {reason}"
        )

    async def _close(self, opened: Opened) -> None:
        if self._open.pop(id(opened), None) is not None:
            await _within(CLOSE_LIMIT, opened.close(), "a component")


async def _within(seconds: float, work: Awaitable[None], name: str) -> None:
    """What goes wrong while something is let go of is logged."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        logger.warning("%s did not let go within %g s", name, seconds)
    except Exception as error:
        logger.warning("%s did not let go: %s: %s", name, type(error).__name__, error)


def fields_of(category: Category, spec: ComponentSpec) -> Sequence[Field]:
    """The settings of a type: its own, and those of its category that it does not redefine."""
    own = {field.name.lower() for field in spec.fields}
    return [*spec.fields, *(field for field in category.fields if field.name.lower() not in own)]


def _stores_of(manifest: Component) -> set[str]:
    return {reference.store for reference in manifest.references.values()}


def _reason(error: Exception, spec: ComponentSpec) -> str:
    if isinstance(error, ImportError):
        return str(registry.missing_library(spec.type, error, spec.needs))
    return str(error) if isinstance(error, MeshError) else f"{type(error).__name__}: {error}"


def _without_secrets(text: str, resolved: Component, fields: Sequence[Field]) -> str:
    """A library may repeat in its errors what it was given."""
    secret = {*resolved.references, *(name.lower() for f in fields if f.secret for name in (f.name, *f.aliases))}
    for key in secret & {key.lower() for key in resolved.metadata}:
        value = resolved.metadata[key]
        if len(value) >= SHORTEST_SECRET:
            text = text.replace(value, "***")
    return text
