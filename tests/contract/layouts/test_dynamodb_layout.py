"""`state.aws.dynamodb` and Dapr on one table: what Dapr wrote is read, what we write is what Dapr reads.

Dapr's end is AWS's own library, with requests as Dapr's component makes them. `Between` stands between the store and
the server for what no server does when it is asked to.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from typing import Any

import pytest
from botocore.exceptions import ClientError

from bindings import aws
from bindings.state import aws_dynamodb
from bindings.state.aws_dynamodb import DynamoStateStore
from mesh.errors import ConfigurationError
from mesh.ports.stores import (
    DeleteState,
    EtagMismatch,
    InvalidStoreKey,
    SetState,
    StateFeature,
    StateItem,
    StoreError,
    StoreUnavailable,
    ValueTooLarge,
)
from tests.opened import opened
from tests.servers.moto import KEYS, MotoServer, moto
from tests.virtual_clock import VirtualClock

A, B, C = "app1||a", "app1||b", "app1||c"
numbers = count(1)


@pytest.fixture(scope="module")
def server() -> MotoServer:
    return moto()


class Dapr:
    """Of a table of its own."""

    def __init__(self, client: Any, key: str = "key") -> None:
        self.client = client
        self.table = f"items-{next(numbers)}"
        client.create_table(
            TableName=self.table,
            KeySchema=[{"AttributeName": key, "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )

    def put(self, key: str, value: dict[str, Any], **more: Any) -> None:
        item = {"key": {"S": key}, "value": value, "etag": {"S": "1a2b"}, **more}
        self.client.put_item(TableName=self.table, Item=item)

    def item(self, key: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.client.get_item(TableName=self.table, Key={"key": {"S": key}}).get("Item")
        return found


@pytest.fixture
def dapr(server: MotoServer) -> Iterator[Dapr]:
    client = server.client("dynamodb")
    yield Dapr(client)
    client.close()


@pytest.fixture
async def open_store(server: MotoServer, dapr: Dapr) -> AsyncIterator[Callable[..., Any]]:
    """Makes a store of the table, with other settings, not started."""
    stores: list[Any] = []

    def open_store(**settings: str) -> Any:
        settings = {**server.settings, "table": dapr.table, "ttlAttributeName": "expires", **settings}
        stores.append(opened(aws_dynamodb.SPEC, None, **settings))
        return stores[-1]

    yield open_store
    for store in stores:
        await store.close()
        await store.close()


@pytest.fixture
async def store(open_store: Callable[..., Any]) -> DynamoStateStore:
    store: DynamoStateStore = open_store()
    await store.start()
    return store


async def value(store: DynamoStateStore, key: str) -> bytes | None:
    item = await store.get(key)
    return None if item is None else item.value


async def test_what_dapr_wrote(dapr: Dapr, store: DynamoStateStore) -> None:
    dapr.put(A, {"S": '{"b":1}'})
    dapr.put(B, {"B": b"\x00\xff"})
    dapr.put(C, {"S": "1"}, expires={"N": str(int(time.time()) + 60)})
    dapr.put("app1||over", {"S": "1"}, expires={"N": str(int(time.time()))})
    now = time.time()
    a, b, c, over = await store.get_many([A, B, C, "app1||over"])
    assert a == await store.get(A) == StateItem(key=A, value=b'{"b":1}', etag="1a2b")
    assert b == await store.get(B) == StateItem(key=B, value=b"\x00\xff", etag="1a2b")
    assert isinstance(c, StateItem)
    assert c.expires is not None
    assert now + 55 < c.expires < now + 65
    assert over is None
    assert await store.get("app1||over") is None
    for change in (SetState(key="app1||over", value=b"2", etag="1a2b"), DeleteState(key="app1||over", etag="1a2b")):
        with pytest.raises(EtagMismatch):
            await store.change(change)
        with pytest.raises(EtagMismatch):
            await store.transact([change])
    await store.change(SetState(key="app1||over", value=b"2", first_write=True))
    await store.change(SetState(key=A, value=b"2", etag="1a2b"))
    await store.change(DeleteState(key=B, etag="1a2b"))
    assert [await value(store, key) for key in (A, B, "app1||over")] == [b"2", None, b"2"]


async def test_what_dapr_reads(dapr: Dapr, store: DynamoStateStore) -> None:
    now = time.time()
    await store.change(SetState(key=A, value=b'{"a": 1}'))
    await store.change(SetState(key=B, value=b"\x00\xff", ttl=60))
    await store.transact([SetState(key=C, value="é".encode(), ttl=-1)])
    a, b, c = (dapr.item(key) or {} for key in (A, B, C))
    item = await store.get(A)
    assert item is not None
    assert a == {"key": {"S": A}, "value": {"S": '{"a": 1}'}, "etag": {"S": item.etag}}
    assert re.fullmatch(r"[0-9a-f]{1,16}", item.etag or "")
    assert b["value"] == {"B": b"\x00\xff"}
    assert now + 60 <= int(b["expires"]["N"]) <= now + 65
    assert c.keys() == {"key", "value", "etag"}
    assert c["value"] == {"S": "é"}
    dapr.client.put_item(
        TableName=dapr.table,
        Item={"key": {"S": A}, "value": {"S": "2"}, "etag": {"S": "ff"}},
        ConditionExpression="etag = :etag",
        ExpressionAttributeValues={":etag": {"S": item.etag}},
    )
    with pytest.raises(EtagMismatch):
        await store.change(SetState(key=A, value=b"3", etag=item.etag))
    await store.change(SetState(key=B, value=b"1"))
    assert "expires" not in (dapr.item(B) or {})


async def test_damaged_items_harm_no_others(dapr: Dapr, store: DynamoStateStore) -> None:
    dapr.put(A, {"N": "1"})
    dapr.put(B, {"S": "1"}, expires={"S": "tomorrow"})
    dapr.put(C, {"S": "1"})
    bad, worse, good = await store.get_many([A, B, C])
    assert isinstance(bad, StoreError)
    assert isinstance(worse, StoreError)
    assert isinstance(good, StateItem)
    with pytest.raises(StoreError, match="damaged"):
        await store.get(A)
    dapr.client.put_item(TableName=dapr.table, Item={"key": {"S": A}})
    assert await store.get(A) == StateItem(key=A, value=b"", etag=None)
    with pytest.raises(EtagMismatch):
        await store.change(SetState(key=A, value=b"1", first_write=True))


async def test_without_an_attribute_for_it_nothing_expires(dapr: Dapr, open_store: Callable[..., Any]) -> None:
    store = open_store(ttlAttributeName="")
    await store.start()
    assert store.features == {StateFeature.ETAG, StateFeature.TRANSACTIONAL}
    dapr.put(A, {"S": "1"}, expires={"N": "1"})
    assert await store.get(A) == StateItem(key=A, value=b"1", etag="1a2b")
    await store.change(SetState(key=A, value=b"2", etag="1a2b"))
    with pytest.raises(EtagMismatch):
        await store.change(SetState(key=A, value=b"2", first_write=True))
    await store.change(SetState(key=B, value=b"2", first_write=True))
    assert (dapr.item(B) or {}).keys() == {"key", "value", "etag"}


async def test_one_key_in_a_transaction_many_times(store: DynamoStateStore) -> None:
    await store.change(SetState(key=A, value=b"1"))
    item = await store.get(A)
    assert item is not None
    changes = [
        DeleteState(key=A, etag=item.etag),
        SetState(key=A, value=b"2", first_write=True),
        SetState(key=B, value=b"2", first_write=True),
        DeleteState(key=B),
    ]
    await store.transact(changes)
    assert await store.get_many([A, B]) == [await store.get(A), None]
    assert await value(store, A) == b"2"
    for changes in (
        [DeleteState(key=A, etag=item.etag), SetState(key=A, value=b"3")],  # that ETag has passed
        [DeleteState(key=A), SetState(key=A, value=b"3", etag=item.etag)],
        [SetState(key=B, value=b"3", first_write=True), SetState(key=B, value=b"4", first_write=True)],
    ):
        with pytest.raises(EtagMismatch):
            await store.transact(changes)
    assert (await value(store, A), await value(store, B)) == (b"2", None)


async def test_limits(store: DynamoStateStore) -> None:
    await store.change(SetState(key="k" * 2048, value=b"1"))
    for key in ("k" * 2049, "é" * 1025, "", "\ud800"):
        with pytest.raises(InvalidStoreKey):
            await store.change(SetState(key=key, value=b"1"))
        assert isinstance((await store.get_many([key]))[0], InvalidStoreKey)
    await store.change(SetState(key="k", value=b"x" * 399_000))
    for size in (406_000, 409_600):  # the one is refused by moto, which counts otherwise; the other by us
        with pytest.raises(ValueTooLarge, match="item of over 409600 bytes"):
            await store.change(SetState(key="k", value=b"x" * size))
        with pytest.raises(ValueTooLarge, match="item of over 409600 bytes"):
            await store.transact([SetState(key="j", value=b"1"), SetState(key="k", value=b"x" * size)])
    assert await store.get("j") is None
    with pytest.raises(ValueTooLarge, match="transaction of over"):
        await store.transact([SetState(key=f"k{number}", value=b"x" * 390_000) for number in range(11)])
    assert store.max_transaction == 100


async def test_a_process_sees_what_it_wrote(dapr: Dapr, server: MotoServer) -> None:
    """A read of a table is consistent only if it asks for that."""
    clock = VirtualClock()
    store = opened(aws_dynamodb.SPEC, clock, **server.settings, table=dapr.table)
    await store.start()
    asked: list[bool] = []
    events = store._client.api.meta.events
    events.register(
        "provide-client-params.dynamodb.GetItem", lambda params, **_: asked.append(params["ConsistentRead"])
    )
    await store.get(A)
    await store.get(A, strong=True)
    await store.change(SetState(key=A, value=b"1"))
    await store.get(A)
    await store.get(B)
    await clock.advance(61)
    await store.get(A)
    await store.transact([DeleteState(key=A), SetState(key=B, value=b"1")])
    await store.get(A)
    await store.get(B)
    assert asked == [False, True, True, False, False, True, True]
    await store.close()


# Servers that fail


class Between:
    """Passes requests on to moto. `plan` says what to do with the next ones instead: "lose" the answer, or give this
    one, a status and a body."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.plan: list[str | tuple[int, dict[str, Any]]] = []
        self.requests: list[tuple[str, str]] = []
        """Operation and access key."""

    async def __aenter__(self) -> Between:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"(?i)content-length: *([0-9]+)", head)[1])  # type: ignore[index]
            body = await reader.readexactly(length)
            operation = re.search(rb"(?i)x-amz-target: *DynamoDB_\w+\.(\w+)", head)
            name = operation[1].decode() if operation else "other"
            key = re.search(rb"Credential=(\w+)/", head)
            self.requests.append((name, key[1].decode() if key else ""))
            step = self.plan.pop(0) if self.plan else "pass"
            if isinstance(step, str):
                answer = await self._ask(head, body)
                writer.write(b"" if step == "lose" else answer)
            else:
                status, content = step
                text = json.dumps(content).encode()
                kind = b"Content-Type: application/x-amz-json-1.0\r\nConnection: close\r\n"
                writer.write(b"HTTP/1.1 %d X\r\n%sContent-Length: %d\r\n\r\n%s" % (status, kind, len(text), text))
            await writer.drain()
        finally:
            writer.close()

    async def _ask(self, head: bytes, body: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._target)
        writer.write(re.sub(rb"(?i)\r\nconnection:[^\r]*", b"", head)[:-2] + b"Connection: close\r\n\r\n" + body)
        answer = await reader.read()
        writer.close()
        return answer


