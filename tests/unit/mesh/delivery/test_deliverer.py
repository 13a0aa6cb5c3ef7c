"""The delivery plan over the reference log, with an app made of answers, in virtual time."""

from __future__ import annotations

import asyncio
import json

import pytest

from mesh.delivery import Deliverer, EventTarget, Plan, Verdict
from mesh.delivery.deliverer import HOLD_LIMIT
from mesh.delivery.letters import strip
from mesh.errors import AppError, AppUnreachable, BrokerError
from mesh.filters.cel import Rule
from mesh.filters.dialects import parse_filters
from mesh.ports import AppResponse, Group, Message, Mode, Order, Topic
from mesh.routing import Routing
from tests.unit.mesh.delivery.bench import DEAD, EVENT, TOPIC, Answer, App, Bench, answer
from tests.virtual_clock import VirtualClock


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (answer(200), Verdict.SUCCESS),
        (answer(204), Verdict.SUCCESS),
        (answer(200, b"ok, status unknown"), Verdict.SUCCESS),
        (answer(200, b'{"status":"SUCCESS"}'), Verdict.SUCCESS),
        (answer(200, b'{"status":""}'), Verdict.SUCCESS),
        (answer(200, b'{"status":5}'), Verdict.SUCCESS),
        (answer(200, b'[{"status":"RETRY"}]'), Verdict.SUCCESS),
        (answer(200, b'\xff{"status":"RETRY"}'), Verdict.SUCCESS),
        (answer(200, b'{"status":"RETRY"}'), Verdict.RETRY),
        (answer(201, b' {"Status":"RETRY"} trailing'), Verdict.RETRY),
        (answer(200, b'{"status":"success"}'), Verdict.RETRY),
        (answer(200, b'{"status":"DROP"}'), Verdict.DROP),
        (answer(404), Verdict.DROP),
        (answer(404, b'{"status":"SUCCESS"}'), Verdict.DROP),
        (answer(302), Verdict.RETRY),
        (answer(400), Verdict.RETRY),
        (answer(503), Verdict.RETRY),
    ],
)
def test_what_an_answer_means(response: AppResponse, expected: Verdict) -> None:
    judged = EventTarget(TOPIC, "/A", App(VirtualClock())).judge(response, 0.0)  # type: ignore[arg-type]
    assert (judged.verdict, judged.status) == (expected, response.status)
    assert bool(judged.reason) == (expected is not Verdict.SUCCESS)


def test_pauses_double_up_to_a_minute() -> None:
    pauses = [Plan().pause(attempt) for attempt in range(1, 12)]
    assert pauses[:3] == [0.5, 1.0, 2.0]
    assert pauses[-1] == 60.0
    assert Plan().pause(10_000) == 60.0


def test_pauses_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    pauses = {Plan().pause(1) for _ in range(50)}
    assert len(pauses) > 40
    assert all(0.4 <= pause <= 0.6 for pause in pauses)


async def test_the_stored_bytes_arrive(bench: Bench) -> None:
    await bench.subscribe(Plan())
    odd = b'{ "specversion":"1.0", "id":"1", "source":"/a","type":"t","n":1e400,"data":{"k": 0.10}}'
    await bench.publish(odd, headers={"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01", "baggage": "a=1"})
    ((_, body, headers),) = bench.app.calls
    assert body == odd
    trace = b"traceparent: 00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01\r\n"
    assert headers == b"meshwire-attempt: 1\r\n" + trace + b"baggage: a=1\r\n"
    await bench.clock.advance(3600)
    assert len(bench.app.calls) == 1


async def test_failures_are_tried_again_at_growing_pauses_until_success(bench: Bench) -> None:
    await bench.subscribe(Plan())
    bench.app.answers = [answer(500), answer(200, b'{"status":"RETRY"}'), AppError("broke off"), answer(500)]
    await bench.publish()
    await bench.clock.advance(3600)
    assert bench.app.times == [0.0, 0.5, 1.5, 3.5, 7.5]


