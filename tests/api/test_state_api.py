"""`/v1.0/state` and `/mesh/v1/state`: statuses, codes, texts, and what comes back (Dapr: state)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from bindings.state.in_memory import MemoryStateStore
from mesh import resources
from mesh.clock import SystemClock
from mesh.fencing import FenceToken
from mesh.ports.stores import (
    EtagMismatch,
    InvalidEtag,
    InvalidStoreKey,
    QueryResult,
    SetState,
    StateFeature,
    StateItem,
    StateQuery,
    StoreError,
    StoreUnavailable,
    ValueTooLarge,
)
from mesh.ports.tables import Put
from mesh.state.component import StateComponent
from mesh.state.encryption import Cipher
from mesh.state.query import Comparator, Comparison
from tests.api.state_server import BrokenStore, StateServer, broken
from tests.e2e.mesh import Answer

S = "/v1.0/state/statestore"
BOTH = ["statestore", "memory"]


@pytest.fixture
async def server() -> AsyncIterator[StateServer]:
    async with StateServer() as server:
        yield server


async def save(server: StateServer, store: str = "statestore", query: str = "", **values: Any) -> None:
    items = [{"key": key, "value": value} for key, value in values.items()]
    answer = await server.call("POST", f"/v1.0/state/{store}{query}", json.dumps(items).encode())
    assert (answer.status, answer.body) == (204, b""), answer


async def get(server: StateServer, key: str, store: str = "statestore") -> bytes | None:
    answer = await server.call("GET", f"/v1.0/state/{store}/{quote(key, safe='')}")
    assert answer.status in (200, 204), answer
    return answer.body if answer.status == 200 else None


def failure(answer: Answer, status: int, code: str) -> str:
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["errorCode"] == code
    return answer.json["message"]  # type: ignore[no-any-return]


def details(answer: Answer) -> dict[str, Any]:
    found = {}
    for detail in answer.json["details"]:
        kind = detail.pop("@type")
        assert kind.startswith("type.googleapis.com/google.rpc.")
        found[kind.rpartition(".")[2]] = detail
    return found


# Save, get, delete


@pytest.mark.parametrize("store", BOTH)
@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_what_is_saved_is_got_as_it_was(server: StateServer, store: str, method: str) -> None:
    body = b'[{"key":"a","value":{ "b":[1, 2.50 ,9007199254740993],"a":"<\\u00e9>" }},{"key":"b","value":"text"}]'
    assert (await server.call(method, f"/v1.0/state/{store}", body)).status == 204
    answer = await server.call("GET", f"/v1.0/state/{store}/a")
    assert answer.body == b'{ "b":[1, 2.50 ,9007199254740993],"a":"<\\u00e9>" }'
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["etag"]
    assert await get(server, "b", store) == b'"text"'


@pytest.mark.parametrize("store", BOTH)
async def test_nothing_and_null(server: StateServer, store: str) -> None:
    answer = await server.call("GET", f"/v1.0/state/{store}/a")
    assert (answer.status, answer.body, "content-type" in answer.headers) == (204, b"", False)
    assert (await server.call("POST", f"/v1.0/state/{store}", b'[{"key":"a"},{"key":"b","value":null}]')).status == 204
    assert [await get(server, key, store) for key in "ab"] == [b"null", b"null"]
    assert (await server.call("POST", f"/v1.0/state/{store}", b"[]")).status == 204
    for _ in range(2):
        answer = await server.call("DELETE", f"/v1.0/state/{store}/a")
        assert (answer.status, answer.body) == (204, b"")
    assert await get(server, "a", store) is None


async def test_names_of_members_are_read_in_any_letter_case_and_unknown_ones_are_left_out(server: StateServer) -> None:
    body = b'[{"KEY":"a","Value":1,"ETag":null,"x":[],"OPTIONS":{"Concurrency":"first-write","y":1},"Metadata":null}]'
    assert (await server.call("POST", S, body)).status == 204
    assert await get(server, "a") == b"1"
    assert (await server.call("POST", S, body)).status == 409


KEYS = [
    *("a.b", "*", ">", "a.*", "a.>", "with space", " ", "é", "日本語", "😀", "a/b", "%2F", "a%b", "a+b", "#?&=", "..."),
    *("'", '"', "\\", "line\nbreak", "bulk", "transaction", "UPPER", "upper", "k" * 500, "$JS", "_INBOX.x"),
]


@pytest.mark.parametrize("store", BOTH)
async def test_a_key_is_any_text(server: StateServer, store: str) -> None:
    await save(server, store, **{key: number for number, key in enumerate(KEYS)})
    for number, key in enumerate(KEYS):
        assert await get(server, key, store) == str(number).encode(), key
    answer = await server.call("POST", f"/v1.0/state/{store}/bulk", json.dumps({"keys": KEYS}).encode())
    assert [entry["data"] for entry in answer.json] == list(range(len(KEYS)))
    for key in KEYS:
        assert (await server.call("DELETE", f"/v1.0/state/{store}/{quote(key, safe='')}")).status == 204
        assert await get(server, key, store) is None


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (b"", "an array of items is expected"),
        (b"{}", "an array of items is expected"),
        (b"null", "an array of items is expected"),
        (b"no json", "an array of items is expected"),
        (b'[{"key":"a"},]', "an array of items is expected"),
        (b'[{"key":"a"}', "an array of items is expected"),
        (b"[" * 100_000, "an array of items is expected"),
        (b"[1]", "[0]: must be a JSON object"),
        (b"[null]", "[0]: must be a JSON object"),
        (b"[{}]", '"key" is a required field of [0]'),
        (b'[{"key":"a"},{"key":""}]', '"key" is a required field of [1]'),
        (b'[{"key":null}]', '"key" is a required field'),
        (b'[{"key":1}]', "[0]: Expected `str | null`, got `int` - at `$.key`"),
        (b'[{"key":"a"},{"key":"b","etag":1}]', "[1]: Expected `str | null`, got `int` - at `$.etag`"),
        (b'[{"key":"a","metadata":{"ttlInSeconds":1}}]', "[0]: Expected `str`, got `int` - at `$.metadata[...]`"),
        (b'[{"key":"a","options":{"CONCURRENCY":1}}]', "[0].options: Expected `str | null`, got `int`"),
        (b'[{"key":"\xff"}]', "JSON must be UTF-8: byte 9 is not"),
        (b'[{"key":"a","value":"\xff"}]', "JSON must be UTF-8"),
        (b'[{"key":"\\ud800"}]', "an array of items is expected"),
        (b'[{"key":"a","value":' + b"[" * 100_000 + b"]" * 100_000 + b"}]", "nested too deeply"),
    ],
)
async def test_a_body_that_is_none(server: StateServer, body: bytes, cause: str) -> None:
    message = failure(await server.call("POST", S, body), 400, "ERR_MALFORMED_REQUEST")
    assert message.startswith("failed deserializing HTTP body: ")
    assert cause in message
    assert await get(server, "a") is None


async def test_a_body_that_is_too_large() -> None:
    async with StateServer(max_body_size=1000) as server:
        for path in (S, f"{S}/bulk", f"{S}/transaction"):
            message = failure(await server.call("POST", path, b" " * 1001), 400, "ERR_MALFORMED_REQUEST")
            assert "stream too large" in message


@pytest.mark.parametrize("store", BOTH)
async def test_etags(server: StateServer, store: str) -> None:
    path = f"/v1.0/state/{store}"
    await save(server, store, a=1)
    old = (await server.call("GET", f"{path}/a")).headers["etag"]

    async def write(value: int, **more: Any) -> Answer:
        return await server.call("POST", path, json.dumps([{"key": "a", "value": value, **more}]).encode())

    assert (await write(2, etag=old)).status == 204
    message = failure(await write(3, etag=old), 409, "ERR_STATE_SAVE")
    assert message.startswith(
        f"failed saving state in state store {store}: possible etag mismatch. error from state store: "
    )
    assert failure(await write(3, etag=old, options={"concurrency": "last-write"}), 409, "ERR_STATE_SAVE")
    assert failure(await write(3, options={"concurrency": "first-write"}), 409, "ERR_STATE_SAVE")
    assert (await write(3, etag="", options={"concurrency": "last-write", "consistency": "strong"})).status == 204
    message = failure(await server.call("DELETE", f"{path}/a", b"", ("If-Match", old)), 409, "ERR_STATE_DELETE")
    assert message.startswith("failed deleting state with key a: possible etag mismatch. error from state store: ")
    assert failure(await server.call("DELETE", f"{path}/a?concurrency=first-write"), 409, "ERR_STATE_DELETE")
    now = (await server.call("GET", f"{path}/a?consistency=strong")).headers["etag"]
    assert (await server.call("DELETE", f"{path}/a", b"", ("If-Match", now))).status == 204
    assert failure(await write(4, etag=now), 409, "ERR_STATE_SAVE")
    assert (await write(4, options={"concurrency": "first-write"})).status == 204


@pytest.mark.parametrize("etag", ["x", "-1", "0", "1.5", '"1"', "99999999999999999999999"])
async def test_an_etag_that_can_never_be(server: StateServer, etag: str) -> None:
    body = json.dumps([{"key": "a", "value": 1, "etag": etag}]).encode()
    message = failure(await server.call("POST", S, body), 400, "ERR_STATE_SAVE")
    assert message.startswith("failed saving state in state store statestore: invalid etag value: ")
    message = failure(await server.call("DELETE", f"{S}/a", b"", ("if-match", etag)), 400, "ERR_STATE_DELETE")
    assert message.startswith("failed deleting state with key a: invalid etag value: ")


@pytest.mark.parametrize(
    ("more", "status", "cause"),
    [
        ({"options": {"concurrency": "maybe"}}, 500, "unrecognized concurrency model 'maybe'"),
        ({"options": {"consistency": "maybe"}}, 500, "unrecognized consistency model 'maybe'"),
        ({"metadata": {"ttlInSeconds": "soon"}}, 500, "ttlInSeconds must be an integer"),
        ({"metadata": {"ttlInSeconds": "-2"}}, 500, "ttlInSeconds must be an integer"),
        ({"metadata": {"TTLINSECONDS": "1.5"}}, 500, "ttlInSeconds must be an integer"),
        ({"metadata": {"ttlInSeconds": "9999999999"}}, 500, "ttlInSeconds must be an integer"),
        ({"metadata": {"fencingToken": "7"}}, 400, "is no fencing token"),
    ],
)
async def test_options_that_cannot_be_obeyed(server: StateServer, more: Any, status: int, cause: str) -> None:
    body = json.dumps([{"key": "b", "value": 1}, {"key": "a", "value": 1, **more}]).encode()
    assert cause in failure(await server.call("POST", S, body), status, "ERR_STATE_SAVE")
    assert await get(server, "b") is None  # all items are checked before the first is written
    operation = {"operation": "upsert", "request": {"key": "a", "value": 1, **more}}
    answer = await server.call("POST", f"{S}/transaction", json.dumps({"operations": [operation]}).encode())
    assert cause in failure(answer, 500, "ERR_STATE_TRANSACTION")
    if "options" in more:
        [[name, word]] = more["options"].items()
        assert cause in failure(await server.call("DELETE", f"{S}/a?{name}={word}"), 500, "ERR_STATE_DELETE")
        if name == "consistency":
            assert cause in failure(await server.call("GET", f"{S}/a?{name}={word}"), 500, "ERR_STATE_GET")


@pytest.mark.parametrize("store", BOTH)
async def test_lifetimes(server: StateServer, store: str) -> None:
    items = [
        {"key": "a", "value": 1, "metadata": {"ttlInSeconds": "1"}},
        {"key": "b", "value": 1, "metadata": {"ttlInSeconds": "100"}},
        {"key": "c", "value": 1, "metadata": {"ttlInSeconds": "-1"}},
        {"key": "d", "value": 1, "metadata": {"ttlInSeconds": ""}},
    ]
    assert (await server.call("POST", f"/v1.0/state/{store}", json.dumps(items).encode())).status == 204
    answer = await server.call("GET", f"/v1.0/state/{store}/b")
    assert answer.headers["metadata.ttlexpiretime"].endswith("Z")
    for key in "cd":
        assert "metadata.ttlexpiretime" not in (await server.call("GET", f"/v1.0/state/{store}/{key}")).headers
    bulk = await server.call("POST", f"/v1.0/state/{store}/bulk", b'{"keys":["b"]}')
    assert bulk.json[0]["metadata"] == {"ttlExpireTime": answer.headers["metadata.ttlexpiretime"]}
    await save(server, store, "?metadata.ttlInSeconds=1", e=1)
    await asyncio.sleep(2.05)
    assert [await get(server, key, store) is None for key in "abcde"] == [True, False, False, False, True]


# Names that are wrong


async def test_no_store_at_all_and_not_this_one() -> None:
    async with StateServer() as server:
        for method, path in [("GET", "/x/a"), ("POST", "/x"), ("DELETE", "/x/a"), ("POST", "/x/bulk")]:
            answer = await server.call(method, f"/v1.0/state{path}", b"[]" if method == "POST" else b"")
            assert failure(answer, 400, "ERR_STATE_STORE_NOT_FOUND") == "state store x is not found"
            expected = {"domain": "dapr.io", "metadata": {"appID": "app1"}, "reason": "DAPR_STATE_NOT_FOUND"}
            assert details(answer) == {"ErrorInfo": expected}
        server.components.clear()
        for method, path in [("GET", "/x/a"), ("POST", "/x/transaction"), ("POST", "/x/query"), ("GET", "/a")]:
            answer = await server.call(method, f"/v1.0/state{path}", b"{}" if method == "POST" else b"")
            message = failure(answer, 500, "ERR_STATE_STORE_NOT_CONFIGURED")
            assert message == f"state store {'statestore' if path == '/a' else 'x'} is not configured"
            assert details(answer)["ErrorInfo"]["reason"] == "DAPR_STATE_NOT_CONFIGURED"


async def test_a_key_of_somebody_else(server: StateServer) -> None:
    item = b'{"key":"app2||a","value":1}'
    operations = (
        b'{"operations":[{"operation":"upsert","request":{"key":"b"}},{"operation":"delete","request":%b}]}' % item
    )
    for method, path, body in [
        ("GET", f"{S}/app2%7C%7Ca", b""),
        ("DELETE", f"{S}/app2%7C%7Ca", b""),
        ("POST", S, b"[%b]" % item),
        ("POST", f"{S}/bulk", b'{"keys":["b","app2||a"]}'),
        ("POST", f"{S}/transaction", operations),
        ("GET", "/mesh/v1/state/statestore?prefix=app2%7C%7C", b""),
        ("GET", "/mesh/v1/state/statestore/app2%7C%7Ca/history", b""),
    ]:
        answer = await server.call(method, path, body)
        message = failure(answer, 400, "ERR_MALFORMED_REQUEST")
        key = "app2||" if "prefix" in path else "app2||a"
        assert message == (
            f"api error: code = InvalidArgument desc = input key/keyPrefix '{key}' can't contain '||'"
        ), (method, path)
        found = details(answer)
        assert list(found) == ["BadRequest", "ResourceInfo", "ErrorInfo"]
        assert found["BadRequest"] == {"field_violations": [{"field": key, "description": message}]}
        assert (found["ResourceInfo"]["resource_type"], found["ResourceInfo"]["resource_name"]) == (
            "state",
            "statestore",
        )
        assert found["ErrorInfo"]["reason"] == "DAPR_STATE_ILLEGAL_KEY"
    assert await get(server, "b") is None


@pytest.mark.parametrize("store", BOTH)
async def test_a_key_of_ten_thousand_bytes(server: StateServer, store: str) -> None:
    key = "k" * 10_000
    body = json.dumps([{"key": key, "value": 1}]).encode()
    route = f"/v1.0/state/{store}"
    message = failure(await server.call("POST", route, body), 400, "ERR_STATE_SAVE")
    assert "bytes, of at most 1024" in message
    assert len(message) < 300
    operation = {"operations": [{"operation": "upsert", "request": {"key": key, "value": 1}}]}
    answer = await server.call("POST", f"{route}/transaction", json.dumps(operation).encode())
    assert "of at most 1024" in failure(answer, 400, "ERR_STATE_TRANSACTION")
    await save(server, store, a=1)
    answer = await server.call("POST", f"{route}/bulk", json.dumps({"keys": ["a", key]}).encode())
    assert answer.status == 200
    assert answer.json[0]["data"] == 1
    assert "of at most 1024" in answer.json[1]["error"]


async def test_a_value_over_the_limit_of_the_broker(server: StateServer) -> None:
    body = json.dumps([{"key": "a", "value": "x" * 1_100_000}]).encode()
    assert "takes at most" in failure(await server.call("POST", S, body), 413, "ERR_STATE_SAVE")
    operation = {"operation": "upsert", "request": {"key": "a", "value": "x" * 1_100_000}}
    small = {"operation": "upsert", "request": {"key": "b", "value": 1}}
    answer = await server.call("POST", f"{S}/transaction", json.dumps({"operations": [small, operation]}).encode())
    assert "takes at most" in failure(answer, 413, "ERR_STATE_TRANSACTION")
    assert [await get(server, key) for key in "ab"] == [None, None]


# A store that fails

RIGHT = (StateFeature.ETAG, StateFeature.TRANSACTIONAL, StateFeature.TTL)


@pytest.mark.parametrize(
    ("error", "status", "cause"),
    [
        (StoreUnavailable("nobody answers"), 500, "nobody answers"),
        (StoreError("disk full"), 500, "disk full"),
        (EtagMismatch("gone"), 409, "possible etag mismatch. error from state store: gone"),
        (InvalidEtag("no number"), 400, "invalid etag value: no number"),
        (InvalidStoreKey("too long"), 400, "too long"),
        (ValueTooLarge("too much"), 413, "too much"),
    ],
)
async def test_a_store_that_fails(error: StoreError, status: int, cause: str) -> None:
    store, component = broken(*RIGHT)
    store.error = error
    transaction = b'{"operations":[{"operation":"delete","request":{"key":"a"}}]}'
    in_transaction = status if status == 413 or isinstance(error, InvalidStoreKey) else 500
    async with StateServer(component) as server:
        path = "/v1.0/state/broken"
        for method, target, body, code, prefix, expected in [
            ("GET", f"{path}/a", b"", "ERR_STATE_GET", "fail to get a from state store broken: ", status),
            ("POST", path, b'[{"key":"a"}]', "ERR_STATE_SAVE", "failed saving state in state store broken: ", status),
            ("POST", path, b'[{"key":"a"},{"key":"b"}]', "ERR_STATE_SAVE", "failed saving state in state", status),
            ("DELETE", f"{path}/a", b"", "ERR_STATE_DELETE", "failed deleting state with key a: ", status),
            ("POST", f"{path}/bulk", b'{"keys":["a"]}', "ERR_STATE_BULK_GET", "", status),
            ("POST", f"{path}/transaction", transaction, "ERR_STATE_TRANSACTION", "error while executing state "
             "transaction: ", in_transaction),
        ]:  # fmt: skip
            message = failure(await server.call(method, target, body), expected, code)
            assert message.startswith(prefix)
            assert message.endswith(cause)
        store.error = None  # it is back
        assert (await server.call("GET", f"{path}/a")).status == 204
        assert (await server.call("POST", f"{path}/transaction", transaction)).status == 204


async def test_what_a_store_does_not_declare_is_refused() -> None:
    _, component = broken()
    async with StateServer(component) as server:
        path = "/v1.0/state/broken"
        for item, cause in [
            ({"etag": "1"}, "state store broken has no ETags"),
            ({"options": {"concurrency": "first-write"}}, "state store broken has no first-write"),
            ({"metadata": {"ttlInSeconds": "1"}}, "state store broken cannot let items expire"),
            ({"metadata": {"fencingToken": "x"}}, "state store broken cannot check a fencingToken"),
        ]:
            answer = await server.call("POST", path, json.dumps([{"key": "a", **item}]).encode())
            assert cause in failure(answer, 400, "ERR_STATE_SAVE")
        answer = await server.call("POST", f"{path}/transaction", b"no json")
        message = failure(answer, 500, "ERR_STATE_STORE_NOT_SUPPORTED")
        assert message == "state store broken doesn't support transactions"
        found = details(answer)
        assert list(found) == ["Help", "ResourceInfo", "ErrorInfo"]
        assert "docs.dapr.io" in found["Help"]["links"][0]["url"]
        assert found["ErrorInfo"]["reason"] == "DAPR_STATE_TRANSACTIONS_NOT_SUPPORTED"
        for target in ("", "/a?revision=1", "/a/history"):
            answer = await server.call("GET", f"/mesh/v1/state/broken{target}")
            message = failure(answer, 501, "ERR_STATE_FEATURE_NOT_SUPPORTED")
            assert message.startswith("state store broken (state.broken) cannot ")
        answer = await server.call("GET", "/mesh/v1/state/broken", b"", ("accept", "text/event-stream"))
        assert "cannot watch" in failure(answer, 501, "ERR_STATE_FEATURE_NOT_SUPPORTED")


POLICY = """
apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: {name: patience}
spec:
  policies: {retries: {again: {policy: constant, duration: 1ms, maxRetries: 3}}}
  targets: {components: {broken: {outbound: {retry: again}}}}
