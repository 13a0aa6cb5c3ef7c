"""Posting to a collector over HTTP, on one connection that is kept."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Mapping
from urllib.parse import urlsplit

from sidecar.telemetry.export import ExportError

TRANSIENT = frozenset((429, 502, 503, 504))
"""Answers after which the same request may be sent again (OTLP/HTTP: retryable response codes)."""
LARGEST_ANSWER = 64 << 10


class Collector:
    def __init__(self, url: str, headers: Mapping[str, str], timeout: float) -> None:
        parts = urlsplit(url)
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._headers = dict(headers)
        host, port = parts.hostname or "", parts.port
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context()
            self._connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
        else:
            self._connection = http.client.HTTPConnection(host, port, timeout=timeout)

    def post(self, body: bytes) -> None:
        """Raises `ExportError` unless the answer is a 2xx."""
        reused = self._connection.sock is not None
        try:
            try:
                answer = self._exchange(body)
            except (http.client.RemoteDisconnected, ConnectionError):
                if not reused:
                    raise
                answer = self._exchange(body)  # it had closed the idle connection
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise ExportError(str(error) or type(error).__name__, transient=True) from error
        if not 200 <= answer < 300:
            raise ExportError(f"it answered {answer}", transient=answer in TRANSIENT)

    def _exchange(self, body: bytes) -> int:
        try:
            self._connection.request("POST", self._target, body, self._headers)
            answer = self._connection.getresponse()
            answer.read(LARGEST_ANSWER)
            if not answer.isclosed():
                self._connection.close()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise
        return answer.status

    def close(self) -> None:
        self._connection.close()
