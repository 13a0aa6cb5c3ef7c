from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest

from mesh import envelope
from mesh.envelope import KEPT_EXPIRED, Publication
from mesh.errors import ApiError, Code
from mesh.ports import Message, Mode, Topic
from mesh.trace import TraceContext

NOW = 1_700_000_000.0
TRACE = TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "vendor=1")
OTHER_TRACE = "00-11111111111111111111111111111111-2222222222222222-00"


def messages(body: bytes, content_type: str | None = None, **more: Any) -> list[Message]:
    publication = Publication(topic=Topic("pubsub", "A"), body=body, content_type=content_type, **more)
    return envelope.messages(publication, "shop", NOW)


def publish(body: bytes, content_type: str | None = None, **more: Any) -> Message:
    (message,) = messages(body, content_type, **more)
    return message


def event(message: Message) -> dict[str, Any]:
    assert message.mode is Mode.STRUCTURED
    assert message.payload is not None
    return dict(json.loads(message.payload))


class TestEnvelope:
    def test_has_dapr_members(self) -> None:
        made = event(publish(b'{"n":1}', "application/json"))
        assert made.pop("id")
        assert made.pop("time")
        assert made == {
            "data": {"n": 1},
            "datacontenttype": "application/json",
            "pubsubname": "pubsub",
            "source": "shop",
            "specversion": "1.0",
            "topic": "A",
            "traceid": "",
            "traceparent": "",
            "tracestate": "",
            "type": "com.dapr.event.sent",
        }

    def test_members_are_sorted_as_dapr_writes_them(self) -> None:
        members = list(
            event(publish(b"1", "application/json", metadata={"ttlInSeconds": "5", "cloudevent.subject": "s"}))
        )
        assert members == sorted(members)

    @pytest.mark.parametrize("number", [b"1e400", b"0.10", b"12345678901234567890123", b"-0"])
    def test_json_is_kept_as_it_was_written(self, number: bytes) -> None:
        body = b'{ "n" : %b, "n":2 }' % number
        message = publish(body, "Application/JSON; charset=utf-8")
        assert message.payload is not None
        assert body in message.payload

    @pytest.mark.parametrize(
        ("content_type", "body", "expected"),
        [
            (None, b'{"n":1}', {"data": '{"n":1}', "datacontenttype": "text/plain"}),
            ("text/xml", "<ü/>".encode(), {"data": "<ü/>"}),
            ("application/vnd.x+json", b"[1]", {"data": "[1]"}),
            ("application/json", b"{oops", {"data": "{oops", "datacontenttype": "application/json"}),
            ("application/json", b"", {"data": ""}),
            ("application/json", b"\xff", {"data_base64": "/w=="}),
            ("application/octet-stream", b"\0\1", {"data_base64": "AAE="}),
            ("text/plain", b"\xff\xfe", {"data_base64": "//4="}),
            ("application/json", b"[" * 100_000, {"data": "[" * 100_000}),
        ],
    )
    def test_data_follows_the_content_type(
        self, content_type: str | None, body: bytes, expected: Mapping[str, Any]
    ) -> None:
        made = event(publish(body, content_type))
        assert made.items() >= expected.items()
        assert ("data" in made) != ("data_base64" in made)

    def test_overrides(self) -> None:
        metadata = {
            "cloudevent.ID": "mine",
            "cloudevent.source": "/s",
            "cloudevent.type": "t",
            "cloudevent.subject": "sub",
            "cloudevent.traceparent": OTHER_TRACE,
            "cloudevent.time": "ignored",
        }
        message = publish(b"x", metadata=metadata, trace=TRACE)
        made = event(message)
        assert (made["id"], made["source"], made["type"], made["subject"]) == ("mine", "/s", "t", "sub")
        assert made["traceid"] == made["traceparent"] == OTHER_TRACE
        assert made["time"] != "ignored"
        assert message.dedupe_id is not None

    def test_an_id_of_ours_is_not_deduplicated_on(self) -> None:
        assert publish(b"x").dedupe_id is None

    def test_trace_enters_the_envelope_and_travels_beside_it(self) -> None:
        message = publish(b"x", trace=TRACE, baggage="a=1")
        made = event(message)
        assert made["traceid"] == made["traceparent"] == TRACE.traceparent
        assert made["tracestate"] == "vendor=1"
        assert message.headers == {"traceparent": TRACE.traceparent, "tracestate": "vendor=1", "baggage": "a=1"}

    @pytest.mark.parametrize(
        ("metadata", "ttl", "expiration"),
        [
            ({"ttlInSeconds": "10"}, 10.0, "2023-11-14T22:13:30Z"),
            ({"TTLINSECONDS": "1m"}, 60.0, "2023-11-14T22:14:20Z"),
            ({"ttl": "5", "ttlInSeconds": "99"}, 5.0, "2023-11-14T22:13:25Z"),
            ({"ttlInSeconds": "0"}, 0.0, "2023-11-14T22:13:20Z"),
            ({"ttlInSeconds": "-5s"}, 0.0, "2023-11-14T22:13:20Z"),
            ({"ttlInSeconds": "-5"}, None, None),
            ({"ttlInSeconds": "soon"}, None, None),
            ({"ttlInSeconds": "999999999999999999"}, 999999999999999999.0, "9999-12-31T23:59:59Z"),
        ],
    )
    def test_ttl(self, metadata: dict[str, str], ttl: float | None, expiration: str | None) -> None:
        message = publish(b"x", metadata=metadata)
        assert message.ttl == (None if ttl is None else ttl + KEPT_EXPIRED)
        assert event(message).get("expiration") == expiration

    def test_partition_key_is_no_attribute(self) -> None:
        message = publish(b"x", metadata={"partitionKey": "k"})
        assert message.key == "k"
        assert "partitionkey" not in event(message)


