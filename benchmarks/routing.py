"""Matching a request's path: `sidecar.http.routing.Router.match` alone, with the hot routes of the API."""

from __future__ import annotations

import time

from starlette.types import Receive, Scope, Send

from benchmarks.conditions import Options
from benchmarks.report import Cost, Row
from sidecar.http.routing import Router

NAME = "routing"
CALLS = 20_000
PATHS = {
    "publish": b"/v1.0/publish/pubsub/orders",
    "events": b"/mesh/v1/events/pubsub/orders",
    "publish, escaped": b"/v1.0/publish/pubsub/orders%2Feu%20west",
    "publish, untidy": b"//v1.0/publish/./pubsub/orders/",
}


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    """Never called: only the match is measured."""


def run(options: Options) -> list[Row]:
    router = Router()
    for method, template in (
        ("POST", "/v1.0/publish/{pubsubname}/{topic:path}"),
        ("POST", "/v1.0/publish/{topic}"),
        ("POST", "/mesh/v1/events/{pubsub}/{topic:path}"),
        ("GET", "/v1.0/healthz"),
        ("GET", "/v1.0/healthz/outbound"),
        ("GET", "/v1.0/metadata"),
        ("PUT", "/v1.0/metadata/{key}"),
        ("POST", "/v1.0/shutdown"),
    ):
        router.add((method,), template, _app, group="v1/bench")
    rows = []
    for name, path in PATHS.items():
        row = Row(benchmark=NAME, name=name, unit="/s")
        for _ in range(options.runs):
            start = time.process_time()
            for _ in range(CALLS):
                router.match("POST", path)
            spent = time.process_time() - start
            row.values.append(CALLS / spent)
            row.costs.append(Cost(sidecar=spent / CALLS * 1e6))
        rows.append(row)
    return rows
