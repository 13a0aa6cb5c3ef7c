"""The folders of manifests, looked at again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

PERIOD = 1.0
"""Seconds between two looks."""
QUIET = 0.1
"""Seconds for which files that were changed must be left alone: who writes several is waited for."""

_Signature = tuple[tuple[str, int, int, int], ...]


class FolderWatch:
    """Tells when a YAML file at the top level of the folders comes, goes, or is written.

    By its time, size and inode: systems that have notifications do not give them for every file system.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        """Changes count from now on."""
        self._folders = folders
        self._seen = self._look()

    async def changed(self) -> None:
        """Returns once the files are others than at the construction, or at the last return."""
        found = self._seen
        while True:
            await asyncio.sleep(PERIOD if found == self._seen else QUIET)
            earlier, found = found, await asyncio.to_thread(self._look)
            if found == earlier != self._seen:
                self._seen = found
                return

    def _look(self) -> _Signature:
        return tuple(sorted(entry for folder in self._folders for entry in _entries(folder)))


def _entries(folder: Path) -> Sequence[tuple[str, int, int, int]]:
    try:
        return [_entry(path) for path in folder.iterdir() if path.suffix.lower() in (".yaml", ".yml")]
    except OSError as error:
        return [(str(folder), error.errno or 0, 0, 0)]


def _entry(path: Path) -> tuple[str, int, int, int]:
    try:
        status = path.stat()  # of what a link points to: so Kubernetes changes a mounted ConfigMap
    except OSError as error:  # the link leads nowhere, as the lock of an editor does
        return str(path), error.errno or 0, 0, 0
    return str(path), status.st_mtime_ns, status.st_size, status.st_ino
