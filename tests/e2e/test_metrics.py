"""The metrics of real sidecars, scraped and parsed."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.e2e.mesh import JSON, App, Mesh, Sidecar, call, subscription
from tests.ports import free_port

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]
_LINE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\{(.*)\} (\S+)")
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')


def parse(text: str) -> Series:
    """Every line must be of the text format, every family declared, no series twice."""
    series: Series = {}
    declared: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            declared.add(line.split()[2])
        if line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        assert match, line
        name, labels, value = match.groups()
        assert _LABEL.sub("", labels).strip(",") == "", line
        assert name in declared or re.sub("_(bucket|sum|count)$", "", name) in declared, line
        key = name, frozenset(_LABEL.findall(labels))
        assert key not in series, line
        series[key] = float(value)
    return series


def value(series: Series, name: str, **labels: str) -> float:
    """The sum of all series with these labels."""
    return sum(number for (found, have), number in series.items() if found == name and have >= set(labels.items()))


async def scrape(port: int, path: str = "/metrics") -> Series:
    answer = await call(port, "GET", path)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return parse(answer.body.decode())


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with Mesh(tmp_path) as running:
        yield running


async def metered(
    mesh: Mesh, app_id: str, *flags: str, app: App | None = None, topics: list[str] | None = None, **metric: object
) -> tuple[Sidecar, int]:
    port = free_port()
    file = mesh.folder / f"{app_id}.yaml"
    document = {"apiVersion": "dapr.io/v1alpha1", "kind": "Configuration", "spec": {"metric": metric}}
    file.write_text(json.dumps(document))
    flags = ("--metrics-port", str(port), "--config", str(file), *flags)
    return await mesh.sidecar(app_id, *flags, app=app, topics=topics or []), port


async def test_publish_and_delivery_under_daprs_names(mesh: Mesh) -> None:
    answers = iter([200, 500, (200, b'{"status":"SUCCESS"}'), 404])
    async with App([subscription("orders")], lambda _: next(answers)) as app:
        shop, port = await metered(mesh, "shop", app=app, topics=["orders"])
        for _ in range(3):
            await shop.publish(b"{}", topic="orders")
        await app.got(4)
        ingress = "dapr_component_pubsub_ingress_count"

        async def delivered() -> Series:
            series = await scrape(port)
            return series if value(series, ingress) == 4 else {}

        series: Series = {}
        while not series:
            series = await delivered()
    topic = {"app_id": "shop", "component": "pubsub", "namespace": "default", "topic": "orders"}
    assert value(series, "dapr_component_pubsub_egress_count", **topic, success="true") == 3
    assert value(series, "dapr_component_pubsub_egress_latencies_count", **topic, success="true") == 3
    assert value(series, ingress, **topic, process_status="success", status="") == 1
    assert value(series, ingress, **topic, process_status="success", status="success") == 1
    assert value(series, ingress, **topic, process_status="retry", status="") == 1
    assert value(series, ingress, **topic, process_status="drop", status="") == 1
    assert value(series, "dapr_component_pubsub_ingress_latencies_count", **topic) == 4
    assert value(series, "meshwire_retries_total", component="pubsub", topic="orders") == 1
    assert value(series, "meshwire_publishes_in_flight") == 0
    path = {"method": "POST", "path": "/v1.0/publish/pubsub/orders", "status": "204"}
    assert value(series, "dapr_http_server_request_count", **path) == 3
    assert value(series, "dapr_http_server_response_count", **path) == 3
    assert value(series, "dapr_http_server_latency_count", **path) == 3
    assert value(series, "dapr_http_server_request_bytes_bucket", le="1024") >= 3
    assert value(series, "dapr_http_server_request_bytes_sum") == 6


async def test_dead_letters_and_expired_events(mesh: Mesh) -> None:
    async with App([subscription("orders", deadLetterTopic="dead")], lambda _: 500) as app:
        shop, port = await metered(mesh, "shop", app=app, topics=["orders"])
        await shop.publish(b"{}", topic="orders")
        await shop.says("went to the dead letter topic")
        event = b'{"specversion":"1.0","id":"1","source":"s","type":"t","expirytime":"2020-01-01T00:00:00Z"}'
        await shop.publish(event, ("content-type", "application/cloudevents+json"), topic="orders")
        await shop.says("it expired before it could be delivered")
        series = await scrape(port)
        assert value(series, "meshwire_expired_total", topic="orders") == 1
        assert value(series, "meshwire_dead_letters_total", topic="orders") >= 1


async def test_errors_by_their_code(mesh: Mesh) -> None:
    shop, port = await metered(mesh, "shop", recordErrorCodes=True)
    await shop.call("POST", "/v1.0/publish/nope/orders", [JSON], b"{}")
    series = await scrape(port, "/")
    assert value(series, "dapr_error_code_total", error_code="ERR_PUBSUB_NOT_FOUND", category="pubsub") == 1


async def test_paths_by_their_patterns(mesh: Mesh) -> None:
    http = {"increasedCardinality": False, "pathMatching": ["/v1.0/publish/{component}/{topic}"], "excludeVerbs": True}
    shop, port = await metered(mesh, "shop", http=http)
    await shop.publish(b"{}", topic="one")
    await shop.publish(b"{}", topic="two")
    series = await scrape(port)
    counted = {"method": "", "path": "/v1.0/publish/{component}/{topic}", "status": "204"}
    assert value(series, "dapr_http_server_request_count", **counted) == 2
    assert value(series, "dapr_http_server_request_count", path="") >= 1
    assert value(series, "dapr_http_server_response_count") == 0


async def test_many_topics_make_few_series(mesh: Mesh) -> None:
    shop, port = await metered(mesh, "shop")
    for number in range(150):
        await shop.publish(b"{}", topic=f"topic-{number}")
    series = await scrape(port)
    topics = {dict(labels)["topic"] for (name, labels) in series if name == "dapr_component_pubsub_egress_count"}
    assert len(topics) == 101
    assert value(series, "dapr_component_pubsub_egress_count", topic="_other", success="true") == 50
    assert value(series, "dapr_component_pubsub_egress_count", success="true") == 150


@pytest.mark.parametrize("how", ["flag", "configuration"])
async def test_metrics_can_be_off(mesh: Mesh, how: str) -> None:
    if how == "flag":
        _, port = await metered(mesh, "shop", "--enable-metrics=false")
    else:
        _, port = await metered(mesh, "shop", enabled=False)
    with pytest.raises(OSError):
        await call(port, "GET", "/metrics")


async def test_a_taken_port_is_fatal_only_where_it_was_asked_for(mesh: Mesh) -> None:
    _, port = await metered(mesh, "shop")
    other = mesh.add("other", "--metrics-port", str(port))
    assert await other.start().end(None) == 1
    assert f"port {port}: it is in use by another program; choose another port with --metrics-port" in other.log

    first = await mesh.sidecar("first")
    second = await mesh.sidecar("second")
    assert "metrics are not served" in first.log + second.log
    await second.publish(b"{}")


async def test_only_reading_is_served(mesh: Mesh) -> None:
    _, port = await metered(mesh, "shop")
    assert (await call(port, "POST", "/metrics")).status == 405
    assert (await call(port, "HEAD", "/metrics")).status == 200
