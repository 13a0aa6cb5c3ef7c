"""Actors, by Dapr's routes: a sidecar with an app that hosts them, on the broker in memory."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mesh.actors import timers
from tests.actor_app import ActorApp
from tests.api.conftest import Api, Start
from tests.e2e.mesh import JSON, Reply, Request
from tests.ports import free_port

Hosts = Callable[..., Awaitable[tuple[Api, ActorApp]]]


@pytest.fixture
async def hosts(start: Start) -> Any:
    """Starts a sidecar with an app that hosts `Cart`, and waits until it owns all of its actors."""
    apps: list[ActorApp] = []

    async def begin(*flags: str, **config: object) -> tuple[Api, ActorApp]:
        app = ActorApp(**config)
        apps.append(await app.__aenter__())
        api = await start(*flags, app=app)
        async with asyncio.timeout(20):
            while True:
                told = (await api.call("GET", "/mesh/v1/actors")).json["types"]
                if sum(len(host["partitions"]) for one in told for host in one["hosts"]) == 64:
                    return api, app
                await asyncio.sleep(0.01)

    yield begin
    for app in apps:
        await app.close()


CART = "/v1.0/actors/Cart/7"


async def save(api: Api, *operations: object, actor: str = CART) -> Any:
    return await api.call("POST", f"{actor}/state", [JSON], json.dumps(operations).encode())


def upsert(key: str, value: object, **more: object) -> object:
    return {"operation": "upsert", "request": {"key": key, "value": value, **more}}


async def test_a_call_reaches_the_app_as_a_put_with_all_that_was_sent(hosts: Hosts) -> None:
    api, app = await hosts()
    app.methods["add"] = lambda request: (200, request.body + b"!")
    answer = await api.call(
        "GET", f"{CART}/method/add?n=1", [("x-own", "a"), ("dapr-x", "b"), ("Meshwire-Fence", "0")], b"milk"
    )
    assert (answer.status, answer.body) == (200, b"milk!")
    [call] = app.called("/actors/Cart/7/method/add?n=1")
    assert call.method == "PUT"
    assert call.headers["x-own"] == "a"
    assert call.headers["dapr-api-call"] == "true"
    assert call.headers["dapr-caller-app-id"] == "app1"
    assert "dapr-x" not in call.headers
    assert int(call.headers["meshwire-fence"]) > 0
    assert "dapr-reentrancy-id" not in call.headers


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (404, "error invoke actor method: actor method not found: actors/Cart/7/method/m"),
        ((201, b"made"), "error invoke actor method: error from actor service: (201) made"),
        ((204, b""), "error invoke actor method: error from actor service: (204) "),
        ((500, b"no"), "error invoke actor method: error from actor service: (500) no"),
    ],
)
async def test_only_200_is_a_success(hosts: Hosts, reply: Reply, text: str) -> None:
    api, app = await hosts()
    app.methods["m"] = lambda _: reply
    answer = await api.call("POST", f"{CART}/method/m")
    assert (answer.status, answer.json) == (500, {"errorCode": "ERR_ACTOR_INVOKE_METHOD", "message": text})


async def test_one_turn_at_a_time_for_each_actor_in_the_order_of_calls(hosts: Hosts) -> None:
    api, app = await hosts()
    seen: list[bytes] = []

    async def slow(request: Request) -> Reply:
        seen.append(request.body)
        await asyncio.sleep(0.01)
        return 200, b""

    app.methods["slow"] = slow
    calls = []
    for number in range(8):
        calls.append(asyncio.ensure_future(api.call("POST", f"{CART}/method/slow", (), b"%d" % number)))
        await asyncio.sleep(0.005)
    others = [api.call("POST", f"/v1.0/actors/Cart/o{number}/method/slow") for number in range(8)]
    assert {answer.status for answer in await asyncio.gather(*calls, *others)} == {200}
    assert [body for body in seen if body] == [b"%d" % number for number in range(8)]
    assert app.overlaps == 1


async def test_a_turn_that_does_not_end_blocks_its_actor_only_and_does_not_end_with_its_caller(hosts: Hosts) -> None:
    api, app = await hosts()
    end = asyncio.Event()

    async def hang(_request: Request) -> Reply:
        await end.wait()
        return 200, b""

    app.methods["hang"] = hang
    stuck = asyncio.ensure_future(api.call("POST", f"{CART}/method/hang"))
    await app.until("/method/hang")
    waiting = asyncio.ensure_future(api.call("POST", f"{CART}/method/next"))
    assert (await api.call("POST", "/v1.0/actors/Cart/8/method/other")).status == 200
    assert not app.called("/7/method/next")
    stuck.cancel()
    assert (await api.call("POST", "/v1.0/actors/Cart/8/method/other")).status == 200
    assert not app.called("/7/method/next")
    end.set()
    assert (await asyncio.wait_for(waiting, 10)).status == 200
    assert app.overlaps == 1


async def test_reentrant_calls_enter_up_to_a_depth(hosts: Hosts) -> None:
    api, app = await hosts(reentrancy={"enabled": True, "maxStackDepth": 3})

    async def nest(request: Request) -> Reply:
        again = [("dapr-reentrancy-id", request.headers["dapr-reentrancy-id"])]
        answer = await api.call("POST", f"{CART}/method/nest", again)
        return 200, b"in " + answer.body

    app.methods["nest"] = nest
    answer = await api.call("POST", f"{CART}/method/nest")
    assert answer.body.startswith(b"in in in ")
    assert b"ERR_ACTOR_STACK_DEPTH" in answer.body
    assert len(app.called("nest")) == 3


@pytest.mark.parametrize(
    "path", ["a%23b/i/method/m", "T/a%3Fb/method/m", "T/i%2Fj/method/m", "T/i/method/a%3Fb", "T/%5C/method/m"]
)
async def test_names_that_none_can_have_are_refused(hosts: Hosts, path: str) -> None:
    api, _ = await hosts()
    answer = await api.call("POST", f"/v1.0/actors/{path}")
    assert (answer.status, answer.json["errorCode"]) == (400, "ERR_BAD_REQUEST")


@pytest.mark.parametrize("actor", ["a%7C%7Cb", "a%40b", "%C3%A9", "a%2520b", "x.y"])
async def test_odd_ids_reach_the_app_whole(hosts: Hosts, actor: str) -> None:
    api, app = await hosts()
    app.methods["a/b"] = lambda _: (200, b"ok")
    assert (await api.call("POST", f"/v1.0/actors/Cart/{actor}/method/a%2F..%2Fa%2F%2Fb")).body == b"ok"
    assert (await save(api, upsert("k", actor), actor=f"/v1.0/actors/Cart/{actor}")).status == 204
    answer = await api.call("GET", f"/v1.0/actors/Cart/{actor}/state/k")
    assert answer.json == actor


async def test_a_type_that_nobody_hosts(hosts: Hosts) -> None:
    api, _ = await hosts()
    begun = time.monotonic()
    answer = await api.call("POST", "/v1.0/actors/Nobody/1/method/m")
    assert (answer.status, answer.json["errorCode"]) == (500, "ERR_ACTOR_INVOKE_METHOD")
    assert "did not find address for actor 'Nobody/1'" in answer.json["message"]
    assert time.monotonic() - begun > 4


# State


async def test_state_is_kept_by_transactions_of_active_actors(hosts: Hosts) -> None:
    api, _ = await hosts()
    refused = await save(api, upsert("a", 1))
    assert (refused.status, refused.json["errorCode"]) == (400, "ERR_ACTOR_INSTANCE_MISSING")
    await api.call("POST", f"{CART}/method/wake")
    assert (await save(api, upsert("a", {"n": 1}), upsert("b", 2))).status == 204
    answer = await api.call("GET", f"{CART}/state/a")
    assert (answer.status, answer.body, answer.headers.get("etag")) == (200, b'{"n": 1}', None)
    assert answer.headers["content-type"] == "application/json"
    assert (await save(api, {"operation": "delete", "request": {"key": "a"}})).status == 204
    assert (await api.call("GET", f"{CART}/state/a")).status == 204
    assert (await api.call("GET", f"{CART}/state/b")).body == b"2"
    assert (await api.call("GET", "/v1.0/actors/Cart/8/state/b")).status == 204
    assert (await api.call("GET", "/v1.0/actors/Other/7/state/b")).status == 204


@pytest.mark.parametrize(
    "bad",
    [
        {"operation": "burn", "request": {"key": "a"}},
        {"operation": "upsert", "request": {"value": 1}},
        {"operation": "upsert"},
        {"operation": "upsert", "request": {"key": "a", "value": 1, "metadata": {"ttlInSeconds": "0"}}},
        {"operation": "upsert", "request": {"key": "a", "value": 1, "metadata": {"ttlInSeconds": "soon"}}},
        {"operation": "upsert", "request": {"key": "a", "value": 1, "etag": "9999999"}},
    ],
)
async def test_all_of_a_transaction_or_nothing(hosts: Hosts, bad: object) -> None:
    api, _ = await hosts()
    await api.call("POST", f"{CART}/method/wake")
    answer = await save(api, upsert("good", 1), bad)
    assert (answer.status, answer.json["errorCode"]) == (500, "ERR_ACTOR_STATE_TRANSACTION_SAVE")
    assert (await api.call("GET", f"{CART}/state/good")).status == 204


async def test_items_expire(hosts: Hosts) -> None:
    api, _ = await hosts()
    await api.call("POST", f"{CART}/method/wake")
    assert (await save(api, upsert("a", 1, metadata={"ttlInSeconds": "60"}))).status == 204
    answer = await api.call("GET", f"{CART}/state/a")
    assert answer.headers["metadata.ttlexpiretime"].endswith("Z")


async def test_bodies_that_are_no_transaction(hosts: Hosts) -> None:
    api, _ = await hosts()
    for body in (b"", b"{}", b"[1]", b"[", b'[{"operation": 1}]'):
        answer = await api.call("POST", f"{CART}/state", [JSON], body)
        assert (answer.status, answer.json["errorCode"]) == (400, "ERR_MALFORMED_REQUEST"), body
    answer = await api.call("POST", "/v1.0/actors/dapr.internal.x/1/state", [JSON], b"[]")
    assert (answer.status, answer.json["errorCode"]) == (403, "ERR_ACTOR_TYPE_RESERVED")


# Idle actors


async def test_idle_actors_are_deactivated_and_come_back(hosts: Hosts) -> None:
    api, app = await hosts(actorIdleTimeout="300ms")
    await api.call("POST", f"{CART}/method/wake")
    metadata = (await api.call("GET", "/v1.0/metadata")).json
    assert metadata["actorRuntime"]["activeActors"] == metadata["actors"] == [{"type": "Cart", "count": 1}]
    assert metadata["actorRuntime"]["runtimeStatus"] == "RUNNING"
    async with asyncio.timeout(10):
        while not [call for call in app.calls if (call.method, call.path) == ("DELETE", "/actors/Cart/7")]:
            await asyncio.sleep(0.01)
        while (await api.call("GET", "/v1.0/metadata")).json["actorRuntime"]["activeActors"] != [{"type": "Cart"}]:
            await asyncio.sleep(0.01)
    assert (await api.call("POST", f"{CART}/method/wake")).status == 200


async def test_the_end_of_the_sidecar_deactivates_its_actors(hosts: Hosts) -> None:
    api, app = await hosts()
    await api.call("POST", f"{CART}/method/wake")
    await api.stop()
    assert ("DELETE", "/actors/Cart/7") in [(call.method, call.path) for call in app.calls]


async def test_an_app_that_is_not_healthy_hosts_nothing_until_it_is_again(hosts: Hosts) -> None:
    probes = ["--enable-app-health-check", "--app-health-probe-interval=1", "--app-health-threshold=1"]
    api, app = await hosts(*probes)
    await api.call("POST", f"{CART}/method/wake")
    assert (await save(api, upsert("k", 1))).status == 204
    app.methods["/healthz"] = lambda _: 500
    async with asyncio.timeout(10):
        while (await api.call("GET", "/mesh/v1/actors")).json["types"]:
            await asyncio.sleep(0.02)
    assert ("DELETE", "/actors/Cart/7") in [(call.method, call.path) for call in app.calls]
    call = asyncio.ensure_future(api.call("POST", f"{CART}/method/again"))
    await asyncio.sleep(0.1)
    assert not call.done()
    # the type is the app's all the same, as it is while hosting begins
    assert (await api.call("GET", f"{CART}/state/k")).json == 1
    for what in ("timers", "reminders"):
        assert (await api.call("POST", f"{CART}/{what}/n", [JSON], b'{"dueTime": "1h"}')).status == 204
    del app.methods["/healthz"]
    assert (await asyncio.wait_for(call, 10)).status == 200


# Timers


async def test_a_timer_ticks_as_often_as_it_says(hosts: Hosts) -> None:
    api, app = await hosts()
    body = {"dueTime": "10ms", "period": "R3/PT1S", "data": {"a": 1}, "callback": "cb"}
    body["period"] = "50ms"
    answer = await api.call("POST", f"{CART}/timers/t", [JSON], json.dumps(body | {"ttl": "120ms"}).encode())
    assert answer.status == 204, answer
    ticks = await app.until("/actors/Cart/7/method/timer/t", 3)
    assert json.loads(ticks[0].body) == {"callback": "cb", "data": {"a": 1}, "dueTime": "10ms", "period": "50ms"}
    await asyncio.sleep(0.15)
    assert len(app.called("timer/t")) == 3


async def test_timers_can_be_replaced_and_deleted(hosts: Hosts) -> None:
    api, app = await hosts()
    await api.call("POST", f"{CART}/timers/t", [JSON], b'{"dueTime": "1h"}')
    assert (await api.call("PUT", f"{CART}/timers/t", [JSON], b'{"period": "20ms"}')).status == 204
    await app.until("timer/t", 2)
    assert (await api.call("DELETE", f"{CART}/timers/t")).status == 204
    await asyncio.sleep(0.05)
    count = len(app.called("timer/t"))
    await asyncio.sleep(0.1)
    assert len(app.called("timer/t")) == count
    assert (await api.call("DELETE", f"{CART}/timers/none")).status == 204


@pytest.mark.parametrize(
    ("what", "body", "status", "code"),
    [
        ("timers", b"{", 400, "ERR_MALFORMED_REQUEST"),
        ("timers", b'{"dueTime": "soon"}', 500, "ERR_ACTOR_TIMER_CREATE"),
        ("timers", b'{"period": "R0/PT1S"}', 500, "ERR_ACTOR_TIMER_CREATE"),
        ("timers", b'{"period": "1ns"}', 500, "ERR_ACTOR_TIMER_CREATE"),
        ("timers", b'{"period": "1s", "ttl": "2001-01-01T00:00:00Z"}', 500, "ERR_ACTOR_TIMER_CREATE"),
        ("timers", b'{"period": "* * * * * *"}', 500, "ERR_ACTOR_TIMER_CREATE"),
        ("timers", b'{"period": "R/PT1S"}', 500, "ERR_ACTOR_TIMER_CREATE"),
        ("timers", b'{"period": "1e99h"}', 500, "ERR_ACTOR_TIMER_CREATE"),
        ("timers", b'{"dueTime": 5}', 400, "ERR_MALFORMED_REQUEST"),
        ("timers", b'[{"dueTime": "1s"}]', 400, "ERR_MALFORMED_REQUEST"),
        ("timers", b'{"data": "\xff"}', 400, "ERR_MALFORMED_REQUEST"),
        ("reminders", b"", 400, "ERR_MALFORMED_REQUEST"),
        ("reminders", b"{}", 500, "ERR_ACTOR_REMINDER_CREATE"),
        ("reminders", b'{"dueTime": "R3/PT1S"}', 500, "ERR_ACTOR_REMINDER_CREATE"),
        ("reminders", b'{"period": "P1W"}', 500, "ERR_ACTOR_REMINDER_CREATE"),
        ("reminders", b'{"period": "@every soon"}', 500, "ERR_ACTOR_REMINDER_CREATE"),
        ("reminders", b'{"period": "61 * * * * *"}', 500, "ERR_ACTOR_REMINDER_CREATE"),
        ("reminders", b'{"period": "99999999999999999999h"}', 500, "ERR_ACTOR_REMINDER_CREATE"),
        ("reminders", b'{"dueTime": "2001-13-01T00:00:00Z"}', 500, "ERR_ACTOR_REMINDER_CREATE"),
        (
            "reminders",
            b'{"dueTime": "1s", "period": "1s", "ttl": "2001-01-01T00:00:00Z"}',
            500,
            "ERR_ACTOR_REMINDER_CREATE",
        ),
        ("reminders", b'{"dueTime": "5s", "ttl": "9s"}', 500, "ERR_ACTOR_REMINDER_CREATE"),
        ("reminders", b'{"dueTime": "5s", "period": "1s", "ttl": "-1s"}', 500, "ERR_ACTOR_REMINDER_CREATE"),
    ],
)
async def test_schedules_that_cannot_be(hosts: Hosts, what: str, body: bytes, status: int, code: str) -> None:
    api, _ = await hosts()
    answer = await api.call("POST", f"{CART}/{what}/n", [JSON], body)
    assert (answer.status, answer.json["errorCode"]) == (status, code)


@pytest.mark.parametrize("what", ["timers", "reminders"])
async def test_what_is_deleted_is_said_by_the_path_alone(hosts: Hosts, what: str) -> None:
    api, _ = await hosts()
    url = f"{CART}/{what}/n"
    assert (await api.call("POST", url, [JSON], b'{"dueTime": "1h"}')).status == 204
    for body in (b"{", b'"\xff"'):
        answer = await api.call("DELETE", url, [JSON], body)
        assert (answer.status, answer.json["errorCode"]) == (400, "ERR_MALFORMED_REQUEST"), body
    assert (await api.call("DELETE", url, [JSON], b'{"name": "other"}')).status == 204
    answer = await api.call("DELETE", f"{CART}/{what}/a%2Fb")
    assert (answer.status, answer.json["errorCode"]) == (400, "ERR_BAD_REQUEST")


async def test_timers_have_a_bound(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused leaves nothing behind, and what ends makes room."""
    monkeypatch.setattr(timers, "MAX_TIMERS", 3)
    api, app = await hosts()
    later = b'{"dueTime": "1h"}'
    for number in range(3):
        assert (await api.call("POST", f"{CART}/timers/t{number}", [JSON], later)).status == 204
    for number in range(3, 50):
        answer = await api.call("POST", f"{CART}/timers/t{number}", [JSON], b'{"dueTime": "0s"}')
        assert (answer.status, answer.json["errorCode"]) == (500, "ERR_ACTOR_TIMER_CREATE")
        assert "this sidecar has 3 timers already" in answer.json["message"]
    assert (await api.call("POST", f"{CART}/timers/t0", [JSON], later)).status == 204  # in place of itself
    assert (await api.call("DELETE", f"{CART}/timers/t0")).status == 204
    assert (await api.call("POST", f"{CART}/timers/new", [JSON], b'{"dueTime": "0s"}')).status == 204
    await app.until("timer/new")
    async with asyncio.timeout(10):
        while (await api.call("POST", f"{CART}/timers/last", [JSON], later)).status != 204:
            await asyncio.sleep(0.01)
    assert not app.called("timer/t3")


