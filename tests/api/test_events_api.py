"""The CloudEvents ingress, `/mesh/v1/events`: strict, in three modes (CloudEvents HTTP binding, WebHook text)."""

import json

import pytest

from tests.e2e.mesh import App, subscription

A = "/mesh/v1/events/pubsub/A"
STRUCTURED = ("content-type", "application/cloudevents+json")
BATCHED = ("content-type", "application/cloudevents-batch+json")
EVENT = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def text(**changed):
    return json.dumps({name: value for name, value in (EVENT | changed).items() if value is not None}).encode()


BINARY = [(f"ce-{name}", value) for name, value in EVENT.items()]


@pytest.mark.parametrize(
    ("headers", "body"),
    [(BINARY, b""), ([STRUCTURED], text()), ([BATCHED], b"[" + text() + b"]"), ([BATCHED], b"[]")],
    ids=["binary", "structured", "batched", "empty batch"],
)
async def test_accepted(api, headers, body):
    answer = await api.call("POST", A, headers, body)
    assert (answer.status, answer.body) == (202, b"")
    assert answer.headers == {"content-length": "0", "connection": "close"}


async def test_accepted_events_arrive_as_they_are(start):
    async with App([subscription("A")]) as app:
        api = await start(app=app)
        await api.call("POST", A, [STRUCTURED], text(ext=1))
        assert (await app.got(1))[0].event == EVENT | {"ext": 1}
        await api.call("POST", A, [BATCHED], b"[" + text(id="2") + b"," + text(id="3") + b"]")
        assert {request.event["id"] for request in await app.got(3)} == {"1", "2", "3"}
        # A member that occurs twice: the last one, for everybody.
        await api.call("POST", A, [STRUCTURED], text()[:-1] + b',"id":"4"}')
        assert b'"id":"1"' not in (await app.got(4))[3].body
        # An event without a trace is born in that of its request.
        headers = [("traceparent", TRACEPARENT), ("tracestate", "a=1"), ("baggage", "k=v")]
        answer = await api.call("POST", A, [STRUCTURED, *headers], text(id="5"))
        assert {name: answer.headers.get(name) for name, _ in headers} == dict(headers)
        request = (await app.got(5))[4]
        assert request.event == EVENT | {"id": "5", "traceparent": TRACEPARENT, "tracestate": "a=1"}
        assert {name: request.headers.get(name) for name, _ in headers} == dict(headers)


@pytest.mark.parametrize(
    ("headers", "body", "named"),
    [
        ([STRUCTURED], text(id=None), {"attribute": "id", "rule": "a required attribute is missing"}),
        ([STRUCTURED], text(type=""), {"attribute": "type", "rule": "must not be empty", "value": ""}),
        (
            [STRUCTURED],
            text(time="yesterday"),
            {
                "attribute": "time",
                "rule": "must be an RFC 3339 timestamp such as '2024-05-01T12:34:56Z'",
                "value": "yesterday",
            },
        ),
        ([*BINARY, ("ce-id", "2")], b"", {"attribute": "ce-id", "rule": "the header occurs more than once"}),
    ],
    ids=["missing", "empty", "time", "header"],
)
async def test_refused_event_names_attribute_and_rule(api, headers, body, named):
    answer = await api.call("POST", A, headers, body)
    assert answer.status == 400
    assert answer.headers["content-type"] == "application/json"
    error = answer.json
    assert error["errorCode"] == "ERR_EVENT_INVALID"
    assert error["details"][0]["reason"] == "MESHWIRE_EVENT_INVALID"
    assert {name: error[name] for name in ("attribute", "rule", "value") if name in error} == named
    assert error["message"].startswith(f"{named['attribute']}: {named['rule']}")


async def test_refused_batch_names_each_bad_member_and_stores_none(start):
    async with App([subscription("A")]) as app:
        api = await start(app=app)
        answer = await api.call("POST", A, [BATCHED], b"[" + b",".join([text(), text(id=None), b"7", text()]) + b"]")
        assert answer.status == 400
        faults = answer.json["faults"]
        assert [fault["index"] for fault in faults] == [1, 2]
        assert faults[0] == {"index": 1, "attribute": "id", "rule": "a required attribute is missing"}
        await api.call("POST", A, [STRUCTURED], text(id="after"))
        assert [request.event["id"] for request in await app.got()] == ["after"]


async def test_other_methods(api):
    for method in ("PUT", "DELETE", "PATCH"):  # GET asks for the story of an event
        answer = await api.call(method, A, [STRUCTURED], text() if method == "PUT" else b"")
        assert (answer.status, answer.headers["allow"]) == (405, "POST, OPTIONS")
        assert answer.json["errorCode"] == "ERR_METHOD_NOT_ALLOWED"


async def test_handshake(api):
    asked = [("webhook-request-origin", "sender.example.com"), ("webhook-request-rate", "120")]
    answer = await api.call("OPTIONS", A, asked)
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["webhook-allowed-origin"] == "*"
    assert answer.headers["webhook-allowed-rate"] == "*"
    assert answer.headers["allow"] == "POST, OPTIONS"


async def test_unsupported_format(api):
    for content_type in ("application/cloudevents+avro", "application/cloudevents+json; charset=latin-1"):
        answer = await api.call("POST", A, [("content-type", content_type)], text())
        assert answer.status == 415
        assert answer.json["errorCode"] == "ERR_EVENT_FORMAT_UNSUPPORTED"
        assert answer.json["attribute"] == "content-type"


async def test_body_that_is_too_large(start):
    api = await start("--max-body-size=1Ki")
    answer = await api.call("POST", A, [STRUCTURED], text(data="x" * 1024))
    assert answer.status == 413
    assert answer.json["errorCode"] == "ERR_EVENT_TOO_LARGE"
    assert answer.json["details"][0]["metadata"] == {"limit": "1024"}


async def test_unknown_component_and_impossible_topic(api):
    answer = await api.call("POST", "/mesh/v1/events/nobody/A", [STRUCTURED], text())
    assert (answer.status, answer.json["errorCode"]) == (404, "ERR_PUBSUB_NOT_FOUND")
    answer = await api.call("POST", "/mesh/v1/events/pubsub/%3E", [STRUCTURED], text())
    assert (answer.status, answer.json["errorCode"]) == (400, "ERR_TOPIC_NAME_INVALID")
    answer = await api.call("POST", "/mesh/v1/events/pubsub", [STRUCTURED], text())
    assert (answer.status, answer.json["errorCode"]) == (404, "ERR_DIRECT_INVOKE")


async def test_topic_out_of_scope(start, tmp_path):
    (tmp_path / "pubsub.yaml").write_text("""
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: pubsub}
spec: {type: pubsub.in-memory, version: v1, metadata: [{name: allowedTopics, value: "B,C"}]}
""")
    api = await start(f"--resources-path={tmp_path}")
    answer = await api.call("POST", A, [STRUCTURED], text())
    assert (answer.status, answer.json["errorCode"]) == (403, "ERR_PUBSUB_FORBIDDEN")
    assert (await api.call("POST", "/mesh/v1/events/pubsub/B", [STRUCTURED], text())).status == 202
