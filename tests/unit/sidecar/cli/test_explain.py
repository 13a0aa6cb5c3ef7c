from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.cli import main
from tests.unit.sidecar.cli.conftest import Api

pytestmark = pytest.mark.usefixtures("folder")

FILES = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: shop}
spec:
  type: pubsub.meshwire
  version: v1
  metadata:
    - {name: concurrency, value: "8"}
---
apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: {name: r}
spec:
  policies:
    retries:
      few: {duration: 2s, maxRetries: 2, matching: {httpStatusCodes: "429,500-599"}}
    circuitBreakers:
      careful: {timeout: 30s}
  targets:
    components:
      shop: {inbound: {retry: few, circuitBreaker: careful}}
---
apiVersion: dapr.io/v2alpha1
kind: Subscription
metadata: {name: orders}
spec: {pubsubname: shop, topic: orders, routes: {default: /orders}, deadLetterTopic: dead}
---
apiVersion: dapr.io/v2alpha1
kind: Subscription
metadata: {name: other}
spec: {pubsubname: pubsub, topic: other, routes: {default: /other}}
"""

CONTRADICTS = """\
apiVersion: dapr.io/v2alpha1
kind: Subscription
metadata: {name: bad}
spec: {pubsubname: shop, topic: bad, routes: {default: /b}, metadata: {order: strict, concurrency: '4'}}
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "resources"
    folder.mkdir()
    (folder / "all.yaml").write_text(FILES)
    return folder


