"""The caller's half of an invocation: find the app, pass the call on, try again where that is safe."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from mesh.errors import MeshError
from mesh.invocation import target as targets
from mesh.invocation.callee import Callee
from mesh.ports import Clock, NoResponder, Peer, Request, Requests, Response

RETRIES = 3
"""How often a call is repeated that reached nobody (Dapr: `DaprBuiltInServiceRetries`)."""
RETRY_PAUSE = 1.0
"""Seconds before each repeat."""
SEEN_FOR = 30.0
"""Seconds for which an app that has answered counts as one that will be back."""
_REMEMBERED = 1024
"""How many apps the caller remembers to have seen."""


class InvocationFailed(MeshError):
    """The call got no answer from the app. `str()` is the cause, as Dapr's error text ends with it."""


class External(Protocol):
    """The way to what is no app of the mesh."""

    def has(self, target: str) -> bool:
        """Whether `target` is the name of an HTTPEndpoint."""
        ...

    async def call(self, target: str, request: Request) -> Response:
        """Call the HTTPEndpoint of that name, or the origin (`https://host:port`). Raises `MeshError` when there is
        no answer."""
        ...


class Caller:
    """Calls whatever a target names.

    In this order (Dapr): a URL, the name of an HTTPEndpoint, this very app (`callee`, without detour), another app.
    An app that never answered fails at once when nobody serves it. One that answered within `SEEN_FOR` seconds is
    probably being restarted: the call is repeated `RETRIES` times. Only calls that were handed to nobody are, and
    only those whose body is at hand, never a streamed one.
    """

    def __init__(
        self, me: Peer, requests: Requests, callee: Callee, clock: Clock, external: External | None = None
    ) -> None:
        self._me = me
        self._requests = requests
        self._callee = callee
        self._clock = clock
        self._external = external
        self._seen: OrderedDict[Peer, float] = OrderedDict()

    async def invoke(self, target: str, request: Request) -> Response:
        """The answer of `target`, whatever its status. Raises `InvocationFailed`."""
        try:
            origin = targets.url(target)
            if self._external is not None and (origin is not None or self._external.has(target)):
                return await self._external.call(origin or target, request)
            peer = targets.peer(target, self._me.namespace)
            if peer == self._me:
                return await self._callee.answer_own(request)
            return await self._call(peer, request)
        except InvocationFailed:
            raise
        except MeshError as error:
            raise InvocationFailed(str(error)) from error

    async def _call(self, peer: Peer, request: Request) -> Response:
        retries = 0
        while True:
            try:
                response = await self._requests.request(peer, request)
            except NoResponder as error:
                last = self._seen.get(peer)
                if last is None or self._clock.now() - last > SEEN_FOR or not isinstance(request.body, bytes):
                    self._seen.pop(peer, None)
                    raise InvocationFailed(
                        f"failed to resolve address for '{peer.app_id}': no instance of it serves calls in the "
                        f"namespace '{peer.namespace}'; does it run, with a sidecar, on this broker?"
                    ) from error
                if retries == RETRIES:
                    raise InvocationFailed(
                        f"failed to invoke target {peer.app_id} after {RETRIES} retries. Error: {error}"
                    ) from error
                retries += 1
                await self._clock.sleep(RETRY_PAUSE)
            else:
                self._note(peer)
                return response

    def _note(self, peer: Peer) -> None:
        self._seen[peer] = self._clock.now()
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
