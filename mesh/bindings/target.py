"""Items of input bindings: to the app by Dapr's rules, and what its answer asks for in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mesh import addressing, inbound
from mesh.bindings import headers, item
from mesh.bindings.component import BindingComponent
from mesh.bindings.reply import Follow, ObeyedRoute
from mesh.delivery.deliverer import ATTEMPT_HEADER
from mesh.delivery.event_target import refusal
from mesh.delivery.target import NO_LINES, Judgement, Prepared, Verdict
from mesh.ports import AppChannel, AppResponse, Delivery
from mesh.routing import Skipped

_OF_THE_SIDECAR = frozenset(
    ("content-type", "traceparent", "tracestate", "baggage", ATTEMPT_HEADER, addressing.REPLAYED)
)
"""Headers that are the sidecar's to send: a source's own would come beside them. Content is called JSON whatever it is
(Dapr); the source's trace, if it has one, is that of another time."""


class BindingTarget:
    """A `Target`: the route of one input binding."""

    def __init__(
        self,
        component: BindingComponent,
        channel: AppChannel,
        app_id: str,
        follow: Follow,
        *,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        """`follow` does what an answer asks for; `headers` go with each item. Raises `MeshError` when the route cannot
        be called."""
        self.channel = channel
        self._path = component.route
        prepared = channel.prepare("POST", component.route, [("content-type", "application/json"), *headers])
        self._route = ObeyedRoute(prepared, follow)
        self._only = addressing.token(app_id)

    def prepare(self, delivery: Delivery, now: float) -> Prepared | Skipped:
        hop = delivery.headers
        if hop and hop.get(addressing.ONLY_FOR, self._only) != self._only:
            return Skipped.OTHER
        found = item.trigger(delivery)
        lines = self.channel.header_lines(_headers(found.metadata)) if found.metadata else NO_LINES
        return Prepared(self._route, self._path, found.body, inbound.hop_of(hop), lines)

    def judge(self, response: AppResponse, now: float) -> Judgement:
        """Any 2xx is success, every other answer a failure, 404 too (Dapr)."""
        if 200 <= response.status < 300:
            return Judgement(Verdict.SUCCESS, status=response.status)
        return refusal(response, now)._replace(verdict=Verdict.RETRY)


def _headers(metadata: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers.safe(metadata) if name.lower() not in _OF_THE_SIDECAR]
