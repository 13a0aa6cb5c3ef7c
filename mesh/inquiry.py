"""Asking all sidecars that know of a subject, with records in a table that they share.

A question is a record that lives for seconds, and so is each answer; who can answer has a record that it renews. Nobody
needs an address, so it works wherever there are tables. Names on the wire: `docs/protocol.md`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import NamedTuple

from mesh import ids
from mesh.errors import BrokerError, MeshError
from mesh.ownership.waits import end, within
from mesh.ports import Clock
from mesh.ports.tables import ABSENT, Current, Delete, Entry, Put, Table

logger = logging.getLogger("meshwire.inquiry")

QUESTION, ANSWER, WITNESS = "question", "answer", "witness"
"""Keys: `(<subject>, question, <id>)`, `(<subject>, answer, <id>, <witness>)`, `(<subject>, witness, <witness>)`."""

PATIENCE = 1.0
"""Seconds for which answers are waited for."""
RECORD_TTL = 10.0
"""Seconds after which a question and its answers are forgotten."""
WITNESS_TTL = 60.0
"""Seconds after which a witness that is gone without a word is no longer waited for."""
RENEWALS = 3
"""How often a witness says that it is there, in that time."""
RETRY_PAUSE = 1.0
"""Seconds from the loss of the watch to the next one."""
FAREWELL = 2.0
"""Seconds that taking the record of a witness away may take; without that it expires."""
MOST_QUESTIONS = 16
"""Questions of one inquirer that are open at once."""
MOST_WITNESSES = 1000


class TooManyQuestions(MeshError):
    """Others wait for their answers already."""


class Answers(NamedTuple):
    given: dict[str, bytes]
    """By the name of the witness."""
    silent: list[str]
    """Witnesses that should have answered and did not."""


class Witness:
    """Answers the questions on one subject, from `start` to `close`."""

    def __init__(
        self, subject: str, name: str, table: Table, clock: Clock, answer: Callable[[bytes], bytes | None]
    ) -> None:
        """`name` tells the witnesses apart. `answer` gets a question as it was asked, by whoever may write to the
        broker; `None` for what is none."""
        self._subject = subject
        self._name = name
        self._table = table
        self._clock = clock
        self._answer = answer
        self._tasks: list[asyncio.Future[None]] = []
        self.seen = asyncio.Event()
        """Set once questions are heard here, and others know that they are."""

    def start(self) -> None:
        """In the background: the broker may be away, for as long as it likes."""
        heard = asyncio.Event()
        create_task = asyncio.get_running_loop().create_task
        self._tasks = [
            create_task(self._listen(heard), name=f"{self._subject}: questions"),
            create_task(self._attend(heard), name=f"{self._subject}: presence"),
        ]

    async def close(self) -> None:
        """Never raises."""
        if self._tasks:
            await end(*self._tasks)
            self._tasks = []
            await within(self._clock, FAREWELL, self._leave())

    async def _listen(self, heard: asyncio.Event) -> None:
        while True:
            try:
                async with aclosing(self._table.watch((self._subject, QUESTION))) as changes:
                    async for change in changes:
                        if isinstance(change, Entry):
                            await self._reply(change)
                        elif isinstance(change, Current):
                            heard.set()
            except BrokerError as error:
                logger.debug("%s: no questions can be heard: %s", self._subject, error)
            await self._clock.sleep(RETRY_PAUSE)

    async def _reply(self, question: Entry) -> None:
        answer = self._answer(question.value)
        if answer is None:
            return
        key = (self._subject, ANSWER, question.key[-1], self._name)
        try:
            await self._table.commit([Put(key=key, value=answer, ttl=RECORD_TTL)])
        except MeshError as error:  # also a question with a name that is no part of a key
            logger.debug("%s: a question stays without an answer: %s", self._subject, error)

    async def _attend(self, heard: asyncio.Event) -> None:
        """From when questions are heard: nobody should wait for one that hears none yet."""
        await heard.wait()
        while True:
            try:
                await self._table.commit([Put(key=self._key, value=b"", ttl=WITNESS_TTL)])
            except BrokerError as error:
                logger.debug("%s: others cannot see that this sidecar is there: %s", self._subject, error)
            else:
                self.seen.set()
            await self._clock.sleep(WITNESS_TTL / RENEWALS)

    async def _leave(self) -> None:
        try:
            await self._table.commit([Delete(key=self._key)])
        except BrokerError as error:
            logger.debug("%s: left without a word: %s", self._subject, error)

    @property
    def _key(self) -> tuple[str, ...]:
        return (self._subject, WITNESS, self._name)


class Inquirer:
    """Asks all witnesses of a subject. It need not be one itself."""

    def __init__(self, subject: str, table: Table, clock: Clock) -> None:
        self._subject = subject
        self._table = table
        self._clock = clock
        self._open = 0

    async def ask(self, question: bytes) -> Answers:
        """Returns when all have answered, or after `PATIENCE` seconds. Raises `TooManyQuestions`, `BrokerError`."""
        if self._open >= MOST_QUESTIONS:
            raise TooManyQuestions(f"{MOST_QUESTIONS} questions are open already: ask again in a moment")
        self._open += 1
        try:
            return await self._ask(question)
        finally:
            self._open -= 1

    async def _ask(self, question: bytes) -> Answers:
        page = await self._table.scan((self._subject, WITNESS), limit=MOST_WITNESSES)
        silent = {entry.key[-1] for entry in page.entries}
        given: dict[str, bytes] = {}
        if silent:
            name = ids.random_id()
            await self._table.commit([Put(key=(self._subject, QUESTION, name), value=question, ttl=RECORD_TTL)])
            await within(self._clock, PATIENCE, self._collect(name, silent, given))
        return Answers(given, sorted(silent))

    async def _collect(self, name: str, silent: set[str], given: dict[str, bytes]) -> None:
        """Moves who has answered from `silent` to `given`."""
        async with aclosing(self._table.watch((self._subject, ANSWER, name), after=ABSENT)) as changes:
            async for change in changes:
                if isinstance(change, Entry) and change.key[-1] in silent:
                    silent.discard(change.key[-1])
                    given[change.key[-1]] = change.value
                    if not silent:
                        return
