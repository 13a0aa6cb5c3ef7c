"""Earlier values: a mirror of a scope's stream for each prefix of keys whose values are kept.

The stream of a scope has one message of each key, and a mirror follows it a moment later: a value that is replaced at
once would never reach it. So whoever replaces a value of such a key waits until the mirror has it
(`table_commit.Committer`).
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from math import inf
from typing import Any

from brokers.nats import jetstream
from brokers.nats.connection import Connection
from brokers.nats.retry import Retry
from brokers.nats.scopes import ScopeStream, Standing
from brokers.nats.table_reads import Reader
from brokers.nats.table_records import record
from mesh import addressing
from mesh.errors import BrokerError, BrokerUnavailable
from mesh.ports.tables import Entry, Gone, HistoryNotKept, Key

MAX_REVISIONS = 64
MAX_PREFIX = 8
"""Parts of the longest prefix that can be kept: whoever looks for the history of a key tries each."""
CATCH_UP = 2.0
"""Seconds that a reader waits for the mirror."""
FIRST_PAUSE = 0.002

ALREADY_EXISTS = 10058

_ORIGIN, _REVISIONS, _SINCE_REVISION, _SINCE_TIME = (
    "io.meshwire.history.origin",
    "io.meshwire.history.revisions",
    "io.meshwire.history.since-revision",
    "io.meshwire.history.since-time",
)


class HistoryStream:
    """The earlier values of the keys with one prefix. It may not exist."""

    def __init__(self, connection: Connection, name: str, root: str) -> None:
        self.name = name
        self.root = root
        self.standing: Standing | None = None
        self.closed = False
        self.origin = ""
        """When the stream was made whose values these are."""
        self.revisions = 0
        self.since_revision = 0
        self.since_time = 0.0
        self.reader = Reader(connection, self)
        self._connection = connection

    async def ensure(self) -> Standing:
        return self.standing or await self.restore()

    async def restore(self) -> Standing:
        """Look it up. Raises `HistoryNotKept` when there is none."""
        try:
            return self.note(await jetstream.call(self._connection, f"STREAM.INFO.{self.name}"))
        except jetstream.Refused as refusal:
            if refusal.code != jetstream.STREAM_NOT_FOUND:
                raise
            self.standing = None
            raise HistoryNotKept(f"the stream {self.name} does not exist") from None

    def note(self, info: dict[str, Any]) -> Standing:
        """What the server says about the stream."""
        config = info["config"]
        metadata = config.get("metadata", {})
        self.origin = metadata.get(_ORIGIN, "")
        self.revisions = int(metadata.get(_REVISIONS, 1))
        self.since_revision = int(metadata.get(_SINCE_REVISION, 0))
        self.since_time = float(metadata.get(_SINCE_TIME, 0))
        direct = bool(config["allow_direct"]) and int(config["num_replicas"]) == 1
        self.standing = Standing(str(info["created"]), direct, int(info["state"]["last_seq"]))
        return self.standing

    async def last(self, path: str) -> int:
        """The newest revision of a key that has arrived; 0 if none has."""
        stored = await self.reader.last(path)
        return 0 if stored is None else stored.sequence


class Histories:
    """All that is kept of one scope."""

    def __init__(
        self,
        connection: Connection,
        stream: ScopeStream,
        reader: Reader,
        *,
        prefix: str,
        namespace: str,
        scope: str,
        replicas: int,
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._reader = reader
        self._prefix = prefix
        self._namespace = namespace
        self._scope = scope
        self._replicas = replicas
        self._kept: dict[Key, HistoryStream] = {}

    @property
    def active(self) -> bool:
        """Whether this process has asked to keep anything."""
        return bool(self._kept)

    def kept(self, key: Key) -> HistoryStream | None:
        """The stream that this process has asked to keep the values of `key`, the longest if there are several."""
        if not self._kept:
            return None
        streams = [stream for prefix, stream in self._kept.items() if key[: len(prefix)] == prefix]
        return max(streams, key=lambda stream: stream.revisions, default=None)

    async def keep(self, prefix: Key, revisions: int) -> None:
        """See `Table.keep_history`."""
        if not 1 <= revisions <= MAX_REVISIONS:
            raise ValueError(f"a history of {revisions} values; 1 to {MAX_REVISIONS} can be kept")
        if len(prefix) > MAX_PREFIX:
            raise ValueError(f"a history of keys by {len(prefix)} of their parts; at most {MAX_PREFIX} can be given")
        retry = Retry(self._connection, closed=lambda: self._stream.closed)
        while True:
            try:
                return await self._keep(prefix, revisions)
            except BrokerUnavailable as error:
                await retry.after(error)

    async def _keep(self, prefix: Key, revisions: int) -> None:
        origin = await self._stop_direct_gets()
        history = self._history(prefix)
        while True:
            try:
                await history.restore()
            except HistoryNotKept:
                if not await self._create(history, prefix, revisions, origin):
                    continue
            if history.origin != origin:
                raise BrokerError(
                    f"the stream {history.name} has the earlier values of a stream that was lost, and takes no others; "
                    "back it up if they matter, and remove it"
                )
            if history.revisions < revisions:
                await self._raise_limit(history, revisions)
            self._kept[prefix] = history
            return

    async def renew(self) -> None:
        """Keep what is kept of the stream as it is now, which may be another than before. As `keep`, but impatient."""
        for prefix, history in list(self._kept.items()):
            await self._keep(prefix, history.revisions)

    async def _stop_direct_gets(self) -> str:
        """A mirror answers direct gets for its origin, late as it is, unless its origin answers none itself. Returns
        when the origin was made."""
        standing = await self._stream.restore()
        if not standing.direct:
            return standing.created
        name = self._stream.name
        info = await jetstream.call(self._connection, f"STREAM.INFO.{name}")
        await jetstream.call(self._connection, f"STREAM.UPDATE.{name}", info["config"] | {"allow_direct": False})
        return (await self._stream.restore()).created

    async def _create(self, history: HistoryStream, prefix: Key, revisions: int, origin: str) -> bool:
        """False when another process was faster."""
        path = addressing.key_path(prefix)
        subjects = [f"{self._stream.root}{path}", f"{self._stream.root}{path}.>"] if path else [f"{self._stream.root}>"]
        info = await jetstream.call(self._connection, f"STREAM.INFO.{self._stream.name}")
        now = datetime.fromisoformat(info["ts"]).timestamp() if "ts" in info else time.time()
        config = {
            "name": history.name,
            "mirror": {
                "name": self._stream.name,
                "subject_transforms": [{"src": subject, "dest": subject} for subject in subjects],
            },
            "storage": "file",
            "retention": "limits",
            "discard": "old",
            "num_replicas": self._replicas,
            # One more than is shown: it tells that there were others.
            "max_msgs_per_subject": revisions + 1,
            "max_age": 0,
            "allow_direct": True,
            "mirror_direct": False,
            "metadata": {
                _ORIGIN: origin,
                _REVISIONS: str(revisions),
                _SINCE_REVISION: str(info["state"]["last_seq"]),
                _SINCE_TIME: repr(now),
            },
        }
        try:
            history.note(await jetstream.call(self._connection, f"STREAM.CREATE.{history.name}", config))
        except jetstream.Refused as refusal:
            if refusal.code == ALREADY_EXISTS:
                return False
            raise
        return True

    async def _raise_limit(self, history: HistoryStream, revisions: int) -> None:
        info = await jetstream.call(self._connection, f"STREAM.INFO.{history.name}")
        config = info["config"]
        config |= {
            "max_msgs_per_subject": revisions + 1,
            "metadata": config.get("metadata", {}) | {_REVISIONS: str(revisions)},
        }
        history.note(await jetstream.call(self._connection, f"STREAM.UPDATE.{history.name}", config))

    def close(self) -> None:
        for history in self._kept.values():
            history.closed = True

    async def newest_first(self, key: Key) -> list[Entry | Gone]:
        """Raises `HistoryNotKept`."""
        history = await self._find(key)
        records, _ = await self._records(history, key)
        return records[: history.revisions]

    async def as_of(self, key: Key, revision: float, moment: float) -> Entry | None:
        """One of `revision` and `moment` is infinite. Raises `HistoryNotKept`."""
        history = await self._find(key)
        records, is_cut = await self._records(history, key)
        for found in records[: history.revisions]:
            if found.revision <= revision and found.time <= moment:
                if isinstance(found, Gone) or (found.expires is not None and found.expires <= moment < inf):
                    return None
                return found
        known = history.since_revision <= revision and history.since_time <= moment
        if is_cut or not known:
            raise _not_kept(key)
        return None

    async def _find(self, key: Key) -> HistoryStream:
        kept = self.kept(key)
        if kept is not None:
            return kept
        candidates = [self._history(key[:length]) for length in range(min(len(key), MAX_PREFIX) + 1)]
        await asyncio.gather(*map(_look_up, candidates))
        streams = [history for history in candidates if history.standing is not None]
        if not streams:
            raise _not_kept(key)
        return max(streams, key=lambda history: history.revisions)

    async def _records(self, history: HistoryStream, key: Key) -> tuple[list[Entry | Gone], bool]:
        """The newest first, once the mirror has what is newest now; and whether there were others before."""
        path = addressing.key_path(key)
        present = await self._reader.last(path)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CATCH_UP
        pause = FIRST_PAUSE
        while present is not None and await history.last(path) < present.sequence:
            if loop.time() > deadline:
                raise BrokerUnavailable(f"the stream {history.name} lags behind")
            await asyncio.sleep(pause)
            pause *= 2
        stored, _ = await history.reader.following(1, path, MAX_REVISIONS + 2)
        records: list[Entry | Gone] = []
        for message in stored:
            again = message.is_marker and records and isinstance(records[-1], Gone)  # the end of a deletion's record
            if not again and (found := record(message)) is not None:
                records.append(found)
        return records[::-1], len(stored) > history.revisions

    def _history(self, prefix: Key) -> HistoryStream:
        name = addressing.history_stream(self._prefix, self._namespace, self._scope, prefix)
        return self._kept.get(prefix) or HistoryStream(self._connection, name, self._stream.root)


async def _look_up(history: HistoryStream) -> None:
    try:
        await history.restore()
    except HistoryNotKept:
        pass


def _not_kept(key: Key) -> HistoryNotKept:
    return HistoryNotKept(f"the earlier values of {'/'.join(key)} are not kept, or not from so long ago")
