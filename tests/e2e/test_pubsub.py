"""Publish/subscribe from the outside: an app, its sidecar, a real nats-server, another sidecar."""

import asyncio
import base64
import json
import re
import signal

import pytest

from tests.e2e.mesh import JSON, App, Mesh, call, subscription

DAPR, INGRESS = "/v1.0/publish/pubsub/A", "/mesh/v1/events/pubsub/A"
STRUCTURED = ("content-type", "application/cloudevents+json")
BATCHED = ("content-type", "application/cloudevents-batch+json")
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
async def mesh(tmp_path):
    async with Mesh(tmp_path) as mesh:
        yield mesh


def numbers(requests):
    return [request.event["data"]["n"] for request in requests]


async def publish(sidecar, *values, topic="A"):
    for value in values:
        await sidecar.publish(b'{"n":%d}' % value, topic=topic)


def manifest(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return str(folder)


# What is published arrives as it was sent

ATTRIBUTES = {
    "specversion": "1.0",
    "id": "é-1",
    "source": "/orders?x=1",
    "type": "order.created",
    "subject": 'a b%"☃',
    "time": "2019-10-11T12:13:14.123456789+02:00",
    "dataschema": "https://example.com/schema",
    "comexampleextension": "1e3",
}
DATA = b'{ "n": 1.0, "big": 12345678901234567890, "text": "\\u00e9<&>" }'


def binary(attributes, content_type):
    """Headers of an event in binary mode (CloudEvents HTTP binding 3.1.3.2)."""
    encoded = {
        name: re.sub(r'[^!#$&-~]|["%]', lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), value)
        for name, value in attributes.items()
    }
    return [*((f"ce-{name}", value) for name, value in encoded.items()), ("content-type", content_type)]


@pytest.mark.parametrize(("route", "status"), [(DAPR, 204), (INGRESS, 202)])
async def test_events_arrive_with_attributes_and_data_as_sent(mesh, route, status):
    async with App([subscription("A")]) as app:
        await mesh.sidecar("sub", app=app, topics=["A"])
        pub = await mesh.sidecar("pub")
        added = {"topic": "A", "pubsubname": "pubsub"} if route is DAPR else {}

        async def arrived(headers, body, count=1):
            before = len(app.events)
            answer = await pub.call("POST", route, headers, body)
            assert (answer.status, answer.body) == (status, b"")
            requests = await app.got(before + count)
            assert all(request.path == "/A" for request in requests)
            assert all(request.headers["content-type"] == "application/cloudevents+json" for request in requests)
            return requests[-count:]

        # structured: the data is the very bytes, numbers and escapes included
        event = {**ATTRIBUTES, "flag": True, "number": 7, "datacontenttype": "application/json"}
        text = json.dumps(event).encode()[:-1] + b', "data": ' + DATA + b"}"
        (request,) = await arrived([STRUCTURED], text)
        members = request.event
        assert DATA in request.body
        members.pop("data")
        assert members == event | added

        # binary, with JSON, with bytes, with text, and without data
        for content_type, body in (
            ("application/json", DATA),
            ("application/octet-stream", bytes(range(256))),
            ("text/plain; charset=utf-8", "é\r\n".encode()),
        ):
            (request,) = await arrived(binary(ATTRIBUTES | {"id": content_type}, content_type), body)
            members = request.event
            if content_type == "application/json":
                assert DATA in request.body
            elif "data_base64" in members:
                assert base64.b64decode(members["data_base64"]) == body
            else:
                assert members["data"].encode() == body
            members.pop("data", None), members.pop("data_base64", None)
            assert members == ATTRIBUTES | {"id": content_type, "datacontenttype": content_type} | added
        (request,) = await arrived(binary(ATTRIBUTES | {"id": "no data"}, "")[:-1], b"")
        assert request.event == ATTRIBUTES | {"id": "no data"} | added

        # batched
        batch = [ATTRIBUTES | {"id": f"batch {index}", "data": {"n": index}} for index in range(3)]
        requests = await arrived([BATCHED], json.dumps(batch).encode(), 3)
        found = {request.event["id"]: request.event for request in requests}
        assert found == {member["id"]: member | added for member in batch}


