"""`meshwire version`."""

from __future__ import annotations

import argparse
import json
import platform

from mesh import __version__
from sidecar.cli import OK


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", "-o", choices=("text", "json"), default="text", help="default: text")


def execute(args: argparse.Namespace) -> int:
    told = {"meshwire": __version__, "python": platform.python_version()}
    print(json.dumps(told) if args.output == "json" else "\n".join(f"{name} {value}" for name, value in told.items()))
    return OK
