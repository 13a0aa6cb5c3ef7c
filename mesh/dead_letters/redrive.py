"""Redrive: dead letters sent again, at a pace, by whichever sidecar of the app is there to do it.

A letter is removed only after the broker has acknowledged its event; the event's id, for the dropping of repeats, is
that of the run and the letter. So a crash between the two loses no event and, within the broker's window, doubles none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from mesh import addressing, envelope, ids
from mesh.codec import json as json_codec
from mesh.dead_letters.inbox import Inbox
from mesh.dead_letters.selection import Filter, texts
from mesh.dead_letters.store import Kept
from mesh.delivery.letters import strip
from mesh.errors import BrokerError, BrokerUnavailable, MeshError
from mesh.ownership import Lease
from mesh.ownership.waits import end, within
from mesh.ports import Clock, EventLog, Message, Mode, Topic
from mesh.ports.tables import Check, Conflict, Key, Tables
from mesh.pubsub import PubSub
from mesh.runs import Followed, Run, Runs, State

KIND = "redrive"
RATE = 100.0
"""Events per second, unless a redrive says otherwise."""
LEAST_RATE, MOST_RATE = 0.01, 100_000.0
STEP = 0.1
"""Seconds of events that are sent together, where that is more than one."""
MOST_AT_ONCE = 256
OUTAGE_PAUSE = 1.0
"""Seconds of rest after the broker gave no answer."""

logger = logging.getLogger("meshwire.dead-letters")


class Destination(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A topic, as the app names it."""

    pubsubname: str
    topic: str


