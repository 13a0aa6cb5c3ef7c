"""`GET /mesh/v1/plans`: the delivery plan of each subscription that runs, with every attempt and its time."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from mesh.delivery.explanation import explain
from mesh.subscriber import Subscriber
from sidecar.api.state import send_json
from sidecar.http.routing import Router


class PlansApi:
    def __init__(self, subscriber: Subscriber | None) -> None:
        """`None`: there is no app, hence no subscription."""
        self._subscriber = subscriber

    def add_to(self, router: Router) -> None:
        router.add(("GET",), "/mesh/v1/plans", self.plans, group="mesh/plans")

    async def plans(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        running = {} if self._subscriber is None else self._subscriber.running()
        await send_json(
            send,
            {
                "plans": [
                    explain(pubsub, topic, one.spec.origin, one.live.plan, one.origins)
                    for (pubsub, topic), one in running.items()
                ]
            },
        )
