"""Tracing and metrics: the adapters behind `mesh.telemetry`."""
