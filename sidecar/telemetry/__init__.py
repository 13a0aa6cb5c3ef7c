"""Tracing and metrics of one sidecar: the adapters behind `mesh.telemetry`, put together by the settings."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from starlette.types import ASGIApp

from mesh import __version__
from mesh.errors import ConfigurationError
from mesh.telemetry import NO_METER, NO_TRACER, SILENCE, Telemetry
from mesh.telemetry_settings import MetricsSettings, TracingSettings
from sidecar.flags import SidecarFlags
from sidecar.http.server import HttpServer
from sidecar.telemetry.api import CountErrors, Exposition, MeteredApi, TracedApi
from sidecar.telemetry.export import ExportQueue, SpanExporter
from sidecar.telemetry.meter import PrometheusMeter
from sidecar.telemetry.metrics import Registry
from sidecar.telemetry.tracing import SamplingTracer

logger = logging.getLogger("meshwire.runtime")

SCRAPE_GRACE = 1.0
"""Seconds for a scrape that is under way at the end."""


class Observers:
    """Whoever looks on. What nobody wants is not there, and costs nothing."""

    def __init__(self, flags: SidecarFlags, tracing: TracingSettings, metrics: MetricsSettings, namespace: str) -> None:
        """`tracing` with the environment's part. Raises `ConfigurationError` for an exporter that cannot be had."""
        self._flags = flags
        self._metrics = metrics
        self._queues = [ExportQueue(exporter) for exporter in _exporters(tracing, flags.app_id)]
        tracer = SamplingTracer(tracing.rate or 0.0, [queue.put for queue in self._queues]) if self._queues else None
        self._tracer = tracer
        self._registry = _registry(flags, metrics, self._queues)
        self._server: HttpServer | None = None
        self.telemetry = SILENCE
        if tracer is not None or self._registry is not None:
            self.telemetry = Telemetry(
                tracer=tracer or NO_TRACER,
                meter=PrometheusMeter(self._registry, metrics, namespace) if self._registry else NO_METER,
                below_creation=tracing.below_creation,
            )

    def around(self, api: ASGIApp) -> ASGIApp:
        """`api` with its requests traced and measured."""
        if self._tracer is not None:
            api = TracedApi(api, self._tracer)
        if self._registry is not None:
            api = MeteredApi(api, self._registry, self._metrics)
        return api

    def within(self, api: ASGIApp) -> ASGIApp:
        """`api`, which still raises its errors, with those counted."""
        if self._registry is not None and self._metrics.error_codes:
            api = CountErrors(api, self._registry)
        return api

    async def start(self) -> None:
        """Serve the metrics, once the API listens. Raises `ConfigurationError` when the port that was asked for cannot
        be had; without the default port it goes on without (several sidecars on one machine)."""
        for queue in self._queues:
            queue.start()
        if self._registry is None or self._flags.metrics_port is None:
            return
        asked = "metrics-port" in self._flags.given
        if not asked and self._flags.metrics_port in (self._flags.app_port, self._flags.http_port):
            return
        server = HttpServer(
            Exposition(self._registry),
            addresses=(self._flags.metrics_listen_address,),
            port=self._flags.metrics_port,
            flag="--metrics-port",
        )
        try:
            await server.start()
        except ConfigurationError as error:
            if asked:
                raise
            logger.info("metrics are not served: %s", error)
        else:
            self._server = server
            logger.info("metrics server is running on port %s", server.port)

    async def close(self) -> None:
        """Send the last spans, within a limit of a few seconds."""
        if self._server is not None:
            await self._server.stop(SCRAPE_GRACE)
        await asyncio.gather(*(asyncio.to_thread(queue.close) for queue in self._queues))


def _registry(flags: SidecarFlags, metrics: MetricsSettings, queues: Collection[ExportQueue]) -> Registry | None:
    if not (flags.enable_metrics and metrics.enabled):
        return None
    registry = Registry({"app_id": flags.app_id}, metrics.rules)
    dropped = registry.counter("meshwire_spans_dropped_total", "Spans that no collector took.", ("exporter",))

    def refresh(queue: ExportQueue) -> Callable[[], None]:
        counter = dropped.labels(queue.name)

        def set_value() -> None:
            counter.value = queue.dropped

        return set_value

    for queue in queues:
        registry.before_rendering(refresh(queue))
    return registry


def _exporters(settings: TracingSettings, app_id: str) -> list[SpanExporter]:
    if not settings.active:
        return []
    service = settings.service_name or settings.resource.get("service.name") or app_id
    exporters: list[SpanExporter] = []
    if settings.stdout:
        from sidecar.telemetry.stdout import StdoutExporter

        exporters.append(StdoutExporter(service))
    if settings.zipkin is not None:
        from sidecar.telemetry.zipkin import ZipkinExporter

        exporters.append(ZipkinExporter(settings.zipkin, service))
    if settings.otlp is not None:
        from sidecar.telemetry.otlp import OtlpGrpcExporter, OtlpHttpExporter

        resource = {
            "telemetry.sdk.name": "meshwire",
            "telemetry.sdk.language": "python",
            "telemetry.sdk.version": __version__,
            **settings.resource,
            "service.name": service,
        }
        kind = OtlpGrpcExporter if settings.otlp.protocol == "grpc" else OtlpHttpExporter
        exporters.append(kind(settings.otlp, resource))
    return exporters
