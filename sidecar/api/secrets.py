"""Secrets, by Dapr's routes below `/v1.0/secrets`."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import Receive, Scope, Send

from mesh.secret_access import SecretAccess
from sidecar.api.request import query_metadata
from sidecar.api.state import send_json
from sidecar.http.responses import send_response
from sidecar.http.routing import Router


class SecretsApi:
    def __init__(self, secrets: SecretAccess) -> None:
        self._secrets = secrets

    def add_to(self, router: Router) -> None:
        group = "v1/secrets"
        router.add(("GET",), "/v1.0/secrets/{store}/{key}", self.get, group=group)
        router.add(("GET",), "/v1.0/secrets/{store}/bulk", self.get_all, group=group)

    async def get(self, scope: Scope, receive: Receive, send: Send) -> None:
        named = scope["path_params"]
        await _send(send, await self._secrets.get(named["store"], named["key"], query_metadata(scope)))

    async def get_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _send(send, await self._secrets.get_all(scope["path_params"]["store"], query_metadata(scope)))


async def _send(send: Send, found: Mapping[str, object]) -> None:
    """204 when the store returned nothing (Dapr)."""
    if found:
        await send_json(send, found)
    else:
        await send_response(send, 204, [], b"")
