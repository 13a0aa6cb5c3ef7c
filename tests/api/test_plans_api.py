"""`GET /mesh/v1/plans`, and that a sidecar does what it tells."""

import json
from pathlib import Path

import pytest

from mesh.errors import ConfigurationError
from tests.e2e.mesh import App, subscription

POLICIES = """\
apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: {name: r}
spec:
  policies:
    retries: {few: {duration: 10ms, maxRetries: 2}}
  targets:
    components: {pubsub: {inbound: {retry: few}}}
"""
CONTRADICTING = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: pubsub}
spec: {type: pubsub.in-memory, version: v1, metadata: [{name: maxAttempts, value: "4"}]}
"""


async def test_plans_of_what_runs(start):
    asked = [
        subscription("A", metadata={"maxAttempts": "2", "backOffDuration": "5s"}),
        subscription("B", metadata={"maxAttempts": "0"}),
        subscription("C", deadLetterTopic="C"),
    ]
    async with App(asked) as app:
        api = await start(app=app)
        answer = await api.call("GET", "/mesh/v1/plans")
    (plan,) = answer.json["plans"]
    assert (plan["pubsubname"], plan["topic"], plan["origin"]) == ("pubsub", "A", "GET /dapr/subscribe: entry 0")
    assert plan["plan"][0] == {
        "name": "attempts",
        "value": "2",
        "origin": "GET /dapr/subscribe: entry 0: metadata.maxAttempts",
    }
    assert plan["attempts"] == [
        {"attempt": 1, "earliest": 0.0, "latest": 0.0},
        {"attempt": 2, "earliest": 5.0, "latest": 5.0},
    ]


async def test_without_an_app_there_are_none(api):
    assert (await api.call("GET", "/mesh/v1/plans")).json == {"plans": []}


async def test_the_inbound_policy_is_the_only_layer_of_attempts(start, tmp_path: Path):
    (tmp_path / "policies.yaml").write_text(POLICIES)
    asked = [subscription("A", deadLetterTopic="dead"), subscription("dead", metadata={"maxAttempts": "1"})]
    async with App(asked, lambda request: 500 if request.path == "/A" else 200) as app:
        api = await start(f"--resources-path={tmp_path}", app=app)
        await api.call("POST", "/v1.0/publish/pubsub/A", body=b"1")
        (letter,) = await app.got(1, "/dead")
        attempts = [event.headers["meshwire-attempt"] for event in app.events if event.path == "/A"]
    assert attempts == ["1", "2", "3"]
    event = json.loads(letter.body)
    assert (event["topic"], event["data"], event["knativeerrorcode"]) == ("A", "1", 500)
    assert (event["meshwireattempts"], event["meshwirereason"]) == (3, "attempts")
    assert letter.headers["meshwire-attempt"] == "1"


async def test_policies_that_contradict_a_component_end_the_start(start, tmp_path: Path):
    (tmp_path / "policies.yaml").write_text(POLICIES)
    (tmp_path / "component.yaml").write_text(CONTRADICTING)
    with pytest.raises(ConfigurationError, match=r"component.yaml:4: metadata.maxAttempts: contradicts .*policies"):
        await start(f"--resources-path={tmp_path}")


async def test_a_pattern_gets_events_of_many_topics(start):
    async with App([subscription("orders.*"), subscription("raw.>", metadata={"rawPayload": "true"})]) as app:
        api = await start(app=app)
        for topic in ("orders.paid", "orders.eu.paid", "orders.sent", "raw.a.b"):
            await api.call("POST", f"/v1.0/publish/pubsub/{topic}", body=b"1")
        events = [json.loads(event.body) for event in await app.got(3)]
    assert [event["topic"] for event in events] == ["orders.paid", "orders.sent", "raw.a.b"]


async def test_a_pattern_must_be_one(start, caplog):
    async with App([subscription("a.>.b"), subscription("B")]) as app:
        api = await start(app=app)
        plans = (await api.call("GET", "/mesh/v1/plans")).json["plans"]
    assert [plan["topic"] for plan in plans] == ["B"]
    assert "no subscription to topic a.>.b" in caplog.text
    assert "has a '>' that is not at its end" in caplog.text
