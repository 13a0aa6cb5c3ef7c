"""`meshwire stop`: end apps together with their sidecars."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from brokers.nats.embedded import mesh_folder
from mesh.errors import clip
from sidecar import registry
from sidecar.cli import FAILED, OK

GLANCE = 0.05
"""Seconds between two looks at processes that are about to end."""


def configure(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--app-id", "-a", action="append", help="app to stop, all its replicas here; may be repeated")
    which.add_argument(
        "--run-file", "-f", metavar="FILE", help="stop all apps of the run file, or folder, of a `run -f`"
    )
    parser.add_argument("--mesh", default="default", help="the mesh that it runs in (default: default)")
    parser.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="longest wait in seconds (default: 30)"
    )


def execute(args: argparse.Namespace) -> int:
    """Signals SIGTERM to `meshwire run`, which ends the app too, or to a sidecar that stands alone. Where one
    `meshwire run` has several apps, its sidecar is signalled, which ends the app as well.
    """
    running = registry.entries(mesh_folder(args.mesh))
    deadline = time.monotonic() + args.timeout
    if args.run_file is not None:
        chosen, code = _of_file(args.run_file, running), OK
        if not chosen:
            told = f"{clip(args.run_file)}: no app of this run file runs in mesh '{clip(args.mesh)}'"
            print(f"❌ {told} (see: meshwire list)", file=sys.stderr)
            code = FAILED
    else:
        chosen, code = _of_apps(dict.fromkeys(args.app_id), running, args.mesh)
    waiting: list[tuple[registry.Entry, list[int]]] = []
    signalled: set[int] = set()
    hosts = Counter(entry.cli_pid for entry in running)
    for entry in chosen:
        together = args.run_file is not None or hosts[entry.cli_pid] == 1
        pids = [entry.cli_pid, entry.daprd_pid] if together else [entry.daprd_pid]
        waiting.append((entry, [pid for pid in pids if pid is not None]))
        _terminate(waiting[-1][1], signalled)
    for entry, pids in waiting:
        shown = f"{clip(entry.app_id)} (process {entry.cli_pid or entry.daprd_pid})"
        if _ended(pids, deadline):
            print(f"✅ app stopped successfully: {shown}")
        else:
            print(f"❌ {shown} still runs after {args.timeout:g} s", file=sys.stderr)
            code = FAILED
    return code


def _of_apps(app_ids: Iterable[str], running: list[registry.Entry], mesh: str) -> tuple[list[registry.Entry], int]:
    chosen, code = [], OK
    for app_id in app_ids:
        mine = [entry for entry in running if entry.app_id == app_id]
        if not mine:
            told = f"{clip(app_id)}: no such app runs in mesh '{clip(mesh)}'"
            print(f"❌ {told} (see: meshwire list)", file=sys.stderr)
            code = FAILED
        chosen += mine
    return chosen, code


def _of_file(given: str, running: list[registry.Entry]) -> list[registry.Entry]:
    from sidecar.cli.list import ask
    from sidecar.cli.run_file import locate

    path = str(locate(given))
    return [entry for entry in running if ask(entry)[0].get("runTemplatePath") == path]


def _terminate(pids: list[int], signalled: set[int]) -> None:
    """Signal the first of these processes that there is, unless it was: a second signal would kill."""
    for pid in pids:
        try:
            if pid not in signalled:
                os.kill(pid, signal.SIGTERM)
            signalled.add(pid)
            return
        except ProcessLookupError:
            continue


def _ended(pids: list[int], deadline: float) -> bool:
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
