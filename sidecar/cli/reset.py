"""`meshwire reset`: delete what the embedded broker of a mesh stores."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from brokers.nats.embedded import mesh_folder, wipe
from mesh.errors import MeshError
from sidecar import registry
from sidecar.cli import FAILED, OK


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mesh", default="default", help="the mesh to delete (default: default)")
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask")


def execute(args: argparse.Namespace) -> int:
    """Raises `MeshError` when sidecars of the mesh still run, or when nobody can be asked."""
    folder = mesh_folder(args.mesh)
    if ids := sorted({entry.app_id for entry in registry.entries(folder)}):
        stop = " ".join(f"--app-id {app_id}" for app_id in ids)
        raise MeshError(f"apps of mesh '{args.mesh}' still run; first: meshwire stop {stop}")
    if not (size := _size(folder)):
        print(f"Mesh '{args.mesh}' has stored nothing in {folder}.")
        return OK
    print(
        f"This deletes what the embedded broker of mesh '{args.mesh}' has stored in {folder}: "
        f"every event, every subscription and its log ({_shown(size)})."
    )
    if not args.yes and not _agreed():
        print("Nothing was deleted.")
        return FAILED
    wipe(folder)
    print(f"✅ deleted {_shown(size)} of mesh '{args.mesh}'")
    return OK


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise MeshError("nothing was deleted: there is no terminal to ask at; say --yes if this is meant")
    try:
        return input("Go on? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _size(folder: Path) -> int:
    """Bytes in all files of the folder. Those of sidecars are gone by now, those of locks are empty."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _shown(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
