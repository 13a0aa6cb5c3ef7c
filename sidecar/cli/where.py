"""`meshwire where`: the story of one event, as all sidecars with a journal tell it."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any
from urllib.parse import quote

from brokers.nats.embedded import mesh_folder
from sidecar import registry
from sidecar.cli import OK, asked
from sidecar.cli.api import Address, address_of

_OUTCOMES = {"success": "succeeded", "failed": "failed for good", "retry": "failed", "drop": "refused it"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="the event's attribute source")
    parser.add_argument("id", metavar="ID", help="its attribute id")
    parser.add_argument("--output", "-o", choices=("text", "json"), default="text", help="default: text")
    asked.configure(parser)


def execute(args: argparse.Namespace) -> int:
    """Raises `MeshError` when no sidecar remembers such an event."""
    path = f"/mesh/v1/events/{quote(args.source, safe='')}/{quote(args.id, safe='')}"
    body = asked.ask(_address(args), "GET", path)
    if args.output == "json":
        print(json.dumps(json.loads(body), indent=2))
        return OK
    told = json.loads(body)
    for line in told["steps"]:
        print(_told(line))
    for one in told["subscriptions"]:
        print(f"→ {_subscription(one)}: {one['state']}, attempts: {one['attempts']}")
    for letter in told.get("deadLetters", ()):
        print(f"→ dead letter {letter['id']}: meshwire dead show {letter['id']}")
    for gap in told.get("gaps", ()):
        print(f"not told: {gap}", file=sys.stderr)
    return OK


def _address(args: argparse.Namespace) -> Address:
    """Any will do, since each asks all others: the newest, where none is named."""
    running = registry.entries(mesh_folder(args.mesh))
    if args.app_id is None and args.dapr_http_port is None and running:
        return address_of(running[-1])
    return asked.address(args)


def _told(line: dict[str, Any]) -> str:
    what = line["what"]
    if what == "attempt":
        outcome = _OUTCOMES.get(line["outcome"], line["outcome"])
        what = f"attempt {line['attempt']} {outcome} after {line['durationMs']:g} ms"
        if "status" in line:
            what += f", status {line['status']}"
    elif what == "started":
        what = f"attempt {line['attempt']} under way"
    if "position" in line and what == "stored":
        what += f" at {line['position']}"
    if "to" in line:
        what += f" by {line['to']}"
    if "reason" in line:
        what += f": {line['reason']}"
    if "next" in line:
        what += f"; again at {line['next'][11:23]}"
    return f"{line['time'][:10]} {line['time'][11:23]}  {_subscription(line)}  {what}"


def _subscription(named: dict[str, Any]) -> str:
    group = f" ({named['group']})" if "group" in named else ""
    return f"{named['app']} {named['pubsubname']}/{named['topic']}{group}"
