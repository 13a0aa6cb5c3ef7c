"""Delivering stored events of 200 keys by three sidecars of one app, in order per key and without order.

Both take the same events from the same stream, to a sink that does nothing.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks import sink, stock
from benchmarks.conditions import STREAM, Options, Place, place
from benchmarks.deliver import wait_for_delivery
from benchmarks.events import TOPIC
from benchmarks.processes import Sidecar, free_port
from benchmarks.report import Cost, Row, Target, compare
from mesh import addressing
from mesh.ports import Topic
from mesh.pubsub import DEFAULT_COMPONENT

NAME = "order"
REPLICAS = 3
KEYS = [f"key-{number}" for number in range(200)]


def run(options: Options) -> list[Row]:
    with place(options) as here:
        rows = {
            "key": Row(benchmark=NAME, name="in order per key", unit="/s", target=Target(0.6)),
            "none": Row(benchmark=NAME, name="without order", unit="/s"),
        }
        for order in rows:
            _make_group(here, order)
        for _ in range(options.runs):
            for order, row in rows.items():
                _measure(here, order, options.events, row)
        compare([rows["key"]], rows["none"])
        return list(rows.values())


def _plan(order: str, port: int, events: int, *, probes: bool = False) -> sink.Plan:
    return sink.Plan(port=port, pubsub=DEFAULT_COMPONENT, events=events, probes=probes, metadata={"order": order})


def _sidecar(here: Place, order: str, port: int, number: int) -> Sidecar:
    log = here.folder / f"order-{order}-{number}.log"
    return Sidecar(here.kinds[0], log, app_id=f"bench-{order}", app_port=port)


def _make_group(here: Place, order: str) -> None:
    """It gets only what is published afterwards."""
    port = free_port()
    with (
        sink.start(_plan(order, port, 1, probes=True)) as app,
        _sidecar(here, order, port, 0) as sidecar,
    ):
        wait_for_delivery(sidecar, sidecar, app)


def _measure(here: Place, order: str, events: int, row: Row) -> None:
    """The sidecars are up and wait for their app; the events are stored; then the app begins to listen."""
    root = addressing.topic_root(
        addressing.DEFAULT_PREFIX, addressing.DEFAULT_NAMESPACE, Topic(DEFAULT_COMPONENT, TOPIC)
    )
    keyed = {key: root + addressing.partition_token(key) for key in KEYS}
    port = free_port()
    with ExitStack() as stack:
        sidecars = [stack.enter_context(_sidecar(here, order, port, number)) for number in range(REPLICAS)]
        for sidecar in sidecars:
            sidecar.wait_until_accepting()
        stock.run(stock.Fill(url=here.server.url, subject="", purge=STREAM, events=events, keyed=keyed))
        before, server_before = sum(sidecar.cpu() for sidecar in sidecars), here.server.cpu()
        with sink.start(_plan(order, port, events)) as app:
            result = app.result()
        row.values.append(result.events / result.elapsed)
        row.costs.append(
            Cost(
                sidecar=(sum(sidecar.cpu() for sidecar in sidecars) - before) / events * 1e6,
                client=result.cpu / events * 1e6,
                server=(here.server.cpu() - server_before) / events * 1e6,
            )
        )
