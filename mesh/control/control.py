"""What operators set for the subscriptions of an app, carried out in each of its sidecars."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import NamedTuple

import msgspec

from mesh.control import setting as settings
from mesh.control.gate import Gate
from mesh.control.setting import KIND, NOTHING, Action, Name, Setting
from mesh.errors import BrokerError
from mesh.inquiry import Inquirer, Witness
from mesh.ownership.waits import within
from mesh.ports import Clock
from mesh.ports.tables import ABSENT, Conflict, Current, Delete, Entry, Gone, Put, Table

logger = logging.getLogger("meshwire.control")

SUBJECT = "subscriptions"
"""Of the questions that replicas ask each other, in the app's table."""
OPERATOR = "operator"
"""Whose wishes of a gate these are: what was set."""
KNOWN_LIMIT = 10.0
"""Seconds for which subscriptions wait to learn what was set, and to be seen by whoever sets it: a paused one must not
begin with every new replica, nor one that nobody counts."""
RETRY_PAUSE = 1.0
"""Seconds from the loss of the watch to the next one."""
ATTEMPTS = 5
"""How often a change is tried when others change the same at the same time."""
APPLIED_LIMIT = 2.0
"""Seconds that the replicas have to carry out what was set, before it is answered without them."""
LOOKS = 0.1
"""Seconds between two questions to the replicas."""


