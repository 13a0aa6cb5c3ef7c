"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from importlib import import_module
from pathlib import Path

from msgspec.structs import replace

from benchmarks import report
from benchmarks.conditions import Options
from benchmarks.processes import peer

ALL = (
    "publish",
    "deliver",
    "order",
    "webhook",
    "state",
    "schedule",
    "invoke",
    "invoke-stream",
    "actors",
    "cold-start",
    "memory",
    "routing",
    "filters",
    "app-channel",
    "kafka",
)
"""Each is a module of this package, with a `run`."""
RESULTS = Path(__file__).parent / "results"
QUICK = Options(runs=2, seconds=1.0, slice=2.0, events=5_000, streamed=256 << 20)


def parse(arguments: Sequence[str]) -> tuple[list[str], Options]:
    """The benchmarks to run, and how."""
    parser = argparse.ArgumentParser(
        prog="python -P -m benchmarks",
        description="Measure Meshwire beside its broker's own client, in turns, on this machine.",
        epilog="Leave the machine alone meanwhile. Results also go to benchmarks/results/<date>.json.",
    )
    parser.add_argument("benchmark", nargs="*", help=f"{', '.join(ALL)} (default: all)")
    parser.add_argument("--runs", type=_at_least_one, help="measure everything so often (default 5)")
    parser.add_argument("--quick", action="store_true", help="a rough look: short runs, and only two of each")
    parser.add_argument("--peer", type=_program, metavar="PATH", help="also measure this program, run like daprd")
    parser.add_argument("--peer-resources", type=Path, metavar="DIR", help="its component files, which name its broker")
    parser.add_argument(
        "--peer-pubsub", default="pubsub", metavar="NAME", help="its pub/sub component (default pubsub)"
    )
    given = parser.parse_args(arguments)
    unknown = [name for name in given.benchmark if name not in ALL]
    if unknown:
        parser.error(f"there is no benchmark named {', '.join(unknown)}; there are: {', '.join(ALL)}")
    if given.peer_resources is not None and given.peer is None:
        parser.error("--peer-resources needs --peer")
    options = QUICK if given.quick else Options()
    if given.runs is not None:
        options = replace(options, runs=given.runs)
    if given.peer is not None:
        options = replace(options, peer=peer(given.peer, given.peer_resources, given.peer_pubsub))
    return given.benchmark or list(ALL), options


def _at_least_one(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on (got '{text}')")
    return int(text)


def _program(text: str) -> Path:
    path = Path(text).absolute()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no program {path}")
    return path


def main(arguments: Sequence[str]) -> int:
    """Run, print, write. Exit code 1 when something could not be measured; a missed target is a result."""
    names, options = parse(arguments)
    started = datetime.now().astimezone()
    about = {"started": started.isoformat(timespec="seconds"), "options": options, **report.environment()}
    rows: list[report.Row] = []
    failed = False
    for name in names:
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            rows += import_module(f"benchmarks.{name.replace('-', '_')}").run(options)
        except (RuntimeError, OSError) as error:
            notes = getattr(error, "__notes__", ())
            print(f"{name} could not be measured: {error}", *notes, sep="\n", file=sys.stderr)
            failed = True
    if rows:
        path = RESULTS / f"{started:%Y-%m-%dT%H%M%S}.json"
        report.write(path, rows, about)
        print(report.table(rows))
        print(f"\nRatios are the median of each round's own. Every value: {path}")
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
