"""The mesh on Apache Kafka: publishing beside stock aiokafka, delivery beside that over NATS, calls beside one record
that is produced to a waiting consumer. Needs `make kafka`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from benchmarks import load, sink, stock_kafka, worker
from benchmarks.app import ECHO
from benchmarks.conditions import Options, Place, place
from benchmarks.deliver import wait_for_delivery
from benchmarks.events import HTTP_HEADERS, TOPIC, request
from benchmarks.histogram import Histogram
from benchmarks.pair import HEADERS, Pair, app, pair, small_calls
from benchmarks.processes import Kind, Sidecar, free_port, meshwire
from benchmarks.report import Cost, Row, Target, compare
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ApacheKafka

NAME = "kafka"
BARE = "bench-bare"
WARM_UP = 2.0
"""Seconds of publishing that do not count: a JVM needs some."""
STEPS = 100.0
"""Calls, and records, per second where the latency of one is measured: what is idle between them wakes more slowly."""


def run(options: Options) -> list[Row]:
    if reason := kafka_jars.missing():
        raise RuntimeError(reason)
    with place(options) as here, _server() as server:
        kind = meshwire(f"kafka://{server.address}", "meshwire on Kafka")
        return [
            *_publish(here, kind, server, options),
            *_deliver(here, kind, options),
            *_invoke(here, kind, server, options),
        ]


@contextmanager
def _server() -> Iterator[ApacheKafka]:
    server = ApacheKafka(measured=True, group_initial_rebalance_delay_ms=0)
    server.start()
    try:
        yield server
    finally:
        server.remove()


def _publish(here: Place, kind: Kind, server: ApacheKafka, options: Options) -> list[Row]:
    row = Row(benchmark=NAME, name="publish over HTTP, 32 connections", unit="/s", target=Target(0.35))
    bare = Row(benchmark=NAME, name="aiokafka, await send_and_wait(), 32 tasks", unit="/s")
    with Sidecar(kind, here.folder / "kafka-publish.log") as sidecar:
        sidecar.wait_until_accepting()

        def over_http(seconds: float) -> load.Result:
            path = request(sidecar.publish_path(TOPIC), HTTP_HEADERS)
            plan = load.Plan(port=sidecar.port, request=path, seconds=seconds)
            result = worker.run("benchmarks.load", plan, load.Result)
            result.check()
            return result

        over_http(WARM_UP)
        plan = stock_kafka.Publish(address=server.address, topic=BARE, seconds=options.seconds)
        stock_kafka.publish(plan)
        for _ in range(options.runs):
            before = sidecar.cpu()
            result = over_http(options.seconds)
            row.values.append(result.requests / result.elapsed)
            row.costs.append(Cost(sidecar=(sidecar.cpu() - before) / result.requests * 1e6))
            base = stock_kafka.publish(plan)
            bare.values.append(base.events / base.elapsed)
            bare.costs.append(Cost(client=base.cpu / base.events * 1e6))
    compare([row], bare)
    return [row, bare]


def _deliver(here: Place, kind: Kind, options: Options) -> list[Row]:
    row = Row(benchmark=NAME, name="stored events to a bare sink", unit="/s", target=Target(0.7))
    nats = Row(benchmark=NAME, name="the same over NATS", unit="/s")
    for each in (kind, here.kinds[0]):
        port = free_port()
        with (
            sink.start(sink.Plan(port=port, pubsub=each.pubsub, events=1, probes=True)) as first,
            Sidecar(each, here.folder / "kafka-group.log", app_port=port) as sidecar,
        ):
            wait_for_delivery(sidecar, sidecar, first)
    for _ in range(options.runs):
        _drain(here, kind, options.events, row)
        _drain(here, here.kinds[0], options.events, nats)
    compare([row], nats)
    return [row, nats]


def _drain(here: Place, kind: Kind, events: int, row: Row) -> None:
    """The sidecar is up and waits for its app; the events are stored; then the app begins to listen."""
    port = free_port()
    with Sidecar(kind, here.folder / "kafka-deliver.log", app_port=port) as sidecar:
        sidecar.wait_until_accepting()
        path = request(sidecar.publish_path(TOPIC), HTTP_HEADERS)
        plan = load.Plan(port=sidecar.port, request=path, seconds=worker.LIMIT / 2, requests=events)
        worker.run("benchmarks.load", plan, load.Result).check()
        before = sidecar.cpu()
        with sink.start(sink.Plan(port=port, pubsub=kind.pubsub, events=events)) as end:
            result = end.result()
        row.values.append(result.events / result.elapsed)
        row.costs.append(Cost(sidecar=(sidecar.cpu() - before) / events * 1e6, client=result.cpu / events * 1e6))


def _invoke(here: Place, kind: Kind, server: ApacheKafka, options: Options) -> list[Row]:
    call = Row(benchmark=NAME, name="a call through two sidecars, p50", unit="ms", target=Target(12, at_most=True))
    hop = Row(benchmark=NAME, name="aiokafka, acked record to a waiting consumer, p50", unit="ms")
    by = Row(benchmark=NAME, name="the call by the record", unit="×", target=Target(4, at_most=True))
    absent = Row(benchmark=NAME, name="a call of an absent app, p50", unit="ms", target=Target(100, at_most=True))
    with ExitStack() as stack:
        callee = stack.enter_context(app(here))
        both = stack.enter_context(pair(here, kind, callee, NAME))
        small_calls(both.caller.port, both.path(ECHO), seconds=WARM_UP)
        for _ in range(options.runs):
            result = small_calls(both.caller.port, both.path(ECHO), seconds=options.seconds, rate=STEPS)
            call.values.append(Histogram.from_pairs(result.latencies).quantile(0.5) / 1e6)
            one = stock_kafka.Hop(address=server.address, topic=BARE, rate=STEPS, seconds=options.seconds)
            hops = stock_kafka.hop(one)
            hop.values.append(Histogram.from_pairs(hops.latencies).quantile(0.5) / 1e6)
            by.values.append(call.values[-1] / hop.values[-1])
            absent.values.append(_absent(both, options.seconds))
    return [call, hop, by, absent]


def _absent(both: Pair, seconds: float) -> float:
    path = request(f"/v1.0/invoke/nobody/method{ECHO}", HEADERS)
    plan = load.Plan(port=both.caller.port, request=path, connections=1, seconds=seconds / 3)
    result = worker.run("benchmarks.load", plan, load.Result)
    return Histogram.from_pairs(result.latencies).quantile(0.5) / 1e6
