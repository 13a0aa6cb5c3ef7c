"""`/mesh/v1/dead-letters` and `/mesh/v1/redrives`, answer by answer, from an app that fails to one that is mended."""

import asyncio
import base64
import json

import pytest

from tests.e2e.mesh import JSON, App, subscription

ROOT = "/mesh/v1/dead-letters"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Failing:
    """Takes nothing until it is mended."""

    mended = False

    def __call__(self, request):
        return 200 if self.mended else (200, b'{"status":"RETRY"}')


@pytest.fixture
async def failing(start):
    plan = {"maxAttempts": "2", "backOffDuration": "1ms", "backOffPolicy": "constant"}
    answer = Failing()
    async with App([subscription("A", metadata=plan), subscription("B", metadata=plan)], answer) as app:
        yield await start(app=app), answer


async def ask(api, method, path, body=None, status=200):
    answer = await api.call(method, path, [JSON], b"" if body is None else json.dumps(body).encode())
    assert answer.status == status, answer
    return answer.json if answer.body else None


async def letters(api, count, query=""):
    """Once there are so many."""
    async with asyncio.timeout(30):
        while True:
            found = (await ask(api, "GET", ROOT + query))["deadLetters"]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.01)


async def publish(api, topic="A", body=b'{"amount": 12}', *headers):
    sent = [JSON, ("traceparent", TRACE), *headers]
    assert (await api.call("POST", f"/v1.0/publish/pubsub/{topic}", sent, body)).status == 204


async def test_from_the_failure_to_the_app_that_is_mended(failing):
    api, answer = failing
    await publish(api)
    [row] = await letters(api, 1)
    assert (row["pubsubname"], row["topic"], row["reason"], row["attempts"]) == ("pubsub", "A", "attempts", 2)
    assert row["status"] == 200
    assert row["event"]["type"] == "com.dapr.event.sent"

    letter = await ask(api, "GET", f"{ROOT}/{row['id']}")
    assert letter["event"]["data"] == {"amount": 12}
    assert letter["event"]["traceparent"] == TRACE
    assert letter["excerpt"] == '{"status":"RETRY"}'
    assert letter["destination"] == "/A"
    assert letter["stored"]["position"]
    raw = await api.call("GET", f"{ROOT}/{row['id']}?raw=true")
    assert raw.headers["content-type"] == "application/cloudevents+json"
    assert json.loads(raw.body) == letter["event"]

    answer.mended = True
    before = len(api.app.events)
    body = {"filter": {"topic": "A"}, "dryRun": True}
    counted = await ask(api, "POST", f"{ROOT}:redrive", body)
    assert counted == {"matching": 1, "subscriptions": [{"pubsubname": "pubsub", "topic": "A", "count": 1}]}
    run = await ask(api, "POST", f"{ROOT}:redrive", {"filter": {"topic": "A"}}, 202)
    delivered = (await api.app.got(before + 1))[-1]
    event = json.loads(delivered.body)
    assert event == letter["event"] | {"meshwireredrive": run["id"]}
    assert delivered.headers["traceparent"] == TRACE
    assert delivered.headers["meshwire-attempt"] == "1"
    async with asyncio.timeout(30):
        while (seen := await ask(api, "GET", f"/mesh/v1/redrives/{run['id']}"))["state"] != "done":
            await asyncio.sleep(0.01)
    assert (seen["matched"], seen["sent"]) == (1, 1)
    assert (await ask(api, "GET", ROOT))["deadLetters"] == []
    assert [one["id"] for one in (await ask(api, "GET", "/mesh/v1/redrives"))["redrives"]] == [run["id"]]
    assert (await ask(api, "DELETE", f"/mesh/v1/redrives/{run['id']}"))["state"] == "done"