async def test_plain_payload_is_wrapped_and_its_trace_goes_along(mesh):
    async with App([subscription("A")]) as app:
        await mesh.sidecar("sub", app=app, topics=["A"])
        pub = await mesh.sidecar("pub")
        trace = [("traceparent", TRACEPARENT), ("tracestate", "a=1"), ("baggage", "k=v;p")]
        answer = await pub.call("POST", DAPR, [JSON, *trace], b'{"status":"completed"}')
        assert answer.status == 204
        assert answer.headers["traceparent"] == TRACEPARENT
        (request,) = await app.got()
        event = request.event
        assert b'"data":{"status":"completed"}' in request.body
        assert event["source"] == "pub"
        assert event["type"] == "com.dapr.event.sent"
        assert (event["traceid"], event["traceparent"], event["tracestate"]) == (TRACEPARENT, TRACEPARENT, "a=1")
        assert {name: request.headers.get(name) for name in ("traceparent", "tracestate", "baggage")} == dict(trace)
        assert request.headers["pubsubname"] == "pubsub"


# Subscriptions


async def test_every_shape_of_dapr_subscribe(mesh):
    shapes = [
        "y2019",  # 2019: topic is route
        {"topic": "y2020", "route": "/twenty"},
        {"pubsubname": "pubsub", "topic": "modern", "route": "no/slash"},
        {"PubsubName": "pubsub", "Topic": "letters", "Routes": {"Default": "/any-case"}},
        {"pubsubname": "pubsub", "topic": "a/b c.d", "route": "/odd?x=1"},
        {"pubsubname": "pubsub", "topic": "nowhere"},  # passed over
    ]
    async with App(shapes) as app:
        await mesh.sidecar("sub", app=app, topics=["y2019", "y2020", "modern", "letters", "a/b c.d"])
        pub = await mesh.sidecar("pub")
        topics = {"y2019": "/y2019", "y2020": "/twenty", "modern": "/no/slash", "letters": "/any-case"}
        for topic, path in {**topics, "a%2Fb+c.d": "/odd?x=1"}.items():
            await publish(pub, 1, topic=topic)
            (request,) = await app.got(1, path)
            assert request.event["topic"] == topic.replace("%2F", "/").replace("+", " ")
        asked = next(request for request in app.requests if request.path == "/dapr/subscribe")
        assert asked.headers["dapr-app-id"] == "sub"


async def test_declarative_subscriptions_of_both_versions(mesh, tmp_path):
    folder = manifest(
        tmp_path / "resources",
        "subscriptions.yaml",
        """
apiVersion: dapr.io/v1alpha1
kind: Subscription
metadata: {name: one}
spec: {pubsubname: pubsub, topic: one, route: /v1}
---
apiVersion: dapr.io/v2alpha1
kind: Subscription
metadata: {name: two}
spec: {pubsubname: pubsub, topic: two, routes: {default: /v2}}
scopes: [sub]
---
apiVersion: dapr.io/v2alpha1
kind: Subscription
metadata: {name: three}
spec: {pubsubname: pubsub, topic: three, routes: {default: /not-for-us}}
scopes: [other]
---
apiVersion: dapr.io/v2alpha1
kind: Subscription
metadata: {name: four}
spec: {pubsubname: pubsub, topic: A, routes: {default: /replaced}}
""",
    )
    async with App([subscription("A")]) as app:
        sub = await mesh.sidecar("sub", "--resources-path", folder, app=app, topics=["one", "two", "A"])
        await publish(sub, 1, topic="three")
        for topic, path in {"one": "/v1", "two": "/v2", "A": "/A"}.items():
            await publish(sub, 1, topic=topic)
            await app.got(1, path)
        assert {request.path for request in app.events} == {"/v1", "/v2", "/A"}
        listed = (await sub.call("GET", "/v1.0/metadata")).json["subscriptions"]
        assert {entry["topic"]: entry["type"] for entry in listed} == {
            "one": "DECLARATIVE",
            "two": "DECLARATIVE",
            "A": "PROGRAMMATIC",
        }


