"""The few calls to the state API that the example needs, with the standard library alone."""

import json
import os
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError

PORT = os.environ.get("DAPR_HTTP_PORT", "3500")
STORE = f"http://127.0.0.1:{PORT}/v1.0/state/statestore"
BEYOND_DAPR = f"http://127.0.0.1:{PORT}/mesh/v1/state/statestore"

CONFLICT = 409


def read(key: str) -> tuple[Any, str | None]:
    """The value, and the ETag that names it; `None` for both when there is none."""
    with urllib.request.urlopen(f"{STORE}/{key}", timeout=10) as answer:
        return (json.load(answer), answer.headers["ETag"]) if answer.status == 200 else (None, None)


def write(key: str, value: Any, etag: str | None) -> bool:
    """False when the value is not the one that `etag` names any more; without an ETag, when there is one already."""
    item = {"key": key, "value": value, "options": {"concurrency": "first-write"}}
    body = json.dumps([item if etag is None else item | {"etag": etag}]).encode()
    request = urllib.request.Request(STORE, body, {"Content-Type": "application/json"})
    try:
        urllib.request.urlopen(request, timeout=10).close()
    except HTTPError as error:
        if error.code == CONFLICT:
            return False
        raise
    return True


def changes(prefix: str) -> Iterator[tuple[str, Any]]:
    """What there is under keys that begin with `prefix`, then each change as it happens: server-sent events."""
    request = urllib.request.Request(
        f"{BEYOND_DAPR}?prefix={prefix}&initial=true", headers={"Accept": "text/event-stream"}
    )
    with urllib.request.urlopen(request, timeout=60) as stream:  # it says every 15 s that it is alive
        kind = ""
        for line in stream:
            name, _, text = line.decode().rstrip("\n").partition(": ")
            if name == "event":
                kind = text
            elif name == "data":
                yield kind, json.loads(text)
