"""Counting, its bounds, its exposition and its price."""

from __future__ import annotations

import re

import pytest

from mesh.telemetry_settings import LabelRule, MetricsSettings
from sidecar.telemetry.meter import PrometheusMeter
from sidecar.telemetry.metrics import MAX_SERIES, MAX_VALUES, OTHER, Registry
from sidecar.telemetry.paths import PathLabels
from tests.unit.sidecar.telemetry.test_tracing import best


def render(registry: Registry) -> str:
    return "".join(registry.render())


def test_the_text_format() -> None:
    registry = Registry({"app_id": "shop"})
    registry.counter("calls_total", "Calls.", ("who",)).labels('a"b\\c\nd').inc(2)
    registry.gauge("load", "Load.").labels().inc(0.5)
    histogram = registry.histogram("size", "Sizes.", (1, 2.5)).labels()
    for value in (1, 1.5, 99):
        histogram.observe(value)
    registry.counter("unused_total", "Never counted.")
    assert render(registry) == (
        "# HELP calls_total Calls.\n# TYPE calls_total counter\n"
        'calls_total{app_id="shop",who="a\\"b\\\\c\\nd"} 2\n'
        "# HELP load Load.\n# TYPE load gauge\n"
        'load{app_id="shop"} 0.5\n'
        "# HELP size Sizes.\n# TYPE size histogram\n"
        'size_bucket{app_id="shop",le="1"} 1\n'
        'size_bucket{app_id="shop",le="2.5"} 2\n'
        'size_bucket{app_id="shop",le="+Inf"} 3\n'
        'size_sum{app_id="shop"} 101.5\nsize_count{app_id="shop"} 3\n'
    )


def test_a_label_takes_so_many_values_over_all_families() -> None:
    registry = Registry({})
    first = registry.counter("first", "", ("topic", "success"))
    second = registry.counter("second", "", ("topic",))
    for number in range(MAX_VALUES + 50):
        first.labels(f"t{number}", "true").inc()
        second.labels(f"t{number}").inc()
    text = render(registry)
    assert f'first{{topic="{OTHER}",success="true"}} 50\n' in text
    assert f'second{{topic="{OTHER}"}} 50\n' in text
    assert text.count("\nfirst{") == text.count("\nsecond{") == MAX_VALUES + 1


def test_a_family_has_so_many_series() -> None:
    registry = Registry({})
    family = registry.counter("calls", "", ("a", "b"))
    for a in range(50):
        for b in range(50):
            family.labels(str(a), str(b)).inc()
    text = render(registry)
    assert text.count("\ncalls{") == MAX_SERIES + 1
    assert f'calls{{a="{OTHER}",b="{OTHER}"}} {2500 - MAX_SERIES}\n' in text


def test_rules_rewrite_labels() -> None:
    rule = LabelRule(metric="calls", label="path", replacements=((re.compile(r"/orders/\d+"), "/orders/N"),))
    registry = Registry({}, [rule])
    for path in ("/orders/1", "/orders/2"):
        registry.counter("dapr_calls", "", ("path",)).labels(path).inc()
    assert 'dapr_calls{path="/orders/N"} 1' in render(registry)
    assert "/orders/1" not in render(registry)


def test_what_is_counted_elsewhere_is_fetched_for_each_scrape() -> None:
    registry = Registry({})
    counter = registry.counter("lost", "").labels()

    def refresh() -> None:
        counter.value += 1

    registry.before_rendering(refresh)
    render(registry)
    assert "lost{} 2\n" in render(registry)


