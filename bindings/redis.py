"""Redis: the settings that its components share, and the client.

The library is imported when a component is opened, not before.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import IO, Any

from mesh import quantities
from mesh.components import Field, Kind, Settings
from mesh.ports.stores import StoreError, StoreUnavailable

DEFAULT_PORT = 6379
MILLISECOND = 0.001
MAX_REASON = 300
"""Characters of what the library says went wrong."""

_NO_IDENTITY = (
    "signing in with the identity of a cloud or by OIDC is not supported: use redisUsername and redisPassword"
)
_NO_UPKEEP = "connections are opened when they are needed and kept as long as they work: remove the setting"


class Switch(Field):
    """A boolean in Go's syntax, as components for Redis have it (Dapr): what is none ends the start."""

    def read(self, text: str) -> bool:
        return quantities.boolean(text)


def _switch(name: str, about: str, **more: Any) -> Field:
    return Switch(name, about, Kind.BOOL, False, **more)


def _duration(name: str, about: str, default: float | None, **more: Any) -> Field:
    """A bare integer counts milliseconds (Dapr: in Redis components)."""
    return Field(name, about, Kind.DURATION, default, bare_unit=MILLISECOND, minimum=MILLISECOND, **more)


def fields(*, min_retry_interval: float = 0.008, max_retry_interval: float = 0.512) -> Sequence[Field]:
    """The settings that all components on Redis share. Some of Dapr's have other defaults for the retries, in
    seconds."""
    return (
        Field(
            "redisHost",
            "Where the server is, as `host:port`; with `redisType: cluster` some of the nodes, with `failover` the "
            "sentinels, with commas between them.",
            Kind.LIST,
            required=True,
        ),
        Field("redisPort", f"The port, where redisHost has none; {DEFAULT_PORT} if not given.", Kind.INTEGER),
        Field("redisUsername", "The user (ACL); the default user, if not given."),
        Field("redisPassword", "The password of the user.", secret=True),
        Field("redisDB", "The number of the database; a cluster has only 0.", Kind.INTEGER, 0, minimum=0),
        Field("redisType", "`node` or `cluster`.", Kind.CHOICE, "node", choices=("node", "cluster")),
        _switch("failover", "Ask the sentinels at redisHost which server is the master."),
        Field("sentinelMasterName", "The name that the sentinels know the master by; needed with failover."),
        Field("sentinelUsername", "The user for the sentinels."),
        Field("sentinelPassword", "The password for the sentinels.", secret=True),
        _switch("enableTLS", "Speak TLS, and check the server's certificate by the system's authorities."),
        _switch("insecureSkipTLSVerify", "Take any certificate of the server: for tests only."),
        Field("clientCert", "The certificate that this client shows, as PEM text."),
        Field("clientKey", "The private key of clientCert, as PEM text.", secret=True),
        Field(
            "redisMaxRetries",
            "How often a command is tried again when the connection fails; -1 is never.",
            Kind.INTEGER,
            3,
            minimum=-1,
            aliases=("maxRetries",),
        ),
        _duration("redisMinRetryInterval", "The first pause before that.", min_retry_interval),
        _duration("redisMaxRetryInterval", "The longest pause before that.", max_retry_interval),
        Field(
            "maxRetryBackoff",
            "Nanoseconds: the longest pause, under the name and in the unit of early versions.",
            Kind.INTEGER,
            minimum=1,
        ),
        _duration("dialTimeout", "Longest time for opening a connection.", 5.0),
        _duration("readTimeout", "Longest time for an answer.", 3.0),
        _duration("writeTimeout", "Longest time for sending, where that is longer than readTimeout.", None),
        Field("poolSize", "Most connections; 10 for each CPU, if not given.", Kind.INTEGER, minimum=1),
        _duration(
            "poolTimeout",
            "Longest wait for a free connection of a single server; a second more than "
            "readTimeout, if not given. In a cluster, or with failover, only state stores wait: others fail at once.",
            None,
        ),
        *(
            Field(name, "How connections are kept open and closed.", refused=_NO_UPKEEP)
            for name in ("maxConnAge", "minIdleConns", "idleCheckFrequency", "idleTimeout")
        ),
        _switch("useEntraID", "Sign in with an identity of Azure.", refused=_NO_IDENTITY, aliases=("useAzureAD",)),
        _switch("useOIDC", "Sign in by OpenID Connect.", refused=_NO_IDENTITY),
        *(
            Field(name, "Part of useOIDC.", refused=_NO_IDENTITY)
            for name in (
                *("oidcTokenEndpoint", "oidcClientID", "oidcClientAssertionCert", "oidcClientAssertionKey"),
                *("oidcResource", "oidcAudience", "oidcScopes", "oidcKid", "oidcCACert"),
            )
        ),
    )


