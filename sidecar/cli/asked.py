"""What commands have in common that ask the API of one app's sidecar: whom to ask, and what to do with the answer."""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from brokers.nats.embedded import mesh_folder
from mesh import addressing
from mesh.codec.attributes import timestamp
from mesh.errors import MeshError, clip
from mesh.ports import Topic
from mesh.quantities import duration, number
from sidecar import registry
from sidecar.cli import UsageError
from sidecar.cli.api import Address, address_of, call, choose

TIMEOUT = 60.0
"""Seconds that the sidecar may take for one answer."""
PAGE = 1000
"""Members of a list that the API hands out at once."""
WIDEST = 60
"""Characters of a cell in a table."""


def configure(parser: argparse.ArgumentParser) -> None:
    through = parser.add_argument_group("the sidecar to ask (default: the only one that runs)")
    through.add_argument("--app-id", "-a", metavar="ID", help="the sidecar of this app")
    through.add_argument("--dapr-http-port", type=port, metavar="PORT", help="the one at this port ($DAPR_HTTP_PORT)")
    through.add_argument("--mesh", default="default", help="the mesh that it runs in (default: default)")


def port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"must be a port from 1 to 65535 (got '{clip(text)}')")
    return int(text)


def rate(text: str) -> float:
    """Of a flag; the sidecar says which ones it takes."""
    try:
        return number(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    """Of a flag: how many to show."""
    if not re.fullmatch(r"[0-9]{1,7}", text) or not 0 < int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"must be from 1 to 1000000 (got '{clip(text)}')")
    return int(text)


def address(args: argparse.Namespace) -> Address:
    """Raises `MeshError` when there is no such sidecar, or no telling which one is meant."""
    if args.dapr_http_port is not None:
        return Address(args.dapr_http_port)
    if args.app_id is None and (given := os.environ.get("DAPR_HTTP_PORT")):
        return Address(port(given))
    return address_of(choose(registry.entries(mesh_folder(args.mesh)), args.app_id, args.mesh, "--app-id"))


def ask(where: Address, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
    """The body of the answer. Raises `MeshError` with what the sidecar says against it."""
    sent = None if body is None else json.dumps(body).encode()
    headers = {} if sent is None else {"content-type": "application/json"}
    answer = call(where, method, path, body=sent, headers=headers, timeout=TIMEOUT)
    if not 200 <= answer.status < 300:
        raise MeshError(answer.problem)
    return answer.body


def pages(where: Address, path: str, query: Mapping[str, str], member: str, limit: int) -> list[dict[str, Any]]:
    """The members of a list that the API hands out in pages, `limit` of them at most. Raises `MeshError`."""
    found: list[dict[str, Any]] = []
    turn: dict[str, Any] = dict(query)
    while len(found) < limit:
        turn["limit"] = min(PAGE, limit - len(found))
        page = json.loads(ask(where, "GET", f"{path}?{urlencode(turn)}"))
        found += page[member]
        if "cursor" not in page:
            break
        turn["cursor"] = page["cursor"]
    return found


def shown(moment: str) -> str:
    """RFC 3339 in UTC, to the second, as a cell of a table."""
    return moment[:19].replace("T", " ")


def topic_of(binding: str, where: Address) -> Topic:
    """As what the items of an input binding are known to the sidecar that is asked. Raises `MeshError`."""
    app_id = json.loads(ask(where, "GET", "/v1.0/metadata"))["id"]
    return addressing.binding_topic(app_id, binding)


def moment(text: str, flag: str) -> str:
    """RFC 3339, from that or from how long ago it was (`90m`). Raises `UsageError`."""
    try:
        timestamp(text)
    except ValueError:
        try:
            ago = duration(text, bare_unit=None)
            return datetime.fromtimestamp(time.time() - ago, UTC).isoformat().replace("+00:00", "Z")
        except (ValueError, OverflowError, OSError):
            rule = "must be a time such as 2026-05-04T12:30:00Z, or how long ago it was, such as 90m"
            raise UsageError(f"{flag} {rule} (got '{clip(text)}')") from None
    return text


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The first column is what a row is called by: it is never clipped."""
    lines = [list(columns), *([_printable(row[0]), *map(_cell, row[1:])] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _printable(value: object) -> str:
    text = "" if value is None else str(value)
    return text if text.isprintable() else ascii(text)[1:-1]


def _cell(value: object) -> str:
    text = _printable(value)
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"
