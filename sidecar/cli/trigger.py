"""`meshwire trigger`: fires an input binding by hand, as if its source had an item."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from urllib.parse import quote, urlencode

from sidecar.cli import FAILED, OK, UsageError, asked
from sidecar.cli.api import call

TIMEOUT = 30.0
"""Seconds that the sidecar may take to have the item stored."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the component of the input binding")
    item = parser.add_argument_group("the item")
    data = item.add_mutually_exclusive_group()
    data.add_argument("--data", "-d", default="", help="what the app is sent (default: nothing)")
    data.add_argument("--data-file", "-f", metavar="FILE", help="read it from FILE; - is stdin")
    item.add_argument(
        "--metadata", "-m", metavar="NAME=VALUE", action="append", default=[], help="a header for the app; repeatable"
    )
    item.add_argument("--id", help="what it is called: one that comes again is stored once")
    item.add_argument("--key", help="items of one key are delivered in order")
    asked.configure(parser)


def execute(args: argparse.Namespace) -> int:
    """Raises `UsageError`, or `MeshError` when there is no sidecar or it gives no answer."""
    asks = [(name, value) for name, value in (("id", args.id), ("key", args.key)) if value]
    for pair in args.metadata:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise UsageError(f"--metadata must be NAME=VALUE (got '{pair}')")
        asks.append((f"metadata.{name}", value))
    query = f"?{urlencode(asks, quote_via=quote)}" if asks else ""
    path = f"/mesh/v1/bindings/{quote(args.name, safe='')}/trigger{query}"
    answer = call(asked.address(args), "POST", path, body=_data(args), headers={}, timeout=TIMEOUT)
    if not 200 <= answer.status < 300:
        print(f"meshwire trigger: not stored: {answer.problem}", file=sys.stderr)
        return FAILED
    print(f"✅ {args.name} triggered")
    return OK


def _data(args: argparse.Namespace) -> bytes:
    if args.data_file is None:
        return os.fsencode(args.data)
    return sys.stdin.buffer.read() if args.data_file == "-" else Path(args.data_file).read_bytes()
