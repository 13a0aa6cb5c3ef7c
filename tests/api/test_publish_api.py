"""`/v1.0/publish`: statuses, errors and what reaches a subscriber (Dapr: publish)."""

import base64
import json
import re
import time
from datetime import datetime

import pytest

from tests.e2e.mesh import JSON, App, subscription

A = "/v1.0/publish/pubsub/A"
STRUCTURED = ("content-type", "application/cloudevents+json")
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
EVENT = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
BINARY = [(f"ce-{name}", value) for name, value in EVENT.items()]
SCOPED = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: pubsub}
spec:
  type: pubsub.in-memory
  version: v1
  metadata: [{name: protectedTopics, value: secret}]
"""


@pytest.fixture
async def app():
    async with App([subscription("A")]) as app:
        yield app


@pytest.fixture
async def subscribed(start, app):
    return await start(app=app)


def info(reason, **metadata):
    kind = "type.googleapis.com/google.rpc.ErrorInfo"
    return {"@type": kind, "domain": "dapr.io", "metadata": metadata, "reason": reason}


def resource(message):
    kind = "type.googleapis.com/google.rpc.ResourceInfo"
    return {
        "@type": kind,
        "description": message,
        "owner": "",
        "resource_name": "pubsub",
        "resource_type": "pubsub",
    }


def failure(answer, status):
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    return answer.json


# Errors: one test for each row of the table


async def test_unknown_component(api):
    answer = await api.call("POST", "/v1.0/publish/nobody/A?metadata.a=1&metadata.a=2&other=3", [JSON], b"{}")
    assert failure(answer, 404) == {
        "errorCode": "ERR_PUBSUB_NOT_FOUND",
        "message": "pubsub nobody is not found",
        "details": [info("DAPR_PUBSUB_NOT_FOUND", a="1")],
    }


@pytest.mark.parametrize(
    ("method", "target"), [("POST", "/v1.0/publish"), ("POST", "/v1.0/publish/"), ("GET", A), ("DELETE", A)]
)
async def test_no_topic_or_another_method_is_no_publish(api, method, target):
    assert failure(await api.call(method, target, [JSON], b"{}"), 404) == {
        "errorCode": "ERR_DIRECT_INVOKE",
        "message": "failed getting app id either from the URL path or the header dapr-app-id",
    }


@pytest.mark.parametrize("word", ["maybe", "", "yes", "tRUE", "%00"])
async def test_raw_payload_that_is_no_boolean(api, word):
    shown = "\\x00" if word == "%00" else word
    message = f"failed deserializing metadata. Error: rawPayload value must be a valid boolean: actual is '{shown}'"
    assert failure(await api.call("POST", f"{A}?metadata.rawPayload={word}", [JSON], b"{}"), 400) == {
        "errorCode": "ERR_PUBSUB_REQUEST_METADATA",
        "message": message,
        "details": [resource(message), info("DAPR_PUBSUB_METADATA_DESERIALIZATION", rawPayload=shown)],
    }


@pytest.mark.parametrize("body", [b"", b"[]", b"no json", b"1", b'{"id":'])
async def test_claimed_event_that_is_no_object(api, body):
    error = failure(await api.call("POST", A, [STRUCTURED], body), 500)
    cause = error["details"][1]["metadata"]["error"]
    assert "must be a JSON object" in cause
    assert error == {
        "errorCode": "ERR_PUBSUB_CLOUD_EVENTS_SER",
        "message": "cannot create cloudevent",
        "details": [
            resource("cannot create cloudevent"),
            info("DAPR_PUBSUB_CLOUD_EVENT_CREATION", topic="A", error=cause),
        ],
    }


async def test_topic_out_of_scope(start, tmp_path):
    (tmp_path / "pubsub.yaml").write_text(SCOPED)
    api = await start(f"--resources-path={tmp_path}")
    message = "topic secret is not allowed for app id app1"
    assert failure(await api.call("POST", "/v1.0/publish/pubsub/secret", [JSON], b"{}"), 403) == {
        "errorCode": "ERR_PUBSUB_FORBIDDEN",
        "message": message,
        "details": [resource(message), info("DAPR_PUBSUB_FORBIDDEN", appID="app1", error=message)],
    }
    assert (await api.call("POST", A, [JSON], b"{}")).status == 204


async def test_body_that_is_too_large(start):
    api = await start("--max-body-size=1Ki")
    assert (await api.call("POST", A, [JSON], b" " * 1024)).status == 204
    cause = "stream too large: the body is longer than 1024 bytes (--max-body-size)"
    message = f"error when publishing to topic A in pubsub pubsub: {cause}"
    assert failure(await api.call("POST", A, [JSON], b" " * 1025), 500) == {
        "errorCode": "ERR_PUBSUB_PUBLISH_MESSAGE",
        "message": message,
        "details": [resource(message), info("DAPR_PUBSUB_PUBLISH_MESSAGE", topic="A", error=cause)],
    }


async def test_topic_that_can_never_be(api):
    cause = "the topic name 'a.*' has a wildcard ('*' or '>' between dots); name one topic, without wildcards"
    assert failure(await api.call("POST", "/v1.0/publish/pubsub/a.*", [JSON], b"{}"), 400) == {
        "errorCode": "ERR_TOPIC_NAME_INVALID",
        "message": cause,
        "details": [resource(cause), info("MESHWIRE_TOPIC_NAME_INVALID", topic="a.*", error=cause)],
    }


async def test_what_is_no_json_error(api):
    answer = await api.call("POST", "/v1.0/publish/pubsub/%zz", [JSON], b"{}")
    assert (answer.status, answer.headers["content-type"]) == (400, "text/plain; charset=utf-8")
    assert answer.body.startswith(b'failed to unescape request parameter "topic" with value "%zz". Error: ')
    answer = await api.call("POST", A, [JSON, ("baggage", "=")], b"{}")
    assert (answer.status, answer.headers["content-type"]) == (400, "text/plain; charset=utf-8")
    assert b"invalid baggage header" in answer.body


async def test_order_of_checks(start, tmp_path):
    """Each request has all the faults that come after the one that is named."""
    (tmp_path / "pubsub.yaml").write_text(SCOPED)
    api = await start(f"--resources-path={tmp_path}", "--max-body-size=1Ki")
    long, bad, raw = b"x" * 2000, b"[]", "?metadata.rawPayload=maybe"
    for target, body, code in [
        ("/v1.0/publish/nobody/secret" + raw, long, "ERR_PUBSUB_NOT_FOUND"),
        ("/v1.0/publish/pubsub/secret" + raw, long, "ERR_PUBSUB_PUBLISH_MESSAGE"),
        ("/v1.0/publish/pubsub/secret" + raw, bad, "ERR_PUBSUB_REQUEST_METADATA"),
        ("/v1.0/publish/pubsub/secret", bad, "ERR_PUBSUB_CLOUD_EVENTS_SER"),
        ("/v1.0/publish/pubsub/secret", b"{}", "ERR_PUBSUB_FORBIDDEN"),
    ]:
        answer = await api.call("POST", target, [STRUCTURED], body)
        assert answer.json["errorCode"] == code


# Success


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_success_says_nothing(api, method):
    answer = await api.call(method, A, [JSON], b"{}")
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers.keys() == {"connection"}


async def test_trace_and_baggage_are_echoed_as_far_as_they_are_valid(api):
    headers = [("traceparent", TRACEPARENT), ("tracestate", "a=1, b=2"), ("baggage", "k=v"), ("baggage", "l=w;p")]
    answer = await api.call("POST", A, [JSON, *headers], b"{}")
    assert answer.headers["traceparent"] == TRACEPARENT
    assert answer.headers["tracestate"] == "a=1,b=2"
    assert answer.headers["baggage"] == "k=v,l=w;p"
    answer = await api.call("POST", A, [JSON, ("traceparent", TRACEPARENT.upper()), ("tracestate", "a=1")], b"{}")
    assert answer.headers.keys() == {"connection"}


@pytest.mark.parametrize("target", ["/v1.0/publish/pubsub", "/v1.0/publish/pubsub/", "/v1.0/publish//pubsub//"])
async def test_a_component_without_a_topic_is_no_topic(api, target):
    answer = await api.call("POST", target, [JSON], b"{}")
    assert (answer.status, answer.json["errorCode"]) == (404, "ERR_TOPIC_NAME_EMPTY")
    assert answer.json["message"] == "topic is empty in pubsub pubsub"
    (info,) = (detail for detail in answer.json["details"] if detail["@type"].endswith("ErrorInfo"))
    assert info["reason"] == "DAPR_PUBSUB_TOPIC_NAME_EMPTY"


@pytest.mark.parametrize(
    ("target", "topic"),
    [
        ("/v1.0/publish/old", "old"),  # 2019: one broker, no name
        ("/v1.0/publish/pubsub/a/b", "a/b"),
        ("/v1.0/publish/pubsub/a%2Fb", "a/b"),
        ("/v1.0//publish/./pubsub//a/x/../b/", "a/b"),
        ("/v1.0/publish/pubsub/%2F", "/"),
        ("/v1.0/publish/pubsub/a+b", "a b"),
        ("/v1.0/publish/pubsub/a%2Bb", "a+b"),
        ("/v1.0/publish/pubsub/%E2%98%83", "☃"),
        ("/v1.0/publish/pubsub/bulk", "bulk"),
    ],
)
async def test_topic_is_decoded_after_the_match(start, target, topic):
    async with App([subscription(topic) | {"route": "/got"}]) as app:
        api = await start(app=app)
        assert (await api.call("POST", target, [JSON], b"{}")).status == 204
        (request,) = await app.got()
        assert (request.event["topic"], request.event["pubsubname"]) == (topic, "pubsub")


# What a subscriber gets


@pytest.mark.parametrize(
    ("content_type", "body", "member"),
    [
        ("application/json", b'{ "n": 1.0, "m": 9007199254740993 }', b'"data":{ "n": 1.0, "m": 9007199254740993 }'),
        ("Application/JSON; charset=utf-8", b"[1]", b'"data":[1]'),
        ("application/json", b"no json", b'"data":"no json"'),
        ("application/json", b"", b'"data":""'),
        ("application/octet-stream", b"\x00\xff", b'"data_base64":"AP8="'),
        ("text/plain", 'é"\n'.encode(), '"data":"é\\"\\n"'.encode()),
        ("application/xml", b"<a/>", b'"data":"<a/>"'),
        ("application/vnd.x+json", b'{"a":1}', b'"data":"{\\"a\\":1}"'),
        (None, b"x", b'"data":"x"'),
    ],
)  # fmt: skip
async def test_plain_payload_is_wrapped_by_its_content_type(subscribed, content_type, body, member):
    headers = [] if content_type is None else [("content-type", content_type)]
    request = await subscribed.publish(body, *headers or [("x", "y")])
    assert member in request.body
    event = request.event
    assert event["datacontenttype"] == (content_type or "text/plain")
    assert list(event) == sorted(event)
    assert {"data", "data_base64"} & event.keys() == {member.split(b'"')[1].decode()}


async def test_envelope(subscribed):
    event = (await subscribed.publish(b"{}")).event
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", event.pop("id"))
    assert abs(datetime.fromisoformat(event.pop("time")).timestamp() - time.time()) < 5
    assert event == {
        "data": {},
        "datacontenttype": "application/json",
        "pubsubname": "pubsub",
        "source": "app1",
        "specversion": "1.0",
        "topic": "A",
        "traceid": "",
        "traceparent": "",
        "tracestate": "",
        "type": "com.dapr.event.sent",
    }


async def test_envelope_overrides_and_ttl(subscribed):
    names = {"ID": "1", "source": "s", "Type": "t", "subject": "x y", "traceparent": TRACEPARENT, "other": "z"}
    query = "&".join(f"metadata.cloudevent.{name}={value.replace(' ', '+')}" for name, value in names.items())
    event = (await subscribed.publish(b"{}", query=f"?{query}&metadata.ttlInSeconds=60")).event
    assert [event[name] for name in ("id", "source", "type", "subject")] == ["1", "s", "t", "x y"]
    assert event["traceparent"] == event["traceid"] == TRACEPARENT
    assert "other" not in event
    assert 55 < datetime.fromisoformat(event["expiration"]).timestamp() - time.time() <= 60


async def test_event_of_the_callers_own_is_amended_not_overwritten(subscribed):
    bare = (await subscribed.publish(b"{}", STRUCTURED)).event
    assert [bare[name] for name in ("specversion", "source", "type")] == ["1.0", "Dapr", "com.dapr.event.sent"]
    own = EVENT | {"time": "2020-01-01T00:00:00Z", "traceparent": TRACEPARENT, "ext": True, "data": {"a": 1}}
    other = TRACEPARENT.replace("4bf9", "0000")
    event = (await subscribed.publish(json.dumps(own).encode(), STRUCTURED, ("traceparent", other))).event
    assert event == own | {"topic": "A", "pubsubname": "pubsub", "traceid": TRACEPARENT}
    headers = [(name, "2" if name == "ce-id" else value) for name, value in BINARY]  # the id 1 was stored already
    event = (await subscribed.publish(b"\x01", *headers, ("content-type", "image/png"))).event
    assert event == EVENT | {
        "id": "2",
        "topic": "A",
        "pubsubname": "pubsub",
        "datacontenttype": "image/png",
        "data_base64": base64.b64encode(b"\x01").decode(),
    }


async def test_half_an_event_in_headers_is_a_plain_payload(subscribed):
    event = (await subscribed.publish(b"{}", *BINARY[:3], JSON)).event
    assert event["type"] == "com.dapr.event.sent"
    assert event["source"] == "app1"