@pytest.mark.parametrize("dropped", [answer(404), answer(200, b'{"status":"DROP"}')])
async def test_dropped_without_dead_letter_topic_is_gone(bench: Bench, dropped: AppResponse) -> None:
    await bench.subscribe(Plan())
    bench.app.answers = [dropped]
    await bench.publish()
    await bench.clock.advance(3600)
    assert len(bench.app.calls) == 1


@pytest.mark.parametrize("failure", [answer(500), answer(404), AppError("no answer in time")])
async def test_one_failure_dead_letters_the_message_unchanged(bench: Bench, failure: Answer) -> None:
    await bench.subscribe(Plan(attempts=1, dead_letter=DEAD))
    bench.app.answers = [failure]
    await bench.publish()
    await bench.clock.advance(3600)
    assert len(bench.app.calls) == 1
    (letter,) = bench.dead
    assert letter.mode is Mode.STRUCTURED
    assert letter.payload and letter.payload.startswith(EVENT[:-1])
    assert strip(letter).payload == EVENT
    assert letter.dedupe_id is not None


async def test_a_dead_letter_that_cannot_be_stored_stays(bench: Bench) -> None:
    await bench.subscribe(Plan(attempts=1, dead_letter=DEAD))
    bench.app.answers = [answer(500), answer(500)]
    store = bench.log.publish
    full = True

    async def publish(topic: Topic, message: Message) -> None:
        if topic == DEAD and full:
            raise BrokerError("the disk is full")
        await store(topic, message)

    bench.log.publish = publish  # type: ignore[method-assign]
    await bench.publish()
    full = False
    await bench.clock.advance(60)
    assert bench.app.times == [0.0]
    assert len(bench.dead) == 1


async def test_an_unreachable_app_costs_no_attempt(bench: Bench) -> None:
    await bench.subscribe(Plan(attempts=1, dead_letter=DEAD))
    bench.app.answers = [AppUnreachable("refused")] * 5
    await bench.publish()
    await bench.clock.advance(60)
    assert bench.app.times == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]
    assert bench.dead == []


async def test_an_event_is_not_held_for_ever(bench: Bench) -> None:
    """Another replica may reach its app."""
    await bench.subscribe(Plan())
    bench.app.answers = [AppUnreachable("refused")] * 10_000
    await bench.publish()
    await bench.clock.advance(HOLD_LIMIT + 1)
    other = App(bench.clock)
    deliverer = Deliverer(
        group=Group("app", TOPIC),
        target=EventTarget(TOPIC, "/A", other),  # type: ignore[arg-type]
        plan=Plan(),
        log=bench.log,
        channel=other,  # type: ignore[arg-type]
        clock=bench.clock,
    )
    await bench.log.subscribe(Group("app", TOPIC), deliverer.handle, concurrency=8, order=Order.NONE)
    await bench.clock.advance(2 * HOLD_LIMIT)
    assert len(other.calls) == 1


@pytest.mark.parametrize("payload", [b"", b"plain", b"[1]", b'{"a":}', b'{"a":"\xff"}', b"{" * 5000])
async def test_what_is_no_event_never_reaches_the_app(bench: Bench, payload: bytes) -> None:
    await bench.subscribe(Plan(attempts=1, dead_letter=DEAD))
    await bench.publish(payload)
    assert bench.app.calls == []
    assert [letter.payload for letter in bench.dead] == [payload]


@pytest.mark.parametrize("name", ["expiration", "expirytime"])
async def test_expired_events_are_dropped(bench: Bench, name: str) -> None:
    await bench.subscribe(Plan())
    await bench.publish(b'{"id":"1","%b":"2023-11-14T22:13:20Z"}' % name.encode())
    await bench.publish(b'{"id":"2","%b":"2023-11-14T22:13:21Z"}' % name.encode())
    assert [json.loads(body)["id"] for _, body, _ in bench.app.calls] == ["2"]


@pytest.mark.parametrize("expiry", ["soon", "", "2023-13-45T00:00:00Z"])
async def test_an_expiry_that_is_no_time_is_none(bench: Bench, expiry: str) -> None:
    await bench.subscribe(Plan())
    await bench.publish(b'{"id":"1","expiration":"%b"}' % expiry.encode())
    assert len(bench.app.calls) == 1


