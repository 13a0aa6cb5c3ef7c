"""State: the building block behind every API that reads and writes items."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, NoReturn, cast

import msgspec

from mesh.errors import ApiError, Code, MeshError
from mesh.ports import Clock, Topic
from mesh.ports.stores import (
    EtagMismatch,
    Expired,
    HistoricStateStore,
    InvalidEtag,
    InvalidStoreKey,
    ListableStateStore,
    OutboxRecord,
    Position,
    QueryableStateStore,
    StateChange,
    StateFeature,
    StateItem,
    StateQuery,
    StateVersion,
    StoreError,
    StoreUnavailable,
    Unsupported,
    ValueTooLarge,
    WatchableStateStore,
)
from mesh.pubsub import PubSub
from mesh.resiliency.targets import Resiliency
from mesh.state import outbox
from mesh.state.attempts import Attempts
from mesh.state.component import SEPARATOR, StateComponent
from mesh.state.forwarding import Outbox, OutboxFailed
from mesh.state.marker import MarkedOutbox
from mesh.state.relay import StoredOutbox
from mesh.state.requests import BadRequest, Write, check, check_key, fence_of, strong, with_fence
from mesh.trace import TraceContext

ITEMS_AT_ONCE = 64
"""Items of one request that are written at the same time."""
KEYS_AT_ONCE = 500
"""Keys of one request that are asked of a store at a time, unless the request says fewer."""

ABLE_TYPE = "state.meshwire"
"""The type of component that can do all that is beyond Dapr: earlier values by a setting, the rest always."""

SUPPORTED_STORES = "https://docs.dapr.io/reference/components-reference/supported-state-stores/"


class Answer(NamedTuple):
    """What became of one key of a bulk get. `item` is `None` when there is none."""

    key: str
    item: StateItem | None
    error: str = ""


class ShownVersion(StateVersion, frozen=True, kw_only=True, gc=False):
    """A version as apps see it: the key bare, the value decrypted."""

    error: str = ""
    """Why the value cannot be read; it is empty then."""


class State:
    """The state stores of one app's sidecar. Every method raises `ApiError`, with Dapr's codes where Dapr has any."""

    def __init__(
        self,
        app_id: str,
        components: Mapping[str, StateComponent],
        *,
        resiliency: Resiliency,
        pubsub: PubSub,
        clock: Clock,
        namespace: str,
    ) -> None:
        """`components` by name; it may change while this runs. `namespace` is the one of the app."""
        self.components = components
        self._app_id = app_id
        self._attempts = Attempts(resiliency)
        self._pubsub = pubsub
        self._clock = clock
        self._namespace = namespace
        self._outboxes: dict[int, Outbox] = {}
        """By the identity of the component: while one is exchanged there are two of its name."""

    # Components

    def component(self, name: str) -> StateComponent:
        component = self.components.get(name)
        if component is None:
            none = not self.components
            raise ApiError(
                Code.STATE_NOT_CONFIGURED if none else Code.STATE_NOT_FOUND,
                f"state store {name} is not {'configured' if none else 'found'}",
                metadata={"appID": self._app_id},
            )
        return component

    def attach(self, component: StateComponent) -> None:
        """A component has started: its outbox, if it has one, is emptied from now on."""
        settings = component.outbox
        if settings is None:
            return
        found: Outbox
        if StateFeature.OUTBOX in component.features:
            found = StoredOutbox(component, settings, self._pubsub, self._clock)
        else:
            found = MarkedOutbox(component, settings, self._pubsub, self._clock, self._namespace)
        self._outboxes[id(component)] = found
        found.start()

    async def detach(self, component: StateComponent) -> None:
        """To be called before the component is closed. Safe for one that was never attached."""
        found = self._outboxes.pop(id(component), None)
        if found is not None:
            await found.close()

    def pubsub_changed(self, name: str) -> None:
        """The pub/sub component of this name is another one now, or there is none any more."""
        for found in self._outboxes.values():
            found.pubsub_changed(name)

    # Items

    async def get(
        self, component: StateComponent, key: str, consistency: str = "", metadata: Mapping[str, str] = {}
    ) -> StateItem | None:
        """Hot; guarded by `benchmarks/state.py`."""
        stored = check_key(component, key)
        try:
            safe = bool(consistency) and strong(consistency)
            if self._attempts.policy(component) is None:
                item = await component.store.get(stored, strong=safe, metadata=metadata)
            else:
                item = await self._attempts.read(
                    component, lambda: component.store.get(stored, strong=safe, metadata=metadata)
                )
            if item is not None and component.cipher is not None:
                item = msgspec.structs.replace(item, value=component.cipher.decrypt(item.value))
        except MeshError as error:
            _fail(Code.STATE_GET, f"fail to get {key} from state store {component.name}", error)
        return item

    async def get_many(
        self, component: StateComponent, keys: Sequence[str], parallelism: int = 0, metadata: Mapping[str, str] = {}
    ) -> list[Answer]:
        """One answer for each key, in their order. With `parallelism` at most so many are asked for at a time."""
        stored = [check_key(component, key) for key in keys]
        step = min(parallelism, KEYS_AT_ONCE) if parallelism > 0 else KEYS_AT_ONCE
        answers: list[Answer] = []
        try:
            for start in range(0, len(stored), step):
                part = stored[start : start + step]
                found = await self._attempts.read(component, partial(component.store.get_many, part, metadata=metadata))
                answers += [
                    _answer(component, key, item) for key, item in zip(keys[start : start + step], found, strict=True)
                ]
        except MeshError as error:
            _fail(Code.STATE_BULK_GET, f"fail to get keys from state store {component.name}", error)
        return answers

    async def save(self, component: StateComponent, writes: Sequence[Write]) -> None:
        """Each item for itself: when one fails, others may have been written. All are checked before the first one is.

        Items of one key are written in their order.
        """
        prefix = f"failed saving state in state store {component.name}"
        try:
            changes = [check(component, write) for write in writes]
            at_once = ITEMS_AT_ONCE if len({change.key for change in changes}) == len(changes) else 1
            if len(changes) == 1 and self._attempts.policy(component) is None:
                await component.store.change(changes[0])
                return
            for start in range(0, len(changes), at_once):
                attempts = (
                    self._attempts.change(component, partial(component.store.change, change))
                    for change in changes[start : start + at_once]
                )
                _raise_first(await asyncio.gather(*attempts, return_exceptions=True))
        except MeshError as error:
            _fail(Code.STATE_SAVE, prefix, error)

    async def delete(self, component: StateComponent, write: Write) -> None:
        try:
            change = check(component, write)
            await self._attempts.change(component, lambda: component.store.change(change))
        except MeshError as error:
            _fail(Code.STATE_DELETE, f"failed deleting state with key {write.key}", error)

    # Transactions

    def check_transactional(self, component: StateComponent) -> None:
        if StateFeature.TRANSACTIONAL not in component.features:
            raise ApiError(
                Code.STATE_NO_TRANSACTIONS,
                f"state store {component.name} doesn't support transactions",
                detail=(
                    "Help",
                    {"links": [{"description": "supported state stores", "url": SUPPORTED_STORES}]},
                ),
                resource=("state", component.name),
                metadata={"appID": self._app_id},
            )

    async def transact(
        self,
        component: StateComponent,
        writes: Sequence[Write],
        metadata: Mapping[str, str] = {},
        trace: TraceContext | None = None,
    ) -> None:
        """All or none. Call `check_transactional` first; Dapr does so before it reads the request."""
        if not writes:
            return
        found = self._outboxes.get(id(component))
        try:
            if found is None and component.outbox is not None:  # its body took longer to come than the exchange waited
                raise OutboxFailed(f"state store {component.name} was exchanged meanwhile")
            plan = outbox.Plan(writes, ())
            if found is not None:
                plan = outbox.plan(found.settings, writes, self._app_id, trace, self._clock.now())
            changes = with_fence([check(component, write) for write in plan.writes], fence_of(component, metadata))
            self._check_number(component, len(changes) + len(plan.records))
            if found is not None and plan.records:
                self._check_publishable(found)
                await self._transact_and_publish(component, found, changes, plan.records, metadata)
            else:
                await self._attempts.change(component, lambda: component.store.transact(changes, metadata))
        except OutboxFailed as error:
            raise ApiError(
                Code.STATE_OUTBOX,
                f"error while publishing outbox message: {error}",
                resource=("state", component.name),
                metadata={"appID": self._app_id, "error": str(error)},
            ) from error
        except MeshError as error:
            if isinstance(error, ApiError):
                raise
            cause = _cause(error)
            message = f"error while executing state transaction: {cause}"
            raise ApiError(Code.STATE_TRANSACTION, message, status=_FIXED.get(type(error))) from error

    async def _transact_and_publish(
        self,
        component: StateComponent,
        found: Outbox,
        changes: Sequence[StateChange],
        records: Sequence[OutboxRecord],
        metadata: Mapping[str, str],
    ) -> None:
        try:
            await self._attempts.change(component, lambda: found.transact(changes, records, metadata))
        except (EtagMismatch, InvalidEtag, InvalidStoreKey, ValueTooLarge, Unsupported):  # after no attempt in doubt
            found.withdraw(records)
            raise

    def _check_number(self, component: StateComponent, number: int) -> None:
        most = component.store.max_transaction
        if most is not None and number > most:
            raise ApiError(
                Code.STATE_TOO_MANY,
                f"the transaction contains {number} operations, "
                f"which is more than what the state store supports: {most}",
                resource=("state", component.name),
                metadata={
                    "appID": self._app_id,
                    "currentOpsTransaction": str(number),
                    "maxOpsPerTransaction": str(most),
                },
            )

    def _check_publishable(self, found: Outbox) -> None:
        """What could never be published must not be stored."""
        try:
            self._pubsub.check(Topic(found.settings.pubsub, found.settings.topic))
        except ApiError as error:
            raise OutboxFailed(error.message) from error

    # Queries

    def check_queryable(self, component: StateComponent) -> None:
        if StateFeature.QUERY not in component.features:
            why = "" if component.cipher is None else ": its values are encrypted"
            raise ApiError(
                Code.STATE_NO_QUERY,
                f"state store does not support querying{why}",
                resource=("state", component.name),
                metadata={"appID": self._app_id},
            )

    async def query(
        self, component: StateComponent, parse: Callable[[], StateQuery], metadata: Mapping[str, str] = {}
    ) -> tuple[list[Answer], str | None]:
        """The items, and the token of the next page. Call `check_queryable` first. `parse` makes the query."""
        store = cast(QueryableStateStore, component.store)
        try:
            query = parse()
            result = await self._attempts.read(component, lambda: store.query(query, component.key_prefix, metadata))
        except MeshError as error:
            cause = _cause(error)
            raise ApiError(
                Code.STATE_QUERY,
                f"state store {component.name} query failed: {cause}",
                resource=("state", component.name),
                metadata={"appID": self._app_id, "error": cause},
            ) from error
        return [Answer(component.bare_key(item.key), item) for item in result.items], result.token

    # Beyond Dapr

    async def list_items(
        self, component: StateComponent, prefix: str, limit: int, cursor: str | None
    ) -> tuple[list[Answer], str | None]:
        """At most `limit` items whose keys begin with `prefix`, and where the next page begins."""
        store = cast(ListableStateStore, self._featured(component, StateFeature.LIST, "list its keys"))
        start = check_key(component, prefix)
        with _reading(component):
            items, following = await self._attempts.read(
                component, lambda: store.list_items(start, limit=limit, cursor=cursor)
            )
            found = [_answer(component, component.bare_key(item.key), item) for item in items]
            return [answer for answer in found if SEPARATOR not in answer.key], following  # without a prefix all match

    async def history(self, component: StateComponent, key: str, limit: int) -> Sequence[ShownVersion]:
        """The newest first."""
        store = self._historic(component)
        stored = check_key(component, key)
        with _reading(component):
            versions = await self._attempts.read(component, lambda: store.history(stored, limit=limit))
            return [_shown(component, version) for version in versions]

    async def as_of(
        self, component: StateComponent, key: str, etag: str | None = None, time: float | None = None
    ) -> StateItem | None:
        store = self._historic(component)
        stored = check_key(component, key)
        with _reading(component):
            item = await self._attempts.read(component, lambda: store.as_of(stored, etag=etag, time=time))
            if item is not None and component.cipher is not None:
                item = msgspec.structs.replace(item, value=component.cipher.decrypt(item.value))
            return item

    async def watch(
        self, component: StateComponent, prefix: str, after: str | None
    ) -> AsyncGenerator[ShownVersion | Position, None]:
        """See `WatchableStateStore.watch`; keys are bare. Close it (`aclose`)."""
        store = cast(WatchableStateStore, self._featured(component, StateFeature.WATCH, "watch its items"))
        start = check_key(component, prefix)
        changes = store.watch(start, after=after)
        with _reading(component):
            try:
                async for change in changes:
                    yield _shown(component, change) if isinstance(change, StateVersion) else change
            finally:
                await changes.aclose()

    def check_feature(self, component: StateComponent, feature: StateFeature, what: str) -> None:
        self._featured(component, feature, what)

    def _historic(self, component: StateComponent) -> HistoricStateStore:
        return cast(HistoricStateStore, self._featured(component, StateFeature.HISTORY, "tell earlier values"))

    def _featured(self, component: StateComponent, feature: StateFeature, what: str) -> object:
        if feature not in component.features:
            setting = 'the setting history: "16"' if feature is StateFeature.HISTORY else ""
            if component.type == ABLE_TYPE:
                remedy = f"give the component {setting}"
            else:
                remedy = f"use one of type {ABLE_TYPE}{setting and f' with {setting}'}"
            raise ApiError(
                Code.STATE_FEATURE,
                f"state store {component.name} ({component.type}) cannot {what}; {remedy}",
                resource=("state", component.name),
                metadata={"appID": self._app_id, "feature": feature.value},
            )
        return component.store


_STATUSES: Mapping[type[MeshError], int] = {
    EtagMismatch: 409,
    InvalidEtag: 400,
    InvalidStoreKey: 400,
    Unsupported: 400,
    ValueTooLarge: 413,
}
_FIXED: Mapping[type[MeshError], int] = {InvalidStoreKey: 400, ValueTooLarge: 413}
"""In a transaction an ETag that does not match is 500 (Dapr)."""


def _cause(error: MeshError) -> str:
    if isinstance(error, EtagMismatch):
        return f"possible etag mismatch. error from state store: {error}"
    if isinstance(error, InvalidEtag):
        return f"invalid etag value: {error}"
    return str(error)


def _fail(code: Code, prefix: str, error: MeshError) -> NoReturn:
    if isinstance(error, ApiError):
        raise error
    status = error.status if isinstance(error, BadRequest) else _STATUSES.get(type(error))
    raise ApiError(code, f"{prefix}: {_cause(error)}", status=status) from error


def _raise_first(outcomes: Sequence[object]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


def _answer(component: StateComponent, key: str, found: StateItem | StoreError | None) -> Answer:
    if isinstance(found, StoreError):
        return Answer(key, None, str(found))
    if found is None or component.cipher is None:
        return Answer(key, found)
    try:
        return Answer(key, msgspec.structs.replace(found, value=component.cipher.decrypt(found.value)))
    except StoreError as error:
        return Answer(key, None, str(error))


def _shown(component: StateComponent, version: StateVersion) -> ShownVersion:
    value, error = version.value, ""
    if value is not None and component.cipher is not None:
        try:
            value = component.cipher.decrypt(value)
        except StoreError as undecipherable:  # the others must not suffer
            value, error = b"", str(undecipherable)
    return ShownVersion(
        key=component.bare_key(version.key),
        value=value,
        etag=version.etag,
        time=version.time,
        expires=version.expires,
        content_type=version.content_type,
        error=error,
    )


@contextmanager
def _reading(component: StateComponent) -> Iterator[None]:
    """Translates the errors of what is read beyond Dapr."""
    try:
        yield
    except ApiError:
        raise
    except MeshError as error:
        code, status = Code.STATE_READ, None
        if isinstance(error, Expired):
            code = Code.STATE_EXPIRED
        elif isinstance(error, StoreUnavailable):
            status = 503
        elif isinstance(error, InvalidEtag | InvalidStoreKey):
            status = 400
        raise ApiError(
            code, f"state store {component.name}: {error}", status=status, resource=("state", component.name)
        ) from error