async def test_the_data_of_timers_has_a_bound(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "MAX_BYTES", 1000)
    api, _ = await hosts()

    async def create(name: str, size: int) -> int:
        body = json.dumps({"dueTime": "1h", "data": "x" * size}).encode()
        answer = await api.call("POST", f"{CART}/timers/{name}", [JSON], body)
        assert answer.status == 204 or "1000 bytes at most" in answer.json["message"]
        return answer.status

    for _ in range(3):
        assert [await create("a", 500), await create("b", 500), await create("b", 300)] == [204, 500, 204]
        assert await create("a", 600) == 500
        assert (await api.call("DELETE", f"{CART}/timers/a")).status == 204
        assert await create("b", 800) == 204  # in place of itself
        assert (await api.call("DELETE", f"{CART}/timers/b")).status == 204


async def test_a_turn_without_end_is_ended_by_the_timeout_of_a_policy(hosts: Hosts, tmp_path: Path) -> None:
    tmp_path.joinpath("resiliency.yaml").write_text(
        "apiVersion: dapr.io/v1alpha1\nkind: Resiliency\nmetadata: {name: limits}\n"
        "spec: {policies: {timeouts: {turn: 200ms}}, targets: {actors: {Cart: {timeout: turn}}}}\n"
    )
    api, app = await hosts(f"--resources-path={tmp_path}")

    async def hang(_request: Request) -> Reply:
        await asyncio.Event().wait()
        return 200, b""

    app.methods["hang"] = hang
    stuck = asyncio.ensure_future(api.call("POST", f"{CART}/method/hang"))
    await app.until("/method/hang")
    waiting = asyncio.ensure_future(api.call("POST", f"{CART}/method/next"))
    answer = await asyncio.wait_for(stuck, 10)
    assert (answer.status, answer.json["errorCode"]) == (500, "ERR_ACTOR_INVOKE_METHOD")
    assert "deadline exceeded" in answer.json["message"]
    assert (await asyncio.wait_for(waiting, 10)).status == 200