class TestRaw:
    def test_bytes_stay_bare(self) -> None:
        message = publish(b"\0raw", "image/x", metadata={"rawPayload": "T"}, trace=TRACE)
        assert (message.mode, message.payload, message.content_type) == (Mode.RAW, b"\0raw", "image/x")

    def test_false_is_false(self) -> None:
        assert publish(b"x", metadata={"rawPayload": "False"}).mode is Mode.STRUCTURED

    def test_a_word_that_is_no_go_boolean_is_refused(self) -> None:
        with pytest.raises(ApiError) as caught:
            publish(b"x", metadata={"rawPayload": "yes"})
        assert caught.value.code is Code.PUBSUB_METADATA
        assert caught.value.message == (
            "failed deserializing metadata. Error: rawPayload value must be a valid boolean: actual is 'yes'"
        )


CLOUD_EVENT = "application/cloudevents+json; charset=utf-8"


class TestCallersEvent:
    def test_nothing_that_the_caller_gave_changes(self) -> None:
        given = (
            b'{"specversion":"1.0","id":"7","source":"/me","type":"t","time":"2020-01-01T00:00:00.123456789+02:00",'
            b'"traceid":"mine","traceparent":"also mine","custom":{"any":[1]},"data":{"big":12345678901234567890}}'
        )
        message = publish(given, CLOUD_EVENT, trace=TRACE)
        before, after = json.loads(given), event(message)
        assert after.items() >= before.items()
        assert after.keys() - before.keys() == {"topic", "pubsubname"}
        assert b'{"big":12345678901234567890}' in (message.payload or b"")

    def test_what_is_missing_is_added(self) -> None:
        after = event(publish(b'{"data":1,"type":null}', CLOUD_EVENT, trace=TRACE))
        assert (after["source"], after["type"], after["specversion"]) == ("Dapr", "com.dapr.event.sent", "1.0")
        assert after["id"]
        assert after["time"]
        assert after["traceid"] == after["traceparent"] == TRACE.traceparent

    def test_topic_and_component_are_always_ours(self) -> None:
        after = event(publish(b'{"id":"1","topic":"x","pubsubname":"y"}', CLOUD_EVENT))
        assert (after["topic"], after["pubsubname"]) == ("A", "pubsub")

    def test_a_callers_traceparent_becomes_its_traceid(self) -> None:
        after = event(publish(b'{"id":"1","traceparent":"%b"}' % OTHER_TRACE.encode(), CLOUD_EVENT, trace=TRACE))
        assert after["traceparent"] == after["traceid"] == OTHER_TRACE
        assert "tracestate" not in after

    def test_only_a_callers_id_is_deduplicated_on(self) -> None:
        assert publish(b'{"source":"/a"}', CLOUD_EVENT).dedupe_id is None
        assert publish(b'{"id":"1","source":"/a"}', CLOUD_EVENT).dedupe_id == "2:/a1"
        assert publish(b'{"id":"","source":"/a"}', CLOUD_EVENT).dedupe_id is None

    def test_partitionkey_and_expiry_reach_the_broker(self) -> None:
        body = b'{"id":"1","partitionkey":"k","expirytime":"2023-11-14T22:13:30Z"}'
        message = publish(body, CLOUD_EVENT, metadata={"ttlInSeconds": "60"})
        assert (message.key, message.ttl) == ("k", 10.0 + KEPT_EXPIRED)

    def test_an_end_that_the_event_does_not_tell_is_the_brokers(self) -> None:
        body = b'{"id":"1","expiration":"2023-11-14T22:13:30Z"}'
        assert publish(body, CLOUD_EVENT, metadata={"ttlInSeconds": "5"}).ttl == 5.0
        assert publish(b"x", metadata={"ttlInSeconds": "5", "rawPayload": "true"}).ttl == 5.0

    @pytest.mark.parametrize("body", [b"", b"[]", b'"x"', b"{", b'{"a":\xff}', b"{}{}"])
    def test_what_is_no_object_is_refused(self, body: bytes) -> None:
        with pytest.raises(ApiError) as caught:
            publish(body, CLOUD_EVENT)
        assert (caught.value.code, caught.value.message) == (Code.PUBSUB_CLOUD_EVENT, "cannot create cloudevent")
        assert caught.value.metadata is not None
        assert caught.value.metadata["error"]


