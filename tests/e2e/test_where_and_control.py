"""On NATS, in processes of their own: the story of an event over two apps, control over two replicas, pull."""

import asyncio
import json
from collections import Counter

import pytest

from tests.e2e.mesh import JSON, App, Mesh

SUBSCRIBED = [{"pubsubname": "pubsub", "topic": "A", "route": "/a"}]
EVENT = ("content-type", "application/cloudevents+json")


@pytest.fixture
async def mesh(tmp_path):
    async with Mesh(tmp_path) as mesh:
        yield mesh


def event(number, **attributes):
    return json.dumps({"specversion": "1.0", "type": "t", "source": "/shop", "id": str(number)} | attributes).encode()


async def act(sidecar, action, **members):
    body = json.dumps({"action": action, **members}).encode()
    answer = await sidecar.call("POST", "/mesh/v1/subscriptions/pubsub/A", [JSON], body)
    assert answer.status == 200, answer
    return answer.json


async def test_a_story_over_two_apps_is_told_by_any_sidecar(mesh):
    answers = iter([503, 200])
    async with App(SUBSCRIBED, lambda _: next(answers)) as billing:
        shop = await mesh.sidecar("shop", MESHWIRE_JOURNAL="full")
        await mesh.sidecar("billing", app=billing, MESHWIRE_JOURNAL="full")
        bystander = await mesh.sidecar("bystander")
        await shop.publish(event(7), EVENT)
        await billing.got(2)
        async with asyncio.timeout(30):
            while True:
                told = (await bystander.call("GET", "/mesh/v1/events/%2Fshop/7")).json
                if [one["state"] for one in told["subscriptions"]] == ["acked"]:
                    break
    assert [(line["app"], line["what"]) for line in told["steps"]] == [
        ("shop", "accepted"),
        ("shop", "stored"),
        ("billing", "attempt"),
        ("billing", "attempt"),
        ("billing", "acked"),
    ]
    assert told["complete"] is True
    assert {line["position"] for line in told["steps"][1:]} == {told["steps"][1]["position"]}


async def test_what_is_set_holds_for_both_replicas_and_over_a_restart(mesh):
    async with App(SUBSCRIBED) as app:
        one = await mesh.sidecar("app", app=app, topics=["A"])
        two = await mesh.sidecar("app", app=app, name="two", topics=["A"])
        assert [len((await act(one, "pause"))["replicas"])] == [2]
        await asyncio.gather(*(two.publish(event(number), EVENT) for number in range(5)))
        await two.end()
        later = await mesh.sidecar("app", app=app, name="later", topics=["A"])
        [told] = (await later.call("GET", "/mesh/v1/subscriptions")).json["subscriptions"]
        assert (told["state"], told["backlog"], told["inHand"]) == ("paused", {"waiting": 5, "unsettled": 0}, 0)
        assert app.events == []
        assert (await act(later, "limit", rate=50))["state"] == "paused"
        await act(later, "resume")
        requests = await app.got(5)
        assert Counter(request.event["id"] for request in requests) == Counter(map(str, range(5)))
        assert (await act(one, "drain", waitSeconds=30))["state"] == "drained"


async def test_pull_by_clients_of_two_sidecars(mesh):
    one, two = await mesh.sidecar("worker"), await mesh.sidecar("worker")

    async def pull(sidecar, **asked):
        answer = await sidecar.call("POST", "/mesh/v1/pull/pubsub/A", [JSON], json.dumps(asked).encode())
        assert answer.status == 200, answer
        return answer.json["messages"]

    async def settle(sidecar, verb, messages, **members):
        body = json.dumps({"lockTokens": [message["lockToken"] for message in messages], **members}).encode()
        return await sidecar.call("POST", f"/mesh/v1/pull:{verb}", [JSON], body)

    assert await pull(one, waitSeconds=1) == []
    for number in range(4):
        await one.publish(event(number), EVENT)
    first = []
    while len(first) < 3:
        first += await pull(one, maxMessages=3 - len(first), waitSeconds=30)
    assert (await settle(two, "ack", first[:1])).status == 409
    assert (await settle(one, "ack", first[:1])).status == 200
    assert (await settle(one, "reject", first[1:2], reason="no")).status == 200
    [fourth] = await pull(two, waitSeconds=30)
    assert {message["event"]["id"] for message in [*first, fourth]} == {"0", "1", "2", "3"}
    assert (await settle(two, "release", [fourth])).status == 200
    await one.end()
    again = []
    while len(again) < 2:
        again += await pull(two, maxMessages=10, waitSeconds=30)
    assert {message["event"]["id"] for message in again} == {first[2]["event"]["id"], fourth["event"]["id"]}
    # What a sidecar released that is gone may have been counted.
    assert next(one["attempt"] for one in again if one["event"]["id"] == fourth["event"]["id"]) == 1
    assert (await settle(two, "ack", again)).status == 200
    [told] = (await two.call("GET", "/mesh/v1/subscriptions")).json["subscriptions"]
    assert (told["inHand"], told["backlog"]["waiting"]) == (0, 0)
    letters = (await two.call("GET", "/mesh/v1/dead-letters")).json["deadLetters"]
    assert [(letter["event"]["id"], letter["reason"]) for letter in letters] == [(first[1]["event"]["id"], "refused")]
