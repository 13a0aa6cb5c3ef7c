"""The metadata object: what a sidecar tells about itself (Dapr: `GET /v1.0/metadata`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mesh import __version__
from mesh.pubsub import Component
from mesh.resources import Resources
from mesh.subscriptions import SubscriptionSpec
from sidecar.flags import SidecarFlags


def describe(
    flags: SidecarFlags, manifests: Resources, components: Mapping[str, Component], specs: Sequence[SubscriptionSpec]
) -> dict[str, Any]:
    """All members but `extended`, without those that would be empty."""
    described: dict[str, Any] = {
        "id": flags.app_id,
        "runtimeVersion": __version__,
        "components": [
            {
                "name": component.name,
                "type": component.type,
                "version": component.version,
                "capabilities": ["MESSAGE_TTL"],
            }
            for component in components.values()
        ],
        "actorRuntime": {"runtimeStatus": "DISABLED", "hostReady": False},  # which SDKs look for
    }
    for member, resources in (("httpEndpoints", manifests.http_endpoints), ("resiliencies", manifests.resiliency)):
        if resources:
            described[member] = [{"name": resource.name} for resource in resources]
    if specs:
        described["subscriptions"] = [
            {
                "pubsubname": spec.pubsub,
                "topic": spec.topic,
                **({"metadata": dict(spec.metadata)} if spec.metadata else {}),
                "rules": [{"path": route.path} for route in spec.routes],
                "deadLetterTopic": spec.dead_letter_topic or "",
                "type": spec.type,
            }
            for spec in specs
        ]
    if flags.app_port is not None:
        connection: dict[str, Any] = {
            "port": flags.app_port,
            "protocol": flags.app_protocol,
            "channelAddress": flags.app_channel_address,
        }
        if flags.app_max_concurrency is not None:
            connection["maxConcurrency"] = flags.app_max_concurrency
        if flags.enable_app_health_check:
            connection["health"] = {
                "healthCheckPath": flags.app_health_check_path,
                "healthProbeInterval": f"{flags.app_health_probe_interval:g}s",
                "healthProbeTimeout": f"{1000 * flags.app_health_probe_timeout:g}ms",
                "healthThreshold": flags.app_health_threshold,
            }
        described["appConnectionProperties"] = connection
    return described