BINARY = [(b"ce-specversion", b"1.0"), (b"ce-id", b"7"), (b"ce-source", b"/me"), (b"ce-type", b"t")]


class TestBinary:
    def test_is_stored_in_binary_mode(self) -> None:
        message = publish(b"\0\1", "image/png", headers=[*BINARY, (b"content-type", b"image/png")], trace=TRACE)
        assert (message.mode, message.payload) == (Mode.BINARY, b"\0\1")
        assert message.attributes == {
            "specversion": "1.0",
            "id": "7",
            "source": "/me",
            "type": "t",
            "datacontenttype": "image/png",
            "topic": "A",
            "pubsubname": "pubsub",
            "traceid": TRACE.traceparent,
            "traceparent": TRACE.traceparent,
            "tracestate": "vendor=1",
        }

    def test_without_all_four_it_is_a_plain_payload(self) -> None:
        assert publish(b"x", headers=BINARY[:3]).mode is Mode.STRUCTURED

    def test_a_malformed_attribute_is_refused(self) -> None:
        with pytest.raises(ApiError) as caught:
            publish(b"x", headers=[*BINARY, (b"ce-time", b"yesterday")])
        assert caught.value.code is Code.PUBSUB_CLOUD_EVENT
        assert caught.value.metadata is not None
        assert "time" in caught.value.metadata["error"]


def test_a_batch_becomes_one_structured_message_per_member() -> None:
    member = {"specversion": "1.0", "source": "/me", "type": "t", "data_base64": base64.b64encode(b"\0").decode()}
    body = json.dumps([{**member, "id": "1", "n": 5}, {**member, "id": "2", "partitionkey": "k"}]).encode()
    one, two = messages(body, "application/cloudevents-batch+json")
    assert event(one).items() >= {"id": "1", "n": 5, "topic": "A", "data_base64": "AA=="}.items()
    assert (one.key, two.key) == (None, "k")


def test_one_bad_member_refuses_the_batch() -> None:
    with pytest.raises(ApiError) as caught:
        messages(b'[{"specversion":"1.0","id":"1","source":"/a","type":"t"},{}]', "application/cloudevents-batch+json")
    assert caught.value.metadata is not None
    assert "[1]" in caught.value.metadata["error"]
