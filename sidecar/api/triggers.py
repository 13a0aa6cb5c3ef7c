"""Input bindings: what becomes of them, and firing one by hand. Meshwire's own."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from mesh.bindings.input import Inputs
from mesh.ports.bindings import Item
from sidecar.api.request import query_metadata
from sidecar.api.state import parameters, send_json
from sidecar.http.body import read_body
from sidecar.http.responses import send_response
from sidecar.http.routing import Router

GROUP = "mesh/v1/bindings"


class TriggersApi:
    def __init__(self, inputs: Inputs, max_body_size: int) -> None:
        """`max_body_size` in bytes; 0 is no limit."""
        self._inputs = inputs
        self._max_body_size = max_body_size

    def add_to(self, router: Router) -> None:
        router.add(("GET",), "/mesh/v1/bindings", self.statuses, group=GROUP)
        router.add(("POST",), "/mesh/v1/bindings/{binding}/trigger", self.trigger, group=GROUP)

    async def statuses(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await send_json(send, {"inputs": [status._asdict() for status in self._inputs.statuses()]})

    async def trigger(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The body is the item's data, and `?id=`, `?key=` and `?metadata.<name>=` the rest of it. 202 once it is
        stored."""
        asked = parameters(scope)
        content_type = dict(scope["headers"]).get(b"content-type", b"application/json").decode("latin-1")
        item = Item(
            data=await read_body(receive, self._max_body_size, scope),
            metadata=query_metadata(scope),
            id=asked.get("id") or None,
            key=asked.get("key") or None,
            content_type=content_type,
        )
        await self._inputs.fire(scope["path_params"]["binding"], item)
        await send_response(send, 202, [(b"content-length", b"0")], b"")