"""


async def test_a_policy_stands_around_the_store(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY)
    [manifest] = resources.load([tmp_path], app_id="app1", namespace="", environ={}).resiliency
    store, component = broken(*RIGHT)
    async with StateServer(component, resiliency=[manifest]) as server:
        store.error = StoreUnavailable("nobody answers")
        assert (await server.call("GET", "/v1.0/state/broken/a")).status == 500
        assert store.calls == 4
        store.error = EtagMismatch("gone")  # which is no fault of the store's
        assert (await server.call("POST", "/v1.0/state/broken", b'[{"key":"a"}]')).status == 409
        assert store.calls == 5


# Bulk get


@pytest.mark.parametrize("store", BOTH)
async def test_many_at_once(server: StateServer, store: str) -> None:
    await save(server, store, a={"n": 1}, b=None)
    path = f"/v1.0/state/{store}/bulk"
    for body in (b'{"keys":["a","c","b","a"]}', b'{"KEYS":["a","c","b","a"],"parallelism":1,"metadata":{},"x":1}'):
        answer = await server.call("PUT", path, body)
        assert answer.status == 200
        assert [entry.pop("etag", None) is None for entry in answer.json] == [False, True, False, False]
        etags = [entry.get("etag") for entry in answer.json]
        expected = [
            {"key": "a", "data": {"n": 1}},
            {"key": "c"},
            {"key": "b", "data": None},
            {"key": "a", "data": {"n": 1}},
        ]
        assert [{**entry, **({"etag": etag} if etag else {})} for entry, etag in zip(expected, etags, strict=True)] == (
            answer.json
        )
    for body in (b"{}", b'{"keys":[]}', b'{"keys":null}'):
        answer = await server.call("POST", path, body)
        assert (answer.status, answer.body) == (200, b"[]")
    for body in (b"", b"[]", b'{"keys":[1]}', b'{"keys":["a"],"parallelism":"x"}', b"{"):
        message = failure(await server.call("POST", path, body), 400, "ERR_MALFORMED_REQUEST")
        assert message.startswith("failed deserializing HTTP body: ")


async def test_no_more_keys_are_asked_for_at_a_time_than_the_request_says() -> None:
    store, component = broken()
    async with StateServer(component) as server:
        for parallelism, calls in ((0, 1), (-1, 1), (2, 3), (5, 1)):
            before = store.calls
            body = json.dumps({"keys": list("abcde"), "parallelism": parallelism}).encode()
            answer = await server.call("POST", "/v1.0/state/broken/bulk", body)
            assert answer.json == [{"key": key} for key in "abcde"]
            assert store.calls - before == calls


async def test_a_value_that_is_no_json_does_not_harm_the_others(server: StateServer) -> None:
    table = server.tables.table("app1")
    await table.commit([Put(key=("state", "statestore", "a"), value=b"\xff\x00")])
    await save(server, b=1)
    answer = await server.call("POST", f"{S}/bulk", b'{"keys":["a","b"]}')
    assert "is no JSON" in answer.json[0]["error"]
    assert answer.json[1]["data"] == 1
    assert await get(server, "a") == b"\xff\x00"
    items = (await server.call("GET", "/mesh/v1/state/statestore")).json["items"]
    assert {item["key"]: item.get("data_base64") for item in items} == {"a": "/wA=", "b": None}


# Transactions


def transaction(*operations: tuple[str, dict[str, Any]], **metadata: str) -> bytes:
    listed = [{"operation": word, "request": request} for word, request in operations]
    return json.dumps({"operations": listed, "metadata": metadata}).encode()


@pytest.mark.parametrize("store", BOTH)
async def test_a_transaction_does_all_or_nothing(server: StateServer, store: str) -> None:
    path = f"/v1.0/state/{store}/transaction"
    await save(server, store, a=1, b=2)
    body = transaction(("upsert", {"key": "a", "value": 3}), ("delete", {"key": "b"}), ("upsert", {"key": "c"}))
    answer = await server.call("PUT", path, body)
    assert (answer.status, answer.body) == (204, b"")
    assert [await get(server, key, store) for key in "abc"] == [b"3", None, b"null"]
    for body in (b"{}", b'{"operations":[]}', b'{"operations":null}'):
        assert (await server.call("POST", path, body)).status == 204
    for bad in ({"key": "a", "value": 4, "etag": "4711"}, {"key": "a", "options": {"concurrency": "first-write"}}):
        answer = await server.call("POST", path, transaction(("upsert", {"key": "d"}), ("upsert", bad)))
        message = failure(answer, 500, "ERR_STATE_TRANSACTION")
        assert message.startswith("error while executing state transaction: possible etag mismatch. ")
    assert [await get(server, key, store) for key in "ad"] == [b"3", None]


@pytest.mark.parametrize(
    ("body", "status", "code", "cause"),
    [
        (b"", 400, "ERR_MALFORMED_REQUEST", "the body: must be a JSON object"),
        (b"[]", 400, "ERR_MALFORMED_REQUEST", "the body: must be a JSON object"),
        (b'{"operations":{}}', 400, "ERR_MALFORMED_REQUEST", "Expected `array | null`"),
        (b'{"operations":[1]}', 400, "ERR_MALFORMED_REQUEST", "operations[0]: must be a JSON object"),
        (transaction(("upsert", {"key": "a", "value": 1}), ("UPSERT", {"key": "b"})), 400,
         "ERR_NOT_SUPPORTED_STATE_OPERATION", "operation type UPSERT not supported"),
        (b'{"operations":[{"request":{"key":"a"}}]}', 400, "ERR_NOT_SUPPORTED_STATE_OPERATION", "operation type  not"),
        (transaction(("upsert", {"key": "a", "value": 1}), ("upsert", {"key": 1})), 400, "ERR_MALFORMED_REQUEST",
         "operations[1].request: Expected `str | null`, got `int`"),
        (transaction(("upsert", {"key": "a", "value": 1}), ("delete", {})), 400, "ERR_MALFORMED_REQUEST",
         '"key" is a required field of operations[1].request'),
        (transaction(("upsert", {"key": "a", "value": 1}), ("delete", {"key": "b||c"}), ("x", {})), 400,
         "ERR_NOT_SUPPORTED_STATE_OPERATION", "operation type x"),
    ],
)  # fmt: skip
async def test_of_a_bad_transaction_nothing_happens(
    server: StateServer, body: bytes, status: int, code: str, cause: str
) -> None:
    assert cause in failure(await server.call("POST", f"{S}/transaction", body), status, code)
    assert await get(server, "a") is None


async def test_a_transaction_that_is_too_long() -> None:
    _, component = broken(*RIGHT)
    async with StateServer(component) as server:
        body = transaction(*[("upsert", {"key": str(number)}) for number in range(4)])
        answer = await server.call("POST", "/v1.0/state/broken/transaction", body)
        message = failure(answer, 400, "ERR_STATE_STORE_TOO_MANY_TRANSACTIONS")
        assert message == "the transaction contains 4 operations, which is more than what the state store supports: 3"
        info = details(answer)["ErrorInfo"]
        assert info["reason"] == "DAPR_STATE_TOO_MANY_TRANSACTIONS"
        assert (info["metadata"]["currentOpsTransaction"], info["metadata"]["maxOpsPerTransaction"]) == ("4", "3")


async def test_metadata_of_the_request_goes_to_every_operation(server: StateServer) -> None:
    body = transaction(
        ("upsert", {"key": "a", "metadata": {"ttlInSeconds": "5"}}), ("upsert", {"key": "b"}), ttlInSeconds="7"
    )
    assert (await server.call("POST", f"{S}/transaction", body)).status == 204
    assert "metadata.ttlexpiretime" in (await server.call("GET", f"{S}/a")).headers
    assert "metadata.ttlexpiretime" not in (await server.call("GET", f"{S}/b")).headers
    assert (await server.call("POST", f"{S}/transaction?metadata.ttlInSeconds=100", body)).status == 204
    times = [(await server.call("GET", f"{S}/{key}")).headers["metadata.ttlexpiretime"] for key in "ab"]
    assert times[0] == times[1]


async def test_writes_under_a_lock(server: StateServer) -> None:
    table = server.tables.table("app1")
    lock = ("lock", "locks", "x")
    [revision] = await table.commit([Put(key=lock, value=b"me")])
    token = FenceToken("app1", lock, revision).encode()
    held = {"metadata": {"fencingToken": token}}
    assert (await server.call("POST", S, json.dumps([{"key": "a", "value": 1, **held}]).encode())).status == 204
    query = f"?metadata.fencingToken={token}"
    assert (await server.call("POST", f"{S}/transaction{query}", transaction(("upsert", {"key": "b"})))).status == 204
    body = transaction(("upsert", {"key": "c"}), fencingToken=token)
    assert (await server.call("POST", f"{S}/transaction", body)).status == 204
    await table.commit([Put(key=lock, value=b"another")])
    answer = await server.call("POST", S, json.dumps([{"key": "a", "value": 2, **held}]).encode())
    assert "is not held any more" in failure(answer, 409, "ERR_STATE_SAVE")
    for answer in (
        await server.call("POST", f"{S}/transaction", transaction(("delete", {"key": "a"}), fencingToken=token)),
        await server.call("POST", f"{S}/transaction{query}", transaction(("delete", {"key": "a"}))),
    ):
        assert "is not held any more" in failure(answer, 500, "ERR_STATE_TRANSACTION")
    answer = await server.call("DELETE", f"{S}/a{query}")
    assert "is not held any more" in failure(answer, 409, "ERR_STATE_DELETE")
    entry = await table.get(lock)
    assert entry is not None
    of_another = {"metadata": {"fencingToken": FenceToken("app1", lock, entry.revision).encode()}}
    items = [{"key": "a", "value": 3, **held}, {"key": "b", "value": 3, **of_another}]
    for order in (items, items[::-1]):  # one of the two cannot be held
        answer = await server.call("POST", f"{S}/transaction", transaction(*(("upsert", item) for item in order)))
        assert "is not held any more" in failure(answer, 500, "ERR_STATE_TRANSACTION")
    assert await get(server, "a") == b"1"
    body = transaction(("upsert", {"key": "a", "value": 3, **of_another}), fencingToken=token)
    answer = await server.call("POST", f"{S}/transaction", body)
    assert "and an operation has another one" in failure(answer, 500, "ERR_STATE_TRANSACTION")


async def test_what_is_no_lock_is_no_fence(server: StateServer) -> None:
    await save(server, a=1)
    etag = (await server.call("GET", f"{S}/a")).headers["etag"]
    token = FenceToken("app1", ("state", "statestore", "a"), int(etag)).encode()
    for key in "ab":
        answer = await server.call("POST", S, json.dumps([{"key": key, "metadata": {"fencingToken": token}}]).encode())
        assert "names no lock" in failure(answer, 400, "ERR_STATE_SAVE")


async def test_an_empty_fence_is_not_none(server: StateServer) -> None:
    """Else an app whose token got lost would write, and delete, without a lock."""
    await save(server, a=1)
    item = {"key": "a", "value": 2}
    nowhere = "?metadata.fencingToken="
    for answer, code in (
        (await server.call("POST", S, json.dumps([{**item, "metadata": {"fencingToken": ""}}]).encode()), "SAVE"),
        (await server.call("POST", S + nowhere, json.dumps([item]).encode()), "SAVE"),
        (await server.call("DELETE", f"{S}/a{nowhere}"), "DELETE"),
    ):
        assert "fencingToken: '' is no fencing token" in failure(answer, 400, f"ERR_STATE_{code}")
    fenced = {**item, "metadata": {"FENCINGTOKEN": ""}}
    for query, body in (
        ("", transaction(("upsert", item), fencingToken="")),
        (nowhere, transaction(("upsert", item))),
        ("", transaction(("upsert", fenced))),
    ):
        answer = await server.call("POST", f"{S}/transaction{query}", body)
        assert "fencingToken: '' is no fencing token" in failure(answer, 500, "ERR_STATE_TRANSACTION")
    null = json.dumps([{**item, "metadata": {"fencingToken": None}}]).encode()
    failure(await server.call("POST", S, null), 400, "ERR_MALFORMED_REQUEST")
    body = json.dumps({"operations": [], "metadata": {"fencingToken": None}}).encode()
    failure(await server.call("POST", f"{S}/transaction", body), 400, "ERR_MALFORMED_REQUEST")
    assert await get(server, "a") == b"1"


async def test_one_fence_at_most(server: StateServer) -> None:
    item = {"key": "a", "metadata": {"fencingToken": "x", "FencingToken": "y"}}
    answer = await server.call("POST", S, json.dumps([item]).encode())
    assert "fencingToken is given twice" in failure(answer, 400, "ERR_STATE_SAVE")


# Queries


@pytest.mark.parametrize("route", ["/v1.0-alpha1/state", "/v1.0/state"])
async def test_a_store_that_cannot_be_searched(server: StateServer, route: str) -> None:
    answer = await server.call("POST", f"{route}/statestore/query", b"no json")
    message = failure(answer, 500, "ERR_STATE_STORE_NOT_SUPPORTED")
    assert message == "state store does not support querying"
    assert details(answer)["ErrorInfo"]["reason"] == "DAPR_STATE_QUERYING_NOT_SUPPORTED"


class SearchableStore(BrokenStore):
    """Answers every query with what a test puts into `result`."""

    def __init__(self) -> None:
        super().__init__(StateFeature.QUERY)
        self.result = QueryResult([], None)
        self.asked: list[tuple[StateQuery, str, Mapping[str, str]]] = []

    async def query(self, query: StateQuery, key_prefix: str, metadata: Mapping[str, str] = {}) -> QueryResult:
        self._fail()
        self.asked.append((query, key_prefix, metadata))
        return self.result


@pytest.mark.parametrize("route", ["/v1.0-alpha1/state", "/v1.0/state"])
async def test_a_query(route: str) -> None:
    store = SearchableStore()
    component = StateComponent(name="s", store=store, key_prefix="app1||")
    async with StateServer(component, max_body_size=1000) as server:
        path = f"{route}/s/query?metadata.queryIndexName=x"
        answer = await server.call("POST", path, b"{}")
        assert (answer.status, answer.body) == (204, b"")
        store.result = QueryResult([StateItem(key="app1||a", value=b'{"n": 1}', etag="7")], "next")
        answer = await server.call("PUT", path, b'{"filter":{"EQ":{"n":1}},"page":{"limit":1}}')
        assert answer.status == 200
        assert answer.json == {"results": [{"key": "a", "data": {"n": 1}, "etag": "7"}], "token": "next"}
        query, prefix, metadata = store.asked[-1]
        assert (query.filter, query.limit) == (Comparison(Comparator.EQ, ("n",), 1), 1)
        assert (prefix, metadata) == ("app1||", {"queryIndexName": "x"})
        answer = await server.call("POST", path, b'{"filter":{"eq":{"n":1}}}')
        message = failure(answer, 500, "ERR_STATE_QUERY")
        assert message.startswith("state store s query failed: filter.eq: there is no such operator")
        assert details(answer)["ErrorInfo"]["reason"] == "DAPR_STATE_QUERY_FAILED"
        store.error = StoreUnavailable("nobody answers")
        message = failure(await server.call("POST", path, b"{}"), 500, "ERR_STATE_QUERY")
        assert message == "state store s query failed: nobody answers"
        assert "stream too large" in failure(await server.call("POST", path, b" " * 1001), 400, "ERR_BODY_READ")


# As in 2019


async def test_the_store_without_a_name(server: StateServer) -> None:
    assert (await server.call("POST", "/v1.0/state", b'[{"key":"a","value":1}]')).status == 204
    assert await get(server, "a") == b"1"
    answer = await server.call("GET", "/v1.0/state/a")
    assert (answer.status, answer.body) == (200, b"1")
    assert (await server.call("DELETE", "/v1.0/state/a")).status == 204
    assert (await server.call("GET", "/v1.0/state/a")).status == 204
    for path in ("/v1.0/state/memory", "/v1.0/state/memory/", "/v1.0/state/statestore"):
        for method in ("GET", "DELETE"):
            message = failure(await server.call(method, path), 400, "ERR_MALFORMED_REQUEST")
            assert message.startswith("there is no key after the state store ")


# Encryption at rest


async def test_values_are_encrypted_where_they_lie() -> None:
    server = StateServer()
    plain = server.components["statestore"]
    sealed = StateComponent(
        name="statestore", store=plain.store, key_prefix="app1||", cipher=Cipher(("key1", "0" * 32))
    )
    server.components["statestore"] = sealed
    async with server:
        body = b'[{"key":"a","value":{"secret": 7}},{"key":"b","value":"text","metadata":{"ttlInSeconds":"100"}}]'
        assert (await server.call("POST", S, body)).status == 204
        stored = await server.tables.table("app1").get(("state", "statestore", "a"))
        assert stored is not None
        assert stored.value.endswith(b"||key1")
        assert b"secret" not in stored.value
        assert await get(server, "a") == b'{"secret": 7}'
        bulk = await server.call("POST", f"{S}/bulk", b'{"keys":["a","b"]}')
        assert [entry["data"] for entry in bulk.json] == [{"secret": 7}, "text"]
        assert (
            await server.call("POST", f"{S}/transaction", transaction(("upsert", {"key": "c", "value": 1})))
        ).status == 204
        assert await get(server, "c") == b"1"
        listed = (await server.call("GET", "/mesh/v1/state/statestore?prefix=a")).json["items"]
        assert [item["data"] for item in listed] == [{"secret": 7}]
        versions = (await server.call("GET", "/mesh/v1/state/statestore/a/history")).json["versions"]
        assert versions[0]["data"] == {"secret": 7}
        server.components["statestore"] = plain
        await save(server, d=1)
        server.components["statestore"] = sealed
        assert "is not encrypted" in failure(await server.call("GET", f"{S}/d"), 500, "ERR_STATE_GET")


async def test_what_cannot_be_decrypted_does_not_harm_the_others(server: StateServer) -> None:
    plain = server.components["statestore"]
    await save(server, a="in the clear")
    await save(server, a="in the clear, too", b=1)
    server.components["statestore"] = StateComponent(
        name="statestore", store=plain.store, key_prefix="app1||", cipher=Cipher(("key1", "0" * 32))
    )
    await save(server, a=3)
    versions = (await server.call("GET", f"{X}/a/history")).json["versions"]
    assert [version.get("data") for version in versions] == [3, None, None]
    assert all("is not encrypted" in version["error"] for version in versions[1:])
    async with Reader(server, "?initial=true") as reader:
        seen = [(await reader.event()) for _ in range(3)]
    assert {data["key"]: data.get("data") for kind, data in seen if kind == "set"} == {"a": 3, "b": None}
    assert "in the clear" not in json.dumps([versions, seen])


# Beyond Dapr

X = "/mesh/v1/state/statestore"


@pytest.mark.parametrize("store", BOTH)
async def test_a_list_in_pages(server: StateServer, store: str) -> None:
    await save(server, store, **{f"cart-{number}": number for number in range(7)}, other=1)
    found: dict[str, Any] = {}
    cursor = ""
    for _ in range(10):
        answer = await server.call("GET", f"/mesh/v1/state/{store}?prefix=cart-&limit=3{cursor}")
        assert answer.status == 200
        assert len(answer.json["items"]) <= 3
        found |= {item["key"]: item["data"] for item in answer.json["items"]}
        assert all(item["etag"] for item in answer.json["items"])
        if "cursor" not in answer.json:
            break
        cursor = f"&cursor={quote(answer.json['cursor'], safe='')}"
    assert found == {f"cart-{number}": number for number in range(7)}
    answer = await server.call("GET", f"/mesh/v1/state/{store}?cursor=nonsense")
    assert "begin without a cursor" in failure(answer, 410, "ERR_STATE_POSITION_EXPIRED")
    for query in ("limit=0", "limit=1001", "limit=x", "limit=-1", "limit=00000000011", "limit=%C2%B9", "prefxi=a"):
        failure(await server.call("GET", f"/mesh/v1/state/{store}?{query}"), 400, "ERR_MALFORMED_REQUEST")


async def test_a_list_without_a_prefix_shows_no_items_of_apps() -> None:
    """They are in the same table, where stores have one, and no app can name them."""
    store = MemoryStateStore(SystemClock())
    mine = StateComponent(name="mine", store=store, key_prefix="app1||")
    common = StateComponent(name="common", store=store)
    async with StateServer(mine, common) as server:
        await save(server, "mine", a=1)
        await save(server, "common", b=2)
        for name, key in (("mine", "a"), ("common", "b")):
            items = (await server.call("GET", f"/mesh/v1/state/{name}")).json["items"]
            assert [item["key"] for item in items] == [key]


async def test_earlier_values(server: StateServer) -> None:
    for value in (1, 2):
        await save(server, a=value)
    await server.call("DELETE", f"{S}/a")
    versions = (await server.call("GET", f"{X}/a/history")).json["versions"]
    assert [version.get("data") for version in versions] == [None, 2, 1]
    assert [version.get("deleted") for version in versions] == [True, None, None]
    assert len((await server.call("GET", f"{X}/a/history?limit=1")).json["versions"]) == 1
    first = versions[-1]
    answer = await server.call("GET", f"{X}/a?revision={first['etag']}")
    assert (answer.status, answer.body, answer.headers["etag"]) == (200, b"1", first["etag"])
    answer = await server.call("GET", f"{X}/a?time={versions[0]['time']}")
    assert answer.status == 204
    answer = await server.call("GET", f"{X}/a?time={versions[1]['time']}")
    assert (answer.status, answer.body) == (200, b"2")
    assert (await server.call("GET", f"{X}/a")).status == 204
    for query, status in (
        ("revision=x", 400),
        ("time=yesterday", 400),
        ("revision=1&time=2026-05-04T12:30:00Z", 400),
        ("version=1", 400),
        ("time=2001-01-01T00:00:00Z", 410),
    ):
        assert (await server.call("GET", f"{X}/a?{query}")).status == status, query


async def test_a_store_without_history_says_how_to_have_it() -> None:
    server = StateServer()
    server.components["plain"] = server.mesh_store("plain", history=None)
    async with server:
        answer = await server.call("GET", "/mesh/v1/state/plain/a/history")
        message = failure(answer, 501, "ERR_STATE_FEATURE_NOT_SUPPORTED")
        assert message.endswith('cannot tell earlier values; give the component the setting history: "16"')


class Reader:
    """Reads a watch as an `EventSource` does."""

    def __init__(self, server: StateServer, query: str = "", last_id: str = "") -> None:
        self._server = server
        self._query = query
        self.last_id = last_id
        self.status = 0
        self.body = b""

    async def __aenter__(self) -> Reader:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._server.port)
        head = f"GET {X}{self._query} HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n"
        if self.last_id:
            head += f"last-event-id: {self.last_id}\r\n"
        self._writer.write(f"{head}\r\n".encode())
        answer = (await self._line_until(b"\r\n\r\n")).decode()
        self.status = int(answer.split(" ")[1])
        if self.status == 200:
            assert "content-type: text/event-stream" in answer
        else:
            length = int(answer.lower().split("content-length: ")[1].split("\r\n")[0])
            self.body = await self._reader.readexactly(length)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()

    async def _line_until(self, end: bytes) -> bytes:
        return await asyncio.wait_for(self._reader.readuntil(end), 30)

    async def event(self) -> tuple[str, Any]:
        """The next event: its type, and its data as JSON. Raises `EOFError` at the end."""
        while True:
            size = int(await self._line_until(b"\r\n"), 16)
            piece = await self._reader.readexactly(size + 2)
            if not size:
                raise EOFError
            fields: dict[str, list[str]] = {}
            for line in piece.decode().splitlines():
                name, _, text = line.partition(": ")
                fields.setdefault(name, []).append(text)
            if "id" in fields:
                [self.last_id] = fields["id"]
            if "data" in fields:
                return fields["event"][0], json.loads("\n".join(fields["data"]))


async def test_changes_as_they_happen(server: StateServer) -> None:
    await save(server, a=1, b=1, cart=1)
    async with Reader(server, "?initial=true&prefix=c") as reader:
        kind, data = await reader.event()
        assert (kind, data["key"], data["data"]) == ("set", "cart", 1)
        assert (await reader.event())[0] == "current"
        await save(server, a=2)
        await server.call("POST", S, b'[{"key":"cart","value":{"lines":\r\n[1,\r2]}}]')
        kind, data = await reader.event()
        assert (kind, data["data"], data["etag"]) == (
            "set",
            {"lines": [1, 2]},
            (await server.call("GET", f"{S}/cart")).headers["etag"],
        )
        await server.call("DELETE", f"{S}/cart")
        kind, data = await reader.event()
        assert (kind, data["key"], data["deleted"]) == ("deleted", "cart", True)
        position = reader.last_id
    await save(server, c2=1)
    async with Reader(server, "?prefix=c", position) as reader:
        kind, data = await reader.event()
        assert (kind, data["key"]) == ("set", "c2")
    async with Reader(server, f"?prefix=c&after={position}") as reader:
        assert (await reader.event())[1]["key"] == "c2"
    async with Reader(server) as reader:
        assert (await reader.event())[0] == "current"
        await save(server, z=1)
        assert (await reader.event())[1]["key"] == "z"


async def test_a_silent_watch_says_that_it_is_alive(server: StateServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.api.state_extras.HEARTBEAT", 0.01)
    await save(server, a=1)
    async with Reader(server) as reader:
        assert (await reader.event())[0] == "current"
        piece = await reader._line_until(b"\n\n")
        assert b": alive\nid: " in piece
        etag, _, moment = piece.rpartition(b"id: ")[2].partition(b"-")
        shown_etag, _, shown_moment = reader.last_id.encode().partition(b"-")
        assert etag == shown_etag
        assert int(moment) >= int(shown_moment)


@pytest.mark.parametrize(
    ("query", "position", "status", "cause"),
    [
        ("", "7-1000000000", 410, "is older than 55 minutes"),
        ("", "7", 400, "is no position of a watch"),
        ("?after=7-%C2%B2", "", 400, "is no position of a watch"),
        ("", "x-99999999999", 400, "an ETag of this store is a positive integer"),
        ("", "4711-99999999999", 410, "made anew"),
        ("?initial=maybe", "", 400, "initial must be true or false"),
        ("?limit=1", "", 400, "there is no parameter 'limit'"),
    ],
)
async def test_a_watch_that_cannot_begin(
    server: StateServer, query: str, position: str, status: int, cause: str
) -> None:
    async with Reader(server, query, position) as reader:
        assert reader.status == status
        assert cause in json.loads(reader.body)["message"]


async def test_a_reader_that_has_gone_is_let_go(server: StateServer) -> None:
    async with Reader(server) as reader:
        await reader.event()
        assert server.extras._watches == 1
    async with asyncio.timeout(30):
        while server.extras._watches:
            await asyncio.sleep(0.005)
    assert not server.tables.table("app1")._watches


async def test_watches_end_with_the_sidecar_and_with_their_component(
    server: StateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Reader(server) as reader:
        await reader.event()
        server.extras.close()
        with pytest.raises(EOFError):
            await reader.event()
    server.extras._closing.clear()
    monkeypatch.setattr("sidecar.api.state_extras.HEARTBEAT", 0.01)
    async with Reader(server) as reader:
        await reader.event()
        server.components["statestore"] = server.components["memory"]
        with pytest.raises(EOFError):
            await reader.event()


async def test_a_busy_watch_ends_with_its_component_too(server: StateServer) -> None:
    async with Reader(server) as reader:
        assert (await reader.event())[0] == "current"
        earlier, server.components["statestore"] = server.components["statestore"], server.components["memory"]
        await earlier.store.change(SetState(key="app1||a", value=b"1"))
        with pytest.raises(EOFError):
            await reader.event()


async def test_watches_have_a_bound(server: StateServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.api.state_extras.MOST_WATCHES", 1)
    async with Reader(server) as reader, Reader(server) as second:
        assert (reader.status, second.status) == (200, 503)
