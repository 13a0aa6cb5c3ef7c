"""Pull, for clients without a port of their own: `POST /mesh/v1/pull/{pubsub}/{topic}`, and what became of the events:
`POST /mesh/v1/pull:ack`, `:release`, `:reject`, `:renew`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from mesh.errors import ApiError, Code
from mesh.pull import request
from mesh.pull.block import Failed, Pulls
from mesh.pull.locks import Lock
from mesh.pull.request import InvalidRequest
from sidecar.api.strict import shown_time
from sidecar.http.body import BodyTooLarge, ClientGone, read_body
from sidecar.http.responses import error_response, send_error, send_response
from sidecar.http.routing import Router

MAX_BODY = 64 * 1024
"""Bytes of a request."""
MULTI_STATUS = 207
"""Of a request whose tokens did not all fare the same."""

_encode = msgspec.json.Encoder().encode
T = TypeVar("T")


class PullApi:
    def __init__(self, pulls: Pulls) -> None:
        self._pulls = pulls

    def add_to(self, router: Router) -> None:
        group = "mesh/pull"
        router.add(("POST",), "/mesh/v1/pull/{pubsub}/{topic:path}", self.pull, group=group)
        for name in ("ack", "release", "reject", "renew"):
            router.add(("POST",), f"/mesh/v1/pull:{name}", getattr(self, name), group=group)

    async def pull(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Events in the JSON format, each with a lock. An empty list when none came in time."""
        parameters = scope["path_params"]
        asked = await _read(receive, scope, request.parse_pull)
        taken = self._pulls.pull(parameters["pubsub"], parameters["topic"], asked)
        locks = await _unless_gone(taken, receive)
        await _send_json(send, 200, {"messages": [_message(lock) for lock in locks]})

    async def ack(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = await _read(receive, scope, request.parse_ack)
        await _send_results(send, asked.lock_tokens, self._pulls.settle(asked.lock_tokens, self._pulls.locks.ack))

    async def release(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = await _read(receive, scope, request.parse_release)
        failed = self._pulls.settle(
            asked.lock_tokens, lambda token: self._pulls.locks.release(token, asked.delay_seconds)
        )
        await _send_results(send, asked.lock_tokens, failed)

    async def reject(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = await _read(receive, scope, request.parse_reject)
        failed = self._pulls.settle(asked.lock_tokens, lambda token: self._pulls.locks.reject(token, asked.reason))
        await _send_results(send, asked.lock_tokens, failed)

    async def renew(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = await _read(receive, scope, request.parse_renew)
        failed = self._pulls.settle(asked.lock_tokens, lambda token: self._pulls.locks.renew(token, asked.seconds))
        await _send_results(send, asked.lock_tokens, failed)


async def _read(receive: Receive, scope: Scope, parse: Callable[[bytes], T]) -> T:
    try:
        return parse(await read_body(receive, MAX_BODY, scope))
    except BodyTooLarge:
        raise ApiError(Code.MALFORMED_REQUEST, f"the body is longer than {MAX_BODY} bytes") from None
    except InvalidRequest as error:
        raise ApiError(Code.MALFORMED_REQUEST, str(error)) from None


async def _unless_gone(work: Awaitable[Sequence[Lock]], receive: Receive) -> Sequence[Lock]:
    """The result of `work`, which is cancelled when the client hangs up: nobody would get its events."""
    working = asyncio.ensure_future(work)
    gone = asyncio.create_task(_hang_up(receive), name="client that pulls")
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _message(lock: Lock) -> dict[str, Any]:
    delivery = lock.delivery
    return {
        "lockToken": lock.token,
        "lockedUntil": shown_time(lock.deadline),
        "attempt": delivery.attempt,
        "topic": delivery.topic,
        "position": delivery.position,
        "time": shown_time(delivery.time),
        "event": msgspec.Raw(lock.body),
    }


async def _send_results(send: Send, tokens: Sequence[str], failed: Sequence[Failed]) -> None:
    """One result for each token. The status is that of all, where they have the same."""
    errors = {one.token: one.error for one in failed}
    if len(errors) == len(tokens) == 1:
        await send_error(send, failed[0].error)
        return
    statuses = {errors[token].status if token in errors else 200 for token in tokens}
    results = [{"lockToken": token, **(_problem(errors[token]) if token in errors else {})} for token in tokens]
    await _send_json(send, statuses.pop() if len(statuses) == 1 else MULTI_STATUS, {"results": results})


def _problem(error: ApiError) -> dict[str, Any]:
    status, _, body = error_response(error)
    return {"status": status, "error": msgspec.Raw(body)}


async def _send_json(send: Send, status: int, content: object) -> None:
    body = _encode(content)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send_response(send, status, headers, body)