async def test_only_hosted_types_have_timers_and_reminders(hosts: Hosts) -> None:
    api, _ = await hosts()
    other = "/v1.0/actors/Other/1"
    answer = await api.call("POST", f"{other}/timers/n", [JSON], b'{"dueTime": "1s"}')
    assert (answer.status, answer.json["errorCode"]) == (500, "ERR_ACTOR_TIMER_CREATE")
    assert answer.json["message"].endswith("actor type not registered")
    for method, body in (("POST", b'{"dueTime": "1s"}'), ("GET", b""), ("DELETE", b"")):
        answer = await api.call(method, f"{other}/reminders/n", [JSON], body)
        assert (answer.status, answer.json["errorCode"]) == (403, "ERR_ACTOR_REMINDER_NON_HOSTED")


# Reminders


async def test_a_reminder_fires_and_can_be_seen(hosts: Hosts) -> None:
    api, app = await hosts()
    body = b'{"dueTime": "200ms", "period": "R2/PT1S", "data": [1.50]}'
    assert (await api.call("POST", f"{CART}/reminders/r", [JSON], body)).status == 204
    answer = await api.call("GET", f"{CART}/reminders/r")
    assert answer.json == {
        "actorID": "7",
        "actorType": "Cart",
        "data": [1.5],
        "dueTime": "200ms",
        "period": "@every 1s",
    }
    listed = (await api.call("GET", "/mesh/v1/actors/Cart/7/reminders")).json["reminders"]
    assert [one["name"] for one in listed] == ["r"]
    ticks = await app.until("/actors/Cart/7/method/remind/r", 2)
    assert ticks[0].body == b'{"dueTime":"","period":"","data":[1.50]}'
    async with asyncio.timeout(10):
        while (await api.call("GET", f"{CART}/reminders/r")).status != 404:
            await asyncio.sleep(0.01)
    assert len(app.called("remind/r")) == 2


