"""Settings that ask for what Kafka cannot do: a sidecar refuses them with the line, before any broker answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.mesh import MESHWIRE, Process
from tests.ports import free_port

STRICT_PUBSUB = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: shop}
spec:
  type: pubsub.meshwire
  version: v1
  metadata:
    - {name: order, value: strict}
"""
STRICT_BINDING = STRICT_PUBSUB.replace("pubsub.meshwire", "bindings.cron").replace(
    "    - {name: order", '    - {name: schedule, value: "@every 1h"}\n    - {name: order'
)
CANNOT = "the broker of this component cannot: handles all events of a topic in order"


def sidecar(folder: Path, manifest: str, **environment: str) -> Process:
    (folder / "resources").mkdir()
    (folder / "resources" / "shop.yaml").write_text(manifest)
    ports = ["--dapr-http-port", str(free_port()), "--metrics-port", "0"]
    words = [*MESHWIRE, "sidecar", "--app-id", "shop", *ports, "--resources-path", str(folder / "resources")]
    broker = {"MESHWIRE_BROKER": f"kafka://127.0.0.1:{free_port()}"}
    return Process(folder, "sidecar", words, broker | environment).start()


@pytest.mark.parametrize(("manifest", "line"), [(STRICT_PUBSUB, 8), (STRICT_BINDING, 9)], ids=["pubsub", "binding"])
async def test_strict_order_is_refused_with_its_line(tmp_path: Path, manifest: str, line: int) -> None:
    process = sidecar(tmp_path, manifest)
    assert await process.end(None) == 1
    assert f"shop.yaml:{line}: metadata.order: {CANNOT}" in process.log


async def test_a_topic_of_one_partition_can_be_in_strict_order(tmp_path: Path) -> None:
    process = sidecar(tmp_path, STRICT_PUBSUB, MESHWIRE_KAFKA_PARTITIONS="1")
    await process.says("no connection to Kafka")  # it got so far, and tries on
    assert CANNOT not in process.log
    await process.end()
