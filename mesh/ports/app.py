"""The way to the app beside a sidecar."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NewType, Protocol

import msgspec

from mesh.ports.requests import Request, Response


class AppResponse(msgspec.Struct, frozen=True, gc=False):
    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes


HeaderLines = NewType("HeaderLines", bytes)
"""Header lines that an `AppChannel` has checked and encoded."""


class AppRoute(Protocol):
    """One method and path of the app, checked and encoded once, for calls that are made often."""

    def send(
        self, body: bytes = b"", extra_headers: HeaderLines | None = None, *, timeout: float
    ) -> asyncio.Future[AppResponse]:
        """Call the app; the future is that of `AppChannel.request`. May be used from a callback; starts no task."""
        ...


class AppChannel(Protocol):
    """The way to the app beside this sidecar."""

    def prepare(self, method: str, path: str, fixed_headers: Sequence[tuple[str, str]] = ()) -> AppRoute:
        """`fixed_headers` speak for this sidecar: nothing that a message brought belongs here.

        Raises `MeshError` for a path or header that cannot be sent.
        """
        ...

    def header_lines(self, headers: Sequence[tuple[str, str]]) -> HeaderLines:
        """Headers that come from outside, for `AppRoute.send`. Those of the connection and `dapr-*` are left out.

        Raises `MeshError` for one that would break out of its line.
        """
        ...

    def request(
        self,
        method: str,
        path: str,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        timeout: float,
    ) -> asyncio.Future[AppResponse]:
        """Call the app. The future fails with `AppError` when the app cannot be reached, breaks off, answers no
        HTTP, or takes longer than `timeout` seconds (waiting for a free slot included). Cancelling the future
        breaks the call off. Redirects are not followed. The app token is added; at most
        `--app-max-concurrency` calls are under way at once.
        """
        ...

    def call(
        self, request: Request, own_headers: Sequence[tuple[str, str]] = (), *, once: bool = False
    ) -> asyncio.Future[Response]:
        """Call the app as another app asks, without a time limit: the future has its result once status and headers
        are there. A short body comes whole, a longer one, or one whose end is not known, in pieces: read it to its
        end or close it (`aclose`), since it holds a slot. Pieces are sent and read at the pace of the slower side.

        `own_headers` speak for this sidecar; of those of the request the ones that do not come from the caller
        itself are left out as in `header_lines`. `content-length` frames a request body that comes in pieces.
        Errors are those of `request`; a body that breaks off raises `AppError` where it is read.

        A call by an idempotent method may be sent again when its connection turns out to be dead before any byte of
        the answer came. With `once` it is not: the app may have begun to work on it.
        """
        ...

    async def probe(self, path: str, *, timeout: float) -> bool:
        """Whether `GET path` answers 2xx in time. No token, not counted as a call."""
        ...

    async def wait_until_listening(self) -> None:
        """Returns when the app's port accepts a connection. Waits for ever."""
        ...

    async def close(self) -> None: ...
