"""State as a program without a sidecar sees it: with nats-py and the CloudEvents SDK, by docs/protocol.md alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import nats
import pytest
from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NothingCame
from nats.js.api import DeliverPolicy
from nats.js.errors import APIError

from tests.e2e.mesh import JSON, Answer, Mesh, Sidecar, until

S = "/v1.0/state/statestore"
STREAM = "mesh-default-state-shop"
ROOT = "mesh.default.state.shop.state.statestore"
SET, DELETED = "io.meshwire.state.set.v1", "io.meshwire.state.deleted.v1"


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[tuple[Sidecar, Client]]:
    async with Mesh(tmp_path) as mesh:
        sidecar = await mesh.sidecar("shop")
        client = await nats.connect(mesh.server.url)
        try:
            yield sidecar, client
        finally:
            await client.close()


async def save(sidecar: Sidecar, *items: dict[str, object]) -> None:
    answer = await sidecar.call("POST", S, [JSON], json.dumps(items).encode())
    assert answer.status == 204, answer


async def read(sidecar: Sidecar, key: str) -> Answer:
    return await sidecar.call("GET", f"{S}/{quote(key, safe='')}?consistency=strong")


async def messages(client: Client) -> list[Msg]:
    """All that is in the stream now."""
    subscription = await client.jetstream().subscribe(f"{ROOT}.>", ordered_consumer=True)
    found = []
    try:
        while True:
            found.append(await subscription.next_msg(timeout=0.5))
    except NothingCame:
        return found
    finally:
        await subscription.unsubscribe()


def event(message: Msg) -> BaseCloudEvent:
    return from_http_event(HTTPMessage(headers=message.headers or {}, body=message.data))


KEYS = {
    "order-1": "order-1",
    "a.b": "a%2Eb",
    "shop/7 %": "shop%2F7%20%25",
    "*": "%2A",
    ">": "%3E",
    "é": "%C3%A9",
}
"""Keys, and their tokens in subjects."""


async def test_changes_are_events_in_the_log(shop: tuple[Sidecar, Client]) -> None:
    sidecar, client = shop
    await save(sidecar, *({"key": key, "value": {"key": key}} for key in KEYS))
    await save(sidecar, {"key": "text", "value": "t", "contentType": "application/json; charset=utf-8"})
    assert (await sidecar.call("DELETE", f"{S}/order-1")).status == 204
    operations = [
        {"operation": "delete", "request": {"key": "text"}},
        {"operation": "upsert", "request": {"key": "both", "value": [1]}},
    ]
    body = json.dumps({"operations": operations}).encode()
    assert (await sidecar.call("POST", f"{S}/transaction", [JSON], body)).status == 204

    found = {message.subject.removeprefix(f"{ROOT}."): message for message in await messages(client)}
    assert found.keys() == {*KEYS.values(), "text", "both"}
    for token, message in found.items():
        seen = event(message)
        deleted = token in ("order-1", "text")
        assert seen.get_type() == (DELETED if deleted else SET)
        assert seen.get_source() == "/mesh/default/state/shop"
        assert seen.get_subject() == f"state.statestore.{token}"
        assert seen.get_id() == (message.headers or {})["Nats-Msg-Id"]
        assert not (deleted and message.data)
    for key, token in KEYS.items():
        if key == "order-1":
            continue
        assert event(found[token]).get_data() == {"key": key}
        etag = (await read(sidecar, key)).headers["etag"]
        assert found[token].metadata.sequence.stream == int(etag)
    assert event(found["both"]).get_data() == [1]


async def test_the_content_type_and_the_lifetime_of_a_value(shop: tuple[Sidecar, Client]) -> None:
    sidecar, client = shop
    item = {"key": "a", "value": "t", "contentType": "text/plain; charset=utf-8", "metadata": {"ttlInSeconds": "1"}}
    await save(sidecar, item)
    stream = client.jetstream()
    stored = await stream.get_last_msg(STREAM, f"{ROOT}.a")
    assert stored.headers
    assert stored.headers["ce-datacontenttype"].replace("%20", " ") == "text/plain; charset=utf-8"
    assert stored.headers["Nats-TTL"] in ("1", "1s")
    async with asyncio.timeout(30):
        while "Nats-Marker-Reason" not in ((await stream.get_last_msg(STREAM, f"{ROOT}.a")).headers or {}):
            await asyncio.sleep(0.05)
    assert (await read(sidecar, "a")).status == 204


async def test_what_others_write_is_read(shop: tuple[Sidecar, Client]) -> None:
    sidecar, client = shop
    await save(sidecar, {"key": "first", "value": 0})  # the first write makes the stream
    stream = client.jetstream()

    bare = await stream.publish(f"{ROOT}.bare", b'{"n":1}')
    answer = await read(sidecar, "bare")
    assert (answer.status, answer.json, answer.headers["etag"]) == (200, {"n": 1}, str(bare.seq))

    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/mesh/default/state/shop", "ce-type": SET}
    headers |= {"ce-subject": "state.statestore.a%252Eb", "ce-datacontenttype": "application/json"}
    await stream.publish(f"{ROOT}.a%2Eb", b"[1]", headers=headers)
    assert (await read(sidecar, "a.b")).json == [1]

    # a sidecar that has the value in memory learns of the next one
    assert (await sidecar.call("GET", f"{S}/bare")).json == {"n": 1}
    expected = {"Nats-Expected-Last-Subject-Sequence": str(bare.seq)}
    newer = await stream.publish(f"{ROOT}.bare", b'{"n":2}', headers=expected)
    async with asyncio.timeout(30):
        while (await sidecar.call("GET", f"{S}/bare")).json != {"n": 2}:
            await asyncio.sleep(0.01)
    with pytest.raises(APIError):
        await stream.publish(f"{ROOT}.bare", b'{"n":3}', headers=expected)
    body = json.dumps([{"key": "bare", "value": 4, "etag": str(bare.seq)}]).encode()
    assert (await sidecar.call("POST", S, [JSON], body)).status == 409
    await save(sidecar, {"key": "bare", "value": 5, "etag": str(newer.seq)})

    await stream.publish(f"{ROOT}.bare", b"", headers=headers | {"ce-type": DELETED})
    assert (await read(sidecar, "bare")).status == 204
    page = (await sidecar.call("GET", "/mesh/v1/state/statestore")).json
    assert {item["key"] for item in page["items"]} == {"first", "a.b"}


async def test_what_others_write_elsewhere_is_no_item(shop: tuple[Sidecar, Client]) -> None:
    """No key has these addresses: they would stand beside those of `x` in lists, or could not be read."""
    sidecar, client = shop
    await save(sidecar, {"key": "x", "value": 1}, {"key": "a.b", "value": 2})
    for token in ("q.x", "%78", "a%2eb", "a~"):
        await client.jetstream().publish(f"{ROOT}.{token}", b'"a stranger"')
    items = (await sidecar.call("GET", "/mesh/v1/state/statestore")).json["items"]
    assert sorted((item["key"], item["data"]) for item in items) == [("a.b", 2), ("x", 1)]


async def test_the_newest_value_of_each_key_and_what_comes(shop: tuple[Sidecar, Client]) -> None:
    sidecar, client = shop
    await save(sidecar, {"key": "a", "value": 1}, {"key": "b", "value": 1})
    await save(sidecar, {"key": "a", "value": 2})
    seen: dict[str, object] = {}

    async def note(message: Msg) -> None:
        seen[message.subject.removeprefix(f"{ROOT}.")] = event(message).get_data()

    policy = DeliverPolicy.LAST_PER_SUBJECT
    subscription = await client.jetstream().subscribe(
        f"{ROOT}.>", cb=note, ordered_consumer=True, deliver_policy=policy
    )
    await until(lambda: seen == {"a": 2, "b": 1}, lambda: str(seen))
    await save(sidecar, {"key": "b", "value": 3})
    await until(lambda: seen == {"a": 2, "b": 3}, lambda: str(seen))
    await subscription.unsubscribe()