class Server:
    """The server, cluster, or master behind sentinels that the settings of a component name. No I/O before `start`."""

    def __init__(self, settings: Settings) -> None:
        """Raises `ConfigurationError`, `ImportError`."""
        self.settings = settings
        self.is_cluster = settings["redisType"] == "cluster"
        self._files: list[IO[str]] = []
        self._sentinels: Any = None
        _check(settings)
        hosts = [_address(settings, text) for text in settings["redisHost"]]
        if self.is_cluster:
            self.client = self._cluster(hosts)
        elif settings["failover"]:
            self.client = self._behind_sentinels(hosts)
        else:
            self.client = self._node(*hosts[0])
        self._turns = asyncio.Semaphore(self._pool_size)

    client: Any
    """A `redis.asyncio.Redis` or `RedisCluster`; answers are bytes. Use it within `translated`."""

    async def start(self) -> None:
        """Raises `StoreError`, `StoreUnavailable`."""
        async with translated():
            await self.client.ping()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits until a connection is free, which the library does for a single server only.

        Raises `StoreUnavailable` after poolTimeout.
        """
        try:
            async with asyncio.timeout(self._pool_timeout):
                await self._turns.acquire()
        except TimeoutError:
            raise StoreUnavailable("Redis: no connection became free in time (poolSize, poolTimeout)") from None
        try:
            yield
        finally:
            self._turns.release()

    async def close(self) -> None:
        await self.client.aclose()
        if self._sentinels is not None:
            await self._sentinels.aclose()
        for file in self._files:
            file.close()
        self._files.clear()

    def _node(self, host: str, port: int) -> Any:
        import redis.asyncio as library

        pool = library.BlockingConnectionPool(
            host=host,
            port=port,
            db=self.settings["redisDB"],
            max_connections=self._pool_size,
            timeout=self._pool_timeout,
            connection_class=library.SSLConnection if self.settings["enableTLS"] else library.Connection,
            **self._connection(),
            **self._tls(),
        )
        return library.Redis.from_pool(pool)

    def _behind_sentinels(self, hosts: Sequence[tuple[str, int]]) -> Any:
        from redis.asyncio.sentinel import Sentinel

        settings = self.settings
        tls = {"ssl": True, **self._tls()} if settings["enableTLS"] else {}
        self._sentinels = Sentinel(  # type: ignore[no-untyped-call]
            list(hosts),
            sentinel_kwargs={
                **self._connection(),
                **tls,
                "username": settings["sentinelUsername"],
                "password": settings["sentinelPassword"],
            },
        )
        return self._sentinels.master_for(
            settings["sentinelMasterName"],
            db=settings["redisDB"],
            max_connections=self._pool_size,
            **self._connection(),
            **tls,
        )

    def _cluster(self, hosts: Sequence[tuple[str, int]]) -> Any:
        from redis.asyncio.cluster import ClusterNode, RedisCluster

        connection = self._connection()
        return RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in hosts],
            max_connections=self._pool_size,
            ssl=self.settings["enableTLS"],
            **connection,
            **self._tls(),
        )

    @property
    def _pool_size(self) -> int:
        return self.settings["poolSize"] or 10 * (os.cpu_count() or 1)

    @property
    def _pool_timeout(self) -> float:
        wait: float | None = self.settings["poolTimeout"]
        return wait if wait is not None else float(self.settings["readTimeout"]) + 1.0

    def _connection(self) -> dict[str, Any]:
        from redis.asyncio.retry import Retry
        from redis.backoff import ExponentialWithJitterBackoff

        settings = self.settings
        longest = settings["redisMaxRetryInterval"]
        if settings["maxRetryBackoff"]:
            longest = settings["maxRetryBackoff"] / 1e9
        pause = ExponentialWithJitterBackoff(base=settings["redisMinRetryInterval"], cap=longest)
        return {
            "username": settings["redisUsername"],
            "password": settings["redisPassword"],
            "socket_connect_timeout": settings["dialTimeout"],
            "socket_timeout": max(settings["readTimeout"], settings["writeTimeout"] or 0.0),
            "retry": Retry(pause, max(settings["redisMaxRetries"], 0)),
            "client_name": "meshwire",
            "protocol": 2,  # every version of the server speaks it
        }

    def _tls(self) -> dict[str, Any]:
        settings = self.settings
        if not settings["enableTLS"]:
            return {}
        tls: dict[str, Any] = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
        if settings["insecureSkipTLSVerify"]:
            tls = {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
        if settings["clientCert"]:
            tls |= {
                "ssl_certfile": self._file(settings["clientCert"]),
                "ssl_keyfile": self._file(settings["clientKey"]),
            }
        return tls

    def _file(self, text: str) -> str:
        """A file that only this user can read, and that ends with the client: Python's TLS reads keys from files."""
        file = tempfile.NamedTemporaryFile("w", prefix="meshwire-", suffix=".pem")  # noqa: SIM115
        self._files.append(file)
        file.write(text)
        file.flush()
        return file.name


