"""`bindings.files`: a folder that is watched; each file in it fires the app. Dapr has no such type.

What fires is the state of the folder, not what the system tells of it: at its start, at every sign of a change, and
from time to time, the folder is compared with what was accepted before. So nothing is missed that happened meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fnmatch
import hashlib
import logging
import mimetypes
import os
import sqlite3
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import quote

import msgspec

from bindings import sqlite
from mesh.components import ComponentSpec, Field, Kind, Setup
from mesh.errors import BrokerError, BrokerUnavailable, clip
from mesh.ports import Clock
from mesh.ports.bindings import Accept, Item
from mesh.ports.stores import StoreError, StoreUnavailable

T = TypeVar("T")

logger = logging.getLogger("meshwire.bindings.files")

TIME_LIMIT = 30.0
"""Seconds for one look at the disk, which a network file system can hold up."""
UNWATCHED = 1.0
"""Seconds between two looks when the system does not tell of changes."""
MAX_FILES = 1_000_000
"""In the folder."""

KEEP, DELETE, MOVE = "keep", "delete", "move"
CONTENT, REFERENCE = "content", "reference"

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TABLE = "CREATE TABLE IF NOT EXISTS accepted (name BLOB PRIMARY KEY, version TEXT NOT NULL) WITHOUT ROWID"


class Found(NamedTuple):
    """A file as it was seen."""

    name: str
    """Relative to the folder, with `/`."""
    modified: int
    """Nanoseconds since the epoch."""
    size: int

    @property
    def version(self) -> str:
        return f"{self.modified}-{self.size}"

    @property
    def id(self) -> str:
        """The same for the same file as long as nobody writes to it."""
        return hashlib.sha256(os.fsencode(f"{self.name}\0{self.version}")).hexdigest()[:32]


class Index:
    """Which version of which file was accepted: an SQLite file, or nothing where files do not stay."""

    def __init__(self, path: Path | None) -> None:
        self._worker: sqlite.Worker | None = None
        if path is not None:
            database = sqlite.Database(
                uri=f"file:{quote(str(path))}", pragmas=["synchronous = FULL"], busy_timeout=2.0, wal=False, alone=False
            )
            self._worker = sqlite.Worker(database, grouped=True, timeout=TIME_LIMIT)

    async def start(self) -> None:
        if self._worker is not None:
            await self._worker.start()
            await self._worker.run(lambda connection: connection.execute(_TABLE))

    async def close(self) -> None:
        if self._worker is not None:
            await self._worker.close()

    async def load(self) -> dict[str, str]:
        def read(connection: sqlite3.Connection) -> dict[str, str]:
            found = connection.execute("SELECT name, version FROM accepted")
            return {os.fsdecode(name): version for name, version in found}

        return {} if self._worker is None else await self._worker.run(read)

    async def note(self, name: str, version: str) -> None:
        def write(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO accepted VALUES (?, ?)", (os.fsencode(name), version))

        if self._worker is not None:
            await self._worker.run(write)

    async def forget(self, names: list[str]) -> None:
        def write(connection: sqlite3.Connection) -> None:
            connection.executemany("DELETE FROM accepted WHERE name = ?", [(os.fsencode(name),) for name in names])

        if self._worker is not None and names:
            await self._worker.run(write)


class FileWatch:
    """An `InputBinding`. One file is under way at a time, the one that was changed first before the others."""

    exclusive = True
    refuses = True

    def __init__(
        self,
        clock: Clock,
        folder: Path,
        *,
        pattern: str,
        recursive: bool,
        after: str,
        done: str,
        send: str,
        max_size: int,
        settled: float,
        rescan: float,
        index: Path,
    ) -> None:
        import watchfiles  # noqa: F401

        self._clock = clock
        self._folder = folder
        self._pattern = pattern
        self._recursive = recursive
        self._after = after
        self._done = done
        self._send = send
        self._max_size = max_size
        self._settled = settled
        self._rescan = rescan
        self._index = Index(index if after == KEEP else None)
        self._started = False

    async def start(self) -> None:
        await self.ping()
        if self._after == MOVE:
            await _in_thread(lambda: (self._folder / self._done).mkdir(exist_ok=True))
        await self._index.start()
        self._started = True

    async def ping(self) -> None:
        """The folder is there, and can be read."""

        def look() -> None:
            with os.scandir(self._folder):
                pass

        await _in_thread(look)

    async def close(self) -> None:
        if self._started:
            self._started = False
            await self._index.close()

    async def run(self, accept: Accept) -> None:
        accepted = await self._index.load()
        seen: dict[str, tuple[str, float]] = {}  # name: version, and since when it is seen
        async for _ in self._signs():
            while True:
                found = await _in_thread(lambda: sorted(self._scan(), key=_age))
                names = {file.name for file in found}
                gone = [name for name in accepted if name not in names]
                await self._index.forget(gone)
                for name in gone:
                    del accepted[name]
                now = self._clock.now()
                new = [file for file in found if accepted.get(file.name) != file.version]
                seen = {
                    file.name: known
                    if (known := seen.get(file.name)) and known[0] == file.version
                    else (file.version, now)
                    for file in new
                }
                ready = [file for file in new if now - seen[file.name][1] >= self._settled]
                for file in ready:
                    await self._fire(file, accept)
                    accepted[file.name] = file.version
                if len(ready) == len(new):
                    break
                await self._clock.sleep(min(self._settled, 1.0))  # until nobody writes to the others any more

    async def _signs(self) -> AsyncIterator[None]:
        """At once, when something happens in the folder, and from time to time."""
        while True:
            changes = self._changes()
            try:
                while True:
                    sign = asyncio.ensure_future(anext(changes))
                    try:
                        # By its first step it watches: what is changed from here on is a sign.
                        await asyncio.sleep(0)
                        yield
                        await sign
                    finally:
                        sign.cancel()
                        await asyncio.wait((sign,))
            except Exception as error:  # the library may raise anything, as at a name that is no text
                logger.warning("%s is looked at every %g s: it cannot be watched: %s", self._folder, UNWATCHED, error)
            finally:
                await changes.aclose()
            await self._clock.sleep(UNWATCHED)

    def _changes(self) -> AsyncGenerator[object, None]:
        from watchfiles import awatch

        return awatch(
            self._folder,
            watch_filter=None,
            recursive=self._recursive,
            step=20,
            debounce=200,
            rust_timeout=int(self._rescan * 1000),
            yield_on_timeout=True,
            ignore_permission_denied=True,
        )

    def _scan(self) -> Iterator[Found]:
        folders = [""]
        number = 0
        while folders:
            inside = folders.pop()
            with os.scandir(self._folder / inside) as entries:
                for entry in entries:
                    name = inside + entry.name
                    if entry.name.startswith(".") or entry.is_symlink():
                        continue
                    if entry.is_dir():
                        if self._recursive and not (self._after == MOVE and name == self._done):
                            folders.append(f"{name}/")
                        continue
                    number += 1
                    if number > MAX_FILES:
                        raise StoreError(f"the folder has over {MAX_FILES} files")
                    if fnmatch.fnmatchcase(entry.name, self._pattern) and entry.is_file(follow_symlinks=False):
                        with contextlib.suppress(FileNotFoundError):
                            status = entry.stat(follow_symlinks=False)
                            yield Found(name, status.st_mtime_ns, status.st_size)

    async def _fire(self, file: Found, accept: Accept) -> None:
        """Raises `BrokerUnavailable` when it is not stored: it is offered again."""
        if self._send == CONTENT and file.size > self._max_size:
            logger.error("%s is left out: %d bytes, where maxSize is %d", clip(file.name), file.size, self._max_size)
            return
        data = await _in_thread(lambda: self._read(file)) if self._send == CONTENT else self._reference(file)
        if data is None:
            return  # it was changed or removed meanwhile, of which there is a sign
        try:
            await accept(self._item(file, data))
        except BrokerUnavailable:
            raise
        except BrokerError as error:
            logger.error("%s is left out: %s", clip(file.name), error)
            return
        if self._after == KEEP:
            await self._index.note(file.name, file.version)
        else:
            await _in_thread(lambda: self._put_away(file))

    def _read(self, file: Found) -> bytes | None:
        """`None` when it is not what was found."""
        try:
            descriptor = os.open(self._folder / file.name, _OPEN)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                return None
            raise
        with os.fdopen(descriptor, "rb") as stream:
            if not _same(file, os.fstat(descriptor)):
                return None
            data = stream.read(self._max_size + 1)
            return data if len(data) == file.size and _same(file, os.fstat(descriptor)) else None

    def _put_away(self, file: Found) -> None:
        """Unless it is another one by now, which is to come."""
        path = self._folder / file.name
        with contextlib.suppress(FileNotFoundError):
            if not _same(file, path.lstat()):
                return
            if self._after == DELETE:
                path.unlink()
                return
            target = self._folder / self._done / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                target = target.with_name(f"{target.stem}.{file.modified}{target.suffix}")
            path.rename(target)

    def _reference(self, file: Found) -> bytes:
        return msgspec.json.encode(
            {
                "path": _shown(self._folder / file.name),
                "name": _shown(file.name),
                "size": file.size,
                "modified": file.modified / 1e9,
            }
        )

    def _item(self, file: Found, data: bytes) -> Item:
        guessed, encoding = mimetypes.guess_type(file.name)
        content_type = (guessed if encoding is None else None) or "application/octet-stream"
        return Item(
            data=data,
            metadata={
                "fileName": quote(os.fsencode(file.name), safe="/ !#$&'()*+,;=@[]^`{}~"),
                "fileSize": str(file.size),
                "fileModified": f"{file.modified / 1e9:.6f}",
            },
            id=file.id,
            content_type=content_type if self._send == CONTENT else "application/json",
            time=file.modified / 1e9,
        )


def _shown(path: Path | str) -> str:
    """As text, which a name need not be."""
    return os.fsencode(path).decode("utf-8", "replace")


def _age(file: Found) -> tuple[int, str]:
    return file.modified, file.name


def _same(file: Found, status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and (status.st_mtime_ns, status.st_size) == (file.modified, file.size)


async def _in_thread(work: Callable[[], T]) -> T:
    try:
        async with asyncio.timeout(TIME_LIMIT):
            return await asyncio.to_thread(work)
    except TimeoutError:
        raise StoreUnavailable(f"the file system did not answer within {TIME_LIMIT:g} s") from None
    except OSError as error:
        raise StoreUnavailable(f"{clip(error.filename or 'the folder')}: {error.strerror}") from None


def _open(setup: Setup) -> FileWatch:
    settings = setup.settings
    folder = Path(settings["path"])
    if settings["index"] and settings["after"] != KEEP:
        raise settings.fault("index", "it has an effect only with after: keep")
    if "/" in settings["pattern"]:
        raise settings.fault("pattern", "it is compared with the name alone, without folders")
    if not settings["doneFolder"].strip(".") or "/" in settings["doneFolder"]:
        raise settings.fault("doneFolder", "it must be the name of a folder within path")
    return FileWatch(
        setup.clock,
        folder,
        pattern=settings["pattern"],
        recursive=settings["recursive"],
        after=settings["after"],
        done=settings["doneFolder"],
        send=settings["send"],
        max_size=settings["maxSize"],
        settled=settings["settled"],
        rescan=settings["rescanInterval"],
        index=Path(settings["index"]) if settings["index"] else folder / f".meshwire-{setup.name}.db",
    )


SPEC = ComponentSpec(
    type="bindings.files",
    title="File watch",
    about=(
        "Input: each file in a folder of the sidecar's machine fires the app, also those that are there at the start; "
        "Meshwire's own. A file that is written to again fires again. The data is the file, its type guessed from the "
        "name, with `fileName` (in percent encoding), `fileSize` and `fileModified` as headers. A file is taken once "
        "nobody has changed it for the time `settled`; who writes it elsewhere and moves it here is safe in any case. "
        "What was stored is deleted, moved to `doneFolder`, or kept and remembered in an index. Names that begin with "
        "a dot, and links, are left alone. A file that is larger than `maxSize`, or than what the broker takes, is "
        "left out with an error in the log; have a `reference` sent where files are large. One replica of an app "
        "watches at a time, so all must see the same folder."
    ),
    open=_open,
    fields=(
        Field("path", "The folder, which exists.", required=True),
        Field("pattern", "Which names count, as `*.csv`.", default="*"),
        Field("recursive", "Also files in folders within.", Kind.BOOL, False),
        Field(
            "after",
            "What becomes of a file that was stored.",
            Kind.CHOICE,
            KEEP,
            choices=(KEEP, DELETE, MOVE),
        ),
        Field("doneFolder", "The folder within `path` that `after: move` moves files to.", default="done"),
        Field(
            "send",
            "What the app gets: the file, or a JSON object with its `path`, `name`, `size` and `modified`.",
            Kind.CHOICE,
            CONTENT,
            choices=(CONTENT, REFERENCE),
        ),
        Field("maxSize", "The largest file that is sent.", Kind.SIZE, 512 << 10, minimum=1, maximum=64 << 20),
        Field("settled", "How long nobody must have changed a file.", Kind.DURATION, 1.0, minimum=0),
        Field(
            "rescanInterval",
            "How often to look without a sign of a change: some file systems give none.",
            Kind.DURATION,
            10.0,
            minimum=0.1,
        ),
        Field(
            "index",
            "The file in which `after: keep` remembers what was stored; by default `.meshwire-<component>.db` in the "
            "folder. All replicas must see the same one.",
            default="",
        ),
    ),
    needs="files",
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: invoices
spec:
  type: bindings.files
  version: v1
  metadata:
    - name: path
      value: /var/spool/invoices
    - name: pattern
      value: "*.xml"
    - name: after
      value: move
    - name: direction
      value: input
""",
)