async def test_topic_scopes_of_a_component(mesh, tmp_path):
    folder = manifest(
        tmp_path / "resources",
        "scoped.yaml",
        """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: pubsub}
spec:
  type: pubsub.meshwire
  version: v1
  metadata:
  - {name: publishingScopes, value: "sub=A,B;pub=A"}
  - {name: subscriptionScopes, value: "sub=A"}
""",
    )
    async with App([subscription("A"), subscription("B")]) as app:
        sub = await mesh.sidecar("sub", "--resources-path", folder, app=app, topics=["A"])
        pub = await mesh.sidecar("pub", "--resources-path", folder)
        refused = await pub.call("POST", "/v1.0/publish/pubsub/B", [JSON], b"{}")
        assert refused.status == 403
        assert refused.json["message"] == "topic B is not allowed for app id pub"
        await publish(sub, 1, topic="B")
        await publish(pub, 2)
        assert numbers(await app.got()) == [2]
        assert "topic B is not allowed for app id sub" in sub.log
        assert "topics: [B]" not in sub.log


async def test_raw_bytes_in_and_out(mesh):
    async with App([subscription("A", metadata={"rawPayload": "true"}), subscription("B")]) as app:
        sub = await mesh.sidecar("sub", app=app, topics=["A", "B"])
        octets = bytes(range(256))
        raw = "?metadata.rawPayload=true"
        await sub.publish(octets, ("content-type", "image/png"), query=raw)
        (request,) = await app.got(1, "/A")
        assert base64.b64decode(request.event["data_base64"]) == octets
        assert request.event["datacontenttype"] == "application/octet-stream"

        # An event that was published raw arrives at an ordinary subscription as the event that it is.
        event = b'{ "specversion":"1.0", "id":"1", "source":"s", "type":"t", "data": 1.0 }'
        await sub.publish(event, STRUCTURED, topic="B", query=raw)
        (request,) = await app.got(1, "/B")
        assert request.body == event


# What the app answers


async def test_retry_brings_the_same_bytes_again_and_drop_does_not(mesh):
    answers = {
        1: [(200, b'{"status":"RETRY"}'), (500, b""), (200, b'{"status":"SUCCESS"}')],
        2: [(200, b'{"status":"DROP"}')],
        3: [(404, b"")],
        4: [(204, b"")],
    }
    async with App([subscription("A")], lambda request: answers[request.event["data"]["n"]].pop(0)) as app:
        sub = await mesh.sidecar("sub", app=app, topics=["A"])
        await publish(sub, 1, 2, 3, 4)
        requests = await app.got(6)
        assert sorted(numbers(requests)) == [1, 1, 1, 2, 3, 4]
        assert len({request.body for request in requests if request.event["data"]["n"] == 1}) == 1
    assert not any(answers.values())


async def test_dead_letters_keep_their_bytes_and_tell_why(mesh):
    replies = {1: (500, b""), 2: (200, b'{"status":"RETRY"}'), 3: (200, b'{"status":"DROP"}'), 4: (404, b"")}

    def answer(request):
        return 200 if request.path == "/dead" else replies.get(request.event["data"]["n"], (200, b""))

    subscriptions = [subscription("A", deadLetterTopic="dead"), subscription("dead")]
    async with App(subscriptions, answer) as app:
        sub = await mesh.sidecar("sub", app=app, topics=["A", "dead"])
        await publish(sub, 1, 2, 3, 4, 5)
        letters = await app.got(4, "/dead")
        tried = await app.got(5, "/A")
        assert sorted(numbers(letters)) == [1, 2, 3, 4]
        assert {letter.body.partition(b',"knativeerrordest"')[0] + b"}" for letter in letters} < {
            request.body for request in tried
        }
        why = {letter.event["data"]["n"]: letter.event for letter in letters}
        assert [why[n]["meshwirereason"] for n in (1, 2, 3, 4)] == ["attempts", "attempts", "dropped", "dropped"]
        assert [why[n]["knativeerrorcode"] for n in (1, 2, 3, 4)] == [500, 200, 200, 404]
        assert {letter.event["topic"] for letter in letters} == {"A"}
        assert sorted(numbers(tried)) == [1, 2, 3, 4, 5]  # one attempt each


