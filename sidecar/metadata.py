"""The metadata object: what a sidecar tells about itself (Dapr: `GET /v1.0/metadata`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mesh import __version__
from mesh.resources import Resources
from mesh.subscriptions import SubscriptionSpec
from sidecar.components import Loaded
from sidecar.flags import SidecarFlags


def describe(
    flags: SidecarFlags, manifests: Resources, components: Mapping[str, Loaded], specs: Sequence[SubscriptionSpec]
) -> dict[str, Any]:
    """All members but `extended`, without those that would be empty."""
    described: dict[str, Any] = {
        "id": flags.app_id,
        "runtimeVersion": __version__,
        "components": [
            {
                "name": component.manifest.name,
                "type": component.manifest.type,
                "version": component.manifest.version,
                "capabilities": component.capabilities,
            }
            for component in components.values()
        ],
    }
    endpoints = [one.name for one in manifests.http_endpoints] + [one.name for one in manifests.endpoints_to_complete]
    for member, names in (("httpEndpoints", endpoints), ("resiliencies", [one.name for one in manifests.resiliency])):
        if names:
            described[member] = [{"name": name} for name in names]
    if specs:
        described["subscriptions"] = [
            {
                "pubsubname": spec.pubsub,
                "topic": spec.topic,
                **({"metadata": dict(spec.metadata)} if spec.metadata else {}),
                "rules": [
                    {"match": route.match, "path": route.path} if route.match else {"path": route.path}
                    for route in spec.routes
                ],
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
