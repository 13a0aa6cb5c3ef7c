"""`/mesh/v1/replays`: stored events once more, marked, by the subscription's rules or to a route, to the end and no
further."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

from tests.e2e.mesh import JSON, App, subscription

ROOT = "/mesh/v1/replays"
ALL = {"topic": "A", "from": {"time": "2020-01-01T00:00:00Z"}}


class Answers:
    def __init__(self):
        self.status = 200

    def __call__(self, request):
        return self.status(request) if callable(self.status) else self.status


@pytest.fixture
async def serving(start):
    answers = Answers()
    asked = [
        subscription("A", metadata={"maxAttempts": "2", "backOffDuration": "1ms", "backOffPolicy": "constant"}),
        subscription("F", filters=[{"exact": {"type": "wanted"}}]),
    ]
    async with App(asked, answers) as app:
        yield await start(app=app), answers


async def ask(api, method, path, body=None, status=200):
    answer = await api.call(method, path, [JSON], b"" if body is None else json.dumps(body).encode())
    assert answer.status == status, answer
    return answer.json


async def publish(api, count, topic="A", *, first=0, **attributes):
    for number in range(first, first + count):
        event = {"specversion": "1.0", "id": str(number), "source": "/s", "type": "t", **attributes}
        headers = [("content-type", "application/cloudevents+json")]
        answer = await api.call("POST", f"/mesh/v1/events/pubsub/{topic}", headers, json.dumps(event).encode())
        assert answer.status == 202


async def over(api, run, query=""):
    async with asyncio.timeout(30):
        while (found := await ask(api, "GET", f"{ROOT}/{run['id']}{query}"))["state"] in ("running", "cancelling"):
            await asyncio.sleep(0.01)
        return found


def ids(requests):
    return sorted(int(json.loads(request.body)["id"]) for request in requests)


def replayed(app, run):
    return [request for request in app.events if request.headers.get("meshwire-replay") == run["id"]]


async def test_all_once_more(serving):
    api, _ = serving
    await publish(api, 30)
    await api.app.got(30)
    assert await ask(api, "POST", ROOT, {**ALL, "dryRun": True}) == {"matching": 30, "complete": True}
    run = await ask(api, "POST", ROOT, ALL, 202)
    found = await over(api, run)
    assert (found["state"], found["handled"]) == ("done", 30)
    assert ids(replayed(api.app, run)) == list(range(30))
    assert len(api.app.events) == 60
    assert [one["id"] for one in (await ask(api, "GET", ROOT))["replays"]] == [run["id"]]


async def test_what_is_published_meanwhile_is_not_replayed(serving):
    api, _ = serving
    await publish(api, 20)
    run = await ask(api, "POST", ROOT, {**ALL, "rate": 100}, 202)
    await publish(api, 20, first=20)
    assert (await over(api, run))["handled"] == 20
    assert len(await api.app.got(60)) == 60
    assert ids(replayed(api.app, run)) == list(range(20))


async def test_from_a_position_to_a_position_at_a_route(serving):
    api, _ = serving
    await publish(api, 10)
    first = await ask(api, "POST", ROOT, {**ALL, "to": {"time": "2020-01-01T00:00:01Z"}, "dryRun": True})
    assert first["matching"] == 0
    body = {"topic": "A", "from": {"position": "3"}, "to": {"position": "6"}, "route": "again?x=1"}
    assert (await ask(api, "POST", ROOT, {**body, "dryRun": True}))["matching"] == 4
    run = await ask(api, "POST", ROOT, body, 202)
    assert (await over(api, run))["state"] == "done"
    assert ids(replayed(api.app, run)) == [2, 3, 4, 5]
    assert {request.path for request in replayed(api.app, run)} == {"/again?x=1"}


async def test_the_rules_of_the_subscription_count_unless_a_route_is_named(serving):
    api, _ = serving
    await publish(api, 3, "F")
    for more, expected in (({}, 0), ({"route": "/f"}, 3)):
        run = await ask(api, "POST", ROOT, {**ALL, "topic": "F", **more}, 202)
        assert (await over(api, run))["handled"] == 3
        assert len(replayed(api.app, run)) == expected


async def test_what_fails_is_tried_by_the_plan_and_becomes_a_dead_letter(serving):
    api, answers = serving
    await publish(api, 5)
    await api.app.got(5)
    answers.status = lambda request: 500 if json.loads(request.body)["id"] == "3" else 200
    run = await ask(api, "POST", ROOT, ALL, 202)
    assert (await over(api, run))["state"] == "done"
    assert ids(replayed(api.app, run)) == [0, 1, 2, 3, 3, 4]
    [letter] = (await ask(api, "GET", "/mesh/v1/dead-letters"))["deadLetters"]
    assert (letter["event"]["id"], letter["topic"], letter["attempts"]) == ("3", "A", 2)


async def test_cancel(serving):
    api, _ = serving
    await publish(api, 20)
    run = await ask(api, "POST", ROOT, {**ALL, "rate": 5}, 202)
    async with asyncio.timeout(30):
        while not replayed(api.app, run):
            await asyncio.sleep(0.01)
    await ask(api, "DELETE", f"{ROOT}/{run['id']}")
    assert (await over(api, run))["state"] == "cancelled"
    assert len(replayed(api.app, run)) < 20


async def test_to_another_app(serving):
    api, _ = serving
    run = await ask(api, "POST", ROOT, {**ALL, "appId": "app2"}, 202)
    assert (await ask(api, "GET", ROOT))["replays"] == []
    assert (await ask(api, "GET", f"{ROOT}?appId=app2"))["replays"][0]["id"] == run["id"]
    assert (await ask(api, "DELETE", f"{ROOT}/{run['id']}?appId=app2"))["state"] == "cancelling"
    assert (await ask(api, "GET", f"{ROOT}/{run['id']}", status=404))["errorCode"] == "ERR_RUN_NOT_FOUND"


async def test_of_the_last_hour(serving):
    api, _ = serving
    await publish(api, 3)
    since = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    assert (await ask(api, "POST", ROOT, {**ALL, "from": {"time": since}, "dryRun": True}))["matching"] == 3
    future = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert (await ask(api, "POST", ROOT, {**ALL, "from": {"time": future}, "dryRun": True}))["matching"] == 0


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({}, 400, "missing required field `topic`"),
        ({"topic": "A"}, 400, "missing required field `from`"),
        ({"topic": "A", "from": {}}, 400, "from must have either time or position"),
        ({"topic": "A", "from": {"time": "now"}}, 400, "from.time must be a time"),
        ({"topic": "A", "from": {"position": "x"}}, 400, "'x' is no position"),
        ({**ALL, "to": {"time": "2019-01-01T00:00:00Z"}}, 400, "to must not be before from"),
        ({**ALL, "rate": 0}, 400, "rate must be from"),
        ({**ALL, "route": "a b"}, 400, "route: a path has no blanks"),
        ({**ALL, "nope": 1}, 400, "unknown field `nope`"),
        ({**ALL, "topic": "other"}, 400, "the app does not subscribe to topic other"),
        ({**ALL, "topic": "a.>.b", "route": "/x"}, 400, "that is not at its end"),
        ({**ALL, "pubsubname": "nope"}, 404, "pubsub nope is not found"),
    ],
)
async def test_bad_requests(serving, body, status, told):
    found = await ask(serving[0], "POST", ROOT, body, status)
    assert told in found["message"]


async def test_topics_out_of_scope(start, tmp_path):
    (tmp_path / "scoped.yaml").write_text(
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: scoped}\n"
        "spec: {type: pubsub.meshwire, version: v1, metadata: [{name: subscriptionScopes, value: app1=;app2=A}]}\n"
    )
    api = await start(f"--resources-path={tmp_path}")
    body = {**ALL, "pubsubname": "scoped", "route": "/x"}
    assert (await ask(api, "POST", ROOT, body, 403))["errorCode"] == "ERR_PUBSUB_FORBIDDEN"
    assert (await ask(api, "POST", ROOT, {**body, "dryRun": True}, 403))["errorCode"] == "ERR_PUBSUB_FORBIDDEN"
    await ask(api, "POST", ROOT, {**body, "appId": "app2"}, 202)
