"""Messages that a broker holds until they are due: what schedules, reminders and delayed events are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import msgspec

from mesh.ports.events import Subscription
from mesh.ports.tables import Key


class Alarm(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A payload, and when it is due. Keys are those of a table: the first part is the kind (`job`, `reminder`, …)."""

    key: Key
    due: float
    """Seconds since the epoch. What lies in the past is due at once."""
    payload: bytes = b""
    headers: Mapping[str, str] = {}
    """Notes of whoever sets it: names of letters, digits and `-` in lower case, values any text of one line."""


class SetAlarm(NamedTuple):
    """An alarm that is set."""

    alarm: Alarm
    revision: int


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

    def ack(self) -> None: ...

    def retry(self, delay: float) -> None: ...


FiringHandler = Callable[[Firing], None]
"""Called in the event loop for each firing. It must not block or raise; it settles the firing sooner or later."""


class Alarms(Protocol):
    """The alarms of one scope. Every method raises `InvalidKey`, `BrokerError`, `BrokerUnavailable`."""

    async def set(self, alarm: Alarm, *, expected: int | None = None) -> int:
        """Set the alarm, in place of one with the same key. Returns its revision, once the broker has stored it.

        `expected` is the revision of the alarm that is set under the key; `ABSENT` when none is set, nor was
        cancelled within the last hour (so that whoever sets the next one of a series learns that the series has
        been cancelled meanwhile). Raises `Conflict` when it is not so, `MessageTooLarge`.
        """
        ...

    async def cancel(self, key: Key, *, expected: int | None = None) -> bool:
        """False when none is set. One that is due and not settled does not come again. Raises `Conflict`."""
        ...

    async def get(self, key: Key) -> SetAlarm | None:
        """The alarm that is set; `None` once it has become due."""
        ...

    async def scan(self, prefix: Key, *, limit: int, cursor: str | None = None) -> AlarmPage:
        """Alarms that are set, their keys beginning with `prefix`; as `Table.scan`."""
        ...

    async def serve(self, kind: str, handler: FiringHandler, *, concurrency: int) -> Subscription:
        """Take alarms of a kind that become due, side by side with other members: each goes to one of them, never
        early, once or more, late rather than never. Those that became due while there was no member come first;
        of one key the newest replaces one that nobody has taken yet. At most `concurrency` are unsettled at once.
        """
        ...


class AlarmClocks(Protocol):
    """The alarms of a namespace, by scope, as `Tables`."""

    def alarms(self, scope: str) -> Alarms: ...

    async def close(self) -> None: ...