def refusal(name: str, **more: Any) -> tuple[int, dict[str, Any]]:
    return 400, {"__type": f"com.amazonaws.dynamodb.v20120810#{name}", "message": "so it is", **more}


BUSY = refusal("TransactionCanceledException", CancellationReasons=[{"Code": "TransactionConflict"}, {"Code": "None"}])


@pytest.fixture
async def between(server: MotoServer) -> AsyncIterator[Between]:
    async with Between(server.port) as between:
        yield between


@pytest.fixture
async def failing(between: Between, open_store: Callable[..., Any]) -> DynamoStateStore:
    store: DynamoStateStore = open_store(endpoint=between.url)
    await store.start()
    between.requests.clear()
    return store


async def test_a_lost_answer_to_a_conditional_write(failing: DynamoStateStore, between: Between) -> None:
    """The library asks again, and the condition fails: because of what we wrote ourselves."""
    between.plan = ["lose"]
    await failing.change(SetState(key=A, value=b"1", first_write=True))
    assert [name for name, _ in between.requests] == ["PutItem", "PutItem"]
    item = await failing.get(A)
    assert item is not None
    between.plan = ["lose"]
    await failing.change(SetState(key=A, value=b"2", etag=item.etag))
    with pytest.raises(EtagMismatch):
        await failing.change(SetState(key=A, value=b"3", etag=item.etag))
    item = await failing.get(A)
    assert item is not None
    between.plan = ["lose"]
    with pytest.raises(StoreUnavailable, match="not known"):
        await failing.change(DeleteState(key=A, etag=item.etag))
    with pytest.raises(EtagMismatch):
        await failing.change(DeleteState(key=A, etag=item.etag))


