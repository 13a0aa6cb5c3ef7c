"""Bulk subscribe: several events in one call of the app, and an outcome for each (Dapr: bulk subscribe)."""

import json
from collections import Counter

from tests.e2e.mesh import JSON, App, subscription

RETRIED, UNSAID, FAILED = "d", "e", "f"


async def test_events_of_one_call_have_outcomes_of_their_own(start):
    """A call goes out when it is full: the others wait for longer than this test."""
    calls = []
    tries = Counter()

    def answer(request):
        if request.path == "/letters":
            return 200
        calls.append(request.event)
        statuses = []
        for entry in request.event["entries"]:
            data = entry["event"]["data"]
            tries[data] += 1
            again = data == FAILED or (data == RETRIED and tries[data] == 1)
            if data != UNSAID or tries[data] > 1:
                statuses.append({"entryId": entry["entryId"], "status": "RETRY" if again else "SUCCESS"})
        return 200, json.dumps({"statuses": statuses}).encode()

    wanted = subscription(
        "A",
        bulkSubscribe={"enabled": True, "maxMessagesCount": 3, "maxAwaitDurationMs": 60_000},
        deadLetterTopic="letters",
        metadata={"maxAttempts": "2", "backOffDuration": "10ms"},
    )
    async with App([wanted, subscription("letters")], answer) as app:
        api = await start(app=app)
        published = [{"entryId": data, "event": data, "contentType": "text/plain"} for data in "abcdef"]
        answered = await api.call("POST", "/v1.0/publish/bulk/pubsub/A", [JSON], json.dumps(published).encode())
        assert answered.status == 204
        [letter] = await app.got(1, "/letters")
        assert letter.event["data"] == FAILED
    assert tries == {"a": 1, "b": 1, "c": 1, RETRIED: 2, UNSAID: 2, FAILED: 2}
    assert [len(call["entries"]) for call in calls] == [3, 3, 3]
    assert {(call["type"], call["pubsubname"], call["topic"]) for call in calls} == {
        ("com.dapr.event.sent.bulk", "pubsub", "A")
    }
    last = calls[-1]["entries"]
    assert {entry["event"]["data"] for entry in last} == {RETRIED, UNSAID, FAILED}
    assert {entry["contentType"] for entry in last} == {"application/cloudevents+json"}
    assert {entry["metadata"]["meshwire-attempt"] for entry in last} == {"2"}
