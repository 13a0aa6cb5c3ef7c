"""Events that are published later, in a whole sidecar: held, listed, cancelled, delivered."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.api.conftest import Api, Start
from tests.e2e.mesh import JSON, Answer, App

SUBSCRIBED = [{"pubsubname": "pubsub", "topic": "A", "route": "/a"}]
STRUCTURED = ("content-type", "application/cloudevents+json")
EVENT = {"specversion": "1.0", "id": "7", "source": "/shop", "type": "order", "data": {"a": 1}}


def at(seconds: float) -> str:
    return datetime.fromtimestamp(time.time() + seconds, UTC).isoformat().replace("+00:00", "Z")


async def publish(api: Api, query: str, body: Any = None, *headers: tuple[str, str], topic: str = "A") -> Answer:
    sent = json.dumps({"a": 1} if body is None else body).encode()
    return await api.call("POST", f"/v1.0/publish/pubsub/{topic}?{query}", headers or [JSON], sent)


async def listed(api: Api, query: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await api.call("GET", f"/mesh/v1/scheduled{query}")).json["scheduled"]
    return found


async def test_delivered_at_its_time_and_not_before(start: Start) -> None:
    async with App(SUBSCRIBED) as app:
        api = await start(app=app)
        trace = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        began = time.time()
        held = await publish(api, "metadata.deliverAfter=700ms&metadata.partitionKey=k", EVENT, STRUCTURED, trace)
        assert (held.status, held.body, held.headers["meshwire-scheduled"]) == (204, b"", "pubsub/A/7")
        (row,) = await listed(api)
        assert (row["name"], row["id"], row["source"], row["type"]) == ("pubsub/A/7", "7", "/shop", "order")
        assert "occurrence" not in row
        (got,) = await app.got(1)
        assert time.time() - began >= 0.7
        event = json.loads(got.body)
        assert (event["id"], event["source"], event["data"]) == ("7", "/shop", {"a": 1})
        assert event["traceparent"] == trace[1]
        assert got.headers["traceparent"][3:35] == trace[1][3:35]
        async with asyncio.timeout(5):
            while await listed(api):
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("mode", ["envelope", "binary", "raw", "ingress"])
async def test_in_every_mode(start: Start, mode: str) -> None:
    async with App([{**SUBSCRIBED[0], "metadata": {"rawPayload": str(mode == "raw").lower()}}]) as app:
        api = await start(app=app)
        binary = [("ce-specversion", "1.0"), ("ce-id", "7"), ("ce-source", "/s"), ("ce-type", "t"), JSON]
        if mode == "ingress":
            path = f"/mesh/v1/events/pubsub/A?deliverAt={at(0.2).replace('+', '%2B')}&access_token=x"
            answer = await api.call("POST", path, binary, b'{"a": 1}')
            assert (answer.status, answer.headers["meshwire-scheduled"]) == (202, "pubsub/A/7")
        else:
            query = f"metadata.deliverAt={at(0.2)}" + ("&metadata.rawPayload=true" if mode == "raw" else "")
            assert (await publish(api, query, None, *(binary if mode == "binary" else ()))).status == 204
        (got,) = await app.got(1)
        event = json.loads(got.body)
        if mode == "raw":
            assert event["data_base64"] == "eyJhIjogMX0="
        else:
            assert event["data"] == {"a": 1}


async def test_one_that_is_published_again_takes_the_place_of_the_first(start: Start) -> None:
    async with App(SUBSCRIBED) as app:
        api = await start(app=app)
        for after in ("1h", "2h", "300ms"):
            await publish(api, f"metadata.deliverAfter={after}", EVENT, STRUCTURED)
            assert len(await listed(api)) == 1
        other = {**EVENT, "source": "/other"}
        await publish(api, "metadata.deliverAfter=1h", other, STRUCTURED)
        assert len(await listed(api)) == 2
        (got,) = await app.got(1)
        assert json.loads(got.body)["source"] == "/shop"
        assert [row["source"] for row in await listed(api)] == ["/other"]


async def test_a_time_that_has_passed_is_now_and_what_comes_twice_is_delivered_once(start: Start) -> None:
    async with App(SUBSCRIBED) as app:
        api = await start(app=app)
        moment = at(-60)
        for _ in range(2):
            assert (await publish(api, f"metadata.deliverAt={moment}", EVENT, STRUCTURED)).status == 204
            await app.got(1)
            async with asyncio.timeout(5):
                while await listed(api):
                    await asyncio.sleep(0.01)
        await publish(api, "", {**EVENT, "id": "8"}, STRUCTURED)
        assert [json.loads(got.body)["id"] for got in await app.got(2)] == ["7", "8"]


async def test_a_series_of_events_of_their_own(start: Start) -> None:
    async with App(SUBSCRIBED) as app:
        api = await start(app=app)
        query = "metadata.deliverAfter=0s&metadata.deliverEvery=@every%201s&metadata.deliverTimes=2&metadata.ttl=1h"
        assert (await publish(api, query, EVENT, STRUCTURED)).status == 204
        (row,) = await listed(api)
        assert (row["deliverEvery"], row["deliverTimes"]) == ("@every 1s", 2)
        first, second = [json.loads(got.body) for got in await app.got(2)]
        assert first["id"] == f"7@{first['time']}"
        assert second["id"] == f"7@{second['time']}"
        due = datetime.fromisoformat(first["time"])
        assert (datetime.fromisoformat(second["time"]) - due).total_seconds() == 1
        assert (datetime.fromisoformat(first["expiration"]) - due).total_seconds() == 3600
        async with asyncio.timeout(5):
            while await listed(api):
                await asyncio.sleep(0.01)


async def test_a_ttl_counts_from_the_time_of_delivery(start: Start) -> None:
    async with App(SUBSCRIBED) as app:
        api = await start(app=app)
        await publish(api, "metadata.deliverAfter=1s&metadata.ttlInSeconds=1")
        (got,) = await app.got(1)
        event = json.loads(got.body)
        assert datetime.fromisoformat(event["expiration"]) > datetime.fromisoformat(event["time"])


async def test_listed_shown_and_cancelled(start: Start) -> None:
    async with App([*SUBSCRIBED, {"pubsubname": "pubsub", "topic": "a/b", "route": "/b"}]) as app:
        api = await start(app=app)
        await publish(api, f"metadata.deliverAt={at(3600)}", EVENT, STRUCTURED)
        odd = {**EVENT, "id": "a/b c", "source": "/é"}
        held = await publish(api, f"metadata.deliverAt={at(3600)}", odd, STRUCTURED, topic="a%2Fb")
        name = held.headers["meshwire-scheduled"]
        assert name == "pubsub/a%2Fb/a%2Fb%20c"
        assert [row["id"] for row in await listed(api, "?pubsub=pubsub&topic=A")] == ["7"]
        assert [row["name"] for row in await listed(api, "?pubsub=pubsub&topic=a/b")] == [name]
        page = (await api.call("GET", "/mesh/v1/scheduled?limit=1")).json
        rest = (await api.call("GET", f"/mesh/v1/scheduled?limit=1&cursor={page['cursor']}")).json
        assert {page["scheduled"][0]["id"], rest["scheduled"][0]["id"]} == {"7", "a/b c"}
        (shown,) = (await api.call("GET", f"/mesh/v1/scheduled/{name}")).json["scheduled"]
        assert shown["event"]["data"] == {"a": 1}
        assert (await api.call("DELETE", f"/mesh/v1/scheduled/{name}?source=/other")).status == 404
        assert (await api.call("DELETE", f"/mesh/v1/scheduled/{name}?source=/%C3%A9")).status == 204
        assert (await api.call("DELETE", f"/mesh/v1/scheduled/{name}")).status == 404
        gone = await api.call("GET", f"/mesh/v1/scheduled/{name}")
        assert (gone.status, gone.json["errorCode"]) == (404, "ERR_SCHEDULED_NOT_FOUND")
        assert (await api.call("DELETE", "/mesh/v1/scheduled/pubsub/A/7")).status == 204
        assert await listed(api) == []


async def test_bulk_each_at_its_own_time(start: Start) -> None:
    async with App(SUBSCRIBED) as app:
        api = await start(app=app)
        entries = [
            {"entryId": "1", "event": 1, "contentType": "application/json", "metadata": {"deliverAfter": "600ms"}},
            {"entryId": "2", "event": 2, "contentType": "application/json", "metadata": {"deliverAfter": "300ms"}},
            {"entryId": "3", "event": 3, "contentType": "application/json"},
        ]
        answer = await api.call("POST", "/v1.0/publish/bulk/pubsub/A", [JSON], json.dumps(entries).encode())
        assert answer.status == 204
        assert [json.loads(got.body)["data"] for got in await app.got(3)] == [3, 2, 1]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("deliverAt=tomorrow", "deliverAt: must be a time such as"),
        ("deliverAt=1h", "deliverAt: must be a time such as"),
        ("deliverAt=2030-02-30T08:00:00Z", "deliverAt: must be a date and time that exist"),
        ("deliverAfter=soon", "deliverAfter: must be a time such as"),
        ("deliverAfter=2030-01-31T08:00:00Z", "deliverAfter: must be a duration"),
        ("deliverAt=2030-01-31T08:00:00Z&{}deliverAfter=1h", "contradict"),
        ("deliverEvery=nonsense", "deliverEvery: must have six fields"),
        ("deliverEvery=@every%20100ms", "deliverEvery: must be 1s at least"),
        ("deliverTimes=3", "deliverTimes needs deliverEvery"),
        ("deliverAfter=1h&{}deliverTimes=3", "deliverTimes needs deliverEvery"),
        ("deliverEvery=@daily&{}deliverTimes=0", "deliverTimes: must be an integer from 1"),
        ("deliverEvery=@daily&{}deliverUntil=2000-01-01T00:00:00Z", "never be delivered"),
    ],
)
async def test_bad_times(api: Api, query: str, text: str) -> None:
    for answer in (
        await publish(api, "metadata." + query.format("metadata."), EVENT, STRUCTURED),
        await api.call(
            "POST", f"/mesh/v1/events/pubsub/A?{query.format('')}", [STRUCTURED], json.dumps(EVENT).encode()
        ),
    ):
        assert (answer.status, answer.json["errorCode"]) == (400, "ERR_DELIVERY_TIME")
        assert text in answer.json["message"]
    assert await listed(api) == []


async def test_nothing_of_a_batch_is_held_when_one_cannot_be(api: Api) -> None:
    late = {**EVENT, "id": "8", "expirytime": at(60)}
    batch = ("content-type", "application/cloudevents-batch+json")
    path = "/mesh/v1/events/pubsub/A?deliverAfter=1h"
    answer = await api.call("POST", path, [batch], json.dumps([EVENT, late]).encode())
    assert (answer.status, answer.json["errorCode"]) == (400, "ERR_DELIVERY_TIME")
    assert "expired before it is delivered" in answer.json["message"]
    long = {**EVENT, "id": "x" * 600}
    answer = await api.call("POST", path, [batch], json.dumps([EVENT, long]).encode())
    assert "at most 512 bytes" in answer.json["message"]
    assert await listed(api) == []


async def test_dapr_names_count_in_any_case_and_unknown_components_are_refused(api: Api) -> None:
    assert (await publish(api, "metadata.DELIVERAFTER=1h", EVENT, STRUCTURED)).status == 204
    assert len(await listed(api)) == 1
    answer = await api.call("POST", "/v1.0/publish/none/A?metadata.deliverAfter=1h", [JSON], b"{}")
    assert answer.status == 404
    assert (await api.call("GET", "/mesh/v1/scheduled?topic=A")).status == 400
    assert (await api.call("GET", "/mesh/v1/scheduled?cursor=nonsense")).status == 400