async def test_expired_events_are_not_delivered(mesh):
    async with App([subscription("A", deadLetterTopic="dead"), subscription("dead")]) as app:
        first = await mesh.sidecar("sub", app=app, topics=["A", "dead"])
        await first.end()
        pub = await mesh.sidecar("pub")
        await pub.publish(b'{"n":1}', query="?metadata.ttlInSeconds=1")
        await pub.publish(b'{"n":2}', query="?metadata.ttlInSeconds=100")
        old = {**ATTRIBUTES, "expirytime": "2019-10-11T12:13:14Z", "data": {"n": 3}}
        await pub.publish(json.dumps(old).encode(), STRUCTURED)
        await asyncio.sleep(1.1)
        await first.start().says("app is subscribed to the following topics: .A.", 2)
        await publish(pub, 4)
        requests = await app.got(2, "/A")
        assert sorted(numbers(requests)) == [2, 4]  # without a key they may overtake each other
        assert {request.event["data"]["n"]: "expiration" in request.event for request in requests}[2]
        late = await app.got(2, "/dead")
        assert sorted(numbers(late)) == [1, 3]
        assert {request.event["meshwirereason"] for request in late} == {"expired"}


# Groups


async def test_replicas_share_and_apps_each_get_all(mesh):
    async with App([subscription("A")]) as app1, App([subscription("A")]) as app2, App([subscription("A")]) as other:
        await mesh.sidecar("sub", app=app1, topics=["A"], name="replica-1")
        await mesh.sidecar("sub", app=app2, topics=["A"], name="replica-2")
        await mesh.sidecar("other", app=other, topics=["A"])
        pub = await mesh.sidecar("pub")
        await asyncio.gather(*(publish(pub, number) for number in range(200)))
        assert sorted(numbers(await other.got(200))) == list(range(200))
        async with asyncio.timeout(30):
            while len(app1.events) + len(app2.events) < 200:
                await asyncio.sleep(0.01)
        assert sorted(numbers(app1.events + app2.events)) == list(range(200))
        assert app1.events
        assert app2.events


async def test_group_keeps_its_place_over_a_restart_of_everything(mesh):
    async with App([subscription("A")]) as app:
        sub = await mesh.sidecar("sub", app=app, topics=["A"])
        pub = await mesh.sidecar("pub")
        await publish(pub, 1)
        await app.got(1)
        await sub.end()
        await publish(pub, 2)
        mesh.server.stop()
        mesh.server.start()
        await publish(pub, 3)
        await sub.start().says("app is subscribed", 2)
        assert sorted(numbers(await app.got(3))) == [1, 2, 3]


async def test_shutdown_with_events_in_hand_loses_none_and_dead_letters_none(mesh):
    gate = asyncio.Event()
    slow = True

    async def answer(request):
        if slow and request.path == "/A":
            await gate.wait()
            return 503 if request.event["data"]["n"] % 2 else 200
        return 200

    async with App([subscription("A", deadLetterTopic="dead"), subscription("dead")], answer) as app:
        sub = await mesh.sidecar("sub", app=app, topics=["A", "dead"])
        pub = await mesh.sidecar("pub")
        await publish(pub, *range(100))
        await app.got(64, "/A")  # what one subscription has in hand at once
        sub.send(signal.SIGTERM)
        await sub.says("dapr shutting down")
        assert sub.runs
        gate.set()
        assert await sub.end(None) == 0
        handled = {number for number in numbers(app.events) if number % 2 == 0}
        slow = False
        before = len(app.events)
        await sub.start().says("app is subscribed", 4)
        again = numbers(await app.got(before + 100 - len(handled), "/A"))[before:]
        assert sorted(again) == sorted(set(range(100)) - handled)
        assert not [request for request in app.events if request.path == "/dead"]