async def test_expired_events_go_to_the_dead_letter_topic_if_there_is_one(bench: Bench) -> None:
    await bench.subscribe(Plan(attempts=1, dead_letter=DEAD))
    await bench.publish(b'{"id":"1","expiration":"2023-11-14T22:13:20Z"}')
    assert bench.app.calls == []
    assert len(bench.dead) == 1


@pytest.mark.parametrize("mode", [Mode.STRUCTURED, Mode.BINARY])
async def test_letters_do_not_expire(bench: Bench, mode: Mode) -> None:
    await bench.subscribe(Plan())
    attributes = {"specversion": "1.0", "id": "1", "source": "/a", "type": "t", "expirytime": "2023-11-14T22:13:20Z"}
    attributes["meshwirereason"] = "expired"
    binary = Message(mode=mode, payload=b"", attributes=dict(attributes))
    structured = Message(mode=mode, payload=json.dumps(attributes).encode())
    await bench.log.publish(TOPIC, binary if mode is Mode.BINARY else structured)
    await bench.clock.settle()
    assert len(bench.app.calls) == 1


async def test_binary_events_arrive_whole(bench: Bench) -> None:
    await bench.subscribe(Plan())
    attributes = {"specversion": "1.0", "id": "1", "source": "/a", "type": "t", "datacontenttype": "image/png"}
    await bench.log.publish(TOPIC, Message(mode=Mode.BINARY, payload=b"\x89PNG", attributes=dict(attributes)))
    await bench.clock.settle()
    ((_, body, _),) = bench.app.calls
    assert json.loads(body) == {**attributes, "data_base64": "iVBORw=="}


async def test_raw_subscriptions_wrap_whatever_comes(bench: Bench) -> None:
    await bench.subscribe(Plan(), raw=True)
    await bench.publish(EVENT)
    ((_, body, _),) = bench.app.calls
    made = json.loads(body)
    assert made.pop("id")
    assert made == {
        "specversion": "1.0",
        "datacontenttype": "application/octet-stream",
        "source": "Dapr",
        "type": "com.dapr.event.sent",
        "topic": "A",
        "pubsubname": "pubsub",
        "data_base64": "eyJzcGVjdmVyc2lvbiI6IjEuMCIsImlkIjoiMSIsInNvdXJjZSI6Ii9hIiwidHlwZSI6InQiLCJkYXRhIjoxfQ==",
    }


async def test_the_events_own_trace_is_used_when_the_message_brings_none(bench: Bench) -> None:
    await bench.subscribe(Plan())
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    await bench.publish(b'{"id":"1","traceid": "%b","tracestate":"v=1"}' % trace.encode())
    assert bench.app.calls[0][2] == f"meshwire-attempt: 1\r\ntraceparent: {trace}\r\ntracestate: v=1\r\n".encode()


async def test_draining_gives_failures_back_at_once(bench: Bench) -> None:
    await bench.subscribe(Plan(attempts=1, dead_letter=DEAD))
    bench.app.answers = [None]
    await bench.publish()
    bench.deliverer.drain()
    bench.app.open[0].set_exception(AppError("broke off"))
    await bench.clock.settle()
    assert bench.dead == []
    assert bench.app.times == [0.0, 0.0]