def test_each_value_has_its_place_and_each_attempt_its_time(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "-a", "warehouse", "--resources-path", str(files), "--topic", "orders"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    where = f"{files}/all.yaml"
    assert lines == [
        f"shop/orders ({where}:23)",
        f"attempts 3 {where}:16: spec.policies.retries.few",
        f"pauses 2s each {where}:16: spec.policies.retries.few",
        f"statuses tried again 429,500-599 {where}:16: spec.policies.retries.few",
        "longest Retry-After 5m default",
        "time for one attempt 10m default",
        f"circuit breaker opens for 30s, then 1 at a time {where}:18: spec.policies.circuitBreakers.careful",
        "order key default",
        f"in hand at once 8 {where}:8: metadata.concurrency",
        "broadcast no default",
        f"dead letter topic dead {where}:23: deadLetterTopic",
        "attempts, in seconds after the first, if the app answers at once:",
        "1 0",
        "2 2",
        "3 4",
        "After the last attempt, or an answer of 410 or another status that is not tried again: to the topic dead, and "
        "the dead letters of the app. What the app drops (404, DROP), or what has expired, goes there too.",
    ]


def test_a_plan_without_an_end_is_cut(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "-a", "warehouse", "-d", str(files), "-p", "pubsub", "-o", "json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    assert (plan["pubsubname"], plan["topic"], len(plan["attempts"])) == ("pubsub", "other", 20)
    assert plan["attempts"][1] == {"attempt": 2, "earliest": 0.4, "latest": 0.6}
    assert plan["then"] == "and so on until it succeeds, after pauses of 48 to 72 s"


def test_long_plans_tell_their_last_attempt(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = FILES.replace("few: {duration: 2s, maxRetries: 2", "few: {duration: 2s, maxRetries: 99")
    (files / "all.yaml").write_text(text)
    assert main(["explain", "-a", "warehouse", "-d", str(files), "-p", "shop"]) == 0
    assert "80 more, the last one (attempt 100) after 198 to 198 s" in capsys.readouterr().out


def test_what_cannot_be_is_told_and_fails(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "bad.yaml").write_text(CONTRADICTS)
    assert main(["explain", "-a", "warehouse", "-d", str(files)]) == 1
    out = capsys.readouterr().out
    assert "bad.yaml:1: topic 'bad' of 'shop' is not subscribed: metadata.concurrency: contradicts order strict" in out
    assert "shop/orders" in out


def test_a_component_that_contradicts_a_policy_is_an_error(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "all.yaml").write_text(FILES.replace("name: concurrency,", "name: maxAttempts,"))
    assert main(["explain", "-a", "warehouse", "-d", str(files)]) == 1
    assert "all.yaml:8: metadata.maxAttempts: contradicts" in capsys.readouterr().err


def test_files_need_the_app(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "-d", str(files)]) == 2
    assert "needs --app-id" in capsys.readouterr().err
    assert main(["explain", "-c", str(files / "all.yaml")]) == 2
    assert "--config belongs to --resources-path" in capsys.readouterr().err


def test_among_several_apps_one_must_be_named(
    running: Callable[..., object], capsys: pytest.CaptureFixture[str]
) -> None:
    running("orders", http_port=1)
    running("billing", http_port=2)
    assert main(["explain"]) == 1
    assert "several apps run here (billing, orders); name one with --app-id" in capsys.readouterr().err


def test_without_files_the_running_sidecar_is_asked(
    api: Api, running: Callable[..., object], capsys: pytest.CaptureFixture[str]
) -> None:
    running("orders", http_port=api.port)
    value = {"name": "attempts", "value": "1", "origin": "default"}
    attempt = {"attempt": 1, "earliest": 0.0, "latest": 0.0}
    plan = {"pubsubname": "pubsub", "topic": "A", "origin": "GET /dapr/subscribe: entry 0", "plan": [value]}
    told = {"plans": [{**plan, "attempts": [attempt], "then": "", "end": "The end."}]}
    api.status, api.body = 200, json.dumps(told).encode()
    assert main(["explain"]) == 0
    assert (api.requests[0].method, api.requests[0].path) == ("GET", "/mesh/v1/plans")
    assert capsys.readouterr().out.startswith("pubsub/A  (GET /dapr/subscribe: entry 0)\n  attempts  1  default\n")


KAFKA = "kafka+tls://kafka.example:9093"
BEYOND_KAFKA = """\
apiVersion: dapr.io/v2alpha1
kind: Subscription
metadata: {name: strict}
spec: {pubsubname: shop, topic: strict, routes: {default: /s}, metadata: {order: strict}}
---
apiVersion: dapr.io/v2alpha1
kind: Subscription
metadata: {name: many}
spec: {pubsubname: shop, topic: many.*, routes: {default: /m}}
"""


@pytest.mark.parametrize(
    ("environment", "lacking"),
    [
        ({}, []),
        ({"MESHWIRE_BROKER": "nats://nats.example:4222"}, []),
        ({"MESHWIRE_BROKER": KAFKA, "MESHWIRE_KAFKA_SASL": "PLAIN"}, ["handles all events of a topic", "subscribes"]),
        ({"MESHWIRE_BROKER": KAFKA, "MESHWIRE_KAFKA_PARTITIONS": "1"}, ["subscribes to many topics by a pattern"]),
    ],
    ids=["embedded", "nats", "kafka", "one partition"],
)
def test_what_the_broker_cannot_is_told_though_it_does_not_run(
    files: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    lacking: list[str],
) -> None:
    (files / "all.yaml").write_text(FILES.replace('concurrency, value: "8"', 'broadcast, value: "false"'))
    (files / "beyond.yaml").write_text(BEYOND_KAFKA)
    if "MESHWIRE_KAFKA_SASL" in environment:  # it is somewhere else
        environment = environment | {"MESHWIRE_KAFKA_USER": "u", "MESHWIRE_KAFKA_PASSWORD_FILE": "/run/not/here"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["explain", "-a", "warehouse", "-d", str(files)]) == (1 if lacking else 0)
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("✗")]
    assert len(problems) == len(lacking)
    for problem, what in zip(sorted(problems), sorted(lacking), strict=True):
        assert "beyond.yaml" in problem
        assert f"the broker of this component cannot: {what}" in problem
