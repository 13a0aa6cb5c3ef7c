"""`/v1.0/publish/bulk`: entries, errors and what reaches a subscriber (Dapr: bulk publish)."""

import base64
import json

import pytest

from tests.e2e.mesh import JSON, App, subscription

A = "/v1.0/publish/bulk/pubsub/A"
LIMITED = """
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


def entry(entry_id, event, content_type="application/json", **metadata):
    made = {"entryId": entry_id, "event": event, "contentType": content_type}
    return made | ({"metadata": metadata} if metadata else {})


async def bulk(api, entries, target=A):
    body = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return await api.call("POST", target, [JSON], body)


def refused(answer, reason, text):
    assert answer.status == 400, answer
    assert answer.json["errorCode"] == "ERR_PUBSUB_EVENTS_SER"
    assert answer.json["details"][-1]["reason"] == reason
    assert text in answer.json["message"], answer.json
    assert answer.json["message"].startswith("error when unmarshaling the request for topic A pubsub pubsub: ")


@pytest.mark.parametrize("version", ["v1.0", "v1.0-alpha1"])
async def test_each_entry_is_an_event_of_its_own(subscribed, app, version):
    entries = [
        entry("1", {"n": 1}),
        entry("2", "text", "text/plain"),
        entry("3", base64.b64encode(b"\x00\xff").decode(), "application/octet-stream"),
        entry("4", {"specversion": "1.0", "id": "x", "source": "/s", "type": "t"}, "application/cloudevents+json"),
        entry("5", {"n": 5}, **{"cloudevent.id": "mine", "cloudevent.type": "own"}),
    ]
    answer = await bulk(subscribed, entries, f"/{version}/publish/bulk/pubsub/A?metadata.cloudevent.source=all")
    assert (answer.status, answer.body) == (204, b""), answer
    one, two, three, four, five = [json.loads(event.body) for event in await app.got(5)]
    assert (one["data"], one["source"], one["type"]) == ({"n": 1}, "all", "com.dapr.event.sent")
    assert two["data"] == "text"
    assert three["data_base64"] == "AP8="
    assert (four["id"], four["source"], four["topic"]) == ("x", "/s", "A")
    assert (five["id"], five["type"], five["source"]) == ("mine", "own", "all")


async def test_names_in_any_case_unknown_members_and_exact_numbers(subscribed, app):
    body = b'[{"ENTRYID":"1","Event":{"n":12345678901234567890},"contenttype":"application/json","more":true}]'
    assert (await bulk(subscribed, body)).status == 204
    assert b'"data":{"n":12345678901234567890}' in (await app.got(1))[0].body


async def test_raw_is_said_for_all_of_them(start):
    async with App([{**subscription("A"), "metadata": {"rawPayload": "true"}}]) as app:
        api = await start(app=app)
        entries = [entry("1", "plain", "text/plain", rawPayload="false")]
        assert (await bulk(api, entries, f"{A}?metadata.rawPayload=true")).status == 204
        assert base64.b64decode(json.loads((await app.got(1))[0].body)["data_base64"]) == b"plain"


async def test_an_empty_array_is_done_at_once(subscribed):
    assert (await bulk(subscribed, [])).status == 204


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[", b"null", b'[{"entryId":1}]', b'["text"]', b"[" * 100_000, b'["\xff"]']
)
async def test_no_array_of_entries(subscribed, body):
    answer = await bulk(subscribed, body)
    refused(answer, "DAPR_PUBSUB_UNMARSHAL_EVENTS", "")
    assert answer.json["details"][-1]["metadata"] == {"appID": "app1"}


@pytest.mark.parametrize(
    ("event", "content_type", "rule"),
    [
        ({}, "text/plain", "must be a string"),
        ("?", "application/octet-stream", "must be base64"),
        ({}, "application/vnd.x+json", "contentType 'application/vnd.x+json' is none of"),
        ({}, "", "contentType '' is none of"),
    ],
)
async def test_an_event_that_does_not_suit_its_content_type(subscribed, app, event, content_type, rule):
    refused(
        await bulk(subscribed, [entry("1", {}), entry("", event, content_type)]),
        "DAPR_PUBSUB_MARSHAL_ENVELOPE",
        f"[1]: {'the event of contentType ' if rule.startswith('must') else ''}",
    )
    assert rule in (await bulk(subscribed, [entry("1", event, content_type)])).json["message"]
    assert app.events == []


@pytest.mark.parametrize("ids", [("",), ("1", "1")])
async def test_entry_ids_are_there_and_differ(subscribed, app, ids):
    answer = await bulk(subscribed, [entry(name, {}) for name in ids])
    refused(answer, "DAPR_PUBSUB_MARSHAL_EVENTS", "entryId is duplicated or not present for entry")
    assert app.events == []


async def test_an_entry_that_is_no_event_refuses_all(subscribed, app):
    answer = await bulk(subscribed, [entry("1", {}), entry("2", "no", "application/cloudevents+json")])
    assert (answer.status, answer.json["errorCode"]) == (500, "ERR_PUBSUB_CLOUD_EVENTS_SER")
    assert app.events == []


async def test_an_unknown_component_and_a_forbidden_topic(start, tmp_path):
    (tmp_path / "pubsub.yaml").write_text(LIMITED)
    api = await start("--resources-path", str(tmp_path))
    assert (await bulk(api, [], "/v1.0/publish/bulk/nobody/A")).status == 404
    assert (await bulk(api, [entry("1", {})], "/v1.0/publish/bulk/pubsub/secret")).status == 403


async def test_failed_entries_alone_are_in_the_answer(subscribed, app):
    entries = [entry("ok", {}), entry("large", "x" * (1 << 20), "text/plain"), entry("too", {})]
    answer = await bulk(subscribed, entries)
    assert answer.status == 500
    assert answer.json["errorCode"] == "ERR_PUBSUB_PUBLISH_MESSAGE"
    assert [failed["entryId"] for failed in answer.json["failedEntries"]] == ["large"]
    assert "takes at most" in answer.json["failedEntries"][0]["error"]
    assert json.loads(answer.headers["metadata.responsedata"]) == answer.json
    assert "takes at most" in answer.headers["metadata.error"]
    assert len(await app.got(2)) == 2


async def test_many_entries_keep_their_order(subscribed, app):
    entries = [entry(str(n), n, partitionKey="one") for n in range(2_500)]
    assert (await bulk(subscribed, entries)).status == 204
    assert {json.loads(event.body)["data"] for event in await app.got(2_500)} == set(range(2_500))