async def test_all_attempts_at_a_transaction_are_one(failing: DynamoStateStore, between: Between) -> None:
    tokens: list[str] = []
    events = failing._client.api.meta.events  # type: ignore[attr-defined]
    events.register(
        "before-call.dynamodb.TransactWriteItems",
        lambda params, **_: tokens.append(json.loads(params["body"])["ClientRequestToken"]),
    )
    between.plan = [BUSY, BUSY]
    await failing.transact([SetState(key=A, value=b"1"), SetState(key=B, value=b"1")])
    assert len(between.requests) == 3
    assert len(tokens) == 3
    assert len(set(tokens)) == 1  # by which DynamoDB knows a repeat
    assert await value(failing, B) == b"1"


async def test_a_server_that_is_too_busy(
    failing: DynamoStateStore, between: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws_dynamodb, "FIRST_PAUSE", 0.0)
    between.plan = [BUSY] * 8
    with pytest.raises(StoreUnavailable, match="too busy"):
        await failing.transact([SetState(key=A, value=b"1"), SetState(key=B, value=b"1")])
    between.plan = [refusal("TransactionConflictException")] * 3
    await failing.change(SetState(key=A, value=b"2"))
    between.requests.clear()
    between.plan = [refusal("ProvisionedThroughputExceededException")]
    await failing.change(SetState(key=A, value=b"3"))
    assert len(between.requests) == 2
    between.plan = [refusal("ProvisionedThroughputExceededException")] * 9
    with pytest.raises(StoreUnavailable, match="ProvisionedThroughputExceeded"):
        await failing.change(SetState(key=A, value=b"4"))
    assert len(between.requests) == 2 + aws.ATTEMPTS
    between.plan.clear()
    assert await value(failing, A) == b"3"


