"""`meshwire replay`: stored events once more, through the sidecar of an app."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from typing import Any
from urllib.parse import quote, urlencode

from mesh.ports import Topic
from sidecar.cli import FAILED, OK, UsageError, asked

ROOT = "/mesh/v1/replays"
LOOK_AGAIN = 0.5
"""Seconds between two looks at a replay that is waited for."""


def configure(parser: argparse.ArgumentParser) -> None:
    events = parser.add_argument_group("which events")
    events.add_argument("--topic", "-t", help="the topic")
    events.add_argument("--pubsub", "-p", default="pubsub", help="pub/sub component (default: pubsub)")
    events.add_argument("--binding", "-b", metavar="NAME", help="the items of this input binding, in place of --topic")
    events.add_argument(
        "--from", dest="start", metavar="WHERE", help="such as 1h (ago), 2026-05-04T12:30:00Z, or position:42"
    )
    events.add_argument("--to", metavar="WHERE", help="in the same forms (default: now)")
    goes = parser.add_argument_group("where they go")
    goes.add_argument("--to-app", metavar="ID", help="to this app (default: that of the sidecar)")
    goes.add_argument("--route", metavar="PATH", help="to this path (default: by the rules of the subscription)")
    goes.add_argument("--rate", type=asked.rate, help="events per second (default: as fast as the app takes them)")
    goes.add_argument("--dry-run", action="store_true", help="only count")
    goes.add_argument("--wait", action="store_true", help="return when it is over")
    others = parser.add_argument_group("replays that there are")
    others.add_argument("--list", action="store_true", help="show them")
    others.add_argument("--cancel", metavar="REPLAY", help="end one")
    parser.add_argument("--json", action="store_true", help="as the API has it")
    asked.configure(parser)


def execute(args: argparse.Namespace) -> int:
    """Raises `UsageError`, or `MeshError` when there is no sidecar or it refuses."""
    if args.list and args.cancel:
        raise UsageError("--list and --cancel are two commands")
    if not (args.list or args.cancel) and not ((args.topic or args.binding) and args.start):
        raise UsageError("--topic (or --binding) and --from are required (or --list, or --cancel)")
    if args.binding and args.topic:
        raise UsageError("--topic and --binding are two ways to say one thing")
    where, whose = asked.address(args), f"?{urlencode({'appId': args.to_app})}" if args.to_app else ""
    if args.list:
        _print(args, json.loads(asked.ask(where, "GET", ROOT + whose))["replays"])
        return OK
    if args.cancel:
        run = asked.ask(where, "DELETE", f"{ROOT}/{quote(args.cancel, safe='')}{whose}")
        _print(args, [json.loads(run)])
        return OK
    order = _order(args)
    topic = asked.topic_of(args.binding, where) if args.binding else Topic(args.pubsub, args.topic)
    found = json.loads(asked.ask(where, "POST", ROOT, {"pubsubname": topic.pubsub, "topic": topic.name, **order}))
    if args.dry_run:
        more = "" if found["complete"] else " or more"
        print(json.dumps(found) if args.json else f"{found['matching']}{more} events would be replayed")
        return OK
    while args.wait and found["state"] in ("running", "cancelling"):
        time.sleep(LOOK_AGAIN)
        found = json.loads(asked.ask(where, "GET", f"{ROOT}/{found['id']}{whose}"))
    _print(args, [found])
    return OK if found["state"] in ("running", "done") else FAILED


def _order(args: argparse.Namespace) -> dict[str, Any]:
    order = {
        "from": _point(args.start, "--from"),
        "to": None if args.to is None else _point(args.to, "--to"),
        "appId": args.to_app,
        "route": args.route,
        "rate": args.rate,
        "dryRun": args.dry_run,
    }
    return {name: value for name, value in order.items() if value is not None}


def _point(text: str, flag: str) -> dict[str, str]:
    position = re.fullmatch(r"position:(.+)", text)
    return {"position": position[1]} if position else {"time": asked.moment(text, flag)}


def _print(args: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    if args.json:
        print(json.dumps(runs, indent=2))
    elif not runs:
        print("No replays.", file=sys.stderr)
    else:
        names = ("id", "state", "pubsubname", "topic", "handled", "reachedTime", "error")
        columns = ("ID", "STATE", "PUBSUB", "TOPIC", "HANDLED", "REACHED", "ERROR")
        print(asked.table(columns, [[run.get(name) for name in names] for run in runs]))
