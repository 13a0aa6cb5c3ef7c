"""The caller's half of an invocation: find the app, pass the call on, try again where that is safe."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from mesh import spans
from mesh.errors import AppError, BrokerUnavailable, MeshError
from mesh.invocation import target as targets
from mesh.invocation.callee import Callee
from mesh.invocation.headers import trace_headers
from mesh.ports import Clock, NoResponder, Peer, PeerLost, Request, Requests, Response
from mesh.resiliency.policy import Policy, TimedOut
from mesh.resiliency.retry import Failure
from mesh.resiliency.targets import Resiliency
from mesh.telemetry import SILENCE, Telemetry
from mesh.trace import TraceContext

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

    In this order (Dapr): a URL, the name of an HTTPEndpoint, this very app (`callee`, without detour), another app;
    each but this very app with the policy that `resiliency` has for it. Without one an app that never answered fails at
    once when nobody serves it; one that answered within `SEEN_FOR` seconds is probably being restarted, and the call
    is repeated (Dapr: `DaprBuiltInServiceRetries`). Only calls that were handed to nobody are, and no call with a
    streamed body ever is.
    """

    def __init__(
        self,
        me: Peer,
        requests: Requests,
        callee: Callee,
        clock: Clock,
        *,
        external: External | None = None,
        resiliency: Resiliency | None = None,
        telemetry: Telemetry = SILENCE,
    ) -> None:
        self._me = me
        self._requests = requests
        self._callee = callee
        self._clock = clock
        self._external = external
        self._resiliency = resiliency or Resiliency(clock=clock)
        self._tracer = telemetry.tracer
        self._calls = telemetry.meter.calls
        self._seen: OrderedDict[Peer, float] = OrderedDict()

    async def invoke(self, target: str, request: Request, trace: TraceContext | None = None) -> Response:
        """The answer of `target`, whatever its status. `trace` is the context of the call; the next hop's is added to
        the headers of `request`. Raises `MeshError` when there is no answer; its text is the cause, as Dapr's error
        text ends with it.
        """
        origin = targets.url(target)
        is_external = origin is not None or (self._external is not None and self._external.has(target))
        peer = self._me if is_external else targets.peer(target, self._me.namespace)
        name = origin or (target if is_external else peer.app_id)
        path = request.path.partition("?")[0]
        with spans.calling(self._tracer, name, request.method, path, trace) as span:
            if span.context is not None:
                request = _with_trace(request, span.context)
            if is_external:
                response = await self._call_outside(name, path, request)
            elif peer == self._me:
                response = await self._callee.answer_own(request)
            else:
                response = await self._call_app(peer, path, request)
            spans.answered(span, response.status)
            return response

    async def _call_outside(self, name: str, path: str, request: Request) -> Response:
        external = self._external
        if external is None:
            raise InvocationFailed("nothing outside of the mesh can be called from here")
        policy = self._resiliency.for_endpoint(name, path)
        if policy is None:
            return await external.call(name, request)
        return await policy.run(lambda: external.call(name, request), failed=_judge(request), discard=_discard)

    async def _call_app(self, peer: Peer, path: str, request: Request) -> Response:
        kind = "unary" if isinstance(request.body, bytes) else "streaming"
        begun = self._calls.sent(peer.app_id, kind)
        policy = self._resiliency.for_app(peer.app_id, path)
        if policy is None:
            response = await self._call(peer, request)
        else:
            response = await policy.run(lambda: self._call(peer, request), failed=_judge(request), discard=_discard)
        self._calls.answered(begun, peer.app_id, response.status, kind)
        return response

    async def _call(self, peer: Peer, request: Request) -> Response:
        try:
            response = await self._requests.request(peer, request)
        except NoResponder as error:
            last = self._seen.get(peer)
            built_in = self._resiliency.built_in_for_app(peer.app_id)
            if (
                built_in is None
                or last is None
                or self._clock.now() - last > SEEN_FOR
                or not isinstance(request.body, bytes)
            ):
                self._seen.pop(peer, None)
                raise NoResponder(
                    f"failed to resolve address for '{peer.app_id}': {error}; does it run, with a sidecar, in the "
                    f"namespace '{peer.namespace}' on this broker?"
                ) from error
            response = await self._repeat(built_in, error, peer, request)
        self._seen[peer] = self._clock.now()
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return response

    async def _repeat(self, policy: Policy, error: NoResponder, peer: Peer, request: Request) -> Response:
        """As `policy` says, after a first attempt that ended in `error`."""
        attempts = 0

        async def attempt() -> Response:
            nonlocal attempts
            attempts += 1
            if attempts == 1:
                raise error
            return await self._requests.request(peer, request)

        def failed(outcome: Response | Exception) -> Failure | None:
            return Failure() if isinstance(outcome, NoResponder) else None

        try:
            return await policy.run(attempt, failed=failed)
        except NoResponder as last:
            self._seen.pop(peer, None)
            raise NoResponder(
                f"failed to invoke target {peer.app_id} after {attempts - 1} retries. Error: {last}"
            ) from last


def _with_trace(request: Request, context: TraceContext) -> Request:
    headers = [*request.headers, *trace_headers(context)]
    return Request(method=request.method, path=request.path, headers=headers, body=request.body)


def _judge(request: Request) -> Callable[[Response | Exception], Failure | None]:
    """Tells what counts as a failure of the target: no answer, and a status from 400 on (Dapr)."""
    replayable = isinstance(request.body, bytes)

    def failed(outcome: Response | Exception) -> Failure | None:
        if isinstance(outcome, Response):
            return Failure(http_status=outcome.status, final=not replayable) if outcome.status >= 400 else None
        if isinstance(outcome, _TRANSPORT):
            return Failure(final=not replayable)
        return None

    return failed


_TRANSPORT = (NoResponder, PeerLost, BrokerUnavailable, AppError, TimedOut)


async def _discard(response: Response) -> None:
    if not isinstance(response.body, bytes):
        await response.body.aclose()
