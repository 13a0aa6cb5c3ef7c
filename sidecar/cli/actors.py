"""`meshwire actors`: the types of actors of a namespace, who owns which partitions, and how many are active."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from sidecar.cli import OK, asked


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("type", metavar="TYPE", nargs="?", help="only this type")
    parser.add_argument("--output", "-o", choices=("table", "json"), default="table", help="default: table")
    asked.configure(parser)


def execute(args: argparse.Namespace) -> int:
    """Raises `MeshError` when there is no sidecar or it refuses."""
    told = json.loads(asked.ask(asked.address(args), "GET", "/mesh/v1/actors"))["types"]
    types = [one for one in told if args.type in (None, one["type"])]
    if args.output == "json":
        print(json.dumps(types, indent=2))
    elif not types:
        print("No actors.", file=sys.stderr)
    else:
        rows = [
            (
                one["type"],
                host["appID"],
                host["instance"][:8],
                host["active"],
                len(host["partitions"]),
                ranges(host["partitions"]),
            )
            for one in types
            for host in one["hosts"]
        ]
        print(asked.table(("TYPE", "APP ID", "INSTANCE", "ACTIVE", "PARTITIONS", "WHICH"), rows))
    return OK


def ranges(numbers: Sequence[int]) -> str:
    """`0-3 7 9-10`; the numbers grow."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    return " ".join("-".join(map(str, one)) for one in found)
