"""The state store on the broker itself: `state.meshwire`.

The part of a key before `||` names the scope, which is the table; within it an item is the record `("state",
<component>, <rest of the key>)` and an event of the outbox `("outbox", <component>, <id>)`. An ETag is the revision.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import NamedTuple

from mesh.components import ComponentSpec, Field, Kind, Setup
from mesh.errors import BrokerUnavailable, MeshError, MessageTooLarge, clip
from mesh.fencing import FenceToken, InvalidFence
from mesh.ports import Clock
from mesh.ports.stores import (
    DeleteState,
    EtagMismatch,
    Expired,
    InvalidEtag,
    InvalidStoreKey,
    OutboxRecord,
    Position,
    StateChange,
    StateFeature,
    StateItem,
    StateVersion,
    StoreError,
    StoreUnavailable,
    Unsupported,
    ValueTooLarge,
)
from mesh.ports.tables import (
    ABSENT,
    Change,
    Check,
    Conflict,
    Current,
    Delete,
    Entry,
    Gone,
    HistoryNotKept,
    InvalidKey,
    Key,
    Put,
    Table,
    TableFeature,
    Tables,
)
from mesh.state.component import SEPARATOR, key_prefix
from mesh.state.view import LocalView

KIND = "state"
OUTBOX = "outbox"
MAX_TRANSACTION = 500
"""Changes, fences and events of one transaction: what a table takes in one commit."""

_FEATURES = frozenset(
    {
        StateFeature.ETAG,
        StateFeature.TRANSACTIONAL,
        StateFeature.TTL,
        StateFeature.LIST,
        StateFeature.WATCH,
        StateFeature.FENCE,
        StateFeature.OUTBOX,
    }
)
_NOT_HELD = "the lock of the fencing token is not held any more"
_REVISION = re.compile(r"[1-9][0-9]{0,18}")


class _Scope(NamedTuple):
    name: str
    table: Table
    view: LocalView


class MeshStateStore:
    """A `StateStore` over the tables of the backbone, which somebody else opens and closes.

    Reads without `strong` come from memory where they can (`LocalView`): they show at least what this process wrote.
    """

    max_transaction = MAX_TRANSACTION

    def __init__(
        self, tables: Tables, component: str, clock: Clock, *, key_prefix: str = "", history: int | None = None
    ) -> None:
        """`history` is how many values of each key below `key_prefix` are kept, if any."""
        self._tables = tables
        self._clock = clock
        self._records: Key = (KIND, component)
        self._outbox: Key = (OUTBOX, component)
        self._key_prefix = key_prefix
        self._history = history
        self._scopes: dict[str, _Scope] = {}
        self.features = _FEATURES if history is None else _FEATURES | {StateFeature.HISTORY}

    async def start(self) -> None:
        if self._history is not None:
            scope, _ = self._split(self._key_prefix)
            try:
                await scope.table.keep_history(self._records, self._history)
            except MeshError as error:
                raise _translated(error) from error

    async def ping(self) -> None:
        await self.get(self._key_prefix + "ping", strong=True)

    async def close(self) -> None:
        for scope in self._scopes.values():
            await scope.view.close()

    # Items

    async def get(self, key: str, *, strong: bool = False, metadata: Mapping[str, str] = {}) -> StateItem | None:
        """Hot; guarded by `benchmarks/state.py`."""
        scope, record = self._address(key)
        try:
            entry = await scope.view.get(record, strong=strong)
        except MeshError as error:
            raise _translated(error) from error
        return None if entry is None else _item(key, entry)

    async def get_many(
        self, keys: Sequence[str], *, strong: bool = False, metadata: Mapping[str, str] = {}
    ) -> list[StateItem | StoreError | None]:
        try:
            addresses = [self._address(key) for key in keys]
            entries: dict[tuple[str, Key], Entry | None] = {}
            for scope in {scope.name: scope for scope, _ in addresses}.values():
                records = [record for other, record in addresses if other is scope]
                found = await scope.view.get_many(records, strong=strong)
                entries |= {(scope.name, record): entry for record, entry in zip(records, found, strict=True)}
        except (InvalidKey, InvalidStoreKey):  # the others must not suffer
            return [await self._get_or_error(key, strong) for key in keys]
        except MeshError as error:
            raise _translated(error) from error
        items: list[StateItem | StoreError | None] = []
        for key, (scope, record) in zip(keys, addresses, strict=True):
            entry = entries[scope.name, record]
            items.append(None if entry is None else _item(key, entry))
        return items

    async def _get_or_error(self, key: str, strong: bool) -> StateItem | StoreError | None:
        try:
            return await self.get(key, strong=strong)
        except StoreError as error:
            return error

    async def change(self, change: StateChange) -> None:
        scope, record = self._address(change.key)
        checks = () if change.fence is None else (_fence(change.fence, scope.name),)
        await self._commit(scope, [_change(record, change)], checks)

    async def transact(self, changes: Sequence[StateChange], metadata: Mapping[str, str] = {}) -> None:
        await self.transact_with(changes, ())

    async def transact_with(
        self, changes: Sequence[StateChange], records: Sequence[OutboxRecord], metadata: Mapping[str, str] = {}
    ) -> None:
        scope, _ = self._address(changes[0].key)
        final: dict[Key, Change] = {}
        checks: dict[Key, Check] = {}
        for change in changes:
            other, record = self._address(change.key)
            if other is not scope:
                raise Unsupported(f"a transaction cannot span the keys of '{scope.name}' and '{other.name}'")
            final[record] = _followed(final.get(record), _change(record, change))
            if change.fence is not None:
                check = _fence(change.fence, scope.name)
                if checks.setdefault(check.key, check) != check:
                    raise EtagMismatch(f"{_NOT_HELD}: the transaction has two tokens of it")
        for event in records:
            record = (*self._outbox, event.id)
            final[record] = Put(key=record, value=event.event, content_type="application/cloudevents+json")
        if len(final) + len(checks) > MAX_TRANSACTION:
            raise ValueTooLarge(f"{len(final)} changes and {len(checks)} fences, of at most {MAX_TRANSACTION} together")
        await self._commit(scope, list(final.values()), list(checks.values()))

    async def _commit(self, scope: _Scope, changes: Sequence[Change], checks: Sequence[Check]) -> None:
        try:
            await scope.view.commit(changes, checks)
        except MeshError as error:
            raise _translated(error) from error

    # Lists, watches, history

    async def list_items(
        self, key_prefix: str, *, limit: int, cursor: str | None = None
    ) -> tuple[Sequence[StateItem], str | None]:
        scope, start = self._split(key_prefix)
        try:
            page = await scope.table.scan(self._records, starts_with=start, limit=limit, cursor=cursor)
        except ValueError as error:
            raise Expired(f"{error}; begin without a cursor") from None
        except MeshError as error:
            raise _translated(error) from error
        items = [_item(_key(scope, entry.key), entry) for entry in page.entries if self._is_item(entry.key)]
        return items, page.cursor

    async def watch(
        self, key_prefix: str, *, after: str | None = None
    ) -> AsyncGenerator[StateVersion | Position, None]:
        scope, start = self._split(key_prefix)
        revision = None if after is None else ABSENT if after == "0" else _revision(after)
        beginning = revision or ABSENT
        try:
            async with aclosing(scope.table.watch(self._records, after=revision)) as changes:
                async for change in changes:
                    # What follows `after` is newer, unless the table was lost and counts anew.
                    oldest = beginning if isinstance(change, Current) else beginning + 1
                    if change.revision < oldest:
                        fact = f"nothing has the ETag {after} yet: this store was made anew since then"
                        raise Expired(f"{fact}; read everything again, without a position")
                    if isinstance(change, Current):
                        yield Position(str(change.revision))
                    elif self._is_item(change.key) and change.key[-1].startswith(start):
                        yield _version(_key(scope, change.key), change)
        except MeshError as error:
            raise _translated(error) from error

    async def history(self, key: str, *, limit: int) -> Sequence[StateVersion]:
        scope, record = self._address(key)
        try:
            return [_version(key, change) for change in await scope.table.history(record, limit=limit)]
        except HistoryNotKept:
            raise self._expired("the earlier values are not kept") from None
        except MeshError as error:
            raise _translated(error) from error

    async def as_of(self, key: str, *, etag: str | None = None, time: float | None = None) -> StateItem | None:
        scope, record = self._address(key)
        revision = None if etag is None else _revision(etag)
        try:
            entry = await scope.table.as_of(record, revision=revision, time=time)
        except HistoryNotKept:
            raise self._expired("the value of then is not known any more") from None
        except MeshError as error:
            raise _translated(error) from error
        return None if entry is None else _item(key, entry)

    def _expired(self, fact: str) -> Expired:
        return Expired(
            f"{fact}: of each key {self._history} values are kept, from when the setting history was given; "
            "a greater one keeps more from now on"
        )

    # The outbox

    async def pending(self, key_prefix: str) -> AsyncGenerator[str, None]:
        scope, _ = self._split(key_prefix)
        try:
            async with aclosing(scope.table.watch(self._outbox, after=ABSENT)) as changes:
                async for change in changes:
                    if isinstance(change, Entry) and len(change.key) == len(self._outbox) + 1:
                        yield change.key[-1]
        except MeshError as error:
            raise _translated(error) from error

    async def record(self, key_prefix: str, record_id: str) -> OutboxRecord | None:
        scope, _ = self._split(key_prefix)
        try:
            entry = await scope.table.get((*self._outbox, record_id))
        except MeshError as error:
            raise _translated(error) from error
        return None if entry is None else OutboxRecord(record_id, entry.value)

    async def remove_record(self, key_prefix: str, record_id: str) -> None:
        scope, _ = self._split(key_prefix)
        await self._commit(scope, [Delete(key=(*self._outbox, record_id))], ())

    # Names

    def _split(self, key: str) -> tuple[_Scope, str]:
        """The scope of a whole key, or of the beginning of some, and the rest."""
        name, separator, rest = key.partition(SEPARATOR)
        if not separator:
            name, rest = "", key
        scope = self._scopes.get(name)
        if scope is None:
            table = self._tables.table(name)
            scope = self._scopes[name] = _Scope(name, table, LocalView(table, self._records, self._clock))
        return scope, rest

    def _is_item(self, record: Key) -> bool:
        """Whoever writes to the broker directly may have made a record of more parts, which no key names."""
        return len(record) == len(self._records) + 1

    def _address(self, key: str) -> tuple[_Scope, Key]:
        scope, rest = self._split(key)
        if not rest:
            raise InvalidStoreKey("the key is empty")
        return scope, (*self._records, rest)


def _key(scope: _Scope, record: Key) -> str:
    return scope.name + SEPARATOR + record[-1] if scope.name else record[-1]


def _item(key: str, entry: Entry) -> StateItem:
    return StateItem(
        key=key,
        value=entry.value,
        etag=str(entry.revision),
        expires=entry.expires,
        content_type=entry.content_type,
    )


def _version(key: str, change: Entry | Gone) -> StateVersion:
    if isinstance(change, Gone):
        return StateVersion(key=key, value=None, etag=str(change.revision), time=change.time)
    return StateVersion(
        key=key,
        value=change.value,
        etag=str(change.revision),
        time=change.time,
        expires=change.expires,
        content_type=change.content_type,
    )


def _revision(etag: str) -> int:
    if not _REVISION.fullmatch(etag):
        raise InvalidEtag(f"an ETag of this store is a positive integer (got '{clip(etag)}')")
    return int(etag)


def _change(record: Key, change: StateChange) -> Change:
    expected = _revision(change.etag) if change.etag else ABSENT if change.first_write else None
    if isinstance(change, DeleteState):
        return Delete(key=record, expected=expected)
    ttl = None if change.ttl is None or change.ttl < 0 else float(change.ttl)
    return Put(key=record, value=change.value, content_type=change.content_type, ttl=ttl, expected=expected)


def _followed(earlier: Change | None, change: Change) -> Change:
    """Two changes to one key of a transaction as one: what the first one expects, and what the second one makes."""
    if earlier is None:
        return change
    exists = isinstance(earlier, Put)
    if change.expected is not None and (exists or change.expected != ABSENT):
        raise EtagMismatch("the transaction itself changes the item before")
    if isinstance(change, Delete):
        return Delete(key=change.key, expected=earlier.expected)
    return Put(
        key=change.key,
        value=change.value,
        content_type=change.content_type,
        ttl=change.ttl,
        expected=earlier.expected,
    )


def _fence(token: str, scope: str) -> Check:
    try:
        fence = FenceToken.decode(token)
    except InvalidFence as error:
        raise Unsupported(str(error)) from None
    if fence.key[0] in (KIND, OUTBOX):
        raise Unsupported("the fencing token names no lock: give it as the lock's answer has it")
    if fence.scope != scope:
        raise Unsupported(
            f"the lock of the fencing token is kept for '{clip(fence.scope)}', the item for '{clip(scope)}': "
            "give both components the same keyPrefix"
        )
    return fence.check()


def _translated(error: MeshError) -> StoreError:
    """An error of the tables in the words of stores."""
    match error:
        case StoreError():
            return error
        case Conflict() if error.key[0] == KIND:
            return EtagMismatch("the item was changed meanwhile, or is not as expected")
        case Conflict():
            return EtagMismatch(_NOT_HELD)
        case InvalidKey():
            return InvalidStoreKey(str(error))
        case MessageTooLarge():
            return ValueTooLarge(str(error))
        case BrokerUnavailable():
            return StoreUnavailable(str(error))
    return StoreError(str(error))


def _open(setup: Setup) -> MeshStateStore:
    prefix = key_prefix(setup)
    history: int | None = setup.settings["history"] or None
    if history is not None:
        table = setup.tables.table(prefix.partition(SEPARATOR)[0])
        if TableFeature.HISTORY not in table.features:
            raise setup.settings.fault("history", "this broker keeps no earlier values; remove the setting")
    return MeshStateStore(setup.tables, setup.name, setup.clock, key_prefix=prefix, history=history)


SPEC = ComponentSpec(
    type="state.meshwire",
    title="Meshwire",
    about=(
        "State on the broker of the mesh, with nothing to install. Linearizable writes, transactions with an outbox of "
        "their own, lists and watches; earlier values where `history` asks for them. Without a file there is one under "
        "the name `statestore`."
    ),
    open=_open,
    fields=(
        Field(
            "history",
            "How many values of each key are kept, the present one included; 0 keeps no earlier ones.",
            kind=Kind.INTEGER,
            default=0,
            minimum=0,
            maximum=64,
        ),
    ),
    features=sorted(feature.value for feature in _FEATURES),
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: statestore
spec:
  type: state.meshwire
  version: v1
  metadata:
  - name: history
    value: "16"
""",
)
