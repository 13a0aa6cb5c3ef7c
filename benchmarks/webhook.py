"""From a webhook to the app, beside from a publish to the app: the same data, sent as fast as it is taken.

Both go through one sidecar and NATS to the same sink. The rate counts from the first request to the last delivery.
"""

from __future__ import annotations

import time

from benchmarks import load, sink, worker
from benchmarks.conditions import Options, Place, place
from benchmarks.deliver import wait_for_delivery
from benchmarks.events import PLAIN_HEADERS, TOPIC, request
from benchmarks.processes import Sidecar, free_port
from benchmarks.report import Cost, Row, Target, compare

NAME = "webhook"
CONNECTIONS = 32
COMPONENT = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: hook}}
spec:
  type: bindings.webhook
  version: v1
  metadata:
    - {{name: port, value: "{port}"}}
    - {{name: direction, value: input}}
    - {{name: route, value: {route}}}
    - {{name: signature, value: bearer}}
    - {{name: secret, value: measured}}
"""
BEARER = {"Authorization": "Bearer measured"}


def run(options: Options) -> list[Row]:
    with place(options) as here:
        rows = {
            "webhook": Row(benchmark=NAME, name="webhook to delivered", unit="/s", target=Target(0.8)),
            "publish": Row(benchmark=NAME, name="publish to delivered", unit="/s"),
        }
        app_port, hook_port = free_port(), free_port()
        resources = here.folder / "resources"
        resources.mkdir()
        (resources / "hook.yaml").write_text(COMPONENT.format(port=hook_port, route=sink.ROUTE.decode()))
        flags = ["--resources-path", str(resources)]
        with Sidecar(here.kinds[0], here.folder / "webhook.log", app_port=app_port, flags=flags) as sidecar:
            with sink.start(sink.Plan(port=app_port, pubsub=sidecar.kind.pubsub, events=1, probes=True)) as app:
                wait_for_delivery(sidecar, sidecar, app)
            ways = {
                "webhook": (hook_port, request("/", PLAIN_HEADERS | BEARER)),
                "publish": (sidecar.port, request(sidecar.publish_path(TOPIC), PLAIN_HEADERS)),
            }
            for _ in range(options.runs):
                for way, row in rows.items():
                    _measure(here, sidecar, app_port, *ways[way], options.events, row)
        compare([rows["webhook"]], rows["publish"])
        return list(rows.values())


def _measure(here: Place, sidecar: Sidecar, app_port: int, port: int, sent: bytes, events: int, row: Row) -> None:
    before, server_before = sidecar.cpu(), here.server.cpu()
    with sink.start(sink.Plan(port=app_port, pubsub=sidecar.kind.pubsub, events=events)) as app:
        plan = load.Plan(port=port, request=sent, connections=CONNECTIONS, seconds=worker.LIMIT / 2, requests=events)
        begun = time.monotonic()
        worker.run("benchmarks.load", plan, load.Result).check()
        result = app.result()
        elapsed = time.monotonic() - begun - sink.LINGER
    row.values.append(events / elapsed)
    each = 1e6 / events
    row.costs.append(
        Cost(
            sidecar=(sidecar.cpu() - before) * each,
            client=result.cpu * each,
            server=(here.server.cpu() - server_before) * each,
        )
    )
