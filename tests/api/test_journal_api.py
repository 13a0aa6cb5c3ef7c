"""Where is my message? Asked over HTTP, of a sidecar that published and delivered it."""

import asyncio
import json
from urllib.parse import quote

from tests.e2e.mesh import JSON, App

SUBSCRIBED = [{"pubsubname": "pubsub", "topic": "A", "route": "/a"}]
EVENT = ("content-type", "application/cloudevents+json")


def event(**attributes):
    return json.dumps({"specversion": "1.0", "type": "t", "source": "/shop", "id": "1"} | attributes).encode()


async def story(api, source="/shop", event_id="1"):
    return await api.call("GET", f"/mesh/v1/events/{quote(source, safe='')}/{quote(event_id)}")


async def until(api, state, **which):
    """The story, once its subscription is in this state."""
    async with asyncio.timeout(30):
        while True:
            answer = await story(api, **which)
            if answer.status == 200 and [one["state"] for one in answer.json["subscriptions"]] == [state]:
                return answer.json


def whats(told):
    return [line["what"] for line in told["steps"]]


async def test_the_story_of_an_event_that_is_delivered_at_the_second_try(start):
    answers = iter([503, 200])
    async with App(SUBSCRIBED, lambda _: next(answers)) as app:
        api = await start(app=app, MESHWIRE_JOURNAL="full")
        await api.call("POST", "/v1.0/publish/pubsub/A", [EVENT], event())
        told = await until(api, "acked")
    assert whats(told) == ["accepted", "stored", "attempt", "attempt", "acked"]
    assert (told["complete"], told["source"], told["id"]) == (True, "/shop", "1")
    first, second = told["steps"][2:4]
    assert (first["attempt"], first["status"], first["outcome"]) == (1, 503, "retry")
    assert (second["attempt"], second["status"], second["outcome"]) == (2, 200, "success")
    assert first["position"] == told["steps"][1]["position"] != ""
    assert first["next"] <= second["time"]
    assert {line["app"] for line in told["steps"]} == {"app1"}


async def test_filtered_expired_and_dead_lettered(start):
    filters = {"filters": [{"exact": {"subject": "wanted"}}]}
    subscribed = [
        {"pubsubname": "pubsub", "topic": "A", "route": "/a", "metadata": {"filters": json.dumps(filters["filters"])}},
        {"pubsubname": "pubsub", "topic": "B", "route": "/b", "deadLetterTopic": "dead"},
    ]
    async with App(subscribed, lambda _: 500) as app:
        api = await start(app=app, MESHWIRE_JOURNAL="full")
        await api.call("POST", "/v1.0/publish/pubsub/A", [EVENT], event(id="2", subject="other"))
        told = await until(api, "skipped", event_id="2")
        assert told["steps"][-1]["reason"] == "its filters do not let it through"
        await api.call("POST", "/v1.0/publish/pubsub/B", [EVENT], event(id="3"))
        told = await until(api, "dead-lettered", event_id="3")
        assert whats(told) == ["accepted", "stored", "attempt", "dead-lettered"]
        assert told["steps"][2]["outcome"] == "failed"
        [letter] = told["deadLetters"]
        assert letter["id"].startswith("pubsub/B/")
        answer = await api.call("GET", f"/mesh/v1/dead-letters/{letter['id']}")
        assert (answer.status, letter["reason"]) == (200, "attempts")


async def test_bulk_and_binary_events_are_told_of_too(start):
    api = await start(MESHWIRE_JOURNAL="full")
    headers = [("ce-specversion", "1.0"), ("ce-type", "t"), ("ce-source", "urn:a+b"), ("ce-id", "x/y")]
    assert (await api.call("POST", "/mesh/v1/events/pubsub/A", headers, b"data")).status == 202
    answer = await api.call("GET", "/mesh/v1/events/urn%3Aa%2Bb/x/y")
    assert whats(answer.json) == ["accepted", "stored"]
    assert answer.json["subscriptions"] == []


async def test_an_event_that_nobody_remembers(start):
    api = await start(MESHWIRE_JOURNAL="full")
    answer = await story(api)
    assert (answer.status, answer.json["errorCode"]) == (404, "ERR_EVENT_UNKNOWN")
    assert "none of the 1 sidecars with a journal" in answer.json["message"]


async def test_without_a_journal_nothing_is_noted_down_and_that_is_said(start):
    api = await start()
    await api.call("POST", "/v1.0/publish/pubsub/A", [EVENT], event())
    answer = await story(api)
    assert answer.status == 404
    assert "set MESHWIRE_JOURNAL=full" in answer.json["message"]


async def test_the_ingress_still_refuses_other_methods(start):
    api = await start(MESHWIRE_JOURNAL="full")
    assert (await api.call("PUT", "/mesh/v1/events/pubsub/A", [JSON], b"{}")).status == 405
    assert (await api.call("GET", "/mesh/v1/events/pubsub")).status == 404


async def test_a_dead_letter_is_found_though_no_journal_was_kept(start):
    async with App([{"pubsubname": "pubsub", "topic": "A", "route": "/a"}], lambda _: 410) as app:
        api = await start(app=app)
        await api.call("POST", "/v1.0/publish/pubsub/A", [EVENT], event())
        async with asyncio.timeout(30):
            while (answer := await story(api)).status != 200:
                pass
    assert (answer.json["complete"], answer.json["steps"]) == (False, [])
    assert [letter["reason"] for letter in answer.json["deadLetters"]] == ["refused"]


async def test_a_redriven_event_says_so(start):
    answers = iter([410, 200])
    async with App([{"pubsubname": "pubsub", "topic": "A", "route": "/a"}], lambda _: next(answers)) as app:
        api = await start(app=app, MESHWIRE_JOURNAL="full")
        await api.call("POST", "/v1.0/publish/pubsub/A", [EVENT], event())
        await until(api, "dead-lettered")
        answer = await api.call("POST", "/mesh/v1/dead-letters:redrive", [JSON], b'{"filter": {}}')
        assert answer.status == 202, answer
        told = await until(api, "acked")
    assert whats(told) == ["accepted", "stored", "attempt", "dead-lettered", "redriven", "attempt", "acked"]
    assert told["steps"][4]["to"] == answer.json["id"]
