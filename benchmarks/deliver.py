"""Delivering what is stored already, to a sink that does nothing, beside stock nats-py's `fetch(100)` and `ack`.

Both take the very same events from the same stream. The time from publish to delivery is measured apart, at a
fixed rate, from one app's sidecar to another's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks import load, sink, stock, worker
from benchmarks.conditions import STREAM, Options, Place, place, subject
from benchmarks.events import HTTP_HEADERS, PROBE, TOPIC, request
from benchmarks.histogram import Histogram
from benchmarks.processes import Kind, Sidecar, free_port, publish
from benchmarks.report import Cost, Row, Target, compare

NAME = "deliver"
TARGET = Target(0.3, aim=0.6)
SUBSCRIBE_LIMIT = 20.0
"""Seconds until a subscription must deliver."""


def run(options: Options) -> list[Row]:
    with place(options) as here:
        baseline = Row(benchmark=NAME, name="nats-py, fetch(100) and ack", unit="/s")
        rates = [
            Row(benchmark=NAME, name=f"{kind.name}, to a bare sink", unit="/s", target=None if number else TARGET)
            for number, kind in enumerate(here.kinds)
        ]
        for kind in here.kinds:
            _make_group(here, kind)
        for _ in range(options.runs):
            for kind, row in zip(here.kinds, rates, strict=True):
                _measure_rate(here, kind, options.events, row)
            _measure_baseline(here, options.events, baseline)
        latencies = [row for kind in here.kinds for row in _latencies(here, kind, options)]
        compare(rates, baseline)
        return [*rates, baseline, *latencies]


def _make_group(here: Place, kind: Kind) -> None:
    """Have the app's group made: it gets only what is published afterwards."""
    port = free_port()
    with (
        sink.start(sink.Plan(port=port, pubsub=kind.pubsub, events=1, probes=True)) as app,
        Sidecar(kind, here.folder / f"{kind.name}-group.log", app_port=port) as sidecar,
    ):
        wait_for_delivery(sidecar, sidecar, app)


def wait_for_delivery(publisher: Sidecar, subscriber: Sidecar, app: worker.Worker[sink.Result]) -> None:
    """Publish one probe after the other, until one has come and the sink, which wants one probe, ends."""
    publisher.wait_until_accepting()
    deadline = time.monotonic() + SUBSCRIBE_LIMIT
    while not app.done:
        subscriber.check()
        if time.monotonic() > deadline:
            raise RuntimeError(f"{subscriber.kind.name} delivers nothing")
        publish(publisher.port, publisher.publish_path(TOPIC), PROBE)
        time.sleep(0.02)
    app.result()


def _measure_rate(here: Place, kind: Kind, events: int, row: Row) -> None:
    """The sidecar is up and waits for its app; the events are stored; then the app begins to listen."""
    port = free_port()
    with Sidecar(kind, here.folder / f"{kind.name}-deliver.log", app_port=port) as sidecar:
        sidecar.wait_until_accepting()
        _store(here, sidecar, events)
        before, server_before = sidecar.cpu(), here.server.cpu()
        with sink.start(sink.Plan(port=port, pubsub=kind.pubsub, events=events)) as app:
            result = app.result()
        row.values.append(result.events / result.elapsed)
        row.costs.append(
            Cost(
                sidecar=(sidecar.cpu() - before) / events * 1e6,
                client=result.cpu / events * 1e6,
                server=(here.server.cpu() - server_before) / events * 1e6,
            )
        )


def _store(here: Place, sidecar: Sidecar, events: int) -> None:
    """As stock nats-py does, for Meshwire to read what the baseline reads; a peer stores in its own way."""
    if sidecar.kind is here.kinds[0]:
        stock.run(stock.Fill(url=here.server.url, subject=subject(TOPIC), purge=STREAM, events=events))
        return
    plan = load.Plan(
        port=sidecar.port,
        request=request(sidecar.publish_path(TOPIC), HTTP_HEADERS),
        seconds=worker.LIMIT / 2,
        requests=events,
    )
    worker.run("benchmarks.load", plan, load.Result).check()


def _measure_baseline(here: Place, events: int, row: Row) -> None:
    before = here.server.cpu()
    result = stock.run(stock.Consume(url=here.server.url, subject=subject(TOPIC), stream=STREAM, events=events))
    row.values.append(result.events / result.elapsed)
    row.costs.append(Cost(client=result.cpu / events * 1e6, server=(here.server.cpu() - before) / events * 1e6))


def _latencies(here: Place, kind: Kind, options: Options) -> Iterator[Row]:
    rows = {
        share: Row(
            benchmark=NAME,
            name=f"{kind.name}, publish to delivery at {options.rate:,.0f}/s, p{share * 100:g}",
            unit="ms",
        )
        for share in (0.5, 0.99)
    }
    port = free_port()
    with (
        Sidecar(kind, here.folder / f"{kind.name}-from.log", app_id="bench-from") as publisher,
        Sidecar(kind, here.folder / f"{kind.name}-to.log", app_id="bench-to", app_port=port) as subscriber,
    ):
        with sink.start(sink.Plan(port=port, pubsub=kind.pubsub, events=1, probes=True)) as app:
            wait_for_delivery(publisher, subscriber, app)
        plan = load.Plan(
            port=publisher.port,
            request=request(publisher.publish_path(TOPIC), HTTP_HEADERS),
            seconds=options.seconds,
            rate=options.rate,
        )
        for _ in range(options.runs):
            events = int(options.seconds * options.rate)
            with sink.start(sink.Plan(port=port, pubsub=kind.pubsub, events=events)) as app:
                worker.run("benchmarks.load", plan, load.Result).check()
                histogram = Histogram.from_pairs(app.result().latencies)
            for share, row in rows.items():
                row.values.append(histogram.quantile(share) / 1e6)
    yield from rows.values()