async def test_keys_that_a_batch_leaves_out(
    failing: DynamoStateStore, between: Between, dapr: Dapr, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws_dynamodb, "FIRST_PAUSE", 0.0)
    for key in (A, B):
        dapr.put(key, {"S": key})
    left = {dapr.table: {"Keys": [{"key": {"S": B}}], "ConsistentRead": False}}
    stored = {dapr.table: [{"key": {"S": A}, "value": {"S": "1"}, "etag": {"S": "1"}}]}
    between.plan = [(200, {"Responses": stored, "UnprocessedKeys": left})]
    a, b, c = await failing.get_many([A, B, C])
    assert a == StateItem(key=A, value=b"1", etag="1")
    assert b == StateItem(key=B, value=B.encode(), etag="1a2b")
    assert c is None
    assert [name for name, _ in between.requests] == ["BatchGetItem", "BatchGetItem"]
    between.plan = [(200, {"Responses": stored, "UnprocessedKeys": left}), *[(200, {"UnprocessedKeys": left})] * 7]
    a, b, c = await failing.get_many([A, B, C])
    assert isinstance(a, StateItem)
    assert isinstance(b, StoreUnavailable)
    assert c is None
    between.plan = [(200, {"UnprocessedKeys": left})] * 8
    with pytest.raises(StoreUnavailable, match="too busy"):
        await failing.get_many([B])


async def test_a_refusal_does_not_repeat_what_is_secret(failing: DynamoStateStore, between: Between) -> None:
    text = f"The Canonical String should have been 'x-amz-security-token:{KEYS['secretKey']}'"
    between.plan = [(400, {"__type": "x#InvalidSignatureException", "message": text})]
    with pytest.raises(StoreError, match="InvalidSignatureException") as raised:
        await failing.get(A)
    assert KEYS["secretKey"] not in str(raised.value)
    assert not isinstance(raised.value, StoreUnavailable)


