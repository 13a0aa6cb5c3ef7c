"""Output bindings that another app hosts: a call is request and reply over the backbone, from sidecar to sidecar.

Only the host has the settings and secrets of the component, and says which apps may call it. The app of the host has no
part in it (docs/protocol.md, "Bindings"; docs/adr/0011-bindings.md).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from functools import partial
from urllib.parse import quote, unquote

import msgspec

from mesh import addressing
from mesh.bindings.component import BindingComponent
from mesh.bindings.output import check_operation
from mesh.codec.media_type import is_media_type
from mesh.errors import BrokerError, BrokerUnavailable, MeshError, MessageTooLarge, clip
from mesh.invocation.target import peer
from mesh.persistence import persist
from mesh.ports import Body, Clock, HeaderList, NoResponder, Peer, PeerLost, Request, Requests, Response, Server
from mesh.ports.bindings import BindingError, InvalidOperation, Invocation, Result
from mesh.ports.stores import StoreUnavailable

logger = logging.getLogger("meshwire.bindings")

OPERATION, METADATA = b"operation", b"bindingmetadata"
"""Headers of a call: what is asked for, and a JSON object of texts, in ASCII. An answer has metadata, too."""
LIMIT = 300.0
"""Seconds until the answer must be there. A host that is gone is noticed within seconds."""
LARGEST_ANSWER = 64 << 20
"""Bytes of data of an answer; what comes beyond is not read."""
AT_ONCE = 64
"""Calls that a host works on at once; further ones wait."""
CLOSE_LIMIT = 3.0
"""Seconds that calls under way get at the end."""

DONE, NOTHING, INVALID, DENIED, UNKNOWN, TOO_LARGE, FAILED, UNAVAILABLE = 200, 204, 400, 403, 404, 413, 502, 503
"""Statuses of an answer. All above 204 have the reason as a body."""

_decode_metadata = msgspec.json.Decoder(dict[str, str]).decode


class Guest:
    """Calls what other apps host."""

    def __init__(self, me: Peer, requests: Requests) -> None:
        self._me = me
        self._requests = requests

    async def call(self, host: str, name: str, invocation: Invocation) -> Result:
        """As `mesh.bindings.output.Elsewhere`. Raises the kind of error that the binding raised at its host."""
        target = peer(host, self._me.namespace)
        request = Request(
            method="POST",
            path="/" + quote(name, safe=""),
            headers=[
                (b"content-type", b"application/json"),
                (OPERATION, quote(invocation.operation, safe="").encode()),
                (METADATA, _encoded(invocation.metadata)),
            ],
            body=invocation.data,
        )
        try:
            async with asyncio.timeout(LIMIT):
                response = await self._requests.request(addressing.bindings_host(target), request)
                data = await _whole(response.body, LARGEST_ANSWER)
        except NoResponder as error:
            raise StoreUnavailable(
                f"app {clip(host)} hosts it, and no sidecar of it takes the call; does one run, with a hostedFor in "
                f"the component? ({error})"
            ) from error
        except (PeerLost, BrokerUnavailable) as error:
            raise StoreUnavailable(f"app {clip(host)}, which hosts it, gave no answer: {error}") from error
        except TimeoutError:
            raise StoreUnavailable(f"app {clip(host)}, which hosts it, gave no answer within {LIMIT:g} s") from None
        except MessageTooLarge as error:
            raise InvalidOperation(f"the metadata are too large to be sent to app {clip(host)}: {error}") from error
        except BrokerError as error:
            raise BindingError(f"app {clip(host)}, which hosts it, cannot be called: {error}") from error
        except _TooLarge as error:
            raise BindingError(f"the answer of app {clip(host)}: {error}") from error
        return _result(response, data)


def _result(response: Response, data: bytes) -> Result:
    """Raises what the status says."""
    metadata = _metadata(response.headers)
    if response.status == NOTHING:
        return Result(metadata=metadata)
    if response.status == DONE:
        content_type = _value(response.headers, b"content-type")
        return Result(data=data, metadata=metadata, content_type=content_type or None)
    text = data.decode("utf-8", "replace")
    if response.status == UNAVAILABLE:
        raise StoreUnavailable(text)
    if response.status == FAILED:
        raise BindingError(text, metadata)
    raise InvalidOperation(text, metadata)


class Host:
    """Answers other apps' calls of the output bindings of this one. It takes none before it has one to offer."""

    def __init__(
        self,
        me: Peer,
        components: Mapping[str, BindingComponent],
        requests: Requests,
        clock: Clock,
        *,
        max_body_size: int,
    ) -> None:
        """`components` by name; call `attach` for each that is added. `max_body_size` in bytes; 0 is no limit."""
        self._me = me
        self._components = components
        self._requests = requests
        self._clock = clock
        self._max_body_size = max_body_size
        self._wanted = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None
        self._server: Server | None = None

    def attach(self, component: BindingComponent) -> None:
        """The component is in use."""
        if component.hosted_for:
            self._wanted.set()

    def start(self) -> None:
        """In the background, once there is something to offer."""
        self._serving = asyncio.get_running_loop().create_task(self._serve(), name="host bindings")

    async def close(self) -> None:
        """Take no more calls; those under way get `CLOSE_LIMIT`."""
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
        if self._server is not None:
            try:
                async with asyncio.timeout(CLOSE_LIMIT):
                    await self._server.close()
            except TimeoutError:
                logger.warning("cutting off calls of bindings that other apps make")

    async def _serve(self) -> None:
        await self._wanted.wait()
        name = addressing.bindings_host(self._me).app_id
        serve = partial(self._requests.serve, name, self.answer, concurrency=AT_ONCE)
        self._server = await persist(serve, self._clock, "other apps cannot call bindings", logger)

    async def answer(self, request: Request) -> Response:
        """A `RequestHandler`."""
        name = unquote(request.path.partition("?")[0].removeprefix("/"))
        try:
            component = self._permitted(name, request.caller)
            data = await _whole(request.body, self._max_body_size)
            result = await self._invoke(component, request.headers, data)
        except _Refused as error:
            return _response(error.status, str(error).encode())
        except _TooLarge as error:
            return _response(TOO_LARGE, str(error).encode())
        except BindingError as error:
            status = INVALID if isinstance(error, InvalidOperation) else FAILED
            return _response(status, str(error).encode(), error.metadata)
        except MeshError as error:
            status = UNAVAILABLE if isinstance(error, StoreUnavailable | BrokerUnavailable) else FAILED
            return _response(status, str(error).encode())
        finally:
            if not isinstance(request.body, bytes):
                await request.body.aclose()
        content_type = result.content_type or ""
        if result.data is None:
            return _response(NOTHING, b"", result.metadata)
        if len(result.data) > LARGEST_ANSWER:
            return _response(FAILED, f"the answer has more than {LARGEST_ANSWER} bytes".encode())
        return _response(DONE, result.data, result.metadata, content_type if is_media_type(content_type) else "")

    def _permitted(self, name: str, caller: Peer | None) -> BindingComponent:
        """Raises `_Refused`."""
        component = self._components.get(name)
        if component is None or component.output is None or not component.hosted_for:
            raise _Refused(UNKNOWN, f"app {self._me.app_id} hosts no output binding {clip(name)}")
        if caller is None or not component.serves(caller, self._me.namespace):
            who = "somebody without a name" if caller is None else f"app {clip(caller.app_id)}"
            if caller is not None and caller.namespace != self._me.namespace:
                who += f" of namespace {clip(caller.namespace)}"
            logger.warning("%s may not call binding %s: its hostedFor does not say so", who, clip(name))
            raise _Refused(DENIED, f"{who} may not call it: its hostedFor at app {self._me.app_id} does not say so")
        return component

    async def _invoke(self, component: BindingComponent, headers: HeaderList, data: bytes) -> Result:
        assert component.output is not None  # noqa: S101 - it was permitted
        operation = unquote(_value(headers, OPERATION))
        check_operation(component.name, component.output, operation)
        invocation = Invocation(operation=operation, data=data, metadata=_metadata(headers))
        return await component.output.invoke(invocation)


