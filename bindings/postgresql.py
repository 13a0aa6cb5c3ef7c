"""PostgreSQL: the settings that its components share, and connections.

The library is imported when a component is opened, not before.
"""

from __future__ import annotations

import asyncio
import os
import re
import select
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from mesh.components import Field, Kind, Settings
from mesh.errors import ConfigurationError, clip
from mesh.ports.stores import StoreError, StoreUnavailable, ValueTooLarge

if TYPE_CHECKING:
    import psycopg

    Connection = psycopg.AsyncConnection[Any]

T = TypeVar("T")

IDLE = 1800.0
"""Seconds until a connection that nobody uses is closed, unless `connectionMaxIdleTime` is set."""
LEAST_CONNECTIONS = 4
MAX_REASON = 300
"""Characters of a reason why there is no connection."""
CANCELLATION = 1.0
"""Seconds in which a server must have taken the request to give up a statement."""

_NO_CLOUD = "signing in with the identity of a cloud is not supported: use a user and a password, or a certificate"

FIELDS: Sequence[Field] = (
    Field(
        "connectionString",
        "Where the database is, as `host=localhost user=shop password=… port=5432 database=shop` or as "
        "`postgresql://shop:…@localhost:5432/shop`, with any option that libpq knows.",
        secret=True,
        aliases=("url",),
    ),
    Field("host", "The name of the server, in place of the connection string's."),
    Field("hostaddr", "The IP address of the server; its name is then only compared with its certificate."),
    Field("port", "The port, in place of the connection string's."),
    Field("database", "The database, in place of the connection string's."),
    Field("user", "The user, in place of the connection string's."),
    Field("password", "The password, in place of the connection string's.", secret=True),
    Field("sslRootCert", "The file of certificates that the server's is checked against."),
    Field("timeout", "Longest time for an operation.", Kind.DURATION, 20.0, minimum=1, aliases=("timeoutInSeconds",)),
    Field(
        "maxConns", f"Most connections at a time; 0 is one for each CPU, at least {LEAST_CONNECTIONS}.", Kind.INTEGER, 0
    ),
    Field("connectionMaxIdleTime", "When a connection that nobody uses is closed.", Kind.DURATION, IDLE),
    Field(
        "queryExecMode",
        "With `cache_statement` the server keeps statements prepared; with the others never, as PgBouncer in front "
        "of the server may need it. (Dapr's `simple_protocol` is not offered.)",
        Kind.CHOICE,
        "cache_statement",
        choices=("cache_statement", "cache_describe", "describe_exec", "exec"),
    ),
    Field("useAzureAD", "Sign in with an identity of Azure.", Kind.BOOL, False, refused=_NO_CLOUD),
    Field("useAWSIAM", "Sign in with an identity of AWS.", Kind.BOOL, False, refused=_NO_CLOUD),
    *(
        Field(name, "Part of useAWSIAM.", refused=_NO_CLOUD)
        for name in ("awsRegion", "awsAccessKey", "awsSecretKey", "region", "accessKey", "secretKey", "sessionToken")
    ),
    *(
        Field(name, "Part of useAzureAD.", refused=_NO_CLOUD)
        for name in ("azureTenantId", "azureClientId", "azureClientSecret")
    ),
)
"""The settings that all components on PostgreSQL share."""

_PARTS = {
    "host": "host",
    "hostaddr": "hostaddr",
    "port": "port",
    "database": "dbname",
    "user": "user",
    "password": "password",
    "sslRootCert": "sslrootcert",
}
"""Setting, and the option of libpq that it overrides."""
_OPTION = re.compile(r"(\w+)(\s*=\s*)('(?:[^'\\]|\\.)*'|(?:[^\s\\]|\\.)*)", re.DOTALL)
_IDENTIFIER = r'(?:[A-Za-z_][A-Za-z0-9_$]*|"(?:[^"%\x00]|"")+")'


def connections(settings: Settings) -> Connections:
    """Raises `ConfigurationError`, never with a piece of the connection string; `ImportError`."""
    limit, idle = settings["maxConns"], settings["connectionMaxIdleTime"]
    return Connections(
        connection_string(settings),
        limit=limit if limit > 0 else max(LEAST_CONNECTIONS, os.cpu_count() or 1),
        timeout=settings["timeout"],
        idle=idle if idle > 0 else IDLE,
        prepare=settings["queryExecMode"] == "cache_statement",
    )


def connection_string(settings: Settings) -> str:
    """As libpq takes it. Raises `ConfigurationError`, never with a piece of it."""
    import psycopg
    from psycopg.conninfo import make_conninfo

    text: str = settings["connectionString"] or ""
    parts = {option: settings[name] for name, option in _PARTS.items() if settings[name]}
    if not text and not parts:
        raise settings.fault("connectionString", "it is needed, or else host, user and so on")
    if not text.startswith(("postgres://", "postgresql://")):
        text = _OPTION.sub(lambda match: match[0] if match[1] != "database" else f"dbname{match[2]}{match[3]}", text)
    try:
        return make_conninfo(text, **parts)
    except psycopg.Error as error:
        unknown = re.match(r'invalid (?:connection option|URI query parameter:?) "(\w{1,40})"', str(error))
        raise _fault(settings, unknown[1] if unknown else "") from None


