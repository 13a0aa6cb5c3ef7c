"""`meshwire dead`: the dead letters of an app, through its sidecar."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any
from urllib.parse import quote, urlencode

from mesh.errors import clip
from sidecar.cli import FAILED, OK, UsageError, asked
from sidecar.cli.api import Address

ROOT = "/mesh/v1/dead-letters"
ACTIONS = ("list", "show", "redrive", "purge", "runs", "cancel")
PAGE = 1000
DEFAULT_LIMIT = 100
LOOK_AGAIN = 0.5
"""Seconds between two looks at a redrive that is waited for."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=ACTIONS,
        metavar="ACTION",
        help="list; show ID; redrive ID… (or a filter): send again; purge ID… (or a filter): remove for good; "
        "runs: the redrives; cancel RUN: end one",
    )
    parser.add_argument("ids", nargs="*", metavar="ID", help="dead letters, as list shows them; or a redrive")
    wanted = parser.add_argument_group("filter: all dead letters that")
    wanted.add_argument("--pubsub", "-p", help="died in subscriptions of this pub/sub component")
    wanted.add_argument("--topic", "-t", help="died in the subscription to this topic")
    wanted.add_argument(
        "--reason", help="died for it: attempts, refused, dropped, expired, unrouted, malformed, oversized"
    )
    wanted.add_argument("--status", help="died with this HTTP status")
    wanted.add_argument("--since", metavar="TIME", help="died since then, such as 90m (ago) or 2026-05-04T12:30:00Z")
    wanted.add_argument("--until", metavar="TIME", help="died before then")
    wanted.add_argument("--type", help="have this type of event")
    wanted.add_argument("--source", help="come from this source")
    wanted.add_argument("--id", help="have this id of the event")
    wanted.add_argument("--text", help="have this text in event, failure or answer")
    wanted.add_argument("--all", action="store_true", help="there are; redrive and purge ask for it without a filter")
    shown = parser.add_argument_group("list and show")
    shown.add_argument("--oldest", action="store_true", help="the oldest first (default: the newest)")
    shown.add_argument("--limit", type=_limit, default=DEFAULT_LIMIT, help=f"letters (default: {DEFAULT_LIMIT})")
    shown.add_argument("--json", action="store_true", help="as the API has it")
    shown.add_argument("--raw", action="store_true", help="show: the stored payload alone, byte for byte")
    again = parser.add_argument_group("redrive and purge")
    again.add_argument("--to-topic", metavar="TOPIC", help="send to this topic (default: to where each came from)")
    again.add_argument("--to-pubsub", metavar="NAME", default="pubsub", help="of this component (default: pubsub)")
    again.add_argument(
        "--everyone", action="store_true", help="send to all subscribers of the topic, not this app only"
    )
    again.add_argument("--rate", type=asked.rate, default=100.0, help="events per second (default: 100)")
    again.add_argument("--dry-run", action="store_true", help="only count")
    again.add_argument("--wait", action="store_true", help="redrive: return when it is over")
    asked.configure(parser)


def execute(args: argparse.Namespace) -> int:
    """Raises `UsageError`, or `MeshError` when there is no sidecar or it refuses."""
    if args.action in ("show", "cancel") and len(args.ids) != 1:
        raise UsageError(f"{args.action} needs one ID")
    if args.action in ("list", "runs") and args.ids:
        raise UsageError(f"{args.action} takes no ID")
    where = asked.address(args)
    match args.action:
        case "list":
            return _list(args, where)
        case "show":
            return _show(args, where)
        case "purge":
            return _purge(args, where)
        case "redrive":
            return _redrive(args, where)
        case "runs":
            runs = json.loads(asked.ask(where, "GET", "/mesh/v1/redrives"))["redrives"]
            _print_runs(args, runs)
        case _:
            run = asked.ask(where, "DELETE", f"/mesh/v1/redrives/{quote(args.ids[0], safe='')}")
            _print_runs(args, [json.loads(run)])
    return OK


def _list(args: argparse.Namespace, where: Address) -> int:
    found: list[dict[str, Any]] = []
    query: dict[str, Any] = {**_filter(args), "order": "oldest" if args.oldest else "newest"}
    while len(found) < args.limit:
        query["limit"] = min(PAGE, args.limit - len(found))
        page = json.loads(asked.ask(where, "GET", f"{ROOT}?{urlencode(query)}"))
        found += page["deadLetters"]
        if "cursor" not in page:
            break
        query["cursor"] = page["cursor"]
    if args.json:
        print(json.dumps(found, indent=2))
        return OK
    if not found:
        print("No dead letters.", file=sys.stderr)
        return OK
    rows = [
        (
            one["id"],
            one["lastFailure"][:19].replace("T", " "),
            one["reason"],
            one.get("status"),
            one["attempts"],
            one.get("event", {}).get("type"),
            one["text"],
        )
        for one in found
    ]
    print(asked.table(("ID", "DIED (UTC)", "REASON", "STATUS", "ATTEMPTS", "TYPE", "LAST FAILURE"), rows))
    return OK


