"""`meshwire scheduled`: the events of an app that are to be published later, through its sidecar."""

from __future__ import annotations

import argparse
import json
import sys
from urllib.parse import quote

from mesh.errors import clip
from sidecar.cli import OK, UsageError, asked
from sidecar.cli.api import Address

ROOT = "/mesh/v1/scheduled"
ACTIONS = ("list", "get", "cancel")
DEFAULT_LIMIT = 100


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action", choices=ACTIONS, metavar="ACTION", help="list; get NAME: with its event; cancel NAME…"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="events, as list shows them: pubsub/topic/id")
    parser.add_argument(
        "--pubsub", "-p", default="pubsub", help="list: of this component, with --topic (default: pubsub)"
    )
    parser.add_argument("--topic", "-t", help="list: for this topic")
    parser.add_argument("--source", help="cancel: only the one of this source")
    parser.add_argument(
        "--limit", type=asked.count, default=DEFAULT_LIMIT, help=f"list: events (default: {DEFAULT_LIMIT})"
    )
    parser.add_argument("--json", action="store_true", help="list: as the API has it")
    asked.configure(parser)


def execute(args: argparse.Namespace) -> int:
    """Raises `UsageError`, or `MeshError` when there is no sidecar or it refuses."""
    action, names = args.action, args.names
    if action == "list" and names:
        raise UsageError("list takes no NAME")
    if action == "get" and len(names) != 1:
        raise UsageError("get needs one NAME")
    if action == "cancel" and not names:
        raise UsageError("cancel needs NAMEs, as list shows them")
    for name in names:
        if name.count("/") != 2 or not all(name.split("/")):
            raise UsageError(f"'{clip(name)}' is no NAME of an event, which looks like pubsub/topic/id")
    where = asked.address(args)
    if action == "list":
        _list(args, where)
    elif action == "get":
        found = json.loads(asked.ask(where, "GET", f"{ROOT}/{names[0]}"))["scheduled"]
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        of = "" if args.source is None else f"?source={quote(args.source, safe='')}"
        for name in names:
            asked.ask(where, "DELETE", f"{ROOT}/{name}{of}")
            print(f"✅ {name} cancelled")
    return OK


def _list(args: argparse.Namespace, where: Address) -> None:
    wanted = {"pubsub": args.pubsub, "topic": args.topic} if args.topic else {}
    found = asked.pages(where, ROOT, wanted, "scheduled", args.limit)
    if args.json:
        print(json.dumps(found, indent=2))
    elif not found:
        print("Nothing is scheduled.", file=sys.stderr)
    else:
        rows = [
            (one["name"], asked.shown(one["due"]), one.get("deliverEvery", "once"), one["type"], one["source"])
            for one in found
        ]
        print(asked.table(("NAME", "DUE (UTC)", "EVERY", "TYPE", "SOURCE"), rows))
