"""Messages that a broker holds until they are due: what schedules, reminders and delayed events are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import msgspec

from mesh.ports.tables import MAX_KEY_BYTES, Key

MAX_ALARM_KEY_BYTES = MAX_KEY_BYTES - 2
"""Brokers that keep alarms in tables mark their keys."""


class Alarm(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A payload, and when it is due. Keys are those of a table: the first part is the kind (`job`, `reminder`, …)."""

    key: Key
    due: float
    """Seconds since the epoch. What lies in the past is due at once."""
    payload: bytes = b""
    headers: Mapping[str, str] = {}
    """Notes of whoever sets it: names of letters, digits and `-` in lower case, values any text."""


class SetAlarm(NamedTuple):
    """An alarm that is set, or has become due and is not settled yet."""

    alarm: Alarm
    revision: int
    fired: bool
    """It has become due."""


class AlarmPage(NamedTuple):
    alarms: list[SetAlarm]
    cursor: str | None
    """Where the next page begins; `None` after the last one."""


class Firing(Protocol):
    """An alarm that is due, in the hands of one member. Settled by `ack` or `retry`, as a `Delivery` is."""

    @property
    def alarm(self) -> Alarm: ...

    @property
    def attempt(self) -> int: ...

    def ack(self, then: Alarm | None = None) -> None:
        """Handled: it never comes again.

        `then` is the next alarm of a series, with the same key. It is stored before this one is forgotten, unless the
        key was set or cancelled since this one became due: that wins. When it cannot be stored, this one comes again.
        """
        ...

    def retry(self, delay: float) -> None:
        """Deliver it again after `delay` seconds, to any member, unless the key is set or cancelled meanwhile."""
        ...


class AlarmSubscription(Protocol):
    async def close(self) -> None:
        """As that of the log's `Subscription`."""
        ...


FiringHandler = Callable[[Firing], None]
"""Called in the event loop for each firing. It must not block or raise; it settles the firing sooner or later."""


class Alarms(Protocol):
    """The alarms of one scope. Every method raises `InvalidKey`, `BrokerError`, `BrokerUnavailable`.

    A key has at least two parts, together of at most `MAX_ALARM_KEY_BYTES`. While a firing of it is in hand, no other
    of the same key is, unless the key was set meanwhile or the broker took the member that has it for lost.
    """

    async def set(self, alarm: Alarm, *, expected: int | None = None) -> int:
        """Set the alarm, in place of one with the same key, which may also be due and not settled yet. Returns its
        revision, once the broker has stored it.

        `expected` is the revision of the alarm that is set under the key, and not due; `ABSENT` when none is set, nor
        due and not settled. Raises `Conflict` when it is not so, `MessageTooLarge`, and `ValueError` for a due time
        that is not finite or headers that break a rule of `Alarm`.

        One that becomes due within a second may fire before it is replaced, as it may before it is cancelled.
        """
        ...

    async def cancel(self, key: Key, *, expected: int | None = None) -> bool:
        """False when none is set, nor due and not settled. One that is due does not come again. `expected` as in `set`.
        Raises `Conflict`."""
        ...

    async def get(self, key: Key) -> SetAlarm | None:
        """The alarm that is set, or else the one that is due and not settled."""
        ...

    async def scan(self, prefix: Key, *, limit: int, cursor: str | None = None) -> AlarmPage:
        """What `get` finds, for the keys that begin with `prefix`; as `Table.scan`. The prefix begins with a kind."""
        ...

    async def serve(self, kind: str, handler: FiringHandler, *, concurrency: int) -> AlarmSubscription:
        """Take alarms of a kind that become due, side by side with other members: each goes to one of them, never
        early, once or more, late rather than never. Those that became due while there was no member come first;
        of one key the newest replaces one that nobody has taken yet. At most `concurrency` are unsettled at once.
        """
        ...


class AlarmClocks(Protocol):
    """The alarms of a namespace, by scope, as `Tables`."""

    def alarms(self, scope: str) -> Alarms: ...

    async def close(self) -> None: ...
