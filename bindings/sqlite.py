"""SQLite: connection strings, and a connection in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, quote_plus

from mesh.components import Field, Kind, Settings
from mesh.errors import clip
from mesh.ports.stores import StoreError, StoreUnavailable, ValueTooLarge

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], T]

MAX_GROUP = 128
"""Jobs in one transaction."""
MAX_WAITING = 10_000
"""Jobs that wait; more are refused."""
STEPS = 100_000
"""Instructions of SQLite's machine between two looks at the time: less than a millisecond."""

FIELDS: Sequence[Field] = (
    Field(
        "connectionString",
        "The path of the file, relative to the working directory of the sidecar; a `file:` URL, which may have "
        "SQLite's options (`file:data.db?mode=rw`); or `:memory:`, for data that ends with the process.",
        required=True,
        aliases=("url",),
    ),
    Field("timeout", "Longest time for an operation.", Kind.DURATION, 20.0, minimum=1, aliases=("timeoutInSeconds",)),
    Field("busyTimeout", "How long to wait while another process writes.", Kind.DURATION, 2.0),
    Field(
        "disableWAL",
        "Do without a write-ahead log. Needed on network file systems, where one damages data; slower everywhere else.",
        Kind.BOOL,
        False,
    ),
)
"""The settings that components on SQLite share."""

_OWN_PRAGMAS = {"busy_timeout": "busyTimeout", "journal_mode": "disableWAL"}
_UNAVAILABLE = {
    sqlite3.SQLITE_BUSY: "another process is writing to the database",
    sqlite3.SQLITE_LOCKED: "the database is locked",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk fails",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened",
    sqlite3.SQLITE_INTERRUPT: "the operation took too long",
    sqlite3.SQLITE_NOMEM: "there is no memory",
}


