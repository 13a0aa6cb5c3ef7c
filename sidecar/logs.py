"""The log, in the form that Dapr's tools read: one line per event, as text or as JSON."""

from __future__ import annotations

import json
import logging
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path

from mesh import __version__

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
}
_WORDS = {10: "debug", 20: "info", 30: "warning", 40: "error", 50: "fatal"}


def configure(app_id: str, level: str, *, as_json: bool, file: Path | None) -> None:
    """Send everything that is logged to standard output, or to `file`. Raises `OSError` for a file that cannot be."""
    handler = logging.StreamHandler(sys.stdout) if file is None else logging.FileHandler(file)
    handler.setFormatter(_Formatter(app_id, as_json))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(LEVELS[level])
    # They log each failed attempt, some with a traceback; the connections of brokers/ say it in one line.
    for library in ("nats", "aiokafka"):
        logging.getLogger(library).setLevel(logging.CRITICAL)


class _Formatter(logging.Formatter):
    def __init__(self, app_id: str, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json
        self._fixed = {"app_id": app_id, "instance": socket.gethostname()}

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        fields = {
            "time": moment,
            "level": _WORDS.get(record.levelno, "info"),
            "msg": message,
            **self._fixed,
            "scope": record.name,
            "type": "log",
            "ver": __version__,
            **getattr(record, "fields", {}),
        }
        if self._as_json:
            return json.dumps(fields, ensure_ascii=False)
        return " ".join(f"{name}={_quoted(name, value)}" for name, value in fields.items())


def _quoted(name: str, value: object) -> str:
    """Quoted as logrus does: the two fields that always are, and texts that would not stay one word."""
    text = str(value)
    if name in ("time", "msg") or not text or not text.isprintable() or set(text) & set(' "='):
        return json.dumps(text, ensure_ascii=False)
    return text
