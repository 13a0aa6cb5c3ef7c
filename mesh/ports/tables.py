"""Keyed tables with revisions: what state, leases, locks, configuration and records in transit are kept in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

import msgspec

from mesh.errors import MeshError

Key = tuple[str, ...]
"""The name of an entry, in parts: first the kind of record (`state`, `lease`, …), then whatever names it within the
kind. No part is empty. All parts together have at most `MAX_KEY_BYTES` bytes of UTF-8."""

MAX_KEY_BYTES = 1024

ABSENT = 0
"""As an expected revision: the key must not exist. One that has expired or was deleted does not exist."""


class InvalidKey(MeshError):
    """A key that no table can hold: a part is empty, it is too long, or it is no valid Unicode text."""


class Conflict(MeshError):
    """A precondition does not hold. Nothing was changed; reading again and deciding anew may help."""

    def __init__(self, key: Key) -> None:
        super().__init__(f"{'/'.join(key)} was changed in the meantime, or is not as expected")
        self.key = key


class Entry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A key and its value. Times in seconds since the epoch, by the broker's clock."""

    key: Key
    value: bytes
    revision: int
    """Greater than 0, and greater than every earlier one of the same table."""
    time: float
    """When it was written."""
    expires: float | None = None
    content_type: str = ""
    """The media type that was given with the value, if any."""


class Gone(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A key was deleted, or has expired. Keys and times as in `Entry`."""

    key: Key
    revision: int
    time: float


class Current(NamedTuple):
    """A watch has shown everything up to this revision."""

    revision: int


class Put(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Give a key a value."""

    key: Key
    value: bytes
    content_type: str = ""
    ttl: float | None = None
    """Seconds until it expires, at least 1 and kept to within a second; `None` is never. An earlier value's is
    forgotten."""
    expected: int | None = None
    """The revision that the key must have, or `ABSENT`; `None` is any."""


class Delete(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Remove a key, whether it exists or not, unless `expected` says otherwise."""

    key: Key
    expected: int | None = None


Change = Put | Delete


class Check(NamedTuple):
    """A precondition on a key that is not changed: it must have this revision, or be `ABSENT`. A fence is one."""

    key: Key
    revision: int


class Page(NamedTuple):
    entries: Sequence[Entry]
    cursor: str | None
    """Where the next page begins; `None` after the last one."""


class TableFeature(Enum):
    """What a table can do beyond the common contract. Undeclared means refused at load."""

    DURABLE = "keeps its entries over a restart of the broker"
    HISTORY = "keeps earlier values of the keys for which `keep_history` asks"


class HistoryNotKept(MeshError):
    """The earlier values of these keys are not kept."""


class Watch(Protocol):
    """What `Table.watch` shows, until it is closed: an async generator is one."""

    def __aiter__(self) -> AsyncIterator[Entry | Gone | Current]: ...

    async def __anext__(self) -> Entry | Gone | Current: ...

    async def aclose(self) -> None: ...


class Table(Protocol):
    """The entries of one scope: a set of keys that belong together and can be changed together.

    Linearizable per key, and over all keys of one `commit`. Every method raises `InvalidKey`, `BrokerUnavailable`
    when the broker does not answer in time, `BrokerError` when it refuses. A change that ends in
    `BrokerUnavailable`, or is cancelled, may or may not have happened; it never happens twice.
    """

    @property
    def features(self) -> frozenset[TableFeature]: ...

    async def get(self, key: Key) -> Entry | None:
        """The newest value."""
        ...

    async def get_many(self, keys: Sequence[Key]) -> list[Entry | None]:
        """The newest value of each key, in the order of `keys`. Not a snapshot: each is read for itself."""
        ...

    async def commit(self, changes: Sequence[Change], checks: Sequence[Check] = ()) -> list[int]:
        """Do all changes, or none. Returns the revision of each.

        One change with at most one precondition in all is the fast case, and costs one message. At most 500
        changes and checks together; no key twice among the changes (`ValueError` for either).

        Raises `Conflict` when a precondition does not hold, `MessageTooLarge` before anything is sent.
        """
        ...

    async def scan(self, prefix: Key, *, starts_with: str = "", limit: int, cursor: str | None = None) -> Page:
        """Entries whose key begins with the parts of `prefix` and has further ones, the first of which begins with
        the text `starts_with`; at most `limit` a page, in no order. A page may have fewer, even none, before the last.
        A key that exists throughout the scan is seen, one that is written meanwhile perhaps more than once.

        Raises `ValueError` for a cursor that is not of this scan.
        """
        ...

    def watch(self, prefix: Key, *, after: int | None = None, lost: Callable[[], None] | None = None) -> Watch:
        """Changes to keys that begin with the parts of `prefix`, in the order of their revisions.

        With `after` those since that revision, where `ABSENT` (0) shows the entries that exist now first; without it
        those since now. `Current` comes once what there was at the beginning has been shown, and again whenever the
        watch had to be taken up anew. Of several changes to one key in quick succession, or while the
        connection was lost, the earlier ones may be left out: the newest never is. A deletion may be shown once more
        later on, and be passed over when it lies more than an hour behind `after`. Lasts until it is closed
        (`aclose`); a reader that is too slow is slowed down, not cut off. `lost` is called, from the event loop,
        within 4 s of the moment from which changes may not arrive; the next `Current` is the end of that. Raises
        `BrokerError` when the broker refuses.
        """
        ...

    async def keep_history(self, prefix: Key, revisions: int) -> None:
        """From now on keep up to so many values (1 to 64) of each key that begins with `prefix`.

        Raises `HistoryNotKept` when this table cannot.
        """
        ...

    async def history(self, key: Key, *, limit: int) -> list[Entry | Gone]:
        """The newest first, the present value included. It may lag behind `commit` by a moment.

        Raises `HistoryNotKept` when nobody asked to keep it.
        """
        ...

    async def as_of(self, key: Key, *, revision: int | None = None, time: float | None = None) -> Entry | None:
        """The value that the key had once the change `revision` was made, or at `time`; `None` when it had none.

        Give one of the two. Raises `HistoryNotKept` also when the answer lies before what was kept.
        """
        ...


class Tables(Protocol):
    """All tables of a namespace, one for each scope: an app id, or the name of something that apps share."""

    def table(self, scope: str) -> Table:
        """The same object for the same scope. It is made on the broker when it is first used."""
        ...

    async def close(self) -> None:
        """Let go of everything. Operations under way fail with `BrokerUnavailable`, watches end."""
        ...
