"""State, by Dapr's routes below `/v1.0/state`, and as in 2019 without a component's name.

`get` and `save` are hot; guarded by `benchmarks/state.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from starlette.types import Receive, Scope, Send

from mesh import ids
from mesh.errors import ApiError, Code, clip
from mesh.ports.stores import StateItem
from mesh.state import query
from mesh.state.block import Answer, State
from mesh.state.component import DEFAULT_COMPONENT, StateComponent
from mesh.state.requests import NO_OPTIONS, Options, Write
from mesh.trace import InvalidBaggage
from sidecar.api.plain_json import Malformed, member_object, read_array, read_object
from sidecar.api.request import context, query_metadata
from sidecar.http.body import BodyTooLarge, read_body
from sidecar.http.responses import Headers, send_response
from sidecar.http.routing import Router

NULL = msgspec.Raw(b"null")
JSON = (b"content-type", b"application/json")
_NOTHING: Headers = []
_encode = msgspec.json.Encoder().encode


# Bodies (sidecar/api/plain_json.py)


class _Options(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    concurrency: str | None = None
    consistency: str | None = None


class _Item(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    key: str | None = None
    value: msgspec.Raw = NULL
    etag: str | None = None
    metadata: dict[str, str] | None = None
    options: _Options | None = None
    contentType: str | None = None


class _BulkGet(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    keys: list[str] | None = None
    parallelism: int | None = None
    metadata: dict[str, str] | None = None


class _Operation(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    operation: str | None = None
    request: msgspec.Raw = NULL


class _Transaction(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    operations: list[msgspec.Raw] | None = None
    metadata: dict[str, str] | None = None


_decode_items = msgspec.json.Decoder(list[_Item]).decode


def _malformed(cause: object) -> ApiError:
    return ApiError(Code.MALFORMED_REQUEST, f"failed deserializing HTTP body: {cause}")


def _write(item: _Item, asked: Mapping[str, str], place: str, *, value: bool = True) -> Write:
    """`asked` is the metadata of the whole request, which goes before the item's."""
    if not item.key:
        raise _malformed(f'"key" is a required field of {place}')
    metadata = item.metadata or {}
    options = item.options
    return Write(
        key=item.key,
        value=bytes(item.value) if value else None,
        etag=item.etag,
        metadata={**metadata, **asked} if asked else metadata,
        options=NO_OPTIONS if options is None else Options(options.concurrency or "", options.consistency or ""),
        content_type=item.contentType or "",
    )


# Requests and answers


def parameters(scope: Scope) -> dict[str, str]:
    """The query parameters; the first value of a name wins."""
    found: dict[str, str] = {}
    text: bytes = scope["query_string"]
    if text:
        for name, value in parse_qsl(text.decode("latin-1"), keep_blank_values=True, errors="replace"):
            found.setdefault(name, value)
    return found


def item_metadata(item: StateItem) -> dict[str, str]:
    if item.expires is None:
        return {}
    try:
        return {"ttlExpireTime": ids.utc_time(item.expires)}
    except (OverflowError, ValueError):
        return {}  # beyond the year 9999


async def send_item(send: Send, item: StateItem | None) -> None:
    """The value as it is stored, whatever it is (Dapr); 204 for none."""
    if item is None:
        await send_response(send, 204, _NOTHING, b"")
        return
    value = item.value
    headers: Headers = [JSON, (b"content-length", b"%d" % len(value))]
    if item.etag:
        headers.append((b"etag", item.etag.encode("latin-1", "replace")))
    if item.expires is not None:
        headers += [(b"metadata." + name.encode(), text.encode()) for name, text in item_metadata(item).items()]
    await send_response(send, 200, headers, value)


async def send_json(send: Send, content: object) -> None:
    body = _encode(content)
    await send_response(send, 200, [JSON, (b"content-length", b"%d" % len(body))], body)


