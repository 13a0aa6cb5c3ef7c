"""`meshwire stop`: end apps together with their sidecars."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from brokers.nats.embedded import mesh_folder
from mesh.errors import clip
from sidecar import registry
from sidecar.cli import FAILED, OK

GLANCE = 0.05
"""Seconds between two looks at processes that are about to end."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--app-id", "-a", action="append", required=True, help="app to stop, all its replicas here; may be repeated"
    )
    parser.add_argument("--mesh", default="default", help="the mesh that it runs in (default: default)")
    parser.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="longest wait in seconds (default: 30)"
    )


def execute(args: argparse.Namespace) -> int:
    """Signals SIGTERM to `meshwire run`, which ends the app too, or to a sidecar that stands alone."""
    running = registry.entries(mesh_folder(args.mesh))
    deadline = time.monotonic() + args.timeout
    code = OK
    signalled: list[registry.Entry] = []
    for app_id in dict.fromkeys(args.app_id):
        mine = [entry for entry in running if entry.app_id == app_id]
        if not mine:
            print(
                f"❌ {clip(app_id)}: no such app runs in mesh '{clip(args.mesh)}' (see: meshwire list)", file=sys.stderr
            )
            code = FAILED
        for entry in mine:
            _terminate(entry)
        signalled += mine
    for entry in signalled:
        shown = f"{clip(entry.app_id)} (process {entry.cli_pid or entry.daprd_pid})"
        if _ended(entry, deadline):
            print(f"✅ app stopped successfully: {shown}")
        else:
            print(f"❌ {shown} still runs after {args.timeout:g} s", file=sys.stderr)
            code = FAILED
    return code


def _terminate(entry: registry.Entry) -> None:
    for pid in (entry.cli_pid, entry.daprd_pid):
        if pid is not None:
            try:
                os.kill(pid, signal.SIGTERM)
                return
            except ProcessLookupError:
                continue


def _ended(entry: registry.Entry, deadline: float) -> bool:
    pids = [pid for pid in (entry.daprd_pid, entry.cli_pid) if pid is not None]
    while any(map(_runs, pids)):
        if time.monotonic() >= deadline:
            return False
        time.sleep(GLANCE)
    return True


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):  # none, or by now a process of somebody else
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return True  # not on Linux
    return state != b"Z"  # ended, though its parent has not looked yet
