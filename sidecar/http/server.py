"""A listener: one ASGI app on some addresses and one port, or on a Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.server import ServerState

from mesh.errors import ConfigurationError
from sidecar.http.limits import Limits
from sidecar.http.protocol import BoundedProtocol, protocol_class

log = logging.getLogger("meshwire.http")

_BACKLOG = 2048
_CUT_TIME = 1.0
"""How long what was cut off may take to end, in seconds."""
_REASONS = {
    errno.EADDRINUSE: "it is in use by another program",
    errno.EACCES: "this user may not",
    errno.EPERM: "this user may not",
    errno.EADDRNOTAVAIL: "this machine has no such address",
}


class HttpServer:
    """Serves `app` in the running loop, without signal handlers, access log or lifespan events.

    `addresses` are host names or IP addresses, an empty string all of them; they share `port` (0: any free one). With
    `unix_socket` the server listens on that path instead. `flag` names in errors the setting that chose the port.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        addresses: Sequence[str] = ("127.0.0.1",),
        port: int = 0,
        unix_socket: Path | None = None,
        flag: str = "--dapr-http-port",
        limits: Limits | None = None,
    ) -> None:
        self._addresses = addresses
        self._port = port
        self._path = unix_socket
        self._flag = flag
        self._inode: int | None = None
        self._servers: list[asyncio.Server] = []
        self._state = ServerState()
        self._config = Config(
            app,
            http=protocol_class(limits or Limits()),
            ws="none",
            lifespan="off",
            interface="asgi3",
            loop="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
        )

    @property
    def port(self) -> int | None:
        """The TCP port, once started; `None` on a Unix socket."""
        return None if self._path is not None else self._port

    async def start(self) -> None:
        """Listen. Raises `ConfigurationError` when an address, the port or the socket's path cannot be had; then
        nothing is left open."""
        self._config.load()
        loop = asyncio.get_running_loop()
        sockets = self._bind_tcp() if self._path is None else [self._bind_unix(self._path)]
        for sock in sockets:
            listen = loop.create_server if self._path is None else loop.create_unix_server
            self._servers.append(await listen(self._protocol, sock=sock, backlog=_BACKLOG))

    async def settled(self, limit: float) -> None:
        """Returns when the requests that are under way now have been answered, or after `limit` seconds."""
        tasks = list(self._state.tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=limit)

    async def stop(self, grace: float) -> None:
        """Accept no more, close idle connections, give open requests `grace` seconds to be answered, cut off the
        rest: their tasks are cancelled. Returns when all is over; may be called twice."""
        for server in self._servers:
            server.close()
        self._remove_socket()
        connections = cast("set[BoundedProtocol]", self._state.connections)
        for connection in list(connections):
            connection.shutdown()
        tasks = self._state.tasks
        deadline = asyncio.get_running_loop().time() + grace
        while connections or tasks:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                break
            await self._wait(min(left, 0.05))
        if connections or tasks:
            log.warning("cutting off %d request(s) and %d connection(s)", len(tasks), len(connections))
        for task in list(tasks):
            task.cancel()
        for connection in list(connections):
            connection.abort()
        if tasks:
            await asyncio.wait(list(tasks), timeout=_CUT_TIME)
        for server in self._servers:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(server.wait_closed(), _CUT_TIME)
        self._servers.clear()

    async def _wait(self, limit: float) -> None:
        tasks = list(self._state.tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(min(limit, 0.005))  # closing connections take a turn or two of the loop

    def _protocol(self) -> asyncio.BaseProtocol:
        protocol = cast("type[BoundedProtocol]", self._config.http_protocol_class)
        return protocol(self._config, self._state, {})

    # Addresses

    def _bind_tcp(self) -> list[socket.socket]:
        sockets: list[socket.socket] = []
        try:
            for address in self._addresses:
                sockets += self._bind_address(address)
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
        return sockets

    def _bind_address(self, address: str) -> list[socket.socket]:
        try:
            found = socket.getaddrinfo(address or None, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except socket.gaierror as error:
            raise ConfigurationError(
                f"cannot listen on '{address}': {error.strerror}; correct --dapr-listen-addresses"
            ) from error
        sockets: list[socket.socket] = []
        problem: OSError | None = None
        for family, kind, number, _, target in dict.fromkeys(found):
            sock = None
            try:
                sock = socket.socket(family, kind, number)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((target[0], self._port, *target[2:]))
                sock.listen(_BACKLOG)  # now, so that a port in use is found before anything is served
                sock.setblocking(False)
            except OSError as error:
                if sock is not None:
                    sock.close()
                if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL) and len(found) > 1:
                    problem = error  # a machine without IPv6
                    continue
                for opened in sockets:
                    opened.close()
                raise self._refused(address, error) from error
            sockets.append(sock)
            self._port = sock.getsockname()[1]
        if not sockets and problem is not None:
            raise self._refused(address, problem) from problem
        return sockets

    def _refused(self, address: str, error: OSError) -> ConfigurationError:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        where = f"{address or 'all addresses'}, port {self._port}"
        return ConfigurationError(f"cannot listen on {where}: {reason}; choose another port with {self._flag}")

    # Unix socket

    def _bind_unix(self, path: Path) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._remove_stale(path)
            sock.bind(str(path))
            sock.listen(_BACKLOG)
            sock.setblocking(False)
        except OSError as error:
            sock.close()
            raise ConfigurationError(
                f"cannot listen on the socket {path}: {error.strerror or error}; choose another --unix-domain-socket"
            ) from error
        except BaseException:
            sock.close()
            raise
        self._inode = path.stat().st_ino
        return sock

    @staticmethod
    def _remove_stale(path: Path) -> None:
        """Remove a socket that nobody listens on, as a crash leaves it (Dapr fails to start then)."""
        try:
            if not stat.S_ISSOCK(path.stat().st_mode):
                raise ConfigurationError(f"cannot listen on {path}: there is a file of that name, which is no socket")
        except FileNotFoundError:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
                return
        raise ConfigurationError(f"cannot listen on the socket {path}: another sidecar serves it")

    def _remove_socket(self) -> None:
        """Remove our socket, unless a successor has put its own in the place already."""
        if self._path is None or self._inode is None:
            return
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        self._inode = None


def socket_path(directory: Path, app_id: str) -> Path:
    """Where the HTTP API of `app_id` listens under `--unix-domain-socket directory` (Dapr's name for it)."""
    return directory / f"dapr-{app_id}-http.socket"
