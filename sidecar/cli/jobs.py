"""`meshwire jobs`: the jobs of an app, through its sidecar."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any
from urllib.parse import quote, urlencode

from sidecar.cli import OK, UsageError, asked
from sidecar.cli.api import Address

ROOT = "/mesh/v1/jobs"
ACTIONS = ("list", "get", "delete", "run")
DEFAULT_LIMIT = 100


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=ACTIONS,
        metavar="ACTION",
        help="list; get NAME; delete NAME… (or --prefix): remove for good; run NAME: call the app for it at once",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="jobs, as list shows them")
    parser.add_argument("--prefix", default="", help="list and delete: the jobs whose name begins so")
    parser.add_argument(
        "--limit", type=asked.count, default=DEFAULT_LIMIT, help=f"list: jobs (default: {DEFAULT_LIMIT})"
    )
    parser.add_argument("--json", action="store_true", help="list: as the API has it")
    asked.configure(parser)


def execute(args: argparse.Namespace) -> int:
    """Raises `UsageError`, or `MeshError` when there is no sidecar or it refuses."""
    action, names = args.action, args.names
    if action in ("get", "run") and len(names) != 1:
        raise UsageError(f"{action} needs one NAME")
    if action == "list" and names:
        raise UsageError("list takes no NAME; --prefix says how names begin")
    if action == "delete" and bool(names) == bool(args.prefix):
        raise UsageError("delete needs NAMEs or a --prefix, not both")
    if args.prefix and action in ("get", "run"):
        raise UsageError(f"{action} takes no --prefix")
    where = asked.address(args)
    match action:
        case "list":
            _list(args, where)
        case "get":
            print(json.dumps(_get(where, names[0]), indent=2, ensure_ascii=False))
        case "run":
            asked.ask(where, "POST", f"{ROOT}/{quote(names[0], safe='')}/run")
            print(f"✅ {names[0]} runs")
        case _ if names:
            for name in names:
                _get(where, name)  # deleting what is not there succeeds, and a typing error would not be seen
                asked.ask(where, "DELETE", f"/v1.0/jobs/{quote(name, safe='')}")
                print(f"✅ {name} deleted")
        case _:
            answer = asked.ask(where, "DELETE", f"{ROOT}?{urlencode({'prefix': args.prefix})}")
            print(f"✅ {json.loads(answer)['deleted']} deleted")
    return OK


def _get(where: Address, name: str) -> Any:
    return json.loads(asked.ask(where, "GET", f"/v1.0/jobs/{quote(name, safe='')}"))


def _list(args: argparse.Namespace, where: Address) -> None:
    found = asked.pages(where, ROOT, {"prefix": args.prefix} if args.prefix else {}, "jobs", args.limit)
    if args.json:
        print(json.dumps(found, indent=2))
    elif not found:
        print("No jobs.", file=sys.stderr)
    else:
        rows = [
            (one["name"], asked.shown(one["due"]), one.get("schedule", "once"), one["tick"], one.get("repeats"))
            for one in found
        ]
        print(asked.table(("NAME", "DUE (UTC)", "SCHEDULE", "TICK", "OF"), rows))
