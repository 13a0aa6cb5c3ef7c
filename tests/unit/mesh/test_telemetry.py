"""The silent implementations, the spans of the mesh, and what the core tells of its work."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from mesh import spans
from mesh.delivery import Deliverer, EventTarget, Plan
from mesh.envelope import Publication
from mesh.errors import ApiError, AppError, AppUnreachable, BrokerUnavailable
from mesh.ports import AppResponse, Group, Message, Mode, Topic
from mesh.pubsub import Component, PubSub
from mesh.telemetry import NO_METER, NO_TRACER, SILENCE, UNTRACED, Kind, Telemetry
from mesh.trace import TraceContext
from sidecar.telemetry.tracing import SamplingTracer, SpanRecord
from tests.virtual_clock import VirtualClock

CALLER = TraceContext("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "vendor=1")
CREATOR = TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "")
GOOD = AppResponse(200, (), b"")
ORDERS = Topic("pubsub", "orders")


def test_without_a_tracer_the_callers_context_goes_on_as_it_came() -> None:
    with NO_TRACER.start(Kind.SERVER, "x", CALLER) as span:
        assert span.context is CALLER
        assert not span.recording
    assert NO_TRACER.start(Kind.SERVER, "x", None) is UNTRACED


def test_without_a_meter_everything_can_be_counted() -> None:
    publishes = NO_METER.publishes("pubsub", "orders")
    publishes.end(publishes.begin(), True)
    deliveries = NO_METER.deliveries("pubsub", "orders")
    deliveries.end(deliveries.begin(), "success", "")
    deliveries.retried()
    NO_METER.calls.answered(NO_METER.calls.sent("b", "unary"), "b", 200, "unary")
    assert Telemetry(NO_TRACER, NO_METER) == SILENCE


class Recorded:
    """A tracer that samples everything, and what it recorded."""

    def __init__(self, rate: float = 1.0) -> None:
        self.spans: list[SpanRecord] = []
        self.telemetry = Telemetry(tracer=SamplingTracer(rate, [self.spans.append]))

    @property
    def only(self) -> SpanRecord:
        (span,) = self.spans
        return span


class Log:
    features = frozenset[Any]()
    problem = None

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.error: Exception | None = None

    async def publish(self, topic: Topic, message: Message) -> None:
        if self.error is not None:
            raise self.error
        self.messages.append(message)


def pubsub(log: Log, telemetry: Telemetry) -> PubSub:
    component = Component(name="pubsub", log=log)  # type: ignore[arg-type]
    return PubSub("shop", {component.name: component}, VirtualClock(), telemetry=telemetry)


def publication(body: bytes = b"{}", **more: Any) -> Publication:
    return Publication(**{"topic": ORDERS, "body": body, "content_type": "application/json", **more})


async def test_publish_puts_its_own_span_into_the_event_and_beside_it() -> None:
    seen, log = Recorded(), Log()
    await pubsub(log, seen.telemetry).publish(publication(trace=CALLER))
    span = seen.only
    assert (span.name, span.kind, span.parent_id) == ("publish orders", Kind.PRODUCER, CALLER.traceparent[36:52])
    assert span.context.traceparent != CALLER.traceparent
    (message,) = log.messages
    assert message.headers == {"traceparent": span.context.traceparent, "tracestate": "vendor=1"}
    texts = spans.event_texts(message)
    assert texts["traceparent"] == texts["traceid"] == span.context.traceparent
    assert span.attributes["messaging.destination.name"] == "orders"
    assert span.attributes["messaging.message.id"] == span.attributes["cloudevents.event_id"] == texts["id"]
    assert span.attributes["cloudevents.event_source"] == "shop"
    assert span.error is None
    assert span.ended >= span.started > 0


async def test_the_callers_own_traceparent_in_an_event_stays() -> None:
    seen, log = Recorded(), Log()
    event = b'{"specversion":"1.0","id":"1","source":"s","type":"t","traceparent":"%b"}' % CREATOR.traceparent.encode()
    await pubsub(log, seen.telemetry).publish(
        publication(event, content_type="application/cloudevents+json", trace=CALLER)
    )
    assert spans.creation_context(spans.event_texts(log.messages[0])) == CREATOR
    assert log.messages[0].headers["traceparent"] == seen.only.context.traceparent


@pytest.mark.parametrize("trace", [CALLER, None])
async def test_without_a_tracer_publish_is_as_before(trace: TraceContext | None) -> None:
    log = Log()
    await pubsub(log, SILENCE).publish(publication(trace=trace))
    assert log.messages[0].headers.get("traceparent") == (trace and trace.traceparent)


async def test_an_unsampled_publish_still_has_a_hop_of_its_own() -> None:
    seen, log = Recorded(rate=0.0), Log()
    parent = TraceContext(CALLER.traceparent[:-1] + "0", "")
    await pubsub(log, seen.telemetry).publish(publication(trace=parent))
    hop = log.messages[0].headers["traceparent"]
    assert hop[:36] == parent.traceparent[:36]
    assert hop[36:52] != parent.traceparent[36:52]
    assert hop.endswith("-00")
    assert not seen.spans


async def test_a_publish_that_fails_is_an_error() -> None:
    seen, log = Recorded(), Log()
    log.error = BrokerUnavailable("no acknowledgement")
    with pytest.raises(ApiError):
        await pubsub(log, seen.telemetry).publish(publication())
    assert "no acknowledgement" in (seen.only.error or "")


class Route:
    def __init__(self, outcome: AppResponse | Exception) -> None:
        self.outcome = outcome
        self.headers: Mapping[str, str] = {}

    def prepare(self, *_: object) -> Route:
        return self

    def header_lines(self, headers: list[tuple[str, str]]) -> bytes:
        self.headers = dict(headers)
        return b""

    def send(self, body: bytes, extra: bytes | None, *, timeout: float) -> asyncio.Future[AppResponse]:
        call = asyncio.get_running_loop().create_future()
        if isinstance(self.outcome, Exception):
            call.set_exception(self.outcome)
        else:
            call.set_result(self.outcome)
        return call


class Delivered:
    mode, attributes, content_type, position, attempt = Mode.STRUCTURED, {}, None, "1", 3

    def __init__(self, hop: TraceContext | None, creator: TraceContext | None) -> None:
        self.headers = {} if hop is None else {"traceparent": hop.traceparent}
        member = b"" if creator is None else b',"traceparent":"%b"' % creator.traceparent.encode()
        self.payload = b'{"specversion":"1.0","id":"7","source":"s","type":"t"%b}' % member
        self.settled: list[object] = []

    def ack(self) -> None:
        self.settled.append("ack")

    def retry(self, delay: float) -> None:
        self.settled.append(delay)


async def deliver(telemetry: Telemetry, message: Delivered, outcome: AppResponse | Exception = GOOD) -> Route:
    route = Route(outcome)
    deliverer = Deliverer(
        group=Group("shop", ORDERS),
        target=EventTarget(ORDERS, "/orders", route),  # type: ignore[arg-type]
        plan=Plan(),
        log=Log(),  # type: ignore[arg-type]
        channel=route,  # type: ignore[arg-type]
        clock=VirtualClock(),
        telemetry=telemetry,
    )
    deliverer.handle(message)  # type: ignore[arg-type]
    await asyncio.sleep(0)
    return route


async def test_a_delivery_is_below_its_hop_and_linked_to_what_created_the_event() -> None:
    seen = Recorded()
    route = await deliver(seen.telemetry, Delivered(CALLER, CREATOR))
    span = seen.only
    assert (span.name, span.kind) == ("process orders", Kind.CONSUMER)
    assert (span.trace_id, span.parent_id) == (CALLER.traceparent[3:35], CALLER.traceparent[36:52])
    assert span.links == [CREATOR]
    assert route.headers["traceparent"] == span.context.traceparent
    assert span.attributes["meshwire.delivery.attempt"] == 3
    assert span.attributes["messaging.consumer.group.name"] == "shop"
    assert span.attributes["cloudevents.event_id"] == "7"
    assert span.attributes["http.response.status_code"] == 200


async def test_a_delivery_may_be_below_what_created_the_event() -> None:
    seen = Recorded()
    await deliver(seen.telemetry._replace(below_creation=True), Delivered(CALLER, CREATOR))
    assert (seen.only.trace_id, seen.only.parent_id) == (CREATOR.traceparent[3:35], CREATOR.traceparent[36:52])


async def test_an_event_without_hop_headers_continues_the_trace_that_it_names() -> None:
    seen = Recorded()
    await deliver(seen.telemetry, Delivered(None, CREATOR))
    assert (seen.only.parent_id, seen.only.links) == (CREATOR.traceparent[36:52], [CREATOR])


async def test_an_event_without_any_trace_starts_one() -> None:
    seen = Recorded()
    route = await deliver(seen.telemetry, Delivered(None, None))
    assert (seen.only.parent_id, seen.only.links) == ("", [])
    assert route.headers["traceparent"] == seen.only.context.traceparent


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (AppResponse(200, (), b""), None),
        (AppResponse(503, (), b""), "503"),
        (AppResponse(200, (), b'{"status":"RETRY"}'), "RETRY"),
        (AppError("it hung up"), "it hung up"),
    ],
)
async def test_each_attempt_says_how_it_ended(outcome: AppResponse | Exception, error: str | None) -> None:
    seen = Recorded()
    await deliver(seen.telemetry, Delivered(CALLER, None), outcome)
    assert (seen.only.error or "").count(error or "") >= 1
    assert (seen.only.error is None) == (error is None)


async def test_an_app_that_cannot_be_reached_was_not_attempted() -> None:
    seen = Recorded()
    await deliver(seen.telemetry, Delivered(CALLER, None), AppUnreachable("connection refused"))
    assert not seen.spans


def test_what_is_no_event_has_no_attributes() -> None:
    def message(**more: Any) -> Message:
        return Message(**{"mode": Mode.STRUCTURED, "payload": b"", **more})

    assert spans.event_texts(message(payload=b"not json")) == {}
    assert spans.event_texts(message(payload=b'{"id":1,"source":"\\ud800"}')) == {}
    assert spans.event_texts(message(mode=Mode.RAW, payload=b'{"id":"1"}')) == {}
    assert spans.event_texts(message(payload=b'{"id":"%b"}' % (b"x" * spans.LARGEST_DESCRIBED))) == {}
    binary = message(mode=Mode.BINARY, payload=None, attributes={"id": "1", "n": 2})
    assert spans.event_texts(binary) == {"id": "1"}


@pytest.mark.parametrize("texts", [{}, {"traceparent": "00-zz"}, {"traceid": "abc"}])
def test_what_names_no_context_has_none(texts: dict[str, str]) -> None:
    assert spans.creation_context(texts) is None


def test_both_ends_of_a_call_have_daprs_names() -> None:
    seen = Recorded()
    with spans.calling(seen.telemetry.tracer, "stock", "POST", "/reserve", CALLER) as call:
        with spans.called(seen.telemetry.tracer, "stock", "POST", "/reserve", call.context) as served:
            spans.answered(served, 409)
        spans.answered(call, 409)
    inner, outer = seen.spans
    assert outer.name == inner.name == "CallLocal/stock/reserve"
    assert (outer.kind, inner.kind, inner.parent_id) == (Kind.CLIENT, Kind.SERVER, outer.span_id)
    assert inner.error == outer.error == "Code(409)"
    assert outer.attributes["dapr.invoke_method"] == "reserve"
    assert outer.attributes["net.peer.name"] == "stock"