class _Refused(MeshError):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _TooLarge(MeshError):
    def __init__(self, limit: int) -> None:
        super().__init__(f"the data are larger than {limit} bytes")


async def _whole(body: Body, limit: int) -> bytes:
    """All of a body. Raises `_TooLarge` (0 is no limit), and what the body does."""
    if isinstance(body, bytes):
        if limit and len(body) > limit:
            raise _TooLarge(limit)
        return body
    data = bytearray()
    try:
        async for piece in body:
            data += piece
            if limit and len(data) > limit:
                raise _TooLarge(limit)
    finally:
        await body.aclose()
    return bytes(data)


def _response(status: int, body: bytes, metadata: Mapping[str, str] = {}, content_type: str = "") -> Response:
    headers = [(METADATA, _encoded(metadata))] if metadata else []
    if content_type:
        headers.append((b"content-type", content_type.encode()))
    return Response(status=status, headers=headers, body=body)


def _encoded(metadata: Mapping[str, str]) -> bytes:
    return json.dumps(dict(metadata), separators=(",", ":")).encode()


def _value(headers: HeaderList, wanted: bytes) -> str:
    return next((value.decode("latin-1") for name, value in headers if name == wanted), "")


def _metadata(headers: HeaderList) -> Mapping[str, str]:
    """Raises `InvalidOperation`."""
    text = _value(headers, METADATA)
    try:
        return _decode_metadata(text) if text else {}
    except msgspec.DecodeError as error:
        raise InvalidOperation(f"{METADATA.decode()} must be a JSON object of texts: {error}") from None
