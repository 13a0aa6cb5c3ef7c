"""Control of the app's subscriptions over HTTP."""

import asyncio
import json

import pytest

from tests.e2e.mesh import JSON, App

SUBSCRIBED = [{"pubsubname": "pubsub", "topic": "A", "route": "/a"}]


async def act(api, action, topic="A", **members):
    return await api.call(
        "POST", f"/mesh/v1/subscriptions/pubsub/{topic}", [JSON], json.dumps({"action": action, **members}).encode()
    )


async def publish(api, count=1, topic="A"):
    for number in range(count):
        await api.call("POST", f"/v1.0/publish/pubsub/{topic}", [JSON], str(number).encode())


async def test_pause_and_resume(start):
    async with App(SUBSCRIBED) as app:
        api = await start(app=app)
        answer = await act(api, "pause")
        assert (answer.status, answer.json["state"]) == (200, "paused")
        await publish(api, 3)
        listed = (await api.call("GET", "/mesh/v1/subscriptions")).json["subscriptions"]
        [replica] = listed[0].pop("replicas")
        assert listed == [
            {
                "pubsubname": "pubsub",
                "topic": "A",
                "state": "paused",
                "plan": {
                    "attempts": None,
                    "timeoutSeconds": 600.0,
                    "concurrency": 64,
                    "order": listed[0]["plan"]["order"],
                },
                "inHand": 0,
                "backlog": {"waiting": 3, "unsettled": 0},
            }
        ]
        assert (replica["inHand"], replica["concurrency"]) == (0, 0)
        assert app.events == []
        assert (await act(api, "resume")).json["state"] == "running"
        await app.got(3)


async def test_drain_tells_when_nothing_is_in_hand(start):
    release = asyncio.Event()

    async def hold(_):
        await release.wait()
        return 200

    async with App(SUBSCRIBED, hold) as app:
        api = await start(app=app)
        await publish(api, 2)
        await app.got(2)
        answer = await act(api, "drain")
        assert (answer.json["state"], answer.json["inHand"]) == ("draining", 2)
        draining = asyncio.create_task(act(api, "drain", waitSeconds=20))
        await asyncio.sleep(0.05)
        release.set()
        answer = await draining
        assert (answer.json["state"], answer.json["inHand"]) == ("drained", 0)
        await publish(api)
        assert (await api.call("GET", "/mesh/v1/subscriptions")).json["subscriptions"][0]["backlog"]["waiting"] == 1
        await act(api, "resume")
        await app.got(3)


async def test_slower_and_fewer_at_once(start):
    async with App(SUBSCRIBED) as app:
        api = await start(app=app)
        answer = await act(api, "limit", rate=20, concurrency=1)
        assert (answer.json["rate"], answer.json["concurrency"]) == (20, 1)
        began = asyncio.get_running_loop().time()
        await publish(api, 12)
        await app.got(12)
        assert asyncio.get_running_loop().time() - began > 0.4
        answer = await act(api, "limit", rate=None, concurrency=None)
        assert "rate" not in answer.json
        assert answer.json["replicas"][0]["concurrency"] == 64


@pytest.mark.parametrize(
    ("target", "body", "status", "code"),
    [
        ("pubsub/A", b"", 400, "ERR_MALFORMED_REQUEST"),
        ("pubsub/A", b'{"action": "stop"}', 400, "ERR_MALFORMED_REQUEST"),
        ("pubsub/A", b'{"action": "limit", "rate": -1}', 400, "ERR_MALFORMED_REQUEST"),
        ("pubsub/A", b" " * 70_000, 400, "ERR_MALFORMED_REQUEST"),
        ("pubsub/A", b'{"action": "drain", "waitSeconds": 1' + 400 * b"0" + b"}", 400, "ERR_MALFORMED_REQUEST"),
        ("pubsub/a%00b", b'{"action": "pause"}', 404, "ERR_SUBSCRIPTION_NOT_FOUND"),
        ("pubsub/%3E", b'{"action": "pause"}', 404, "ERR_SUBSCRIPTION_NOT_FOUND"),
        ("pubsub/" + 3000 * "a", b'{"action": "pause"}', 404, "ERR_SUBSCRIPTION_NOT_FOUND"),
        ("pubsub/A", b'{"action": "pause", "group": "a\\u0000b"}', 404, "ERR_SUBSCRIPTION_NOT_FOUND"),
        ("other/A", b'{"action": "pause"}', 404, "ERR_PUBSUB_NOT_FOUND"),
        ("pubsub/B", b'{"action": "pause"}', 404, "ERR_SUBSCRIPTION_NOT_FOUND"),
        ("pubsub/A", b'{"action": "pause", "group": "g"}', 404, "ERR_SUBSCRIPTION_NOT_FOUND"),
    ],
)
async def test_what_cannot_be_done_is_refused(start, target, body, status, code):
    async with App(SUBSCRIBED) as app:
        api = await start(app=app)
        answer = await api.call("POST", f"/mesh/v1/subscriptions/{target}", [JSON], body)
        assert (answer.status, answer.json["errorCode"]) == (status, code)


async def test_a_sidecar_without_an_app_has_no_subscriptions(start):
    api = await start()
    assert (await api.call("GET", "/mesh/v1/subscriptions")).json == {"subscriptions": []}


async def test_a_group_that_is_pulled_from_can_be_paused(start):
    api = await start()

    async def pull():
        answer = await api.call("POST", "/mesh/v1/pull/pubsub/A", [JSON], b'{"group": "g"}')
        return answer.json["messages"]

    assert await pull() == []
    assert (await act(api, "pause", group="g")).json["state"] == "paused"
    await publish(api)
    assert await pull() == []
    await act(api, "resume", group="g")
    assert len(await pull()) == 1
