"""The inbox: an app's dead letters listed, shown, counted and removed."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import msgspec

from mesh.dead_letters.index import Index, Order
from mesh.dead_letters.selection import Filter, Row, contains, matches
from mesh.dead_letters.store import KIND, Kept, LetterStore, place
from mesh.errors import MeshError, clip
from mesh.ports import Clock, Topic
from mesh.ports.tables import Key
from mesh.pubsub import Component

_READ_AT_ONCE = 64
"""Letters whose events are read together."""


class InvalidCursor(MeshError):
    """A text that is no cursor of a list in this order."""


class InvalidLetterId(MeshError):
    """A text that names no letter."""


class Shown(NamedTuple):
    """A letter in a list."""

    id: str
    subscription: Topic
    """As the app names it."""
    row: Row


class ShownPage(NamedTuple):
    letters: list[Shown]
    cursor: str | None
    """Where the next page begins; `None` after the last one."""


class Inbox:
    """The dead letters of one app. Every method raises `BrokerError`, `BrokerUnavailable`."""

    def __init__(self, store: LetterStore, components: Mapping[str, Component], clock: Clock) -> None:
        """`components` are the pub/sub components by their names."""
        self._store = store
        self._components = components
        self._index = Index(store, clock)

    async def page(self, wanted: Filter, *, newest: bool = True, limit: int, cursor: str | None = None) -> ShownPage:
        """At most `limit` letters, by the time of their death. Raises `InvalidCursor`."""
        after = None if cursor is None else _read_cursor(cursor, newest)
        await self._index.look()
        found: list[Row] = []
        async for row in self._chosen(wanted, self._index.rows(newest=newest, after=after)):
            found.append(row)
            if len(found) > limit:
                return ShownPage([self._shown(row) for row in found[:limit]], _write_cursor(found[limit - 1], newest))
        return ShownPage([self._shown(row) for row in found], None)

    async def count(self, wanted: Filter) -> dict[Topic, int]:
        """How many there are of each subscription, as the app names it; those with the most first."""
        await self._index.look()
        counts: dict[Topic, int] = {}
        async for row in self._chosen(wanted, self._index.rows()):
            subscription = self._named(row.subscription)
            counts[subscription] = counts.get(subscription, 0) + 1
        return dict(sorted(counts.items(), key=lambda counted: (-counted[1], counted[0])))

    async def get(self, letter_id: str) -> Kept | None:
        """Raises `InvalidLetterId`."""
        return await self._store.get(self._key(letter_id))

    async def remove(self, letter_id: str) -> bool:
        """False when there is none. Raises `InvalidLetterId`."""
        kept = await self.get(letter_id)
        return kept is not None and bool(await self.remove_many([kept]))

    async def remove_many(self, letters: Sequence[Kept]) -> list[Kept]:
        """Those that were removed: none that has died once more since it was read."""
        removed = await self._store.remove_many(letters)
        for kept in removed:
            self._index.forget(kept.key, kept.revision)
        return removed

    async def purge(self, wanted: Filter) -> int:
        """Remove every letter that is meant; how many there were."""
        purged = 0
        while True:
            keys = [row.key for row in await self.select(wanted)]
            for start in range(0, len(keys), _READ_AT_ONCE):
                found = await self.get_many(keys[start : start + _READ_AT_ONCE])
                purged += len(await self.remove_many([kept for kept in found if kept is not None]))
            if not self.left_out or not keys:
                return purged
            self._index.begin_anew()

    async def select(self, wanted: Filter) -> list[Row]:
        """Every letter that is meant, the one that died first in front. Where there are too many for that at once,
        `left_out` is true, and selecting again once some are removed finds others."""
        await self._index.look()
        return [row async for row in self._chosen(wanted, self._index.rows())]

    @property
    def left_out(self) -> bool:
        return self._index.left_out

    def begin_anew(self) -> None:
        """Look for letters that were left out."""
        self._index.begin_anew()

    async def get_many(self, keys: Sequence[Key]) -> Sequence[Kept | None]:
        return await self._store.get_many(keys)

    def start(self) -> None:
        """Nothing is to be done before the first look."""

    async def close(self) -> None:
        await self._index.close()

    def id_of(self, kept: Kept) -> str:
        return self._id(kept.key)

    def named(self, kept: Kept) -> Topic:
        """The subscription of a letter as the app names it."""
        return self._named(kept.letter.group.topic)

    async def _chosen(self, wanted: Filter, rows: Iterable[Row]) -> AsyncIterator[Row]:
        meant = (row for row in rows if matches(wanted, row, self._named(row.subscription)))
        if wanted.text is None:
            for row in meant:
                yield row
            return
        while batch := list(islice(meant, _READ_AT_ONCE)):
            found = await self.get_many([row.key for row in batch])
            for row, kept in zip(batch, found, strict=True):
                if kept is not None and contains(kept.letter, wanted.text):
                    yield row

    def _shown(self, row: Row) -> Shown:
        return Shown(self._id(row.key), self._named(row.subscription), row)

    def _named(self, topic: Topic) -> Topic:
        component = self._components.get(topic.pubsub)
        return topic if component is None else Topic(topic.pubsub, topic.name.removeprefix(component.topic_prefix))

    def _id(self, key: Key) -> str:
        _, pubsub, topic, position = key
        number = position.lstrip("0") or "0" if position.isascii() and position.isdigit() else position
        return f"{pubsub}/{self._named(Topic(pubsub, topic)).name}/{number}"

    def _key(self, letter_id: str) -> Key:
        pubsub, _, rest = letter_id.partition("/")
        topic, _, position = rest.rpartition("/")
        if not (pubsub and topic and position):
            raise InvalidLetterId(f"'{clip(letter_id)}' names no dead letter: it looks like pubsub/topic/position")
        component = self._components.get(pubsub)
        address = Topic(pubsub, topic) if component is None else component.address(topic)
        return (KIND, *address, place(position))


def _write_cursor(row: Row, newest: bool) -> str:
    packed = msgspec.msgpack.encode((newest, *row.order))
    return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def _read_cursor(text: str, newest: bool) -> Order:
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        was_newest, died, key = msgspec.msgpack.decode(packed, type=tuple[bool, float, Key])
    except (ValueError, binascii.Error, msgspec.DecodeError):
        raise InvalidCursor(f"'{clip(text)}' is no cursor: give the one of the page before, as it came") from None
    if was_newest != newest:
        raise InvalidCursor("the cursor is of a list in the other order: give the same parameters with it")
    return died, key
