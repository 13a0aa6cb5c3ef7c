"""Folders of the sidecar's machine that others can write to.

Names are opened one part after the other, without following links: what happens on the disk meanwhile cannot lead
elsewhere. No function here is for the event loop's own thread: `Disk` has others.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mesh.ports.stores import StoreUnavailable

T = TypeVar("T")

TIME_LIMIT = 30.0
"""Seconds for one piece of work, which a network file system can hold up."""
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""How to open what may be anything. Without O_NONBLOCK the open of a pipe would wait for its writer."""
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""Errors at a name that is no longer what it was: it was removed, or replaced by something else, a link for one."""


class Disk:
    """Threads of one component's own: a file system that hangs holds up nobody else."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, "disk")

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns. Raises what it raises; `StoreUnavailable` after the limit, when it may yet be done."""
        try:
            future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        except RuntimeError:
            raise StoreUnavailable("the folder is closed") from None
        try:
            async with asyncio.timeout(TIME_LIMIT):
                return await future
        except TimeoutError:
            raise StoreUnavailable(f"the file system did not answer within {TIME_LIMIT:g} s") from None

    def close(self) -> None:
        """Without waiting for what is under way."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class TooMany(Exception):
    """There is more in the folder than was asked for."""


@contextlib.contextmanager
def within(root: int, parts: Sequence[str], *, create: bool = False) -> Iterator[int]:
    """The folder of these names below the open folder `root`, which it closes. Raises `OSError` for a part that is no
    folder, as a link to one is."""
    folder = root
    try:
        for part in parts:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=folder)
                    os.fsync(folder)
            inner = os.open(part, FOLDER, dir_fd=folder)
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


def walk(
    root: Callable[[], int],
    parts: Sequence[str],
    *,
    most: int,
    enter: Callable[[tuple[str, ...]], bool],
    closed: Callable[[tuple[str, ...], OSError], None],
) -> Iterator[tuple[tuple[str, ...], os.DirEntry[str]]]:
    """The regular files in the folder `parts`, and in those below it which `enter` wants, with all their parts.

    `root` opens the folder that `parts` are relative to. A folder that cannot be read is told to `closed`; one that is
    gone is passed over. Raises `OSError` when that is the first; `TooMany` at more than `most` entries, of any kind.
    """
    folders = [tuple(parts)]
    first, seen = True, 0
    while folders:
        here = folders.pop()
        try:
            with within(root(), here) as folder, os.scandir(folder) as entries:
                first = False
                for entry in entries:
                    seen += 1
                    if seen > most:
                        raise TooMany
                    name = (*here, entry.name)
                    if entry.is_file(follow_symlinks=False):
                        yield name, entry
                    elif entry.is_dir(follow_symlinks=False) and enter(name):
                        folders.append(name)
        except OSError as error:
            if first:
                raise
            if error.errno not in GONE:
                closed(here, error)
