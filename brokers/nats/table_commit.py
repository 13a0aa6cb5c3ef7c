"""Commits to the table of a scope: all or nothing, never twice, and the truth about conflicts.

One message suffices for one change with one precondition; more make an atomic batch of the server. What becomes of a
commit whose answer was lost is found out by reading (docs/adr/0006-state-on-nats.md): the server's own memory for
message ids judges after the preconditions, and a restart loses the ids of messages that have been replaced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from brokers.nats import table_records
from brokers.nats.connection import Connection, Reply
from brokers.nats.jetstream import TRANSIENT_ERRORS, Refused
from brokers.nats.retry import ATTEMPT_TIMEOUT, OPERATION_TIMEOUT, Retry
from brokers.nats.scopes import ScopeStream, Standing
from brokers.nats.table_history import Histories, HistoryStream
from brokers.nats.table_reads import NoStream, Reader
from brokers.nats.table_records import Writing
from mesh import addressing
from mesh.errors import BrokerUnavailable, MessageTooLarge
from mesh.ids import random_id
from mesh.ports.tables import ABSENT, Change, Check, Conflict, HistoryNotKept, Key, Put

MAX_BATCHES = 8
"""Atomic batches of one process under way at once. The server takes 50 a stream, and one is not slower for waiting."""
MAX_BATCH_BYTES = 32 * 1024 * 1024
FIRST_PAUSE = 0.001
"""Seconds: most of what a commit waits for is a competing one to end."""
MAX_LIVE = 8192
"""Revisions remembered as those of values, at least; twice as many at most."""

WRONG_SEQUENCE = 10071
REPEATED_ID = 10201
_CONTENDED = frozenset({10164, 10176, 10210})
"""Another write of the key is under way; messages of a batch were dropped on the way; too many open batches."""


class _Error(msgspec.Struct):
    err_code: int = 0
    description: str = "no description"


class _Answer(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    count: int = 1
    error: _Error | None = None


_decode = msgspec.json.Decoder(_Answer).decode


class _Precondition:
    __slots__ = ("history", "key", "looked", "path", "sequence", "wanted")

    def __init__(self, key: Key, path: str, wanted: int | None, sequence: int) -> None:
        self.key = key
        self.path = path
        self.wanted = wanted
        """The revision that the caller wants the key to have; `None` for a precondition of our own."""
        self.sequence = sequence
        """The sequence that the server is told to look for."""
        self.history: HistoryStream | None = None
        """Which must have a value before it is replaced."""
        self.looked = False
        """Whether the stream was asked for the sequence. A history remembers keys that the stream has forgotten."""


class _Message:
    """One message of a commit, with at most one precondition: the server takes no more."""

    __slots__ = ("key", "precondition", "writing")

    def __init__(self, key: Key | None, writing: Writing) -> None:
        self.key = key
        """`None` for a record that changes nothing."""
        self.writing = writing
        self.precondition: _Precondition | None = None

    def headers(self, root: str, more: str = "") -> bytes:
        condition = self.precondition
        if condition is None:
            return f"{self.writing.head}{more}\r\n".encode()
        expected = f"Nats-Expected-Last-Subject-Sequence: {condition.sequence}\r\n"
        if condition.path != self.writing.path:
            expected += f"Nats-Expected-Last-Subject-Sequence-Subject: {root}{condition.path}\r\n"
        return f"{self.writing.head}{expected}{more}\r\n".encode()


class _Commit:
    """A commit under way."""

    __slots__ = ("created", "floor", "messages", "uncertain")

    def __init__(self, messages: list[_Message], created: str, floor: int) -> None:
        self.messages = messages
        self.created = created
        """When the stream was made that it is for."""
        self.floor = floor
        """A sequence of the stream from before the commit: what has no later one was not changed since."""
        self.uncertain = False
        """Whether an answer was lost, so that the commit may have happened."""


class _Stale(Exception):
    """The server says that a precondition does not hold, but not which."""


class _Repeated(Exception):
    """The server has stored a batch with these ids before."""


class _Contended(BrokerUnavailable):
    """Nothing was stored, because of other writes under way."""


class Committer:
    """Commits to one stream."""

    def __init__(
        self, connection: Connection, stream: ScopeStream, reader: Reader, histories: Histories, source: str
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._root = stream.root
        self._reader = reader
        self._histories = histories
        self._source = source
        self._stored = b'{"stream":"%b","seq":' % stream.name.encode()
        """How the stream's plain acknowledgement begins."""
        self._batches = asyncio.Semaphore(MAX_BATCHES)
        self._live: set[int] = set()
        self._lived: set[int] = set()
        """The generation before."""
        self._seen = 0
        self._created = ""

    def note(self, revision: int) -> None:
        """A value has (or had) this revision. One of a deletion is no revision that a key can have."""
        if revision > self._seen:
            self._seen = revision
        self._live.add(revision)
        if len(self._live) >= MAX_LIVE:
            self._lived, self._live = self._live, set()

    async def commit(self, changes: Sequence[Change], checks: Sequence[Check]) -> list[int]:
        """See `Table.commit`; the arguments have been checked."""
        standing = self._stream.standing
        if standing is None or standing.created != self._created:
            await self._look(self._patience())
        if len(changes) == 1 and not checks and changes[0].expected is None and not self._histories.active:
            return [await self._commit_simply(changes[0])]
        messages = self._plan(changes, checks)
        commit = _Commit(messages, self._created, self._seen)
        await self._prepare(commit)
        if len(messages) == 1:
            first = await self._carry_out(commit)
        else:
            try:
                async with asyncio.timeout(OPERATION_TIMEOUT):
                    await self._batches.acquire()
            except TimeoutError:
                raise BrokerUnavailable("too many commits of several changes are under way") from None
            try:
                first = await self._carry_out(commit)
            finally:
                self._batches.release()
        revisions = list(range(first + len(messages) - len(changes), first + len(messages)))
        for change, revision in zip(changes, revisions, strict=True):
            self._note_change(change, revision)
        return revisions

    def _note_change(self, change: Change, revision: int) -> None:
        if isinstance(change, Put):
            self.note(revision)
        elif revision > self._seen:
            self._seen = revision

    async def _commit_simply(self, change: Change) -> int:
        """One change without a precondition: what most commits are, without the cost of what they do not need."""
        message = self._message(change)
        writing = message.writing
        created, floor = self._created, self._seen
        sent: asyncio.Future[Reply] | None = None
        try:
            sent = self._connection.call(
                self._root + writing.path, f"{writing.head}\r\n".encode(), writing.payload, ATTEMPT_TIMEOUT
            )
            reply = await sent
            answer = reply.payload
            revision = int(answer[len(self._stored) : -1]) if answer.startswith(self._stored) else self._judge(reply)
        except ValueError:  # there is more in the answer than the sequence
            revision = self._judge(reply)
        except BrokerUnavailable as failure:
            commit = _Commit([message], created, floor)
            commit.uncertain = sent is not None and not isinstance(failure, NoStream | _Contended)
            revision = await self._carry_out(commit, failure)
        self._note_change(change, revision)
        return revision

    async def _look(self, retry: Retry, look: Callable[[], Awaitable[Standing]] | None = None) -> None:
        """Get to know the stream. If it is another than before, of the same name, nothing of the old one counts."""
        while True:
            try:
                standing = await (look or self._stream.ensure)()
                if standing.created == self._created:
                    return
                if self._histories.active:
                    await self._histories.renew()
                break
            except BrokerUnavailable as error:
                await retry.after(error)
        if standing.created != self._created:  # nobody else was faster
            self._created = standing.created
            self._live.clear()
            self._lived.clear()
            self._seen = standing.last

    def _patience(self) -> Retry:
        return Retry(self._connection, FIRST_PAUSE, closed=lambda: self._stream.closed)

    def _plan(self, changes: Sequence[Change], checks: Sequence[Check]) -> list[_Message]:
        """The changes in their order, after those preconditions for which no change has room: within a batch, the
        server judges none on a subject to which the batch has written before."""
        messages = []
        for change in changes:
            message = self._message(change)
            expected = change.expected
            history = self._histories.kept(change.key)
            if expected is not None or history is not None:
                message.precondition = _Precondition(change.key, message.writing.path, expected, expected or 0)
                message.precondition.history = history
            messages.append(message)
        free = [message for message in messages if message.precondition is None]
        alone = []
        for check in dict.fromkeys(checks):
            message = free.pop() if free else _Message(None, table_records.check(self._source))
            path = addressing.key_path(check.key)
            message.precondition = _Precondition(check.key, path, check.revision, check.revision)
            if message.key is None:
                alone.append(message)
        return alone + messages

    def _message(self, change: Change) -> _Message:
        path = addressing.key_path(change.key)
        if isinstance(change, Put):
            return _Message(change.key, table_records.put(path, self._source, change))
        return _Message(change.key, table_records.deletion(path, self._source))

    def _is_live(self, revision: int) -> bool:
        return revision in self._live or revision in self._lived

    async def _prepare(self, commit: _Commit) -> None:
        """See to it that no precondition can hold by mistake. Raises `Conflict`."""
        conditions = [message.precondition for message in commit.messages if message.precondition is not None]
        unknown = [
            condition
            for condition in conditions
            if condition.wanted is not None and condition.wanted != ABSENT and not self._is_live(condition.wanted)
        ]
        if unknown:
            found = await self._reader.last_of_each([condition.path for condition in unknown])
            for condition, stored in zip(unknown, found, strict=True):
                if stored is None or stored.gone or stored.sequence != condition.wanted:
                    raise Conflict(condition.key)
                self.note(stored.sequence)
        for condition in conditions:
            await self._remember(condition)

    async def _remember(self, condition: _Precondition) -> None:
        """Where a history is kept, wait until it has the value that is to be replaced."""
        if condition.history is None:
            return
        try:
            kept = await condition.history.last(condition.path)
        except HistoryNotKept:  # somebody has removed what was kept
            await self._histories.renew()
            kept = await condition.history.last(condition.path)
        if condition.wanted is None and not condition.looked:
            condition.sequence = kept  # what is newest, but for a moment, and one read instead of two
        retry = self._patience()
        while kept < condition.sequence:
            stored = await self._reader.last(condition.path)
            if stored is None or stored.sequence != condition.sequence:
                return  # it is not what would be replaced: the server refuses, and then we look again
            await retry.after(BrokerUnavailable("the stream of earlier values lags behind"))
            kept = await condition.history.last(condition.path)

    async def _carry_out(self, commit: _Commit, failure: BrokerUnavailable | None = None) -> int:
        """The sequence of the first message. `failure` is what became of a first attempt."""
        retry: Retry | None = None
        while True:
            if failure is not None:
                retry = retry or self._patience()
                await retry.after(failure)
                if isinstance(failure, NoStream | _Transient):
                    await self._look(retry, self._stream.restore)
                if commit.uncertain:
                    first = await self._find(commit, retry)
                    if first is not None:
                        return first
                failure = None
            try:
                return await self._attempt(commit)
            except (_Stale, _Repeated) as verdict:
                retry = retry or self._patience()
                if commit.uncertain or isinstance(verdict, _Repeated):
                    first = await self._find(commit, retry)
                    if first is not None:
                        return first
                    if isinstance(verdict, _Repeated):
                        raise BrokerUnavailable("the change was made, but its revision is lost") from None
                if not await self._look_again(commit, retry):
                    await retry.after(_Contended("other changes to the same keys are under way"))
            except BrokerUnavailable as error:
                failure = error

    async def _attempt(self, commit: _Commit) -> int:
        answer = self._send(commit.messages)
        commit.uncertain, before = True, commit.uncertain
        reply = await answer
        commit.uncertain = before
        try:
            return self._judge(reply)
        except _Transient:
            commit.uncertain = True
            raise

    def _send(self, messages: list[_Message]) -> asyncio.Future[Reply]:
        """Raises as `Connection.call`, nothing stored."""
        root, connection = self._root, self._connection
        last = messages[-1]
        subject = root + last.writing.path
        if len(messages) == 1:
            return connection.call(subject, last.headers(root), last.writing.payload, ATTEMPT_TIMEOUT)
        batch = f"Nats-Batch-Id: {random_id()}\r\nNats-Batch-Sequence: "
        blocks = [message.headers(root, f"{batch}{number}\r\n") for number, message in enumerate(messages[:-1], 1)]
        blocks.append(last.headers(root, f"{batch}{len(messages)}\r\nNats-Batch-Commit: 1\r\n"))
        sizes = [len(block) + len(message.writing.payload) for block, message in zip(blocks, messages, strict=True)]
        for size, limit in ((max(sizes), connection.max_payload), (sum(sizes), MAX_BATCH_BYTES)):
            if size > limit > 0:
                raise MessageTooLarge(size, limit)
        for block, message in zip(blocks, messages[:-1], strict=False):
            connection.publish((root + message.writing.path).encode(), b"", block, message.writing.payload)
        return connection.call(subject, blocks[-1], last.writing.payload, ATTEMPT_TIMEOUT)

    def _judge(self, reply: Reply) -> int:
        """The sequence of the first message. Raises `_Stale`, `_Repeated`, `BrokerUnavailable`, `BrokerError`."""
        if reply.no_responders:
            raise NoStream(f"nobody answers for the stream {self._stream.name}: it was removed, or has no leader now")
        try:
            answer = _decode(reply.payload)
        except msgspec.DecodeError:
            answer = _Answer()
        if answer.error is None:
            if answer.stream != self._stream.name:
                raise _Transient(f"something else than {self._stream.name} answered; who else serves its subjects?")
            return answer.seq - answer.count + 1
        code, description = answer.error.err_code, answer.error.description
        if code == WRONG_SEQUENCE:
            raise _Stale
        if code == REPEATED_ID:
            raise _Repeated
        refusal = Refused(code, description)
        if code in _CONTENDED:
            raise _Contended(str(refusal))
        if code in TRANSIENT_ERRORS:
            raise _Transient(str(refusal))
        raise refusal

    async def _find(self, commit: _Commit, retry: Retry) -> int | None:
        """After a lost answer: the sequence of the first message if the commit has happened, `None` if not.

        Raises `BrokerUnavailable` when nobody can know: each key has been changed since, perhaps over ours.
        """
        if commit.created != self._created:  # the floor was one of the stream before
            commit.created, commit.floor = self._created, 0
        changes = [(index, message) for index, message in enumerate(commit.messages) if message.key is not None]
        found = await asyncio.gather(*(self._reader.ask_leader(message.writing.path, retry) for _, message in changes))
        for (index, message), stored in zip(changes, found, strict=True):
            if stored is not None and stored.message_id == message.writing.id.encode():
                return stored.sequence - index
        for (_, message), stored in zip(changes, found, strict=True):
            sequence = 0 if stored is None else stored.sequence
            condition = message.precondition
            own = condition is not None and condition.path == message.writing.path
            if sequence <= commit.floor or (own and condition is not None and sequence == condition.sequence):
                self._guard(commit, message, sequence)
                return None
        raise BrokerUnavailable("the answer was lost, and the key was changed since: whether it was made is not known")

    def _guard(self, commit: _Commit, proof: _Message, sequence: int) -> None:
        """Have the repeat replace nothing else than what stands there now, should the first one still come."""
        for message in commit.messages:
            condition = message.precondition
            if condition is not None and condition.wanted is None and condition.history is None:
                message.precondition = None  # a guard of an earlier look
        if proof.precondition is None:
            proof.precondition = _Precondition(proof.key or (), proof.writing.path, None, sequence)

    async def _look_again(self, commit: _Commit, retry: Retry) -> bool:
        """Find the precondition that does not hold. Raises `Conflict`; returns whether the next attempt has better
        prospects: an absent key may have left a mark, which is to be replaced."""
        conditions = [message.precondition for message in commit.messages if message.precondition is not None]
        found = await asyncio.gather(*(self._reader.ask_leader(condition.path, retry) for condition in conditions))
        better = False
        for condition, stored in zip(conditions, found, strict=True):
            sequence = 0 if stored is None else stored.sequence
            before = condition.sequence
            if condition.wanted == ABSENT and stored is not None and not stored.gone:
                raise Conflict(condition.key)
            if condition.wanted and sequence != condition.wanted:
                raise Conflict(condition.key)
            if condition.wanted == ABSENT or condition.history is not None:
                condition.sequence = sequence
                condition.looked = True
            await self._remember(condition)
            better = better or condition.sequence != before
        return better


class _Transient(BrokerUnavailable):
    """The server answered with an error that may be gone a moment later; what became of the message is not said."""