def _fault(settings: Settings, unknown: str) -> ConfigurationError:
    if unknown.startswith("pool_"):
        return settings.fault("connectionString", f"instead of {unknown} use maxConns and connectionMaxIdleTime")
    if unknown:
        return settings.fault("connectionString", f"libpq knows no option {unknown}")
    return settings.fault("connectionString", "it is neither of the form `name=value …` nor `postgresql://…`")


def table_name(settings: Settings, field: str, name: str) -> str:
    """`name`, which may have a schema in front, as it can stand in SQL; unquoted it is folded to lower case (Dapr).

    Raises `ConfigurationError` about `field`.
    """
    if not re.fullmatch(rf"(?:{_IDENTIFIER}\.)?{_IDENTIFIER}", name):
        raise settings.fault(field, f"'{clip(name)}' is no name of a table: write `table` or `schema.table`")
    return name


class Connections:
    """At most `limit` connections to a database: opened when they are needed, used again, closed when idle.

    One that the server has closed, as when it was restarted, is not used again; while it is down every call tries
    once, and so fails as fast as connecting does.
    """

    def __init__(self, conninfo: str, *, limit: int, timeout: float, idle: float, prepare: bool) -> None:
        """Times in seconds. Without `prepare` the server keeps no prepared statements."""
        import psycopg

        class Prompt(psycopg.AsyncConnection[Any]):
            """Asks a server that does not answer to give up a statement, but not for long."""

            async def cancel_safe(self, *, timeout: float = CANCELLATION) -> None:
                await super().cancel_safe(timeout=min(timeout, CANCELLATION))

        self.timeout = timeout
        self._connection_class = Prompt
        self._error = psycopg.Error
        self._conninfo = conninfo
        self._slots = asyncio.Semaphore(limit)
        self._max_idle = idle
        self._threshold = 2 if prepare else None
        self._idle: deque[tuple[float, Connection]] = deque()  # the newest last
        self._next_look: asyncio.TimerHandle | None = None
        self._closed = False

    async def run(self, work: Callable[[Connection], Awaitable[T]], *, timeout: float | None = None) -> T:
        """What `work` returns, done on a connection that is its own meanwhile, in autocommit mode.

        `timeout` in seconds, else that of the component; a server that is frozen may take some seconds more. Raises
        what `work` does, errors of the library as `translated`; `StoreUnavailable` after the timeout.
        """
        if self._closed:
            raise StoreUnavailable("PostgreSQL: the connections are closed")
        try:
            async with asyncio.timeout(timeout or self.timeout), self._slots:
                connection = await self._take()
                try:
                    result = await work(connection)
                except (StoreError, self._error):
                    await self._give_back(connection)
                    raise
                except BaseException:  # cancelled: answers may still come that nobody waits for
                    await connection.close()
                    raise
                await self._give_back(connection)
                return result
        except TimeoutError:
            raise StoreUnavailable("PostgreSQL did not answer in time") from None
        except self._error as error:
            raise translated(error) from error

    async def connect(self) -> Connection:
        """A connection beyond those that are counted, for listening; whoever asks closes it.

        Raises errors of the library.
        """
        return await self._connection_class.connect(
            self._conninfo,
            autocommit=True,
            prepare_threshold=self._threshold,
            fallback_application_name="meshwire",
            client_encoding="utf8",  # as which everything is read, whatever the environment says
        )

    async def close(self) -> None:
        self._closed = True
        if self._next_look is not None:
            self._next_look.cancel()
        while self._idle:
            await self._idle.pop()[1].close()

    async def _take(self) -> Connection:
        while self._idle:
            _, connection = self._idle.pop()
            if not _has_something_to_say(connection):
                return connection
            await connection.close()
        return await self.connect()

    async def _give_back(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        if self._closed or connection.broken or connection.pgconn.transaction_status:  # 0 is idle
            await connection.close()
            return
        self._idle.append((loop.time(), connection))
        if self._next_look is None:
            self._next_look = loop.call_later(self._max_idle, self._close_idle, loop)

    def _close_idle(self, loop: asyncio.AbstractEventLoop) -> None:
        self._next_look = None
        while self._idle and self._idle[0][0] <= loop.time() - self._max_idle:
            _, connection = self._idle.popleft()
            connection.pgconn.finish()
        if self._idle:
            self._next_look = loop.call_at(self._idle[0][0] + self._max_idle, self._close_idle, loop)


def _has_something_to_say(connection: Connection) -> bool:
    """The server speaks to one that asked nothing when it goes, or when it has gone."""
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN)
    return bool(poll.poll(0))


def translated(error: psycopg.Error) -> StoreError:
    """What a store says of an error of the library."""
    from psycopg import InterfaceError, OperationalError

    state = error.sqlstate
    if state is None:
        reason = " ".join(str(error).split())[:MAX_REASON]
        if isinstance(error, OperationalError | InterfaceError):
            return StoreUnavailable(f"PostgreSQL cannot be reached: {reason}")
        return StoreError(f"PostgreSQL: {reason}")
    message = f"PostgreSQL: {error.diag.message_primary} (SQLSTATE {state})"
    if state.startswith("54"):
        return ValueTooLarge(message)
    # no connection, lost serialization or deadlock, no resources, stopped, cancelled; and read-only: it is a standby
    if state.startswith(("08", "40", "53", "57", "58")) or state == "25006":
        return StoreUnavailable(message)
    return StoreError(message)