class Database(NamedTuple):
    """Where data is, and how to get at it."""

    uri: str
    pragmas: Sequence[str]
    busy_timeout: float
    """Seconds."""
    wal: bool
    alone: bool
    """Only one connection can see the data: it is in memory."""

    def connect(self) -> sqlite3.Connection:
        """A connection without implicit transactions. Raises `sqlite3.Error`."""
        connection = sqlite3.connect(self.uri, uri=True, isolation_level=None, timeout=self.busy_timeout)
        try:
            for pragma in self.pragmas:
                connection.execute(f"PRAGMA {pragma}")
            if not self.alone:
                self._set_journal(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_journal(self, connection: sqlite3.Connection) -> None:
        """While another process does the same, SQLite is busy at once, whatever its timeout is."""
        wanted = "wal" if self.wal else "delete"
        limit = time.monotonic() + max(self.busy_timeout, 1.0)
        while True:
            try:
                [(journal,)] = connection.execute(f"PRAGMA journal_mode = {wanted}")
            except sqlite3.OperationalError as error:
                if _primary(error) != sqlite3.SQLITE_BUSY or time.monotonic() > limit:
                    raise
                time.sleep(0.01)
                continue
            if self.wal and journal != "wal":
                raise StoreError("SQLite cannot keep a write-ahead log here: set disableWAL")
            return


def database(settings: Settings) -> Database:
    """What `FIELDS` say. Raises `ConfigurationError`."""
    path, _, options = settings["connectionString"].partition("?")
    passed_on: list[str] = []
    pragmas = ["synchronous = FULL"]
    alone = path.lower().startswith((":memory:", "file::memory:"))
    read_only = False
    for name, value in parse_qsl(options, keep_blank_values=True):
        match name:
            case "_pragma":
                pragmas.append(_pragma(settings, value))
            case "_txlock":
                if value.lower() != "immediate":
                    raise settings.fault("connectionString", "_txlock can only be immediate, as it is without it")
            case _ if name.startswith("_"):
                raise settings.fault("connectionString", f"the option {clip(name)} is not known")
            case _:
                alone = alone or (name, value) == ("mode", "memory")
                read_only = read_only or (name, value) in (("mode", "ro"), ("immutable", "1"))
                passed_on.append(f"{quote_plus(name)}={quote_plus(value)}")
    if not path.lower().startswith("file:"):
        path = f"file:{path}"
    return Database(
        uri=f"{path}?{'&'.join(passed_on)}" if passed_on else path,
        pragmas=pragmas,
        busy_timeout=max(settings["busyTimeout"], 0.0),
        wal=not (alone or read_only or settings["disableWAL"]),
        alone=alone,
    )


def _pragma(settings: Settings, text: str) -> str:
    match = re.fullmatch(r"(\w+)\s*(?:\(\s*([-\w.]+)\s*\)|=\s*([-\w.]+))", text)
    if match is None:
        raise settings.fault("connectionString", f"'{clip(text)}' is no pragma: write name(value)")
    name = match[1].lower()
    if name in _OWN_PRAGMAS:
        raise settings.fault("connectionString", f"instead of _pragma={name} use the setting {_OWN_PRAGMAS[name]}")
    return f"{name} = {match[2] or match[3]}"


def table_name(settings: Settings, field: str) -> str:
    """A name that can stand in SQL as it is (Dapr's rule). Raises `ConfigurationError`."""
    name: str = settings[field]
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise settings.fault(field, f"'{clip(name)}' is no name of a table: use letters, digits and _")
    return name


def translated(error: Exception) -> StoreError:
    """What a store says of an error of the library."""
    if isinstance(error, StoreError):
        return error
    if isinstance(error, sqlite3.DataError | OverflowError | MemoryError):
        return ValueTooLarge("SQLite takes no value of this size")
    reason = _UNAVAILABLE.get(_primary(error))
    if reason is not None:
        return StoreUnavailable(f"SQLite: {reason} ({error})")
    return StoreError(f"SQLite: {error}")


def _primary(error: Exception) -> int:
    """The error code without what it says in detail."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


class _Ticket(NamedTuple):
    job: Job[Any]
    future: asyncio.Future[Any]


class Worker:
    """A connection to a database, used by one thread, which does one job after another.

    With `grouped`, those that wait are done in one transaction, and answered once it is committed: as safe as one
    by one, for the price of one. A job that raises must have changed nothing, or have taken it back.
    """

    def __init__(self, database: Database, *, grouped: bool, timeout: float) -> None:
        self._database = database
        self._grouped = grouped
        self._timeout = timeout
        self._waiting: SimpleQueue[_Ticket | None] = SimpleQueue()
        self._deadline = 0.0
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Connect. Raises `StoreError`."""
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        opened: asyncio.Future[None] = self._loop.create_future()
        threading.Thread(target=self._work, args=(self._loop, opened, self._ended), name="sqlite", daemon=True).start()
        await opened

    async def run(self, job: Job[T]) -> T:
        """What `job` returns.

        Raises what it raised, as a `StoreError`; `StoreUnavailable` after the timeout, when it may have been done.
        """
        if self._loop is None or self._closing:
            raise StoreUnavailable("SQLite: the database is closed")
        if self._waiting.qsize() >= MAX_WAITING:
            raise StoreUnavailable("SQLite: too many operations wait")
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.put(_Ticket(job, future))
        try:
            async with asyncio.timeout(self._timeout):
                return await future
        except TimeoutError:
            raise StoreUnavailable("SQLite did not answer in time") from None

    async def close(self) -> None:
        """Once what waits is done."""
        if self._ended is not None:
            if not self._closing:
                self._closing = True
                self._waiting.put(None)
            await self._ended

    def _work(self, loop: asyncio.AbstractEventLoop, opened: asyncio.Future[None], ended: asyncio.Future[None]) -> None:
        connection: sqlite3.Connection | None = None
        try:
            connection = self._connect()
        except Exception as error:
            _tell(loop, [(opened, None, translated(error)), (ended, None, None)])
            return
        _tell(loop, [(opened, None, None)])
        more = True
        while more:
            tickets, more = self._next()
            do = self._do_together if self._grouped and tickets else self._do_each
            self._deadline = time.monotonic() + self._timeout
            try:
                connection = connection or self._connect()
                outcomes = do(connection, tickets)
            except Exception as error:  # not even a rollback is possible
                outcomes = _all_failed(tickets, error)
                _close(connection)
                connection = None
            _tell(loop, outcomes)
        _close(connection)
        _tell(loop, [(ended, None, None)])

    def _connect(self) -> sqlite3.Connection:
        connection = self._database.connect()
        connection.set_progress_handler(self._late, STEPS)
        return connection

    def _next(self) -> tuple[list[_Ticket], bool]:
        """Wait for jobs, and take those that are there; whether more may come."""
        tickets: list[_Ticket] = []
        ticket = self._waiting.get()
        try:
            while ticket is not None:
                if not ticket.future.cancelled():  # nobody waits for it any more, and it was not begun
                    tickets.append(ticket)
                if len(tickets) == MAX_GROUP:
                    return tickets, True
                ticket = self._waiting.get_nowait()
        except Empty:
            return tickets, True
        return tickets, False

    def _do_each(self, connection: sqlite3.Connection, tickets: Sequence[_Ticket]) -> list[_Outcome]:
        outcomes: list[_Outcome] = []
        for job, future in tickets:
            try:
                outcomes.append((future, job(connection), None))
            except Exception as error:
                outcomes.append((future, None, translated(error)))
        return outcomes

    def _do_together(self, connection: sqlite3.Connection, tickets: Sequence[_Ticket]) -> list[_Outcome]:
        try:
            connection.execute("BEGIN IMMEDIATE")
            outcomes: list[_Outcome] = []
            for ticket in tickets:
                outcomes += self._do_each(connection, [ticket])
                if not connection.in_transaction:  # some errors end it
                    raise outcomes[-1][2] or StoreError("SQLite: the transaction has ended")
            connection.execute("COMMIT")
        except Exception as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            return _all_failed(tickets, error)
        return outcomes

    def _late(self) -> int:
        return time.monotonic() > self._deadline


_Outcome = tuple[asyncio.Future[Any], Any, StoreError | None]


def _all_failed(tickets: Sequence[_Ticket], error: Exception) -> list[_Outcome]:
    failure = translated(error)
    return [(future, None, type(failure)(*failure.args)) for _, future in tickets]


def _close(connection: sqlite3.Connection | None) -> None:
    if connection is not None:
        with contextlib.suppress(sqlite3.Error):
            connection.close()


def _tell(loop: asyncio.AbstractEventLoop, outcomes: Sequence[_Outcome]) -> None:
    def settle() -> None:
        for future, result, error in outcomes:
            if future.done():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

    try:
        loop.call_soon_threadsafe(settle)
    except RuntimeError:
        pass  # the loop is closed: nobody waits
