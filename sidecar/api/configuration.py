"""Configuration items: by Dapr's routes, and below `/mesh/v1/configuration` to write and list them."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope, Send

from mesh.appconfig.block import AppConfiguration, NotSubscribed
from mesh.appconfig.updates import Items, shown
from mesh.errors import ApiError, Code, clip
from sidecar.api.request import query_metadata
from sidecar.api.state import JSON, parameters, send_json
from sidecar.http.body import BodyTooLarge, read_body
from sidecar.http.responses import go_json, send_response
from sidecar.http.routing import Router

DEFAULT_LIMIT, MOST = 100, 1000
"""Items of a page."""


class ConfigurationApi:
    def __init__(self, configuration: AppConfiguration, max_body_size: int) -> None:
        """`max_body_size` in bytes; 0 is no limit."""
        self._configuration = configuration
        self._max_body_size = max_body_size

    def add_to(self, router: Router) -> None:
        for version, group in (("v1.0", "v1/configuration"), ("v1.0-alpha1", "v1alpha1/configuration")):
            root = f"/{version}/configuration/{{store}}"
            router.add(("GET",), root, self.get, group=group)
            router.add(("GET",), f"{root}/subscribe", self.subscribe, group=group)
            router.add(("GET",), f"{root}/{{id}}/unsubscribe", self.unsubscribe, group=group)
        group = "mesh/configuration"
        router.add(("GET",), "/mesh/v1/configuration/{store}", self.list_items, group=group)
        router.add(("PUT",), "/mesh/v1/configuration/{store}/{key}", self.put, group=group)
        router.add(("DELETE",), "/mesh/v1/configuration/{store}/{key}", self.delete, group=group)

    async def get(self, scope: Scope, receive: Receive, send: Send) -> None:
        items = await self._configuration.get(scope["path_params"]["store"], _keys(scope), query_metadata(scope))
        if items:
            await send_json(send, {key: shown(item) for key, item in items.items()})
        else:
            await send_response(send, 204, [], b"")

    async def subscribe(self, scope: Scope, receive: Receive, send: Send) -> None:
        store = scope["path_params"]["store"]
        await send_json(send, {"id": await self._configuration.subscribe(store, _keys(scope), query_metadata(scope))})

    async def unsubscribe(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A failure is no error of the usual shape (Dapr)."""
        named = scope["path_params"]
        try:
            await self._configuration.unsubscribe(named["store"], named["id"])
        except NotSubscribed as error:
            message = f"failed to unsubscribe to configuration request {named['id']}: {error}"
            body = go_json({"message": message})
            await send_response(send, 500, [JSON, (b"content-length", b"%d" % len(body))], body)
        else:
            await send_json(send, {"ok": True})

    # Beyond Dapr

    async def list_items(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = parameters(scope)
        for name in asked:
            if name not in ("prefix", "limit", "cursor"):
                raise _invalid(f"there is no parameter '{clip(name)}' (there are: prefix, limit, cursor)")
        items, cursor = await self._configuration.list_items(
            scope["path_params"]["store"], asked.get("prefix", ""), _limit(asked), asked.get("cursor") or None
        )
        content: dict[str, Any] = {"items": _listed(items)}
        await send_json(send, content | ({"cursor": cursor} if cursor else {}))

    async def put(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The body is the value, as text in UTF-8; `metadata.<key>` are the item's."""
        named = scope["path_params"]
        try:
            value = (await read_body(receive, self._max_body_size, scope)).decode()
        except BodyTooLarge as error:
            raise ApiError(Code.CONFIGURATION_WRITE, str(error), status=413) from None
        except UnicodeDecodeError as error:
            raise _invalid(f"the value must be text in UTF-8: byte {error.start} is not") from None
        version = await self._configuration.put(named["store"], named["key"], value, query_metadata(scope))
        await send_json(send, {"version": version})

    async def delete(self, scope: Scope, receive: Receive, send: Send) -> None:
        named = scope["path_params"]
        await self._configuration.delete(named["store"], named["key"])
        await send_response(send, 204, [], b"")


def _keys(scope: Scope) -> list[str]:
    """The values of every `key` in the query, each once."""
    query = scope["query_string"].decode("latin-1")
    pairs = parse_qsl(query, keep_blank_values=True, errors="replace")
    return list(dict.fromkeys(value for name, value in pairs if name == "key"))


def _listed(items: Items) -> list[dict[str, Any]]:
    return [{"key": key, **shown(item)} for key, item in items.items()]


def _limit(asked: dict[str, str]) -> int:
    text = asked.get("limit", str(DEFAULT_LIMIT))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:10]) <= MOST:
        raise _invalid(f"limit must be an integer from 1 to {MOST} (got '{clip(text)}')")
    return int(text)


def _invalid(message: str) -> ApiError:
    return ApiError(Code.MALFORMED_REQUEST, message)