class Redrive(Run, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One run. The counts may be short by one step after a crash."""

    filter: Filter = Filter()
    to: Destination | None = None
    """`None`: to where each event came from."""
    everyone: bool = False
    """Also to those who had no trouble with it; otherwise to this app alone, where the event goes back to its topic."""
    rate: float = RATE
    matched: int | None = None
    """Letters that were meant when it began."""
    sent: int = 0
    expired: int = 0
    """Left where they are: nobody would be handed their events any more."""
    failed: int = 0
    """Left where they are: the broker refused their events."""


class _Outgoing(NamedTuple):
    kept: Kept
    log: EventLog
    address: Topic
    message: Message


class Redrives:
    """The redrives of one app."""

    def __init__(self, pubsub: PubSub, inbox: Inbox, tables: Tables, clock: Clock) -> None:
        self.runs = Runs(tables, KIND, Redrive, clock)
        self._app_id = pubsub.app_id
        self._pubsub = pubsub
        self._inbox = inbox
        self._tables = tables
        self._clock = clock

    async def start(
        self, wanted: Filter, *, to: Destination | None = None, everyone: bool = False, rate: float = RATE
    ) -> Redrive:
        """Begin to send all that is meant and is dead by now. Raises what `check` does, and `TooManyRuns`."""
        await self.check(wanted, to, everyone)
        now = self._clock.now()
        run = Redrive(id=ids.random_id()[:12], created=now, filter=wanted, to=to, everyone=everyone, rate=rate)
        await self.runs.add(self._app_id, run)
        return run

    async def check(self, wanted: Filter, to: Destination | None, everyone: bool) -> dict[Topic, int]:
        """How many letters of each subscription are meant. Raises `ApiError` where this app may not publish, and
        `BrokerError`."""
        if to is not None:
            self._pubsub.check(Topic(*msgspec.structs.astuple(to)))
        counts = await self._inbox.count(wanted)
        if to is None and everyone:
            for subscription in counts:
                self._pubsub.check(subscription)
        return counts

    async def work(self, followed: Followed[Redrive]) -> None:
        """As `mesh.runs.Work`: one sidecar at a time, under a lease."""
        run_id = followed.run.id
        scope = addressing.runs_scope(self._app_id)
        lease = Lease(self._tables, scope, f"{KIND}-{run_id}", node=self._app_id, clock=self._clock)
        waiting = asyncio.ensure_future(_acquire(lease))
        over = asyncio.ensure_future(followed.until_over())
        try:
            await asyncio.wait({waiting, over}, return_when=asyncio.FIRST_COMPLETED)
            if not over.done():
                waiting.result()
                await _Drive(self._pubsub, self._inbox, self.runs, self._clock, followed, lease).run()
        finally:
            await end(waiting, over)
            await lease.release()


class _Drive:
    """The work of one sidecar on one run, as long as it holds the lease."""

    def __init__(
        self,
        pubsub: PubSub,
        inbox: Inbox,
        runs: Runs[Redrive],
        clock: Clock,
        followed: Followed[Redrive],
        lease: Lease,
    ) -> None:
        self._inbox = inbox
        self._runs = runs
        self._app_id = pubsub.app_id
        self._components = pubsub.components
        self._clock = clock
        self._followed = followed
        self._lease = lease
        self._run = followed.run
        self._passed: set[Key] = set()
        """Letters that stay where they are."""
        self._next = self._clock.now()
        """When the next events may be sent."""

    async def run(self) -> None:
        """Raises `Conflict` when the lease was lost."""
        run = await self._runs.get(self._app_id, self._run.id)
        if run is None or run.over:
            return
        self._run = run
        while keys := await self._selected():
            if self._run.matched is None:
                await self._note(matched=len(keys))
            step = min(MOST_AT_ONCE, max(1, int(run.rate * STEP)))
            for start in range(0, len(keys), step):
                if self._followed.leaving:
                    await self._finish(State.CANCELLED)
                    return
                await self._send(keys[start : start + step])
            if self._inbox.left_out:
                self._inbox.begin_anew()
        await self._finish(State.CANCELLED if self._followed.leaving else State.DONE)

    async def _selected(self) -> list[Key]:
        """Those that were dead when the run began. One that it has sent, and that is dead again, is not among them,
        whatever the clocks say."""
        return [
            row.key
            for row in await self._inbox.select(self._run.filter)
            if row.died <= self._run.created and row.redriven != self._run.id and row.key not in self._passed
        ]

    async def _send(self, keys: Sequence[Key]) -> None:
        found = await self._inbox.get_many(keys)
        letters = [kept for kept in found if kept is not None]
        self._passed.update(key for key, kept in zip(keys, found, strict=True) if kept is None)
        outgoing: list[_Outgoing] = []
        expired = failed = 0
        error = ""
        for kept in letters:
            try:
                outgoing.append(self._outgoing(kept))
            except _Expired:
                expired += 1
                self._passed.add(kept.key)
            except MeshError as refusal:
                failed, error = failed + 1, str(refusal)
                self._passed.add(kept.key)
        if not await self._turn(len(outgoing)):
            return
        publishing = (one.log.publish(one.address, one.message) for one in outgoing)
        outcomes = await asyncio.gather(*publishing, return_exceptions=True)
        sent: list[Kept] = []
        outage = False
        for one, outcome in zip(outgoing, outcomes, strict=True):
            if not isinstance(outcome, BaseException):
                sent.append(one.kept)
            elif isinstance(outcome, BrokerUnavailable):  # the next round finds it again
                outage, error = True, str(outcome)
            elif isinstance(outcome, BrokerError):
                failed, error = failed + 1, str(outcome)
                self._passed.add(one.kept.key)
            else:
                raise outcome
        await self._inbox.remove_many(sent)
        self._passed.update(kept.key for kept in sent)
        await self._note(sent=len(sent), expired=expired, failed=failed, error=error)
        if outage:
            await self._clock.sleep(OUTAGE_PAUSE)

    async def _turn(self, count: int) -> bool:
        """Wait until so many may be sent; what was missed is not made up for. False when the run is to end instead."""
        now = self._clock.now()
        if self._next > now:
            await within(self._clock, self._next - now, self._followed.until_leaving())
        self._next = max(self._next, now) + count / self._run.rate
        return not self._followed.leaving

    def _outgoing(self, kept: Kept) -> _Outgoing:
        """Raises `_Expired`, `MeshError`."""
        to, letter = self._run.to, kept.letter
        name = letter.topic.pubsub if to is None else to.pubsubname
        component = self._components.get(name)
        if component is None:
            raise MeshError(f"there is no pub/sub component named {name}")
        only = None if to is not None or self._run.everyone else self._app_id
        address = letter.topic if to is None else component.address(to.topic)
        message = redriven(kept, self._run.id, self._clock.now(), only_for=only)
        return _Outgoing(kept, component.log, address, message)

    async def _note(
        self, *, matched: int | None = None, sent: int = 0, expired: int = 0, failed: int = 0, error: str = ""
    ) -> None:
        """Add to the counts. Raises `Conflict` when the lease was lost."""

        def add(run: Redrive) -> Redrive:
            return msgspec.structs.replace(
                run,
                matched=run.matched if matched is None else matched,
                sent=run.sent + sent,
                expired=run.expired + expired,
                failed=run.failed + failed,
                error=error or run.error,
            )

        run = await self._runs.change(self._app_id, self._run.id, add, checks=[self._fence()])
        if run is not None:
            self._followed.saw(run)
            self._run = run

    async def _finish(self, state: State) -> None:
        await self._runs.finish(self._app_id, self._run.id, state, checks=[self._fence()])
        logger.info("redrive %s is %s: %d sent again", self._run.id, state.value, self._run.sent)

    def _fence(self) -> Check:
        token = self._lease.token
        if token is None:
            raise Conflict(("lease", f"{KIND}-{self._run.id}"))
        return token.check()


async def _acquire(lease: Lease) -> None:
    await lease.acquire()


class _Expired(MeshError):
    """An event that nobody would be handed any more."""


def redriven(kept: Kept, run_id: str, now: float, *, only_for: str | None) -> Message:
    """The event of a letter as it is sent again: as its publisher made it, with its first trace, and marked.

    Raises `_Expired`.
    """
    message = strip(kept.letter.message)
    named = texts(message)
    left = envelope.lifetime(None, [named.get(name) for name in envelope.EXPIRY_ATTRIBUTES], now)
    if left is not None and left <= 0:
        raise _Expired("it has expired")
    headers = {
        name: text for name, text in message.headers.items() if name not in (addressing.ONLY_FOR, addressing.REPLAYED)
    }
    headers[addressing.REDRIVEN] = run_id
    if only_for is not None:
        headers[addressing.ONLY_FOR] = addressing.token(only_for)
    attributes, payload = message.attributes, message.payload
    if message.mode is Mode.BINARY:
        attributes = {**attributes, addressing.REDRIVEN: run_id}
    elif message.mode is Mode.STRUCTURED and payload is not None:
        payload = _marked(payload, run_id)
    return msgspec.structs.replace(
        message,
        attributes=attributes,
        payload=payload,
        dedupe_id="\0".join((run_id, *kept.key)),
        ttl=None if left is None else left + envelope.KEPT_EXPIRED,
        headers=headers,
    )


def _marked(payload: bytes, run_id: str) -> bytes:
    """An event with the mark as its last member, the others as they stand; what is no event stays as it is."""
    try:
        members: dict[str, bytes | msgspec.Raw] = dict(json_codec.members(payload))
    except MeshError:
        return payload
    members.pop(addressing.REDRIVEN, None)
    members[addressing.REDRIVEN] = msgspec.json.encode(run_id)
    return json_codec.join_members(members)