async def test_a_reminder_is_replaced_only_where_that_is_wanted(hosts: Hosts) -> None:
    api, _ = await hosts()
    url = f"{CART}/reminders/r"
    assert (await api.call("PUT", url, [JSON], b'{"dueTime": "1h"}')).status == 204
    answer = await api.call("POST", url, [JSON], b'{"dueTime": "2h", "overwrite": false}')
    assert (answer.status, answer.json["errorCode"]) == (409, "ERR_ACTOR_REMINDER_ALREADY_EXISTS")
    assert (await api.call("POST", url, [JSON], b'{"dueTime": "2h"}')).status == 204
    assert (await api.call("GET", url)).json["dueTime"] == "2h"
    assert (await api.call("DELETE", url)).status == (await api.call("DELETE", url)).status == 204
    answer = await api.call("GET", url)
    assert (answer.status, answer.json["errorCode"]) == (404, "ERR_ACTOR_REMINDER_NOT_FOUND")


async def test_a_tick_that_fails_is_tried_four_times(hosts: Hosts, caplog: pytest.LogCaptureFixture) -> None:
    api, app = await hosts()
    app.methods["remind/r"] = lambda _: (500, b"no " * 1000)
    assert (await api.call("POST", f"{CART}/reminders/r", [JSON], b'{"dueTime": "0s"}')).status == 204
    await app.until("remind/r", 4)
    async with asyncio.timeout(10):
        while (await api.call("GET", f"{CART}/reminders/r")).status != 404:
            await asyncio.sleep(0.05)
    assert len(app.called("remind/r")) == 4
    [first, *_] = [line for line in caplog.messages if line.startswith("reminder r of Cart/7, attempt 1: ")]
    assert "attempt 1: error invoke actor method: error from actor service: (500) no no" in first
    assert len(first) < 600