async def test_a_role_is_taken(between: Between, open_store: Callable[..., Any], server: MotoServer) -> None:
    store = open_store(endpoint=between.url, assumeRoleArn="arn:aws:iam::123456789012:role/shop")
    await store.start()
    await store.change(SetState(key=A, value=b"1"))
    operations = [name for name, _ in between.requests]
    keys = [key for _, key in between.requests]
    assert operations == ["other", "GetItem", "PutItem"]
    assert keys[0] == KEYS["accessKey"]
    assert keys[1] == keys[2] != keys[0]


async def test_a_table_that_is_not_there(open_store: Callable[..., Any], dapr: Dapr) -> None:
    store = open_store(table="no-such-table")
    with pytest.raises(StoreError, match="there is no table 'no-such-table'"):
        await store.start()
    store = open_store(partitionKey="id")
    with pytest.raises(StoreError, match="must be the string 'id' alone"):
        await store.start()


async def test_another_key_attribute(open_store: Callable[..., Any], dapr: Dapr) -> None:
    table = Dapr(dapr.client, "id").table
    store = open_store(table=table, partitionKey="id")
    await store.start()
    await store.transact([SetState(key=A, value=b"1", first_write=True), DeleteState(key=B)])
    assert [item and item.value for item in await store.get_many([A, B])] == [b"1", None]
    item = dapr.client.get_item(TableName=table, Key={"id": {"S": A}})["Item"]
    assert item.keys() == {"id", "value", "etag"}


async def test_no_server(open_store: Callable[..., Any]) -> None:
    store = open_store(endpoint="http://127.0.0.1:9")
    with pytest.raises(StoreUnavailable, match="cannot be reached") as raised:
        await asyncio.wait_for(store.start(), 30)
    assert KEYS["secretKey"] not in str(raised.value)


async def test_a_server_that_does_not_answer(
    dapr: Dapr, open_store: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws, "READ_TIMEOUT", 0.3)
    server = MotoServer()
    server.start()
    client = server.client("dynamodb")
    try:
        store = open_store(**server.settings, table=Dapr(client).table)
        await store.start()
        server.freeze()
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(store.get(A), 30)
        server.thaw()
        async with asyncio.timeout(30):
            while True:
                try:
                    await store.change(SetState(key=A, value=b"1"))
                except StoreUnavailable:
                    continue
                break
        assert await value(store, A) == b"1"
        server.stop()
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(store.get_many([A]), 30)
    finally:
        client.close()
        server.stop()


async def test_a_store_that_is_closed(store: DynamoStateStore) -> None:
    await store.close()
    for attempt in (store.get(A), store.get_many([A]), store.change(SetState(key=A, value=b"1")), store.ping()):
        with pytest.raises(StoreUnavailable, match="closed"):
            await attempt


def test_the_tables_of_the_tests_refuse_what_dynamodb_refuses(dapr: Dapr) -> None:
    """Else they would show nothing."""
    with pytest.raises(ClientError, match="ConditionalCheckFailed"):
        dapr.client.delete_item(
            TableName=dapr.table,
            Key={"key": {"S": A}},
            ConditionExpression="etag = :etag",
            ExpressionAttributeValues={":etag": {"S": "1"}},
        )


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({}, "table: a component of type state.aws.dynamodb needs it"),
        ({"table": "a", "accessKey": "a"}, "accessKey and secretKey need each other"),
        ({"table": "a", "sessionToken": "a"}, "sessionToken: it needs accessKey"),
        ({"table": "a", "sessionName": "a"}, "sessionName: it needs assumeRoleArn"),
        ({"table": "a", "trustAnchorArn": "a"}, "Roles Anywhere is not supported"),
        ({"table": "a", "endpoint": "localhost:4566"}, "endpoint: it must be of the form"),
        ({"table": "a", "endpoint": "http://user:password@localhost"}, "endpoint: it must be of the form"),
        ({"table": "a", "ttlAttributeName": "etag"}, "there is another attribute of the name etag"),
        ({"table": "a", "partitionKey": "value"}, "there is another attribute of the name value"),
        ({"table": "a", "ttlAtributeName": "x"}, "no such setting"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, str], rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rule):
        opened(aws_dynamodb.SPEC, **settings)


async def test_no_region(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    store = opened(aws_dynamodb.SPEC, table="a", **KEYS)
    with pytest.raises(ConfigurationError, match="region: it is needed"):
        await store.start()
    await store.close()
