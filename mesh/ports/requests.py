"""Request and reply between apps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec

from mesh.errors import MeshError


class Peer(NamedTuple):
    """An app that is called, or that calls."""

    namespace: str
    app_id: str


HeaderList = Sequence[tuple[bytes, bytes]]
"""Headers in their order, repeated names kept, names as they were sent."""


class BodyStream(Protocol):
    """A body piece by piece, for one reader; every async generator of bytes is one.

    When it raises, the body is cut short: whoever forwards it must not let it end as if it were whole.
    """

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    def __anext__(self) -> Awaitable[bytes]: ...

    async def aclose(self) -> None:
        """Let go of what was not read. Whoever takes a stream reads it to its end or closes it."""
        ...


Body = bytes | BodyStream
"""A whole body, or one that comes piece by piece."""


class Request(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one app asks of another."""

    method: str
    path: str
    """In origin form, percent-encoded, with its query."""
    headers: HeaderList = ()
    body: Body = b""
    caller: Peer | None = None
    """At the callee: who calls, as the broker's address says."""


class Response(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    status: int
    headers: HeaderList = ()
    body: Body = b""
    trailers: HeaderList = ()
    """Of a whole body. Those of a streamed one are not carried."""


class NoResponder(MeshError):
    """No instance of the app takes the call: none serves, or the one that was asked has too many waiting already.
    Nothing was handed to a handler: trying again is safe."""


class PeerLost(MeshError):
    """The instance that took the call, or the connection to it, is gone. It may have done its work."""


RequestHandler = Callable[[Request], Awaitable[Response]]
"""Answers one call, in a task of its own. It is cancelled when the caller has gone away, and when its server's
`close` is cancelled. What it raises becomes `PeerLost` at the caller, with the error's text for a `MeshError`."""


class Server(Protocol):
    async def close(self) -> None:
        """Take no more calls; return when those that were taken are answered, streamed bodies included. Cancelling
        `close` cancels them."""
        ...


class Requests(Protocol):
    """Request and reply between apps, on an address named after the app id. Backbones only.

    Bodies of up to one chunk (128 KiB) travel with the message; longer or unknown ones are streamed, in order,
    with a window of credits, so that a slow reader slows the writer and nothing piles up. While a callee works it
    sends a beat every 2 s; two missed ones end the call with `PeerLost`.
    """

    async def serve(self, app_id: str, handler: RequestHandler, *, concurrency: int, instance: str = "") -> Server:
        """Answer calls to `app_id`, side by side with its other instances: each call goes to one of them. At most
        `concurrency` handlers run at once; further calls wait, up to a bound, beyond which they get `NoResponder`.

        With `instance`, a name that nobody else has, only calls that ask for it come here, and no others.

        Raises `BrokerError` when the broker does not let us.
        """
        ...

    async def request(self, target: Peer, request: Request, *, instance: str = "") -> Response:
        """Call `target`, or that one `instance` of it. Returns once status and headers are there; a streamed body goes
        on after that.

        Raises `NoResponder` at once when nobody serves the app or the instance is not there, `PeerLost`,
        `MessageTooLarge` for headers beyond the limit, `BrokerError` when the broker does not let us call this app,
        `BrokerUnavailable` when nothing could be sent, and what the request's body raises, should it break off before
        the answer is there. There is no time limit here: cancel the task, which cancels the handler at the far end
        within a second. Closing a streamed response before its end does the same.
        """
        ...

    async def close(self) -> None:
        """Let go of everything at once. Calls under way fail with `PeerLost` at both ends."""
        ...
