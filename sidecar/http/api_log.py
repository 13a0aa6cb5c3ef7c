"""One log line per API call, where `--enable-api-logging` or the configuration asks for it (Dapr: API logging)."""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Receive, Scope, Send

from sidecar.http.guard import is_health_probe
from sidecar.http.responses import WatchedSend

logger = logging.getLogger("dapr.runtime.http-info")


class ApiLog:
    """ASGI wrapper. Paths are logged without their query, which may hold what is nobody's business."""

    def __init__(self, app: ASGIApp, *, omit_health_checks: bool = False) -> None:
        self._app = app
        self._omit_health_checks = omit_health_checks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._omit_health_checks and is_health_probe(scope):
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        watched = WatchedSend(send)
        try:
            await self._app(scope, receive, watched)
        finally:
            fields = {
                "method": f"{scope['method']} {scope['raw_path'].decode('ascii', 'replace')}",
                "useragent": dict(scope["headers"]).get(b"user-agent", b"").decode("latin-1"),
                "duration": round(1000 * (time.monotonic() - started)),
                "code": watched.status,
                "size": watched.size,
            }
            logger.info("HTTP API Called", extra={"fields": fields})
