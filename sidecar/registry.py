"""The sidecars that run for this OS user in one mesh, without a look at the process table.

Each sidecar keeps a file `run/<app id>-<pid>.json` in the mesh's folder and holds a lock (flock) on it for its
life. The kernel frees the lock however the sidecar ends, so a file whose lock is free was left by a dead one.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from urllib.parse import quote

import msgspec

LONGEST_NAME = 200
"""Of an app id in a file name, in bytes; the file system's limit is 255 for the whole name."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a sidecar tells about itself. Never a token: the folder may end up in a backup."""

    app_id: str
    http_port: int | None
    """`None` when the API listens on `socket`."""
    app_port: int | None = None
    daprd_pid: int
    """The process of the sidecar, under Dapr's name for it."""
    cli_pid: int | None = None
    """The `meshwire run` above the sidecar, if there is one."""
    socket: str | None = None
    """Path of the Unix socket of the HTTP API."""
    created: float
    """Seconds since the epoch."""


class Registration:
    """One sidecar's entry. It lasts until `close`, or until the process ends."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock: int | None = lock

    def close(self) -> None:
        """Remove the entry. Further calls do nothing."""
        if self._lock is None:
            return
        self.path.unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = None


def register(folder: Path, entry: Entry) -> Registration:
    """Make `entry` visible in the mesh whose folder is `folder`. Raises `OSError`."""
    run = folder / "run"
    run.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = run / f"{quote(entry.app_id, safe='')[:LONGEST_NAME]}-{entry.daprd_pid}.json"
    # Locked and complete before it gets its name, so that nobody can meet it free or half written.
    draft = path.with_suffix(".new")
    lock = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(lock, msgspec.json.encode(entry))
        draft.rename(path)
    except BaseException:
        os.close(lock)
        draft.unlink(missing_ok=True)
        raise
    return Registration(path, lock)


def entries(folder: Path) -> list[Entry]:
    """The sidecars that run, oldest first. Files that dead ones left are deleted. Raises `OSError`."""
    found = (_living(path) for path in (folder / "run").glob("*.json"))
    return sorted((entry for entry in found if entry), key=lambda entry: (entry.created, entry.daprd_pid))


def _living(path: Path) -> Entry | None:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    with file:
        try:
            # Shared, so that two who look at the same moment do not take each other for the owner.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            try:
                return msgspec.json.decode(file.read(), type=Entry)
            except msgspec.DecodeError:
                return None  # of a later release that tells other things; not ours to delete either
        path.unlink(missing_ok=True)
        return None
