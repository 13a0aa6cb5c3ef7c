"""Calls of the app that hosts actors, and what its answers mean (Dapr: exactly 200 is a success)."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import NamedTuple

import msgspec

from mesh.actors.names import ActorName
from mesh.actors.turns import Turn
from mesh.errors import AppError, Code, MeshError, clip
from mesh.invocation import headers as rules
from mesh.ports import AppChannel, Body, HeaderList, Peer, Request, Response

logger = logging.getLogger("meshwire.actors")

REENTRANCY = b"dapr-reentrancy-id"
ERROR_HEADER = b"x-daprerrorresponseheader"
FENCE = "meshwire-fence"
"""Tells the app the number of the lease under which a turn is made, which grows from owner to owner: so that other
systems can refuse what a late turn asks of them."""
MAX_BODY = 256 * 1024 * 1024
"""Bytes of the longest answer of an actor, and of the longest call that comes from elsewhere."""
DEACTIVATION_LIMIT = 5.0
"""Seconds that the app may take for one."""


LONGEST_COMPLAINT = 500
"""Characters of what the log tells of a failed call: an app may have answered at length."""


class Call(NamedTuple):
    """A call of an actor, as its owner gets it."""

    actor: ActorName
    method: str
    """The end of the path, encoded: `withdraw`, `remind/<name>`, `timer/<name>`."""
    query: str = ""
    headers: HeaderList = ()
    body: bytes = b""
    chain: str = ""
    """The id of the chain of calls that this one belongs to (Dapr: `Dapr-Reentrancy-Id`)."""


class Refusal(NamedTuple):
    """Why a call was not answered by the actor."""

    code: Code
    message: str

    def response(self) -> Response:
        body = msgspec.json.encode({"errorCode": self.code.error_code, "message": self.message})
        return Response(status=self.code.status, headers=((b"content-type", b"application/json"),), body=body)


class _Told(msgspec.Struct):
    message: str


def complaint(response: Response) -> str:
    """Why a call failed, for the log: the beginning of what a `Refusal` says."""
    assert isinstance(response.body, bytes)  # noqa: S101 - of calls of actors it is
    try:
        text = msgspec.json.decode(response.body, type=_Told).message
    except msgspec.DecodeError:
        text = f"answered {response.status}"
    return clip(text, LONGEST_COMPLAINT)


class Callbacks:
    def __init__(self, me: Peer, channel: AppChannel) -> None:
        self._me = me
        self._channel = channel
        self._own_headers = lru_cache(maxsize=256)(self._headers)

    def _headers(self, caller: Peer) -> tuple[tuple[str, str], ...]:
        return (
            ("dapr-caller-app-id", caller.app_id),
            ("dapr-caller-namespace", caller.namespace),
            ("dapr-callee-app-id", self._me.app_id),
            ("dapr-api-call", "true"),
        )

    async def call(self, call: Call, caller: Peer, turn: Turn, chain: str) -> Response:
        """The answer for the client, whatever the app says."""
        path = f"{call.actor.path}/method/{call.method}"
        own = self._own_headers(caller)
        if turn.token is not None:
            own = (*own, (FENCE, str(turn.token.revision)))
        if chain:
            own = (*own, ("dapr-reentrancy-id", chain))
        request = Request(
            method="PUT", path=f"{path}?{call.query}" if call.query else path, headers=call.headers, body=call.body
        )
        try:
            response = await self._channel.call(request, own, once=True)
            if not isinstance(response.body, bytes):
                response = await _complete(response)
            return _judged(call, response)
        except MeshError as error:
            return Refusal(Code.ACTOR_INVOKE, f"error invoke actor method: {error}").response()

    async def deactivate(self, actor: ActorName) -> bool:
        """Whether the app agrees. Never raises: what goes wrong is logged."""
        try:
            response = await self._channel.request("DELETE", actor.path, timeout=DEACTIVATION_LIMIT)
            if response.status == 200:
                return True
            logger.warning("the app answered %d to the deactivation of %s", response.status, actor)
        except AppError as error:
            logger.warning("the app was not told of the deactivation of %s: %s", actor, error)
        return False


async def _complete(response: Response) -> Response:
    """The turn lasts until the app has said all."""
    return Response(status=response.status, headers=response.headers, body=await whole(response.body))


async def whole(body: Body) -> bytes:
    """All of a body. Raises `AppError` for one that is too long, and what the body does."""
    if isinstance(body, bytes):
        return body
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in body:
            size += len(piece)
            if size > MAX_BODY:
                raise AppError(f"the body is longer than {MAX_BODY} bytes")
            pieces.append(piece)
    finally:
        await body.aclose()
    return b"".join(pieces)


def _judged(call: Call, response: Response) -> Response:
    """What the client gets for an answer of the app (Dapr). Raises `InvalidHeader`."""
    if response.status == 200:
        return Response(status=200, headers=rules.of_response(response.headers), body=response.body)
    if response.status == 404:
        path = f"actors/{call.actor.type}/{call.actor.id}/method/{call.method}"
        message = f"actor method not found: {path}"
    else:
        assert isinstance(response.body, bytes)  # noqa: S101 - it was read whole
        message = f"error from actor service: ({response.status}) {response.body.decode('utf-8', 'replace')}"
    return Refusal(Code.ACTOR_INVOKE, f"error invoke actor method: {message}").response()
