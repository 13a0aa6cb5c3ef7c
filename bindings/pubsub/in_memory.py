"""`pubsub.in-memory`: events in the memory of this sidecar, for tests."""

from __future__ import annotations

from mesh.components import ComponentSpec, Setup
from mesh.ports import EventLog


def _open(_setup: Setup) -> EventLog:
    from brokers.memory import MemoryEventLog

    return MemoryEventLog()


SPEC = ComponentSpec(
    type="pubsub.in-memory",
    title="Memory",
    about="Events in the memory of this sidecar, for tests: no other sidecar sees them, and they end with the process.",
    open=_open,
    features=("MESSAGE_TTL", "SUBSCRIBE_WILDCARDS"),
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: scratch
spec:
  type: pubsub.in-memory
  version: v1
""",
)