async def test_lists_counts_and_purges(failing):
    api, _ = failing
    for topic in ("A", "B", "A"):
        await publish(api, topic)
    found = await letters(api, 3, "?order=oldest&limit=1000")
    assert [one["lastFailure"] for one in found] == sorted(one["lastFailure"] for one in found)
    first = await ask(api, "GET", f"{ROOT}?order=oldest&limit=2")
    rest = await ask(api, "GET", f"{ROOT}?order=oldest&limit=2&cursor={first['cursor']}")
    assert first["deadLetters"] + rest["deadLetters"] == found
    assert "cursor" not in rest
    assert [one["topic"] for one in (await ask(api, "GET", f"{ROOT}?topic=B"))["deadLetters"]] == ["B"]
    counts = await ask(api, "GET", f"{ROOT}:count?reason=attempts&status=200&text=amount")
    assert [(one["topic"], one["count"]) for one in counts["subscriptions"]] == [("A", 2), ("B", 1)]

    wanted = {"filter": {"topic": "A"}}
    assert (await ask(api, "POST", f"{ROOT}:purge", wanted | {"dryRun": True}))["matching"] == 2
    assert await ask(api, "POST", f"{ROOT}:purge", wanted) == {"purged": 2}
    [left] = (await ask(api, "GET", ROOT))["deadLetters"]
    assert await ask(api, "DELETE", f"{ROOT}/{left['id']}", status=204) is None
    gone = await ask(api, "DELETE", f"{ROOT}/{left['id']}", status=404)
    assert gone["errorCode"] == "ERR_DEAD_LETTER_NOT_FOUND"
    assert (await ask(api, "GET", f"{ROOT}/{left['id']}", status=404))["errorCode"] == "ERR_DEAD_LETTER_NOT_FOUND"


async def test_what_is_no_event_is_shown_as_it_is(start):
    async with App([subscription("A", metadata={"rawPayload": "true", "maxAttempts": "1"})], lambda _: 503) as app:
        api = await start(app=app)
        body = b"\xff\x00 bytes"
        answer = await api.call(
            "POST", "/v1.0/publish/pubsub/A?metadata.rawPayload=true", [("content-type", "a/b")], body
        )
        assert answer.status == 204
        [row] = await letters(api, 1)
        assert (row["reason"], row["status"], "event" in row) == ("attempts", 503, False)
        letter = await ask(api, "GET", f"{ROOT}/{row['id']}")
        assert letter["data"] == {"base64": base64.b64encode(body).decode()}
        raw = await api.call("GET", f"{ROOT}/{row['id']}?raw=true")
        assert (raw.body, raw.headers["content-type"]) == (body, "a/b")


@pytest.mark.parametrize(
    ("method", "path", "body", "told"),
    [
        ("GET", "?limit=0", None, "limit must be an integer from 1 to 1000"),
        ("GET", "?order=up", None, "order must be newest or oldest"),
        ("GET", "?nope=1", None, "there is no parameter 'nope'"),
        ("GET", "?status=x", None, "status must be an integer"),
        ("GET", "?reason=bad", None, "reason must be one of attempts, refused"),
        ("GET", "?after=yesterday", None, "after must be a time as RFC 3339 has it"),
        ("GET", "?cursor=x", None, "is no cursor"),
        ("GET", "/x", None, "looks like pubsub/topic/position"),
        ("POST", ":purge", {}, "missing required field `filter`"),
        ("POST", ":purge", {"filter": {"nope": 1}}, "unknown field `nope`"),
        ("POST", ":redrive", {"filter": {}, "rate": 0}, "rate must be from 0.01"),
        ("POST", ":redrive", {"filter": {}, "rate": -1}, "rate must be from 0.01"),
        ("POST", ":redrive", {"filter": {}, "rate": 1e300}, "rate must be from 0.01"),
        ("POST", ":redrive", {"filter": {}, "to": {"topic": "x"}}, "missing required field `pubsubname`"),
        (
            "POST",
            ":redrive",
            {"filter": {}, "to": {"pubsubname": "pubsub", "topic": "x"}, "everyone": True},
            "everyone has no meaning with to",
        ),
    ],
)
async def test_bad_requests(api, method, path, body, told):
    found = await ask(api, method, ROOT + path, body, 400)
    assert found["errorCode"] == "ERR_MALFORMED_REQUEST"
    assert told in found["message"]


async def test_redrive_to_where_one_may_not_publish(start, tmp_path):
    (tmp_path / "scoped.yaml").write_text(
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: scoped}\n"
        "spec: {type: pubsub.meshwire, version: v1, metadata: [{name: publishingScopes, value: app1=mine}]}\n"
    )
    api = await start(f"--resources-path={tmp_path}")
    body = {"filter": {}, "to": {"pubsubname": "scoped", "topic": "theirs"}}
    for more in ({}, {"dryRun": True}):
        found = await ask(api, "POST", f"{ROOT}:redrive", body | more, 403)
        assert found["errorCode"] == "ERR_PUBSUB_FORBIDDEN"
    body["to"]["topic"] = "mine"
    await ask(api, "POST", f"{ROOT}:redrive", body, 202)


async def test_a_redrive_that_is_not_there(api):
    for method in ("GET", "DELETE"):
        found = await ask(api, method, "/mesh/v1/redrives/nope", status=404)
        assert found["errorCode"] == "ERR_RUN_NOT_FOUND"