class InReplica(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How one subscription stands in one replica. On the wire: fields are only ever added."""

    pubsub: str
    topic: str
    group: str
    revision: int
    """Of the setting that it obeys; 0 is none."""
    in_hand: int
    concurrency: int
    """What it may have in hand at the moment."""

    @property
    def name(self) -> Name:
        return Name(self.pubsub, self.topic, self.group)


class Replicas(NamedTuple):
    """What all replicas say."""

    there: dict[str, list[InReplica]]
    """By the name of the sidecar."""
    silent: list[str]

    def of(self, name: Name) -> dict[str, InReplica]:
        return {sidecar: one for sidecar, all_ in self.there.items() for one in all_ if one.name == name}


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[InReplica]).decode


class Control:
    """Watches what was set for the app, and carries it out on the subscriptions of this sidecar."""

    def __init__(self, sidecar: str, table: Table, clock: Clock) -> None:
        """`table` is that of the app; `sidecar` tells its replicas apart."""
        self._table = table
        self._clock = clock
        self._witness = Witness(SUBJECT, sidecar, table, clock, self._answer)
        self._inquirer = Inquirer(SUBJECT, table, clock)
        self._gates: dict[Name, Gate] = {}
        self._settings: dict[Name, tuple[Setting, int]] = {}
        self._known = False
        self._shown = asyncio.Event()
        self._watching: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """In the background, also while the broker is not there yet; a second call does nothing. `steer` calls it: an
        app without subscriptions needs no watch."""
        if self._watching:
            return
        create_task = asyncio.get_running_loop().create_task
        self._watching = [
            create_task(self._watch(), name="control: settings"),
            create_task(self._begin(), name="control: begin"),
        ]
        self._witness.start()

    async def stop(self) -> None:
        """Subscriptions stay as they are."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        self._watching = []
        await self._witness.close()

    # Subscriptions of this sidecar

    def steer(self, name: Name, gate: Gate) -> None:
        """From now on `gate` obeys what is set for `name`. To be called before the subscription begins: it waits until
        that is known."""
        self._gates[name] = gate
        if not self._known:
            gate.known.clear()
        self._apply(name)
        self.start()

    def let_go(self, name: Name, gate: Gate) -> None:
        """The subscription with this gate has ended; a later one of the same name is not meant."""
        if self._gates.get(name) is gate:
            del self._gates[name]

    def setting(self, name: Name) -> Setting:
        """What is set, as far as this sidecar knows."""
        return self._settings.get(name, (NOTHING, ABSENT))[0]

    def named(self) -> set[Name]:
        """The subscriptions for which something is set."""
        return {name for name, (setting, _) in self._settings.items() if setting != NOTHING}

    def _apply(self, name: Name) -> None:
        gate = self._gates.get(name)
        if gate is not None:
            setting = self.setting(name)
            gate.wish(OPERATOR, 0 if setting.stopped else setting.concurrency)
            gate.limit(setting.rate)

    async def _begin(self) -> None:
        if not await within(self._clock, KNOWN_LIMIT, self._shown_and_seen()):
            logger.warning("what was set for subscriptions is not known after %g s: they begin as planned", KNOWN_LIMIT)
        self._known = True
        for gate in self._gates.values():
            gate.known.set()

    async def _shown_and_seen(self) -> None:
        await self._shown.wait()
        await self._witness.seen.wait()

    async def _watch(self) -> None:
        shown = ABSENT
        while True:
            try:
                async with aclosing(self._table.watch((KIND,), after=shown)) as changes:
                    async for change in changes:
                        if isinstance(change, Current):
                            self._shown.set()
                        else:
                            self._note(change)
                        shown = max(shown, change.revision)
            except BrokerError as error:
                logger.debug("what is set for subscriptions cannot be watched: %s", error)
            await self._clock.sleep(RETRY_PAUSE)

    def _note(self, change: Entry | Gone) -> None:
        name = settings.name_of(change.key)
        if name is None:
            return
        setting = NOTHING
        if isinstance(change, Entry):
            try:
                setting = settings.decode(change.value)
            except ValueError as error:
                logger.warning("what is set for subscription %s cannot be read: %s", "/".join(change.key[1:]), error)
                return
        if change.revision > self._settings.get(name, (NOTHING, ABSENT))[1]:
            self._settings[name] = setting, change.revision
            self._apply(name)

    # Across replicas

    async def current(self) -> None:
        """Returns when what is set is known here, or cannot be learnt in time."""
        self.start()
        begun = self._clock.now()
        while not self._known and self._clock.now() - begun < APPLIED_LIMIT:
            await self._clock.sleep(LOOKS / 10)

    async def act(self, name: Name, action: Action) -> Replicas:
        """Set it for all replicas. Returns how they stand once all obey, and in a drain have nothing in hand, or after
        `APPLIED_LIMIT` or the wait that was asked for. Raises `BrokerError`, `TooManyQuestions`."""
        revision = await self._set(name, action)
        patience = max(APPLIED_LIMIT, action.wait_seconds)
        begun = self._clock.now()
        while True:
            replicas = await self.replicas()
            standing = replicas.of(name).values()
            waited = self._clock.now() - begun
            obey = not replicas.silent and all(one.revision >= revision for one in standing)
            if obey and (waited >= action.wait_seconds or not any(one.in_hand for one in standing)):
                return replicas
            if waited >= patience:
                return replicas
            await self._clock.sleep(LOOKS)

    async def replicas(self) -> Replicas:
        """Raises `BrokerError`, `TooManyQuestions`."""
        answers = await self._inquirer.ask(b"{}")
        there: dict[str, list[InReplica]] = {}
        silent = list(answers.silent)
        for sidecar, given in answers.given.items():
            try:
                there[sidecar] = _decode(given)
            except (ValueError, RecursionError):
                silent.append(sidecar)
        return Replicas(there, silent)

    async def _set(self, name: Name, action: Action) -> int:
        """The revision from which it holds."""
        for attempt in range(ATTEMPTS):
            entry = await self._table.get(name.key)
            try:
                before = NOTHING if entry is None else settings.decode(entry.value)
            except ValueError as error:
                logger.warning("what is set for subscription %s is replaced: %s", "/".join(name.key[1:]), error)
                before = None
            after = settings.changed(before or NOTHING, action)
            if after == before:
                return ABSENT if entry is None else entry.revision
            change: Put | Delete
            if after == NOTHING and entry is not None:
                change = Delete(key=name.key, expected=entry.revision)
            else:
                expected = ABSENT if entry is None else entry.revision
                change = Put(
                    key=name.key,
                    value=settings.encode(after),
                    content_type="application/json",
                    expected=expected,
                )
            try:
                [revision] = await self._table.commit([change])
            except Conflict as conflict:
                if attempt == ATTEMPTS - 1:
                    raise BrokerError(f"{conflict}: others change it at the same time; try again") from None
            else:
                return revision
        raise AssertionError

    def _answer(self, _question: bytes) -> bytes:
        return _encode(
            [
                InReplica(
                    **name._asdict(),
                    revision=self._settings.get(name, (NOTHING, ABSENT))[1],
                    in_hand=gate.in_hand,
                    concurrency=gate.allowed,
                )
                for name, gate in self._gates.items()
            ]
        )