# Topics


async def test_events_wake_the_actor_that_their_key_names(hosts: Hosts) -> None:
    route = {"pubsubname": "pubsub", "topic": "orders", "route": "actor://Cart/ordered"}
    api, app = await hosts(subscribe=[route])
    failures = iter([500])
    app.methods["ordered"] = lambda _: (next(failures, 200), b"")
    for key in ("7", "8"):
        path = f"/v1.0/publish/pubsub/orders?metadata.partitionKey={key}"
        answer = await api.call("POST", path, [JSON], b'{"of": 1}')
        assert answer.status == 204, answer
    calls = await app.until("/method/ordered", 3)
    assert {call.path for call in calls} == {"/actors/Cart/7/method/ordered", "/actors/Cart/8/method/ordered"}
    assert json.loads(calls[0].body)["data"] == {"of": 1}
    assert calls[0].headers["content-type"] == "application/cloudevents+json"


async def test_an_event_without_a_key_wakes_nobody(hosts: Hosts) -> None:
    route = {"pubsubname": "pubsub", "topic": "orders", "route": "actor://Cart/ordered"}
    api, app = await hosts(subscribe=[route])
    assert (await api.call("POST", "/v1.0/publish/pubsub/orders", [JSON], b"{}")).status == 204
    async with asyncio.timeout(10):
        while not (letters := (await api.call("GET", "/mesh/v1/dead-letters")).json["deadLetters"]):
            await asyncio.sleep(0.01)
    assert len(letters) == 1
    assert not app.called("/method/ordered")