def _check(settings: Settings) -> None:
    """Settings that do not go together."""
    if settings["redisType"] == "cluster":
        if settings["redisDB"]:
            raise settings.fault("redisDB", "a cluster has no other database than 0")
        if settings["failover"]:
            raise settings.fault("failover", "a cluster needs no sentinels")
    elif not settings["failover"] and len(settings["redisHost"]) > 1:
        raise settings.fault("redisHost", "several hosts are for redisType cluster, or failover")
    if settings["failover"] and not settings["sentinelMasterName"]:
        raise settings.fault("sentinelMasterName", "failover needs it")
    if not settings["enableTLS"]:
        for name in ("insecureSkipTLSVerify", "clientCert", "clientKey"):
            if settings[name]:
                raise settings.fault(name, "it needs enableTLS")
    if bool(settings["clientCert"]) != bool(settings["clientKey"]):
        raise settings.fault("clientCert", "clientCert and clientKey need each other")


def _address(settings: Settings, text: str) -> tuple[str, int]:
    """Host and port. An IPv6 address stands in brackets when a port follows."""
    given: int | None = settings["redisPort"]
    host, port = text, ""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise settings.fault("redisHost", f"'{port}' is no port")
    if not host:
        raise settings.fault("redisHost", "there is no host in it")
    if port and given is not None and int(port) != given:
        raise settings.fault("redisPort", f"redisHost has the port {port}")
    return host, int(port) if port else given or DEFAULT_PORT


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """Errors of the library within become those of stores. They may name the server, and no password."""
    import redis.exceptions as errors

    try:
        yield
    except (errors.AuthenticationError, errors.AuthorizationError) as error:
        raise StoreError(f"Redis: {_reason(error)}") from error
    except (
        *(errors.ConnectionError, errors.TimeoutError),
        *(errors.TryAgainError, errors.ClusterDownError, errors.SlotNotCoveredError),
    ) as error:
        raise StoreUnavailable(f"Redis cannot be reached: {_reason(error)}") from error
    except (errors.ReadOnlyError, errors.OutOfMemoryError) as error:
        raise StoreUnavailable(f"Redis: {_reason(error)}") from error
    except errors.RedisClusterException as error:
        kind = StoreUnavailable if error.__cause__ is not None else StoreError  # it says why it reached no node
        raise kind(f"Redis: {_reason(error)}") from error
    except errors.RedisError as error:
        raise StoreError(f"Redis: {_reason(error)}") from error
    except OSError as error:
        raise StoreUnavailable(f"Redis cannot be reached: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:MAX_REASON]