def _show(args: argparse.Namespace, where: Address) -> int:
    path = _path(args.ids[0])
    if args.raw:
        sys.stdout.buffer.write(asked.ask(where, "GET", f"{path}?raw=true"))
        sys.stdout.buffer.flush()
        return OK
    letter = json.loads(asked.ask(where, "GET", path))
    if args.json:
        print(json.dumps(letter, indent=2))
        return OK
    event = letter.pop("event", None)
    for name, value in letter.items():
        print(f"{name:<14}{value if isinstance(value, str | int) else json.dumps(value)}")
    if event is not None:
        print(f"\n{json.dumps(event, indent=2, ensure_ascii=False)}")
    return OK


def _purge(args: argparse.Namespace, where: Address) -> int:
    count = 0
    for wanted in _wanted(args, where):
        body = {"filter": wanted, "dryRun": args.dry_run}
        answer = json.loads(asked.ask(where, "POST", f"{ROOT}:purge", body))
        count += answer["matching"] if args.dry_run else answer["purged"]
    _say(args, {"matching" if args.dry_run else "purged": count}, _counted(count, args.dry_run, "removed"))
    return OK


def _redrive(args: argparse.Namespace, where: Address) -> int:
    body: dict[str, Any] = {"rate": args.rate, "everyone": args.everyone, "dryRun": args.dry_run}
    if args.to_topic is not None:
        body["to"] = {"pubsubname": args.to_pubsub, "topic": args.to_topic}
    answers = [
        json.loads(asked.ask(where, "POST", f"{ROOT}:redrive", {**body, "filter": wanted}))
        for wanted in _wanted(args, where)
    ]
    if args.dry_run:
        count = sum(answer["matching"] for answer in answers)
        _say(args, {"matching": count}, _counted(count, True, "sent again"))
        return OK
    while args.wait and any(run["state"] in ("running", "cancelling") for run in answers):
        time.sleep(LOOK_AGAIN)
        answers = [json.loads(asked.ask(where, "GET", f"/mesh/v1/redrives/{run['id']}")) for run in answers]
    _print_runs(args, answers)
    return OK if all(run["state"] in ("running", "done") and not run.get("failed") for run in answers) else FAILED


def _counted(count: int, dry_run: bool, what: str) -> str:
    letters = "1 dead letter" if count == 1 else f"{count} dead letters"
    return f"{letters} would be {what}" if dry_run else f"✅ {letters} {what}"


def _say(args: argparse.Namespace, content: object, text: str) -> None:
    print(json.dumps(content) if args.json else text)


def _print_runs(args: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    if args.json:
        print(json.dumps(runs, indent=2))
    elif not runs:
        print("No redrives.", file=sys.stderr)
    else:
        names = ("id", "state", "created", "matched", "sent", "expired", "failed", "error")
        columns = [name.upper() for name in names]
        print(asked.table(columns, [[run.get(name) for name in names] for run in runs]))


def _wanted(args: argparse.Namespace, where: Address) -> list[dict[str, Any]]:
    """The filters that are meant: one, or one for each letter that is named.

    Raises `MeshError` for a letter that is not there; a filter just finds none.
    """
    wanted = _filter(args)
    if args.ids and (wanted or args.all):
        raise UsageError("give IDs or a filter, not both")
    if args.ids:
        named = [_named(letter) for letter in args.ids]
        for letter in args.ids:
            asked.ask(where, "GET", _path(letter))
        return named
    if not wanted and not args.all:
        raise UsageError(f"{args.action} needs IDs or a filter; --all is for all dead letters")
    return [wanted]


def _path(letter: str) -> str:
    return f"{ROOT}/{quote(letter, safe='/')}"


def _named(letter: str) -> dict[str, str]:
    pubsub, _, rest = letter.partition("/")
    topic, _, position = rest.rpartition("/")
    if not (pubsub and topic and position):
        raise UsageError(f"'{clip(letter)}' is no ID of a dead letter, which looks like pubsub/topic/position")
    return {"pubsubname": pubsub, "topic": topic, "position": position}


def _filter(args: argparse.Namespace) -> dict[str, Any]:
    given = {
        "pubsubname": args.pubsub,
        "topic": args.topic,
        "reason": args.reason,
        "status": _status(args.status),
        "after": None if args.since is None else asked.moment(args.since, "--since"),
        "before": None if args.until is None else asked.moment(args.until, "--until"),
        "type": args.type,
        "source": args.source,
        "id": args.id,
        "text": args.text,
    }
    return {name: value for name, value in given.items() if value is not None}


def _status(text: str | None) -> int | None:
    if text is not None and not (text.isascii() and text.isdigit() and len(text) == 3):
        raise UsageError(f"--status must be an HTTP status (got '{clip(text)}')")
    return None if text is None else int(text)


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text[:8]) <= 1_000_000):
        raise argparse.ArgumentTypeError(f"must be from 1 to 1000000 (got '{clip(text)}')")
    return int(text)
