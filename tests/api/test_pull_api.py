"""Pull over HTTP, of a sidecar without an app."""

import asyncio
import json

import pytest

from tests.e2e.mesh import JSON, App


async def post(api, path, **members):
    body = json.dumps(members).encode()
    return await api.call("POST", f"/mesh/v1/pull{path}", [JSON], body)


@pytest.fixture
async def api(start):
    """A sidecar whose app has pulled once: what is published from now on waits for it."""
    api = await start()
    answer = await post(api, "/pubsub/a/b")
    assert (answer.status, answer.json) == (200, {"messages": []})
    return api


async def publish(api, *data):
    for one in data:
        await api.call("POST", "/v1.0/publish/pubsub/a/b", [JSON], json.dumps(one).encode())


async def test_an_event_is_pulled_and_acknowledged(api):
    await publish(api, {"order": 7})
    [message] = (await post(api, "/pubsub/a/b", lockSeconds=30, waitSeconds=5)).json["messages"]
    assert message["event"]["data"] == {"order": 7}
    assert (message["attempt"], message["topic"]) == (1, "a/b")
    assert message["position"]
    assert message["time"] < message["lockedUntil"]
    answer = await post(api, ":ack", lockTokens=[message["lockToken"]])
    assert (answer.status, answer.json) == (200, {"results": [{"lockToken": message["lockToken"]}]})
    again = await post(api, ":ack", lockTokens=[message["lockToken"]])
    assert (again.status, again.json["errorCode"]) == (410, "ERR_PULL_TOKEN_EXPIRED")


async def test_results_are_told_for_each_token(api):
    await publish(api, 1, 2)
    messages = (await post(api, "/pubsub/a/b", maxMessages=2, waitSeconds=5)).json["messages"]
    good, other = (message["lockToken"] for message in messages)
    answer = await post(api, ":renew", lockTokens=[good, "app9-12345678." + 32 * "0", "nonsense"], seconds=60)
    assert answer.status == 207
    results = answer.json["results"]
    assert results[0] == {"lockToken": good}
    assert [(one["status"], one["error"]["errorCode"]) for one in results[1:]] == [
        (409, "ERR_PULL_TOKEN_FOREIGN"),
        (404, "ERR_PULL_TOKEN_UNKNOWN"),
    ]
    assert (await post(api, ":release", lockTokens=[good])).status == 200
    assert (await post(api, ":reject", lockTokens=[other], reason="no")).status == 200
    assert (await post(api, ":ack", lockTokens=[good, other])).status == 410


async def test_a_client_that_waits_is_answered_when_there_is_something(api):
    waiting = asyncio.create_task(post(api, "/pubsub/a/b", waitSeconds=30))
    await asyncio.sleep(0.05)
    await publish(api, "late")
    assert [message["event"]["data"] for message in (await waiting).json["messages"]] == ["late"]


async def test_a_client_that_waits_does_not_hold_up_the_end(api):
    waiting = asyncio.create_task(post(api, "/pubsub/a/b", waitSeconds=60))
    await asyncio.sleep(0.05)
    await api.stop()
    assert (await waiting).json == {"messages": []}


async def test_a_client_that_hangs_up_loses_nothing(api):
    _, writer = await asyncio.open_connection("127.0.0.1", api.port)
    body = b'{"waitSeconds": 60}'
    head = (
        f"POST /mesh/v1/pull/pubsub/a/b HTTP/1.1\r\nHost: 127.0.0.1:{api.port}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await asyncio.sleep(0.05)
    writer.transport.abort()
    await asyncio.sleep(0.05)
    await publish(api, 1)
    [message] = (await post(api, "/pubsub/a/b", waitSeconds=5)).json["messages"]
    assert (message["event"]["data"], message["attempt"]) == (1, 1)


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/pubsub/A", b"[]", 400, "ERR_MALFORMED_REQUEST"),
        ("/pubsub/A", b'{"waitSeconds": 61}', 400, "ERR_MALFORMED_REQUEST"),
        ("/pubsub/A", b'{"maxMessages": 1' + 400 * b"0" + b"}", 400, "ERR_MALFORMED_REQUEST"),
        ("/pubsub/A", b" " * 70_000, 400, "ERR_MALFORMED_REQUEST"),
        ("/none/A", b"", 404, "ERR_PUBSUB_NOT_FOUND"),
        ("/pubsub/a%00b", b"", 400, "ERR_TOPIC_NAME_INVALID"),
        (":ack", b"{}", 400, "ERR_MALFORMED_REQUEST"),
        (":ack", b'{"lockTokens": ["x"]}', 404, "ERR_PULL_TOKEN_UNKNOWN"),
        (":release", b'{"lockTokens": ["x"], "delaySeconds": -1}', 400, "ERR_MALFORMED_REQUEST"),
    ],
)
async def test_bad_requests_are_refused(start, path, body, status, code):
    api = await start()
    answer = await api.call("POST", f"/mesh/v1/pull{path}", [JSON], body)
    assert (answer.status, answer.json["errorCode"]) == (status, code)


async def test_what_the_app_is_sent_cannot_be_pulled_away_from_it(start):
    async with App([{"pubsubname": "pubsub", "topic": "A", "route": "/a"}]) as app:
        api = await start(app=app)
        answer = await post(api, "/pubsub/A")
        assert (answer.status, answer.json["errorCode"]) == (409, "ERR_SUBSCRIPTION_PUSHED")
        assert (await post(api, "/pubsub/A", group="audit")).status == 200


async def test_a_pulled_event_has_a_story(start):
    api = await start(MESHWIRE_JOURNAL="full")
    await post(api, "/pubsub/a/b", group="audit")
    headers = [("content-type", "application/cloudevents+json")]
    event = b'{"specversion": "1.0", "type": "t", "source": "s", "id": "1"}'
    await api.call("POST", "/v1.0/publish/pubsub/a/b", headers, event)
    [message] = (await post(api, "/pubsub/a/b", group="audit", waitSeconds=5)).json["messages"]
    await post(api, ":ack", lockTokens=[message["lockToken"]])
    told = (await api.call("GET", "/mesh/v1/events/s/1")).json
    assert told["subscriptions"] == [
        {"app": "app1", "pubsubname": "pubsub", "topic": "a/b", "group": "audit", "state": "acked", "attempts": 1}
    ]
