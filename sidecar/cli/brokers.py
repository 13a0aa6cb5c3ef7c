"""`meshwire brokers`: what the broker of the mesh offers, and what is done where it lacks something."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import textwrap
from collections.abc import Iterator, Sequence

import msgspec

from brokers.nats.embedded import ensure_keeper, hold, mesh_folder
from mesh.addressing import DEFAULT_PREFIX
from sidecar.cli import OK
from sidecar.offers import Fact, Offer, Row, look
from sidecar.settings import parse_broker, parse_requests

WIDTH = 110
"""Characters of a line of text."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--broker", metavar="URL", help="the broker ($MESHWIRE_BROKER, else the embedded one of the mesh)"
    )
    parser.add_argument("--mesh", default="default", help="the mesh whose embedded broker it is (default: default)")
    parser.add_argument("--output", "-o", choices=("text", "json"), default="text", help="default: text")
    parser.add_argument("--json", action="store_const", const="json", dest="output", help="the same as -o json")


def execute(args: argparse.Namespace) -> int:
    """Raises `MeshError` when the broker refuses us, or does not answer."""
    url = args.broker or os.environ.get("MESHWIRE_BROKER") or f"embedded:{mesh_folder(args.mesh)}"
    broker = parse_broker(url, os.environ)
    requests = parse_requests(os.environ, broker)
    with contextlib.ExitStack() as held:
        if broker.folder is not None:
            held.callback(hold(broker.folder).close)
            ensure_keeper(broker.folder)
        prefix = os.environ.get("MESHWIRE_PREFIX") or DEFAULT_PREFIX
        offer = asyncio.run(look(broker, prefix=prefix, requests=requests))
    if args.output == "json":
        print(msgspec.json.format(msgspec.json.encode(offer), indent=2).decode())
    else:
        print("\n".join(_page(offer)))
    return OK


def _page(offer: Offer) -> Iterator[str]:
    yield offer.broker
    yield from _features("EVENTS", offer.events)
    yield from _features("TABLES", offer.tables)
    yield from _features("SERVERS OF KAFKA", offer.servers)
    yield from _facts("WHAT RESTS ON WHAT", offer.foundations)
    yield from _facts("LIMITS", offer.limits)


def _features(title: str, rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    yield f"\n{title}"
    width = max(len(row.name) for row in rows)
    for row in rows:
        yield f"  {'yes' if row.offered else 'no ':3}  {row.name.ljust(width)}  {row.means}"
        indent = " " * (width + 9)
        yield from textwrap.wrap(row.instead, WIDTH, initial_indent=f"{indent}→ ", subsequent_indent=f"{indent}  ")


def _facts(title: str, facts: Sequence[Fact]) -> Iterator[str]:
    yield f"\n{title}"
    width = max(len(fact.name) for fact in facts)
    for fact in facts:
        yield f"  {fact.name.ljust(width)}  {fact.told}"
