"""`POST /mesh/v1/explain`, answer by answer."""

import json

import pytest

from tests.e2e.mesh import App, subscription

PATH = "/mesh/v1/explain"
STRUCTURED = ("content-type", "application/cloudevents+json")
EVENT = {
    "specversion": "1.0",
    "id": "1",
    "source": "/s",
    "type": "order.placed",
    "region": "eu",
    "data": {"amount": 12},
}
RULES = [
    {"match": "event.data.amount > 100", "path": "/big"},
    {"match": "event.type == 'order.placed'", "path": "/placed"},
]
FILTERS = [{"sql": "type LIKE 'order.%' AND region IN ('us', 'uk')"}]


@pytest.fixture
async def api(start):
    asked = [
        subscription("A"),
        {"pubsubname": "pubsub", "topic": "B", "routes": {"rules": RULES}},
        subscription("C", metadata={"filters": json.dumps(FILTERS)}),
        {"pubsubname": "pubsub", "topic": "D", "routes": {"rules": [{"match": "event.data.nope == 1", "path": "/d"}]}},
        subscription("R", metadata={"rawPayload": "true"}, filters=[{"exact": {"type": "com.dapr.event.sent"}}]),
    ]
    async with App(asked) as app:
        yield await start(app=app)


async def explain(api, query="", event=EVENT):
    answer = await api.call("POST", PATH + query, [STRUCTURED], json.dumps(event).encode())
    assert answer.status == 200, answer
    assert answer.headers["content-type"].startswith("application/json")
    return {one["topic"]: one for one in answer.json["subscriptions"]}


async def test_every_subscription_is_told_of(api):
    found = await explain(api)
    assert list(found) == ["A", "B", "C", "D", "R"]
    assert found["A"] == {
        "pubsubname": "pubsub",
        "topic": "A",
        "type": "PROGRAMMATIC",
        "origin": "GET /dapr/subscribe: entry 0",
        "explanation": {"matches": True, "path": "/A"},
    }
    rules = found["B"]["explanation"]
    assert (rules["matches"], rules["path"]) == (True, "/placed")
    assert [(rule["match"], rule["matches"]) for rule in rules["rules"]] == [
        ("event.data.amount > 100", False),
        ("event.type == 'order.placed'", True),
    ]
    assert rules["rules"][0]["step"] == {
        "expression": "event.data.amount > 100",
        "value": False,
        "position": 0,
        "steps": [
            {
                "expression": "event.data.amount",
                "value": 12.0,
                "position": 0,
                "steps": [{"expression": "event.data", "value": '{"amount": 12.0}', "position": 0}],
            }
        ],
    }
    filters = found["C"]["explanation"]
    assert (filters["matches"], filters["skipped"]) == (False, "filter")
    assert filters["decidedBy"] == {
        "expression": "region IN ('us', 'uk')",
        "value": False,
        "position": 24,
        "steps": [{"expression": "region", "value": "eu", "position": 24}],
    }
    failed = found["D"]["explanation"]
    assert (failed["matches"], failed["decidedBy"]["expression"]) == (False, "event.data.nope")
    assert failed["decidedBy"]["error"] == {"kind": "RuleError", "message": "no such key: nope"}
    assert failed["error"] == "the routing rule 'event.data.nope == 1' cannot be evaluated: no such key: nope"
    assert found["R"]["explanation"]["matches"]


async def test_the_query_picks_a_subscription(api):
    assert list(await explain(api, "?pubsubname=pubsub&topic=B")) == ["B"]
    assert list(await explain(api, "?pubsubname=other")) == []


async def test_missing_attributes_are_named(api):
    event = {name: value for name, value in EVENT.items() if name != "region"}
    found = (await explain(api, "?topic=C", event))["C"]["explanation"]
    assert found["decidedBy"]["expression"] == "region"
    assert found["decidedBy"]["error"]["kind"] == "MissingAttributeError"


async def test_binary_mode(api):
    headers = [(f"ce-{name}", value) for name, value in EVENT.items() if name != "data"]
    answer = await api.call(
        "POST", f"{PATH}?topic=B", [*headers, ("content-type", "application/json")], b'{"amount":101}'
    )
    [found] = answer.json["subscriptions"]
    assert found["explanation"]["path"] == "/big"


@pytest.mark.parametrize(
    ("headers", "body", "status", "code", "words"),
    [
        ([STRUCTURED], b'{"id":"1"}', 400, "ERR_EVENT_INVALID", "specversion"),
        ([STRUCTURED], b"nothing", 400, "ERR_EVENT_INVALID", "JSON"),
        ([("content-type", "application/cloudevents-batch+json")], b"[]", 400, "ERR_EVENT_INVALID", "not a batch"),
        ([("content-type", "application/json")], b"{}", 400, "ERR_EVENT_INVALID", "ce-"),
    ],
)
async def test_what_is_no_event_is_refused(api, headers, body, status, code, words):
    answer = await api.call("POST", PATH, headers, body)
    assert (answer.status, answer.json["errorCode"]) == (status, code)
    assert words in answer.json["message"]


async def test_without_an_app_there_are_no_subscriptions(start):
    assert await explain(await start()) == {}


async def test_metadata_tells_the_rules(api):
    told = (await api.call("GET", "/v1.0/metadata")).json["subscriptions"]
    assert [one["rules"] for one in told if one["topic"] == "B"] == [RULES]
