"""The reference of the Requests port: calls between apps of one process, with nothing behind them."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from brokers.streams import WINDOW, BodyReader, Credit, close_body, is_whole, write
from brokers.workers import Workers
from mesh.errors import BrokerUnavailable, MeshError, MessageTooLarge
from mesh.ports import Body, HeaderList, NoResponder, Peer, PeerLost, Request, RequestHandler, Response

MAX_HEADER_BYTES = 128 * 1024
"""Bytes of all headers and trailers of one message, at most."""

logger = logging.getLogger("meshwire.memory")


class MemoryExchange:
    """What the apps of one process call each other through."""

    def __init__(self) -> None:
        self.servers: dict[tuple[Peer, str], list[MemoryServer]] = {}

    def take(self, peer: Peer, instance: str) -> MemoryServer | None:
        """The server of `peer` whose turn it is, or the one that is the `instance`."""
        servers = self.servers.get((peer, instance))
        if not servers:
            return None
        servers.append(servers.pop(0))
        return servers[-1]


class MemoryRequests:
    """`Requests` of `peer`."""

    def __init__(self, exchange: MemoryExchange, peer: Peer) -> None:
        self._exchange = exchange
        self._peer = peer
        self._servers: set[MemoryServer] = set()
        self.calls: set[_Call] = set()
        self._closed = False

    async def serve(
        self, app_id: str, handler: RequestHandler, *, concurrency: int, instance: str = ""
    ) -> MemoryServer:
        peer = Peer(self._peer.namespace, app_id)
        instances = self._exchange.servers.setdefault((peer, instance), [])
        server = MemoryServer(instances, peer, handler, concurrency)
        self._servers.add(server)
        return server

    async def request(self, target: Peer, request: Request, *, instance: str = "") -> Response:
        call: _Call | None = None
        try:
            if self._closed:
                raise BrokerUnavailable("the exchange is closed")
            server = self._exchange.take(target, instance)
            if server is None:
                which = f"instance {instance}" if instance else "instance"
                raise NoResponder(f"{target.app_id} in the namespace {target.namespace} has no {which}")
            _check_headers(request.headers)
            call = _Call(self, server, msgspec.structs.replace(request, caller=self._peer))
            if not server.workers.submit(call):
                raise NoResponder(f"{target.app_id} has too many calls waiting")
            self.calls.add(call)
            return await call.answer
        except BaseException as error:
            if call is not None and call in self.calls:
                call.cancel(error)
            await close_body(request.body)
            raise

    async def close(self) -> None:
        self._closed = True
        for server in list(self._servers):
            await server.cut()
        for call in list(self.calls):
            call.cancel(PeerLost("this end of the call was closed"))


class MemoryServer:
    """One instance of an app: a `Server`."""

    def __init__(self, instances: list[MemoryServer], peer: Peer, handler: RequestHandler, concurrency: int) -> None:
        self.peer = peer
        self.handler = handler
        self.workers = Workers(concurrency, f"call to {peer.app_id}")
        self._instances = instances
        instances.append(self)

    async def close(self) -> None:
        self._leave()
        await self.workers.drain()

    async def cut(self) -> None:
        self._leave()
        await self.workers.cut()

    def _leave(self) -> None:
        if self in self._instances:
            self._instances.remove(self)


class _Pipe:
    """A streamed body on its way from one app to the other."""

    def __init__(self, body: Body, call: _Call, abandoned: PeerLost) -> None:
        self._body = body
        self._call = call
        self._credit = Credit()
        self.reader = BodyReader(self._begin, self._credit.grant, lambda: call.on_abandoned(self, abandoned))

    async def _begin(self) -> None:
        self._credit.grant(WINDOW)

    async def write(self) -> None:
        """Raises what the body raises."""
        try:
            await write(self._body, self._credit, self.reader.put)
            await self._credit.spend(0)
            self.reader.end()
        finally:
            await close_body(self._body)


class _Call:
    """One call: a `Job` of the server's."""

    def __init__(self, requests: MemoryRequests, server: MemoryServer, request: Request) -> None:
        self._requests = requests
        self._server = server
        self._request = request
        self.size = len(request.body) if isinstance(request.body, bytes) else 0
        self.task: asyncio.Task[None] | None = None
        self.answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._upload: _Pipe | None = None
        self._download: _Pipe | None = None
        self._writer: asyncio.Task[None] | None = None

    async def run(self) -> None:
        try:
            await self._answer()
        except asyncio.CancelledError:
            self.fail(PeerLost(f"{self._server.peer.app_id} is shutting down"))
            raise
        except MeshError as error:
            self.fail(PeerLost(str(error)))
        except Exception:
            logger.exception("a call to %s failed", self._server.peer.app_id)
            self.fail(PeerLost(f"{self._server.peer.app_id} failed to answer; its log says why"))

    async def _answer(self) -> None:
        request = self._request
        if not is_whole(request.body):
            self._upload = _Pipe(request.body, self, PeerLost("the body was closed"))
            request = msgspec.structs.replace(request, body=self._upload.reader)
            self._writer = asyncio.get_running_loop().create_task(self._write(self._upload), name="request body")
        response = await self._server.handler(request)
        _check_headers([*response.headers, *response.trailers])
        if is_whole(response.body):
            self._end()
            self._set_answer(response)
            return
        self._download = _Pipe(response.body, self, PeerLost("the body was closed"))
        self._set_answer(msgspec.structs.replace(response, body=self._download.reader))
        await self._download.write()
        self._end()

    def _set_answer(self, response: Response) -> None:
        if not self.answer.done():
            self.answer.set_result(response)

    async def _write(self, upload: _Pipe) -> None:
        try:
            await upload.write()
        except Exception as error:
            self.cancel(error)

    def on_abandoned(self, pipe: _Pipe, error: PeerLost) -> None:
        if pipe is self._download:
            self.cancel(error)

    def cancel(self, error: BaseException) -> None:
        """The caller has gone, or its body has broken off."""
        self._server.workers.withdraw(self)
        self.fail(error)

    def fail(self, error: BaseException) -> None:
        self._end()
        if not self.answer.done():
            self.answer.set_exception(error)
        if self._download is not None and isinstance(error, Exception):
            self._download.reader.fail(error)

    def _end(self) -> None:
        self._requests.calls.discard(self)
        if self._upload is not None:
            self._upload.reader.fail(MeshError("the call is over"))
        if self._writer is not None:
            self._writer.cancel()


def _check_headers(headers: HeaderList) -> None:
    size = sum(len(name) + len(value) for name, value in headers)
    if size > MAX_HEADER_BYTES:
        raise MessageTooLarge(size, MAX_HEADER_BYTES)