async def test_a_flood_of_failures_is_logged_once_a_second(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    await bench.subscribe(Plan())
    bench.app.answers = [answer(500)] * 8
    for _ in range(8):
        await bench.publish()
    await bench.clock.advance(0.9)
    assert len([record for record in caplog.records if "failed at attempt" in record.message]) == 1
    bench.app.answers = [answer(500)]
    await bench.clock.advance(0.2)
    await bench.publish()
    assert "7 more failed" in caplog.text


# Routing


class Path:
    """One path of an app, which notes its calls there."""

    def __init__(self, app: App, path: str) -> None:
        self._app = app
        self._path = path

    def send(self, *arguments: object, **more: object) -> asyncio.Future[AppResponse]:
        self._app.path = self._path
        return self._app.send(*arguments, **more)  # type: ignore[arg-type]


async def routed(
    bench: Bench, *rules: str, default: str = "", dead: Topic | None = None, filters: object = None
) -> None:
    bench.app.path = ""
    bench.app.prepare = lambda _method, path, _fixed=(): Path(bench.app, path)  # type: ignore[method-assign,assignment]
    routes: list[tuple[Rule | None, str]] = [(Rule(rule), f"/{index}") for index, rule in enumerate(rules)]
    if default:
        routes.append((None, default))
    await bench.subscribe(Plan(attempts=dead and 1, dead_letter=dead), to=Routing(routes, parse_filters(filters)))


async def test_an_event_goes_where_the_first_true_rule_says(bench: Bench) -> None:
    await routed(bench, "event.type == 'other'", "event.data == 1", "true", default="/d")
    await bench.publish()
    assert (len(bench.app.calls), bench.app.path) == (1, "/1")
    assert bench.app.calls[0][1] == EVENT
    await bench.publish(EVENT.replace(b'"type":"t"', b'"type":"other"'))
    assert (len(bench.app.calls), bench.app.path) == (2, "/0")


async def test_an_event_of_binary_mode_is_routed_by_attributes_and_data(bench: Bench) -> None:
    await routed(bench, "event.size == '5' && event.data.n == 2", default="/d")
    attributes = {
        "specversion": "1.0",
        "id": "1",
        "source": "/s",
        "type": "t",
        "size": "5",
        "datacontenttype": "application/json",
    }
    for data, path in ((b'{"n":2}', "/0"), (b'{"n":3}', "/d")):
        await bench.log.publish(TOPIC, Message(mode=Mode.BINARY, payload=data, attributes=attributes))  # type: ignore[arg-type]
        await bench.clock.settle()
        assert bench.app.path == path


async def test_raw_payload_is_routed_by_its_envelope(bench: Bench) -> None:
    bench.app.prepare = lambda _method, path, _fixed=(): Path(bench.app, path)  # type: ignore[method-assign,assignment]
    rule = Rule("event.topic == 'A' && event.data_base64 == 'eA=='")
    await bench.subscribe(Plan(), to=Routing([(rule, "/x"), (None, "/d")]), raw=True)
    await bench.publish(b"x")
    assert bench.app.path == "/x"


async def test_an_event_that_no_rule_takes_is_settled(bench: Bench) -> None:
    await routed(bench, "event.type == 'other'")
    await bench.publish()
    assert (bench.app.calls, bench.skipped) == ([], ["rules"])
    async with asyncio.timeout(30):
        await bench.subscription.close()


async def test_an_event_that_no_rule_takes_is_a_dead_letter_where_there_is_a_topic_for_it(bench: Bench) -> None:
    await routed(bench, "event.type == 'other'", dead=DEAD)
    await bench.publish()
    assert [strip(letter).payload for letter in bench.dead] == [EVENT]
    assert bench.app.calls == []


async def test_an_event_that_is_filtered_out_is_never_a_dead_letter(bench: Bench) -> None:
    await routed(bench, default="/d", dead=DEAD, filters=[{"exact": {"type": "other"}}])
    await bench.publish()
    assert (bench.app.calls, bench.dead, bench.skipped) == ([], [], ["filter"])
    await bench.publish(EVENT.replace(b'"type":"t"', b'"type":"other"'))
    assert bench.app.path == "/d"


async def test_a_rule_without_a_value_fails_the_event(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    await routed(bench, "event.data.amount > 1", default="/d")
    await bench.publish()
    assert "'event.data.amount > 1' cannot be evaluated: no such overload" in caplog.text
    await bench.publish(EVENT.replace(b'"data":1', b'"data":{"amount":2}'))
    assert bench.app.path == "/0"


async def test_a_rule_without_a_value_makes_a_dead_letter(bench: Bench) -> None:
    await routed(bench, "event.data.amount > 1", default="/d", dead=DEAD)
    await bench.publish()
    assert [strip(letter).payload for letter in bench.dead] == [EVENT]
    assert bench.app.calls == []