def test_invocation_under_daprs_names() -> None:
    registry = Registry({"app_id": "shop"})
    calls = PrometheusMeter(registry, MetricsSettings(), "default").calls
    calls.answered(calls.sent("stock", "unary"), "stock", 200, "unary")
    calls.received("web")
    calls.replied("web", 409)
    text = render(registry)
    dapr = "dapr_runtime_service_invocation"
    for line in (
        f'{dapr}_req_sent_total{{app_id="shop",dst_app_id="stock",type="unary"}} 1',
        f'{dapr}_res_recv_total{{app_id="shop",src_app_id="stock",status="200",type="unary"}} 1',
        f'{dapr}_res_recv_latency_ms_count{{app_id="shop",src_app_id="stock",status="200"}} 1',
        f'{dapr}_req_recv_total{{app_id="shop",src_app_id="web"}} 1',
        f'{dapr}_res_sent_total{{app_id="shop",dst_app_id="web",status="409"}} 1',
    ):
        assert f"\n{line}\n" in text


def test_components_under_daprs_names() -> None:
    registry = Registry({})
    meter = PrometheusMeter(registry, MetricsSettings(), "default")
    meter.component_loaded("pubsub.meshwire")
    meter.component_failed("pubsub.redis", "events", "init")
    text = render(registry)
    assert "dapr_runtime_component_loaded{} 2\n" in text
    assert 'dapr_runtime_component_init_total{component="pubsub.meshwire"} 1\n' in text
    failed = 'dapr_runtime_component_init_fail_total{component="pubsub.redis",reason="init",componentName="events"} 1\n'
    assert failed in text


@pytest.mark.quiet
def test_counting_is_cheap() -> None:
    """0.5 µs is the promise for an increment; the bounds here leave room for a slower machine."""
    registry = Registry({})
    counter = registry.counter("a", "", ("x",)).labels("1")
    histogram = registry.histogram("b", "", MetricsSettings().buckets, ("x",)).labels("1")
    assert best(counter.inc, times=2000) < 2
    assert best(lambda: histogram.observe(17.0), times=2000) < 4


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/v1.0/publish/pubsub/orders", "/v1.0/publish/pubsub/orders"),
        ("/v1.0/state/store/key/1", "/v1.0/state/store"),
        ("/v1.0/state/store", "/v1.0/state/store"),
        ("/v1.0-alpha1/state/store/query", "/v1.0-alpha1/state/store"),
        ("/v1.0/secrets/vault/password", "/v1.0/secrets/vault"),
        ("/v1.0/actors/Cart/42/method/add", "/v1.0/actors/Cart/{id}/method"),
        ("/v1.0/workflows/dapr/77/pause", "/v1.0/workflows/dapr/{instanceId}/pause"),
        ("/anything", "/anything"),
    ],
)
def test_paths_by_daprs_rules(path: str, label: str) -> None:
    paths = PathLabels((), every_path=True)
    assert paths.label(path) == paths.label(paths.stand_in(path.encode()).decode()) == label
    assert PathLabels((), every_path=False).label(path) == ""


def test_calls_of_all_actors_of_a_type_are_looked_up_once() -> None:
    paths = PathLabels((), every_path=True)
    same = {paths.stand_in(b"/v1.0/actors/Cart/%d/method/add?n=%d" % (number, number)) for number in range(9)}
    assert same == {b"/v1.0/actors/Cart/{id}/method"}
    path = b"/v1.0/actors/Cart/7/method/add"
    assert PathLabels(["/v1.0/actors/{type}/{id}/method/add"], every_path=True).stand_in(path) == path


def test_paths_by_patterns() -> None:
    paths = PathLabels(["/orders/{id}", "/orders/new", "/files/{rest...}", "/under/", "/exact/{$}"], every_path=False)
    for path, label in (
        ("/orders/1", "/orders/{id}"),
        ("/orders/new", "/orders/new"),
        ("/v1.0/invoke/shop/method/orders/1", "/orders/{id}"),
        ("/orders/1/lines", ""),
        ("/files/a/b", "/files/{rest...}"),
        ("/under/a/b", "/under/"),
        ("/exact/", "/exact/{$}"),
        ("/exact/more", ""),
    ):
        assert paths.label(path) == label