# Metrics


async def test_what_actors_do_is_counted(hosts: Hosts) -> None:
    port = free_port()
    api, app = await hosts(f"--metrics-port={port}", actorIdleTimeout="500ms")
    release = asyncio.Event()

    async def held(_request: Request) -> Reply:
        await release.wait()
        return 200, b""

    async def counted() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
        return text

    async def until(*lines: str) -> None:
        text = ""
        try:
            async with asyncio.timeout(10):
                while not all(f"dapr_runtime_actor_{line}" in text for line in lines):
                    await asyncio.sleep(0.02)
                    text = await counted()
        except TimeoutError:
            raise AssertionError(text) from None

    app.methods["held"] = held
    app.methods["timer/bad"] = lambda _: 500
    calls = [asyncio.ensure_future(api.call("POST", f"{CART}/method/held")) for _ in range(3)]
    assert (await api.call("POST", f"{CART}/timers/later", [JSON], b'{"dueTime": "1h"}')).status == 204
    cart = '{app_id="app1",actor_type="Cart"'
    await until(f"pending_actor_calls{cart}}} 3", f"timers{cart}}} 1")
    release.set()
    await asyncio.gather(*calls)
    assert (await api.call("POST", f"{CART}/timers/bad", [JSON], b'{"dueTime": "0s"}')).status == 204
    assert (await api.call("POST", f"{CART}/reminders/r", [JSON], b'{"dueTime": "0s"}')).status == 204
    await until(
        f'timers_fired_total{cart},success="false"}} 1',
        f'reminders_fired_total{cart},success="true"}} 1',
        f"pending_actor_calls{cart}}} 0",
        f"timers{cart}}} 1",
        f"deactivated_total{cart}}} ",
    )
