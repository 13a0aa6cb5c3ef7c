"""`meshwire subscriptions`: those of an app, over all its replicas; pause, resume, drain and limit them."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any
from urllib.parse import quote

from mesh.ports import Topic
from sidecar.cli import FAILED, OK, UsageError, asked

ROOT = "/mesh/v1/subscriptions"
ACTIONS = ("list", "pause", "resume", "drain", "limit")
NONE = "none"
"""Takes a limit away."""
MAX_WAIT = 60
"""Seconds that a drain may wait."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        default="list",
        choices=ACTIONS,
        metavar="ACTION",
        help="list (default); pause; resume; drain: take no more, and wait until nothing is in hand; limit",
    )
    parser.add_argument("topic", nargs="?", metavar="TOPIC", help="the topic of the subscription")
    parser.add_argument("--pubsub", "-p", default="pubsub", help="its pub/sub component (default: pubsub)")
    parser.add_argument("--group", "-g", default="", help="its group, of one that is pulled from")
    parser.add_argument("--binding", "-b", metavar="NAME", help="the items of this input binding, in place of TOPIC")
    parser.add_argument("--rate", metavar="N", help=f"limit: events per second of each replica; {NONE}: no limit")
    parser.add_argument("--concurrency", metavar="N", help=f"limit: events in hand of each replica; {NONE}: as planned")
    parser.add_argument("--wait", type=_wait, metavar="S", help=f"drain: seconds, up to {MAX_WAIT} (default: 30)")
    parser.add_argument("--output", "-o", choices=("table", "json"), default="table", help="default: table")
    asked.configure(parser)


def execute(args: argparse.Namespace) -> int:
    """1 when something was still in hand after the wait of a drain.

    Raises `UsageError`, or `MeshError` when there is no sidecar or it refuses.
    """
    if args.action == "list":
        if args.topic is not None or args.binding is not None:
            raise UsageError("list takes no TOPIC, and no --binding")
        told = json.loads(asked.ask(asked.address(args), "GET", ROOT))
        _show(args, told["subscriptions"], told.get("silent", ()))
        return OK
    if (args.topic is None) == (args.binding is None):
        raise UsageError(f"{args.action} needs either a TOPIC or a --binding")
    action, where = _action(args), asked.address(args)
    topic = asked.topic_of(args.binding, where) if args.binding is not None else Topic(args.pubsub, args.topic)
    path = f"{ROOT}/{quote(topic.pubsub, safe='')}/{quote(topic.name, safe='/')}"
    told = json.loads(asked.ask(where, "POST", path, action))
    _show(args, [told], told.get("silent", ()))
    return FAILED if told["state"] == "draining" else OK


def _action(args: argparse.Namespace) -> dict[str, Any]:
    limits = {"rate": args.rate, "concurrency": args.concurrency}
    given = {name: _number(name, text) for name, text in limits.items() if text is not None}
    if args.action == "limit" and not given:
        raise UsageError("limit needs --rate, --concurrency, or both")
    if args.action != "limit" and given:
        raise UsageError(f"--{next(iter(given))} belongs to limit")
    if args.action != "drain" and args.wait is not None:
        raise UsageError("--wait belongs to drain")
    waits = {"waitSeconds": 30 if args.wait is None else args.wait} if args.action == "drain" else {}
    return {"action": args.action, "group": args.group, **given, **waits}


def _number(name: str, text: str) -> float | int | None:
    if text == NONE:
        return None
    try:
        return int(text) if name == "concurrency" else float(text)
    except ValueError:
        raise UsageError(f"--{name} must be a number or {NONE} (got '{text}')") from None


def _wait(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= MAX_WAIT):
        raise argparse.ArgumentTypeError(f"must be a whole number of seconds up to {MAX_WAIT}")
    return int(text)


def _show(args: argparse.Namespace, subscriptions: list[dict[str, Any]], silent: list[str]) -> None:
    for sidecar in silent:
        print(f"sidecar {sidecar} does not answer: what it has in hand is not counted", file=sys.stderr)
    if args.output == "json":
        print(json.dumps(subscriptions, indent=2))
    elif not subscriptions:
        print("No subscriptions.", file=sys.stderr)
    else:
        columns = ("PUBSUB", "TOPIC", "GROUP", "STATE", "WAITING", "IN HAND", "RATE", "CONCURRENCY", "REPLICAS")
        rows = [
            (
                one["pubsubname"],
                one["topic"],
                one.get("group"),
                one["state"],
                one.get("backlog", {}).get("waiting"),
                one["inHand"],
                one.get("rate"),
                one.get("concurrency", one.get("plan", {}).get("concurrency")),
                len(one["replicas"]),
            )
            for one in subscriptions
        ]
        print(asked.table(columns, rows))
