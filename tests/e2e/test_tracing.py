"""Traces of real sidecars, in collectors that are real servers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.e2e.collectors import Collector, GrpcCollector, HttpCollector
from tests.e2e.mesh import JSON, LIMIT, App, Mesh, Request, Sidecar, call, subscription, until
from tests.ports import free_port

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = f"00-{TRACE}-00f067aa0ba902b7-01"


def configuration(folder: Path, **tracing: object) -> str:
    """Flags for a sidecar with `spec.tracing`; samples everything unless told otherwise."""
    spec = {"tracing": {"samplingRate": "1", **tracing}}
    document = {"apiVersion": "dapr.io/v1alpha1", "kind": "Configuration", "metadata": {"name": "x"}, "spec": spec}
    file = folder / f"tracing-{len(list(folder.glob('tracing-*')))}.yaml"
    file.write_text(json.dumps(document))
    return str(file)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with Mesh(tmp_path) as running:
        yield running


async def check_one_trace(mesh: Mesh, collector: Collector, file: str, *, links: bool) -> None:
    """curl → shop's sidecar → topic → ship's sidecar → ship, which is told the last span."""
    async with App([subscription("orders")]) as app:
        shop = await mesh.sidecar("shop", "--config", file)
        await mesh.sidecar("ship", "--config", file, app=app, topics=["orders"])
        await shop.publish(b'{"a": 1}', JSON, ("traceparent", CALLER), ("dapr-api-token", "hidden"), topic="orders")
        (event,) = await app.got()
        path = "/v1.0/publish/pubsub/orders"
        await collector.got(path, "publish orders", "process orders")
    served, published, processed = (collector.one(name) for name in (path, "publish orders", "process orders"))
    assert {span.trace_id for span in collector.spans} == {TRACE}
    assert served.parent_id == CALLER[36:52]
    assert published.parent_id == served.span_id
    assert processed.parent_id == published.span_id
    assert processed.links == ((published.span_id,) if links else ())
    assert event.headers["traceparent"] == f"00-{TRACE}-{processed.span_id}-01"
    assert event.event["traceparent"] == event.event["traceid"] == f"00-{TRACE}-{published.span_id}-01"
    assert [span.kind for span in (served, published, processed)] == ["SERVER", "PRODUCER", "CONSUMER"]
    assert [span.service for span in (served, published, processed)] == ["shop", "shop", "ship"]
    assert processed.attributes["cloudevents.event_id"] == event.event["id"]
    assert served.attributes["dapr.api"] == f"POST {path}"
    assert "hidden" not in str(collector.spans)
    assert all(span.error is None and 0 <= span.seconds < 10 for span in collector.spans)


async def test_one_trace_by_otlp_over_grpc(mesh: Mesh, tmp_path: Path) -> None:
    with GrpcCollector() as collector:
        otel = {"endpointAddress": f"127.0.0.1:{collector.port}", "protocol": "grpc", "isSecure": False}
        await check_one_trace(
            mesh, collector, configuration(tmp_path, otel={**otel, "headers": ["x-key=7"]}), links=True
        )
        assert collector.headers["x-key"] == "7"


async def test_one_trace_by_otlp_over_http(mesh: Mesh, tmp_path: Path) -> None:
    with HttpCollector() as collector:
        otel = {"endpointAddress": f"127.0.0.1:{collector.port}", "protocol": "http", "isSecure": False}
        await check_one_trace(
            mesh, collector, configuration(tmp_path, otel={**otel, "headers": ["x-key=7"]}), links=True
        )
        assert collector.headers["x-key"] == "7"


async def test_one_trace_by_zipkin(mesh: Mesh, tmp_path: Path) -> None:
    with HttpCollector() as collector:
        url = f"http://127.0.0.1:{collector.port}/api/v2/spans"
        await check_one_trace(mesh, collector, configuration(tmp_path, zipkin={"endpointAddress": url}), links=False)


async def test_the_environment_names_collector_and_service_and_samples_everything(mesh: Mesh) -> None:
    with HttpCollector() as collector:
        shop = await mesh.sidecar(
            "shop",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.port}",
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
            OTEL_SERVICE_NAME="the shop",
        )
        await shop.publish(b"{}", topic="orders")
        await collector.got("publish orders")
        assert collector.one("publish orders").service == "the shop"


async def test_stdout_and_the_spans_of_the_last_moment(mesh: Mesh, tmp_path: Path) -> None:
    shop = await mesh.sidecar("shop", "--config", configuration(tmp_path, stdout=True))
    await shop.publish(b"{}", topic="orders")
    assert await shop.end() == 0
    spans = [json.loads(line) for line in shop.log.splitlines() if line.startswith('{"Name"')]
    assert {span["Name"] for span in spans} == {"publish orders", "/v1.0/publish/pubsub/orders"}


async def test_each_attempt_to_deliver_is_a_span(mesh: Mesh, tmp_path: Path) -> None:
    answers = iter([500, 200])
    with HttpCollector() as collector:
        otel = {"endpointAddress": f"127.0.0.1:{collector.port}", "protocol": "http", "isSecure": False}
        async with App([subscription("orders")], lambda _: next(answers)) as app:
            file = configuration(tmp_path, otel=otel)
            ship = await mesh.sidecar("ship", "--config", file, app=app, topics=["orders"])
            await ship.publish(b"{}", topic="orders")
            await collector.got("process orders", "process orders")
        first, second = (span for span in collector.spans if span.name == "process orders")
        assert (first.error, second.error) == ("the app answered 500", None)
        assert first.parent_id == second.parent_id == collector.one("publish orders").span_id
        assert [span.attributes["meshwire.delivery.attempt"] for span in (first, second)] == [1, 2]


async def traceparent_of_answer(sidecar: Sidecar, *traceparents: str) -> str:
    headers = [JSON, *(("traceparent", text) for text in traceparents)]
    return (await call(sidecar.port, "POST", "/v1.0/publish/pubsub/orders", headers, b"{}")).headers["traceparent"]


async def test_the_rules_of_traceparent(mesh: Mesh, tmp_path: Path) -> None:
    """W3C Trace Context, at a sidecar with an exporter."""
    with HttpCollector() as collector:
        otel = {"endpointAddress": f"127.0.0.1:{collector.port}", "protocol": "http", "isSecure": False}
        shop = await mesh.sidecar("shop", "--config", configuration(tmp_path, otel=otel))
        continued = (CALLER, f"cc-{TRACE}-00f067aa0ba902b7-01-later", f"00-{TRACE}-00f067aa0ba902b7-03")
        for given in continued:
            answer = await traceparent_of_answer(shop, given)
            assert re.fullmatch(rf"00-{TRACE}-[0-9a-f]{{16}}-0{given[54]}", answer), given
            assert answer[36:52] != given[36:52]
        restarted = (
            (f"00-{TRACE.upper()}-00f067aa0ba902b7-01",),
            (f"00-{TRACE}-00f067aa0ba902b7-01-extra",),
            (f"ff-{TRACE}-00f067aa0ba902b7-01",),
            (f"00-{'0' * 32}-00f067aa0ba902b7-01",),
            (f"00-{TRACE}-{'0' * 16}-01",),
            (CALLER, CALLER),
            (CALLER, f"00-{TRACE}-1111111111111111-01"),
            (f"{CALLER},{CALLER}",),
            ("",),
            (),
        )
        for several in restarted:
            answer = await traceparent_of_answer(shop, *several)
            assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", answer), several
            assert TRACE not in answer
        await until(lambda: len(collector.spans) == 2 * 13, lambda: f"{len(collector.spans)} spans")
        assert sum(span.trace_id == TRACE for span in collector.spans) == 2 * 3


async def test_what_is_not_sampled_is_passed_on_with_a_hop_of_its_own(mesh: Mesh, tmp_path: Path) -> None:
    with HttpCollector() as collector:
        otel = {"endpointAddress": f"127.0.0.1:{collector.port}", "protocol": "http", "isSecure": False}
        async with App([subscription("orders")]) as app:
            file = configuration(tmp_path, otel=otel, samplingRate="0.0000001")
            shop = await mesh.sidecar("shop", "--config", file, app=app, topics=["orders"])
            unsampled = f"{CALLER[:-2]}00"
            answer = await traceparent_of_answer(shop, unsampled)
            (event,) = await app.got()
            assert await shop.end() == 0
        seen = {unsampled, answer, event.event["traceparent"], event.headers["traceparent"]}
        assert len(seen) == 4
        assert all(re.fullmatch(rf"00-{TRACE}-[0-9a-f]{{16}}-00", text) for text in seen)
        assert not collector.spans


@pytest.mark.parametrize("tracing", [{"samplingRate": "0", "stdout": True}, {}], ids=["rate 0", "no exporter"])
async def test_without_tracing_the_callers_context_passes_unchanged(
    mesh: Mesh, tmp_path: Path, tracing: dict[str, object]
) -> None:
    async with App([subscription("orders")]) as app:
        file = configuration(tmp_path, **tracing)
        shop = await mesh.sidecar("shop", "--config", file, app=app, topics=["orders"])
        assert await traceparent_of_answer(shop, CALLER) == CALLER
        (event,) = await app.got()
        assert event.event["traceparent"] == event.headers["traceparent"] == CALLER
        assert '{"Name"' not in shop.log


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_a_collector_that_is_not_there_costs_spans_and_nothing_else(
    mesh: Mesh, tmp_path: Path, protocol: str
) -> None:
    otel = {"endpointAddress": f"127.0.0.1:{free_port()}", "protocol": protocol, "isSecure": False, "timeout": "1s"}
    metrics = free_port()
    shop = await mesh.sidecar("shop", "--config", configuration(tmp_path, otel=otel), "--metrics-port", str(metrics))
    for _ in range(20):
        await shop.publish(b"{}", topic="orders")
    await shop.says(r"spans for the OTLP collector .* are lost")
    deadline = time.monotonic() + LIMIT
    lost = 0
    while lost < 40:  # batch by batch
        assert time.monotonic() < deadline, f"{lost} of 40 spans are counted as lost"
        await asyncio.sleep(0.1)
        scraped = (await call(metrics, "GET", "/metrics")).body.decode()
        lost = int(re.findall(r"meshwire_spans_dropped_total\{.*\} (\d+)", scraped)[0])
    assert lost == 40
    await shop.publish(b"{}", topic="orders")
    assert await shop.end() == 0
    assert len(re.findall("are lost", shop.log)) == 1


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_a_collector_that_hangs_holds_up_nobody(mesh: Mesh, tmp_path: Path, protocol: str) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        writer.close()

    connected = asyncio.Event()
    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        otel = {"endpointAddress": f"127.0.0.1:{port}", "protocol": protocol, "isSecure": False, "timeout": "60s"}
        shop = await mesh.sidecar("shop", "--config", configuration(tmp_path, otel=otel))
        await shop.publish(b"{}", topic="orders")
        await asyncio.wait_for(connected.wait(), LIMIT)
        for _ in range(20):
            await shop.publish(b"{}", topic="orders")
        assert await shop.end() == 0  # long before the exporter gives up


async def test_a_collector_that_refuses_is_not_asked_again(mesh: Mesh, tmp_path: Path) -> None:
    with HttpCollector(status=400) as collector:
        url = f"http://127.0.0.1:{collector.port}/api/v2/spans"
        shop = await mesh.sidecar("shop", "--config", configuration(tmp_path, zipkin={"endpointAddress": url}))
        await shop.publish(b"{}", topic="orders")
        await shop.says(r"2 spans for the Zipkin collector .* are lost: it answered 400")
        assert collector.attempts == 1


async def test_grpc_without_its_extra_names_the_extra(mesh: Mesh, tmp_path: Path) -> None:
    (tmp_path / "grpc.py").write_text("raise ImportError('not installed')")
    otel = {"endpointAddress": "127.0.0.1:4317", "protocol": "grpc"}
    shop = mesh.add("shop", "--config", configuration(tmp_path, otel=otel), PYTHONPATH=f"{tmp_path}{os.pathsep}")
    assert await shop.start().end(None) == 1
    assert "pip install 'meshwire[otel]'" in shop.log


async def test_one_trace_through_four_services_and_a_topic(mesh: Mesh, tmp_path: Path) -> None:
    """curl → shop (invoked) → topic → ship → stock (invoked): each app passes on the `traceparent` it was given."""
    ports: dict[str, int] = {}

    def given(request: Request) -> tuple[str, str]:
        return "traceparent", request.headers["traceparent"]

    async def order(request: Request) -> int:
        return (await call(ports["shop"], "POST", "/v1.0/publish/pubsub/orders", [JSON, given(request)], b"{}")).status

    async def ship(request: Request) -> int:
        path = "/v1.0/invoke/stock/method/reserve"
        return (await call(ports["ship"], "POST", path, [JSON, given(request)], b"{}")).status

    with HttpCollector() as collector:
        otel = {"endpointAddress": f"127.0.0.1:{collector.port}", "protocol": "http", "isSecure": False}
        file = configuration(tmp_path, otel=otel)
        async with App(answer=order) as shop, App([subscription("orders")], ship) as shipping, App() as stock:
            web = await mesh.sidecar("web", "--config", file)
            ports["shop"] = (await mesh.sidecar("shop", "--config", file, app=shop)).port
            ports["ship"] = (await mesh.sidecar("ship", "--config", file, app=shipping, topics=["orders"])).port
            await mesh.sidecar("stock", "--config", file, app=stock)
            answer = await web.call("POST", "/v1.0/invoke/shop/method/order", [JSON, ("traceparent", CALLER)], b"{}")
            assert answer.status == 204
            (reserved,) = await stock.got()
            spans = await collector.got(
                *("/v1.0/invoke/shop/method/order", "CallLocal/shop/order", "CallLocal/shop/order"),
                *("/v1.0/publish/pubsub/orders", "publish orders", "process orders"),
                *("/v1.0/invoke/stock/method/reserve", "CallLocal/stock/reserve", "CallLocal/stock/reserve"),
            )
    assert {span.trace_id for span in spans} == {TRACE}
    by_id = {span.span_id: span for span in spans}
    path = []  # from the innermost outwards
    at = reserved.headers["traceparent"][36:52]
    while at in by_id:
        path.append((by_id[at].service, by_id[at].name, by_id[at].kind))
        at = by_id[at].parent_id
    assert at == CALLER[36:52]
    assert path == [
        ("stock", "CallLocal/stock/reserve", "SERVER"),
        ("ship", "CallLocal/stock/reserve", "CLIENT"),
        ("ship", "/v1.0/invoke/stock/method/reserve", "SERVER"),
        ("ship", "process orders", "CONSUMER"),
        ("shop", "publish orders", "PRODUCER"),
        ("shop", "/v1.0/publish/pubsub/orders", "SERVER"),
        ("shop", "CallLocal/shop/order", "SERVER"),
        ("web", "CallLocal/shop/order", "CLIENT"),
        ("web", "/v1.0/invoke/shop/method/order", "SERVER"),
    ]
    assert len(spans) == len(path)
