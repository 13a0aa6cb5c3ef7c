"""`bindings.files`: a folder that is watched; each file in it fires the app. Dapr has no such type.

What fires is the state of the folder, not what the system tells of it: at its start, at every sign of a change, and
from time to time, the folder is compared with what was accepted before. So nothing is missed that happened meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import hashlib
import logging
import mimetypes
import os
import sqlite3
import stat
from collections.abc import AsyncGenerator, Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar
from urllib.parse import quote

import msgspec

from bindings import folders, sqlite
from mesh.components import ComponentSpec, Field, Kind, Setup
from mesh.errors import BrokerError, BrokerUnavailable, clip
from mesh.ports import Clock
from mesh.ports.bindings import Accept, Item
from mesh.ports.stores import StoreError, StoreUnavailable

T = TypeVar("T")

logger = logging.getLogger("meshwire.bindings.files")

UNWATCHED = 1.0
"""Seconds between two looks when the system does not tell of changes."""
MAX_FILES = 1_000_000
"""In the folder; folders and others count too."""

KEEP, DELETE, MOVE = "keep", "delete", "move"
CONTENT, REFERENCE = "content", "reference"

_TABLE = "CREATE TABLE IF NOT EXISTS accepted (name BLOB PRIMARY KEY, version TEXT NOT NULL) WITHOUT ROWID"


class Found(NamedTuple):
    """A file as it was seen."""

    name: str
    """Relative to the folder, with `/`."""
    modified: int
    """Nanoseconds since the epoch."""
    size: int

    @property
    def parts(self) -> list[str]:
        return self.name.split("/")

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
            self._worker = sqlite.Worker(database, grouped=True, timeout=folders.TIME_LIMIT)

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
        self._disk = folders.Disk(2)
        self._accepted: dict[str, str] = {}
        """The version of each file that needs no more looking at."""
        self._stored: dict[str, str] = {}
        """Those that were accepted, but could not be put away, or noted, yet."""
        self._seen: dict[str, tuple[str, float]] = {}
        """The version of each that is to come, and since when it is seen."""
        self._told: dict[str, str] = {}
        """What is wrong with a file or folder, as the log has it."""

    async def start(self) -> None:
        await self.ping()
        if self._after == MOVE:
            await self._run(self._make_done)
        await self._index.start()

    async def ping(self) -> None:
        """The folder is there, and can be read."""

        def look() -> None:
            with os.scandir(self._folder):
                pass

        await self._run(look)

    async def close(self) -> None:
        self._disk.close()
        await self._index.close()

    async def run(self, accept: Accept) -> None:
        self._accepted, self._seen = await self._index.load(), {}
        async with contextlib.aclosing(self._signs()) as signs:
            async for _ in signs:
                while not await self._look(accept):
                    await self._clock.sleep(min(self._settled, 1.0))

    async def _look(self, accept: Accept) -> bool:
        """Fire the app for what is new. Whether nobody writes to the others any more."""
        found, closed = await self._run(self._scan)
        names = {file.name for file in found}
        gone = [name for name in self._accepted if name not in names and not name.startswith(tuple(closed))]
        await self._index.forget(gone)
        for name in gone:
            del self._accepted[name]
        for kept in (self._stored, self._told):
            for name in kept.keys() - names - closed.keys():
                del kept[name]
        for name, error in closed.items():
            self._tell(name, error)
        now = self._clock.now()
        new = [file for file in found if self._accepted.get(file.name) != file.version]
        self._seen = {
            file.name: known
            if (known := self._seen.get(file.name)) and known[0] == file.version
            else (file.version, now)
            for file in new
        }
        ready = [file for file in new if now - self._seen[file.name][1] >= self._settled]
        for file in ready:
            await self._take(file, accept)
        return len(ready) == len(new)

    async def _signs(self) -> AsyncGenerator[None, None]:
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

    def _scan(self) -> tuple[list[Found], dict[str, OSError]]:
        """The files that count, by age; and the folders that cannot be read, of which nothing is known."""
        found: list[Found] = []
        closed: dict[str, OSError] = {}

        def enter(parts: tuple[str, ...]) -> bool:
            put_away = self._after == MOVE and parts == (self._done,)
            return self._recursive and not parts[-1].startswith(".") and not put_away

        def note(parts: tuple[str, ...], error: OSError) -> None:
            closed["/".join(parts) + "/"] = error

        try:
            for parts, entry in folders.walk(self._open, (), most=MAX_FILES, enter=enter, closed=note):
                if not entry.name.startswith(".") and fnmatch.fnmatchcase(entry.name, self._pattern):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        found.append(Found("/".join(parts), status.st_mtime_ns, status.st_size))
        except folders.TooMany:
            raise StoreError(f"the folder has over {MAX_FILES} files") from None
        return sorted(found, key=_age), closed

    async def _take(self, file: Found, accept: Accept) -> None:
        """Raises `BrokerUnavailable` when it is not stored: it is offered again. What is wrong with this file alone
        keeps no other: it is tried again at each look."""
        try:
            if self._stored.get(file.name) != file.version:
                if not await self._fire(file, accept):
                    self._accepted[file.name] = file.version
                    return
                self._stored[file.name] = file.version
            if self._after == KEEP:
                await self._index.note(file.name, file.version)
            else:
                await self._disk.run(lambda: self._put_away(file))
        except OSError as error:
            self._tell(file.name, error)
            return
        del self._stored[file.name]
        self._accepted[file.name] = file.version

    async def _fire(self, file: Found, accept: Accept) -> bool:
        """Whether it is stored; else it is left out, as it is now."""
        if self._send == CONTENT and file.size > self._max_size:
            logger.error("%s is left out: %d bytes, where maxSize is %d", clip(file.name), file.size, self._max_size)
            return False
        data = await self._disk.run(lambda: self._read(file)) if self._send == CONTENT else self._reference(file)
        if data is None:
            return False  # it was changed or removed meanwhile, of which there is a sign
        try:
            await accept(self._item(file, data))
        except BrokerUnavailable:
            raise
        except BrokerError as error:
            logger.error("%s is left out: %s", clip(file.name), error)
            return False
        return True

    def _read(self, file: Found) -> bytes | None:
        """`None` when it is not what was found."""
        *above, name = file.parts
        try:
            with folders.within(self._open(), above) as folder:
                descriptor = os.open(name, folders.FILE, dir_fd=folder)
        except OSError as error:
            if error.errno in folders.GONE:
                return None
            raise
        with os.fdopen(descriptor, "rb") as stream:
            if not _same(file, os.fstat(descriptor)):
                return None
            data = stream.read(self._max_size + 1)
            return data if len(data) == file.size and _same(file, os.fstat(descriptor)) else None

    def _put_away(self, file: Found) -> None:
        """Unless it is another one by now, which is to come."""
        *above, name = file.parts
        with contextlib.suppress(FileNotFoundError), folders.within(self._open(), above) as folder:
            if not _same(file, os.stat(name, dir_fd=folder, follow_symlinks=False)):
                return
            if self._after == DELETE:
                os.unlink(name, dir_fd=folder)
                return
            with folders.within(self._open(), [self._done, *above], create=True) as done:
                path = PurePosixPath(name)
                target = f"{path.stem}.{file.modified}{path.suffix}" if _exists(name, done) else name
                os.rename(name, target, src_dir_fd=folder, dst_dir_fd=done)

    def _make_done(self) -> None:
        with folders.within(self._open(), [self._done], create=True):
            pass

    def _open(self) -> int:
        return os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    async def _run(self, work: Callable[[], T]) -> T:
        """Raises `StoreError`."""
        try:
            return await self._disk.run(work)
        except OSError as error:
            raise StoreUnavailable(f"{clip(error.filename or 'the folder')}: {error.strerror}") from None

    def _tell(self, name: str, error: OSError) -> None:
        """Once."""
        text = error.strerror or str(error)
        if self._told.get(name) != text:
            self._told[name] = text
            logger.error("%s waits until it can be read and put away: %s", clip(name), text)

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
        # By the end alone: a name that begins as a URL would be taken for one.
        guessed, encoding = mimetypes.guess_type(f"x{PurePosixPath(file.name).suffix}")
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


def _exists(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _open(setup: Setup) -> FileWatch:
    settings = setup.settings
    folder = Path(settings["path"])
    if settings["index"] and settings["after"] != KEEP:
        raise settings.fault("index", "it has an effect only with after: keep")
    if settings.given("doneFolder") and settings["after"] != MOVE:
        raise settings.fault("doneFolder", "it has an effect only with after: move")
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