async def test_unhealthy_app_gets_nothing_until_it_is_well_again(mesh):
    well = True

    def answer(request):
        return 200 if well or request.path != "/healthz" else 500

    probes = ["--app-health-probe-interval", "1", "--app-health-probe-timeout", "500", "--app-health-threshold", "1"]
    async with App([subscription("A")], answer) as app:
        sub = await mesh.sidecar("sub", "--enable-app-health-check", *probes, app=app, topics=["A"])
        pub = await mesh.sidecar("pub")
        await publish(pub, 1)
        await app.got(1)
        well = False
        await sub.says("the app is unhealthy")
        await asyncio.sleep(0.1)  # what is under way has come by then
        await publish(pub, 2)
        await sub.says("app is healthy", 1)
        probed = len(app.requests)
        async with asyncio.timeout(30):
            while len(app.requests) < probed + 1:  # one more probe, and still no event
                await asyncio.sleep(0.01)
        assert numbers(app.events) == [1]
        well = True
        assert numbers(await app.got(2)) == [1, 2]


# Tokens and reload


async def test_tokens_in_both_directions(mesh):
    async with App([subscription("A")]) as app:
        sub = mesh.add("sub", app=app, DAPR_API_TOKEN="let me in", APP_API_TOKEN="it is me").start()
        await sub.ready("A")
        for headers in ([], [("dapr-api-token", "wrong")], [("dapr-api-token", "let me i")]):
            answer = await sub.call("POST", DAPR, [JSON, *headers], b'{"n":0}')
            assert (answer.status, answer.body) == (401, b"invalid api token\n")
            answer = await sub.call("POST", INGRESS, [STRUCTURED, *headers], json.dumps(ATTRIBUTES).encode())
            assert answer.status == 401
        token = ("dapr-api-token", "let me in")
        assert (await sub.call("POST", DAPR, [JSON, token], b'{"n":1}')).status == 204
        (request,) = await app.got()
        assert request.event["data"] == {"n": 1}
        assert {request.headers["dapr-api-token"] for request in app.requests} == {"it is me"}
        assert "let me in" not in sub.log + request.body.decode()
        assert "it is me" not in sub.log


async def test_hangup_signal_reads_the_manifests_again(mesh, tmp_path):
    text = """
apiVersion: dapr.io/v1alpha1
kind: Subscription
metadata: {name: one}
spec: {pubsubname: pubsub, topic: TOPIC, route: /TOPIC}
"""
    folder = tmp_path / "resources"
    manifest(folder, "one.yaml", text.replace("TOPIC", "old"))
    async with App([]) as app:
        sub = await mesh.sidecar("sub", "--resources-path", str(folder), app=app, topics=["old"])
        await publish(sub, 1, topic="old")
        await app.got(1, "/old")
        pid = sub.pid
        assert (await call(sub.port, "PUT", "/v1.0/metadata/appCommand", (), b"python app.py")).status == 204
        manifest(folder, "one.yaml", text.replace("TOPIC", "new"))
        sub.send(signal.SIGHUP)
        await sub.ready("new")
        await publish(sub, 2, topic="old")
        await publish(sub, 3, topic="new")
        await app.got(1, "/new")
        assert numbers(app.events) == [1, 3]
        assert sub.pid == pid
        told = (await call(sub.port, "GET", "/v1.0/metadata")).json["extended"]
        assert told["appCommand"] == "python app.py"
        assert (await call(sub.port, "POST", "/v1.0/shutdown")).status == 204
        assert await sub.end(None) == 0