def is_json(value: bytes) -> bool:
    try:
        if not value.isascii():
            value.decode()
        msgspec.json.decode(value, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _shown(answer: Answer) -> dict[str, Any]:
    """One key of a bulk get, or one result of a query."""
    item = answer.item
    shown: dict[str, Any] = {"key": answer.key}
    if item is None:
        return shown | {"error": answer.error} if answer.error else shown
    if is_json(item.value):
        shown["data"] = msgspec.Raw(item.value)
    else:  # Dapr's whole answer would be empty
        shown["error"] = "the stored value is no JSON: read it alone, by GET"
    if item.etag:
        shown["etag"] = item.etag
    metadata = item_metadata(item)
    if metadata:
        shown["metadata"] = metadata
    return shown


class StateApi:
    def __init__(self, state: State, max_body_size: int) -> None:
        """`max_body_size` in bytes; 0 is no limit."""
        self._state = state
        self._max_body_size = max_body_size

    def add_to(self, router: Router) -> None:
        group = "v1/state"
        router.add(("GET",), "/v1.0/state/{store}/{key}", self.get, group=group)
        router.add(("POST", "PUT"), "/v1.0/state/{store}", self.save, group=group)
        router.add(("DELETE",), "/v1.0/state/{store}/{key}", self.delete, group=group)
        router.add(("POST", "PUT"), "/v1.0/state/{store}/bulk", self.get_many, group=group)
        router.add(("POST", "PUT"), "/v1.0/state/{store}/transaction", self.transact, group=group)
        router.add(("POST", "PUT"), "/v1.0/state/{store}/query", self.query, group=group)
        router.add(("POST", "PUT"), "/v1.0-alpha1/state/{store}/query", self.query, group="v1alpha1/state")
        # As in 2019, when there was one store and it had no name.
        router.add(("POST", "PUT"), "/v1.0/state", self.save, group=group)
        router.add(("GET",), "/v1.0/state/{key}", self.get, group=group)
        router.add(("DELETE",), "/v1.0/state/{key}", self.delete, group=group)

    async def get(self, scope: Scope, receive: Receive, send: Send) -> None:
        component, key = self._named(scope)
        if scope["query_string"]:
            consistency = parameters(scope).get("consistency", "")
            item = await self._state.get(component, key, consistency, query_metadata(scope))
        else:
            item = await self._state.get(component, key)
        await send_item(send, item)

    async def save(self, scope: Scope, receive: Receive, send: Send) -> None:
        component = self._component(scope)
        body = await self._read(scope, receive)
        try:
            items = read_array(_Item, body, _decode_items)
        except Malformed as error:
            raise _malformed(error) from None
        metadata = query_metadata(scope)
        await self._state.save(component, [_write(item, metadata, f"[{index}]") for index, item in enumerate(items)])
        await send_response(send, 204, _NOTHING, b"")

    async def delete(self, scope: Scope, receive: Receive, send: Send) -> None:
        component, key = self._named(scope)
        asked = parameters(scope)
        etag = next((value for name, value in scope["headers"] if name == b"if-match"), b"")
        write = Write(
            key=key,
            etag=etag.decode("latin-1"),
            metadata=query_metadata(scope),
            options=Options(asked.get("concurrency", ""), asked.get("consistency", "")),
        )
        await self._state.delete(component, write)
        await send_response(send, 204, _NOTHING, b"")

    async def get_many(self, scope: Scope, receive: Receive, send: Send) -> None:
        component = self._component(scope)
        body = await self._read(scope, receive)
        try:
            asked = read_object(_BulkGet, body)
        except Malformed as error:
            raise _malformed(error) from None
        metadata = {**(asked.metadata or {}), **query_metadata(scope)}
        answers = await self._state.get_many(component, asked.keys or [], asked.parallelism or 0, metadata)
        await send_json(send, [_shown(answer) for answer in answers])

    async def transact(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Dapr's order of checks: store, transactions, body, each operation (word, fields, key), their number."""
        component = self._component(scope)
        self._state.check_transactional(component)
        body = await self._read(scope, receive)
        asked = query_metadata(scope)
        try:
            transaction = read_object(_Transaction, body)
            writes = [_operation(raw, index, asked) for index, raw in enumerate(transaction.operations or ())]
        except Malformed as error:
            raise _malformed(error) from None
        metadata = {**(transaction.metadata or {}), **asked}
        try:
            trace = context(scope).trace
        except InvalidBaggage:
            trace = None  # it is not passed on
        await self._state.transact(component, writes, metadata, trace)
        await send_response(send, 204, _NOTHING, b"")

    async def query(self, scope: Scope, receive: Receive, send: Send) -> None:
        component = self._component(scope)
        self._state.check_queryable(component)
        body = await read_body(receive, self._max_body_size, scope)
        answers, token = await self._state.query(component, lambda: query.parse(body), query_metadata(scope))
        if not answers:
            await send_response(send, 204, _NOTHING, b"")
            return
        content: dict[str, Any] = {"results": [_shown(answer) for answer in answers]}
        await send_json(send, content | ({"token": token} if token else {}))

    def _component(self, scope: Scope) -> StateComponent:
        return self._state.component(scope["path_params"].get("store", DEFAULT_COMPONENT))

    def _named(self, scope: Scope) -> tuple[StateComponent, str]:
        """Store and key. One segment alone is the key in the default store, as in 2019; the name of a store is no key:
        whoever sends that has forgotten the key."""
        named = scope["path_params"]
        key: str = named["key"]
        store: str | None = named.get("store")
        if store is None:
            if key in self._state.components:
                raise ApiError(Code.MALFORMED_REQUEST, f"there is no key after the state store {clip(key)}")
            store = DEFAULT_COMPONENT
        return self._state.component(store), key

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        try:
            return await read_body(receive, self._max_body_size, scope)
        except BodyTooLarge as error:
            raise _malformed(error) from None


def _operation(raw: msgspec.Raw, index: int, asked: Mapping[str, str]) -> Write:
    place = f"operations[{index}]"
    operation = member_object(_Operation, raw, place)
    word = operation.operation or ""
    if word not in ("upsert", "delete"):
        raise ApiError(Code.STATE_OPERATION, f"operation type {clip(word)} not supported")
    place += ".request"
    return _write(member_object(_Item, operation.request, place), asked, place, value=word == "upsert")
