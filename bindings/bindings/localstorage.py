"""`bindings.localstorage`: files in a folder of the sidecar's machine, of which no request can lead out."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

import msgspec

from bindings import folders
from bindings.invocations import check_metadata, check_size, decoded, required, unquoted
from mesh.components import ComponentSpec, Field, Kind, Setup
from mesh.errors import clip
from mesh.ports.bindings import BindingError, InvalidOperation, Invocation, Result
from mesh.ports.stores import StoreError, StoreUnavailable

T = TypeVar("T")

OPERATIONS = ("create", "get", "list", "delete")
AT_ONCE = 4
"""Operations."""
MAX_SIZE = 100 << 20
"""Bytes of a file."""
MAX_LISTED = 100_000
"""Files and folders."""
BEING_WRITTEN = ".meshwire-"
"""How the names of files begin that are not complete yet."""

_NOT_HERE = tuple(map(Path, ("/proc", "/sys", "/dev", "/boot", "/run/secrets", "/var/run/secrets")))
_NO_SUCH_NAME = (errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)


class LocalStorage:
    """An `OutputBinding`. Each name is opened from a root that stays open."""

    operations = OPERATIONS

    def __init__(self, root: Path, *, decode: bool) -> None:
        """`decode`: data to store that is valid base64 is decoded."""
        self._path = root
        self._decode = decode
        self._disk = folders.Disk(AT_ONCE)
        self._root: int | None = None
        self._closing = threading.Lock()

    async def start(self) -> None:
        await self._run(self._open_root)

    def _open_root(self) -> None:
        path = self._path.resolve()
        for place in (place.resolve() for place in _NOT_HERE):
            if path.is_relative_to(place) or place.is_relative_to(path):
                raise StoreError(f"rootPath is {path}: nothing may be stored there")
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._close_root()
        self._root = os.open(path, folders.FOLDER)

    def _close_root(self) -> None:
        with self._closing:
            root, self._root = self._root, None
            if root is not None:
                os.close(root)

    async def ping(self) -> None:
        await self._run(lambda: os.close(self._opened()))

    async def close(self) -> None:
        self._disk.close()
        self._close_root()

    async def invoke(self, invocation: Invocation) -> Result:
        check_metadata(invocation, ("fileName",))
        match invocation.operation:
            case "create":
                name = invocation.text("fileName") or str(uuid.uuid4())
                parts, data = _parts(name), self._data(invocation.data)
                await self._run(lambda: self._create(parts, data))
                return Result(data=msgspec.json.encode({"fileName": "/".join(parts)}))
            case "get":
                parts = _parts(required(invocation, "fileName"))
                return Result(data=await self._run(lambda: self._get(parts)))
            case "list":
                parts = _parts(invocation.text("fileName") or ".", folder=True)
                return Result(data=msgspec.json.encode(await self._run(lambda: self._list(parts))))
            case _:
                parts = _parts(required(invocation, "fileName"))
                await self._run(lambda: self._delete(parts))
                return Result()

    def _data(self, data: bytes) -> bytes:
        check_size(data, MAX_SIZE)
        data = unquoted(data)
        if self._decode:
            with contextlib.suppress(InvalidOperation):
                return decoded(data)
        return data

    def _create(self, parts: list[str], data: bytes) -> None:
        """Whoever reads the file sees what was there before or all that is there now."""
        with self._folder(parts[:-1], create=True) as folder:
            name = parts[-1]
            if _is_regular(name, folder) is False:
                raise _no_file(parts)
            partial = f"{BEING_WRITTEN}{uuid.uuid4().hex}"
            file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=folder)
            try:
                with os.fdopen(file, "wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(file)
                os.rename(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                os.unlink(partial, dir_fd=folder)
                raise
            os.fsync(folder)

    def _get(self, parts: list[str]) -> bytes:
        with self._folder(parts[:-1]) as folder:
            file = os.open(parts[-1], folders.FILE, dir_fd=folder)
            with os.fdopen(file, "rb") as stream:
                found = os.fstat(file)
                if not stat.S_ISREG(found.st_mode):
                    raise _no_file(parts)
                data = stream.read(MAX_SIZE + 1) if found.st_size <= MAX_SIZE else b""
                if max(found.st_size, len(data)) > MAX_SIZE:
                    raise BindingError(f"the file '{_shown(parts)}' has over {MAX_SIZE} bytes")
                return data

    def _list(self, parts: list[str]) -> list[str]:
        def closed(inner: tuple[str, ...], error: OSError) -> None:
            raise error

        found = folders.walk(self._opened, parts, most=MAX_LISTED, enter=lambda inner: True, closed=closed)
        try:
            names = [name for name, _ in found if not name[-1].startswith(BEING_WRITTEN)]
        except folders.TooMany:
            raise BindingError(f"there are over {MAX_LISTED} files: list one of the folders within") from None
        # A name need not be text, which JSON is (Dapr).
        return sorted(os.fsencode(self._path.joinpath(*name)).decode("utf-8", "replace") for name in names)

    def _delete(self, parts: list[str]) -> None:
        with self._folder(parts[:-1]) as folder:
            if _is_regular(parts[-1], folder) is False:
                raise _no_file(parts)
            os.unlink(parts[-1], dir_fd=folder)

    def _folder(self, parts: list[str], *, create: bool = False) -> AbstractContextManager[int]:
        return folders.within(self._opened(), parts, create=create)

    def _opened(self) -> int:
        """The root, opened once more."""
        with self._closing:
            if self._root is None:
                raise StoreUnavailable("the folder is closed")
            return os.dup(self._root)

    async def _run(self, work: Callable[[], T]) -> T:
        """Raises `StoreError`; never shows more of a path than the app gave."""
        try:
            return await self._disk.run(work)
        except FileNotFoundError:
            raise BindingError("file not found") from None
        except OSError as error:
            if error.errno in _NO_SUCH_NAME:
                raise InvalidOperation(f"no such file can be: {error.strerror} (links are not followed)") from None
            raise BindingError(f"the file system refused: {error.strerror}") from None


def _is_regular(name: str, folder: int) -> bool | None:
    """`None` when there is nothing of this name."""
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return None


def _parts(name: str, *, folder: bool = False) -> list[str]:
    """The names of the folders, and of the file. Raises `InvalidOperation` for a name that could lead out."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    wrong = ""
    if name.startswith("/"):
        wrong = "it must be relative to the folder of the component"
    elif ".." in parts:
        wrong = "'..' is not allowed"
    elif "\0" in name or "\\" in name or any("\ud800" <= character <= "\udfff" for character in name):
        wrong = "it has a character that no name can have"
    elif not folder and (not parts or name.endswith(("/", "/."))):
        wrong = "it is none of a file"
    elif any(len(part.encode()) > 255 for part in parts) or len(parts) > 100:
        wrong = "it is too long"
    elif any(part.startswith(BEING_WRITTEN) for part in parts):
        wrong = f"names that begin with {BEING_WRITTEN} are the binding's own"
    if wrong:
        raise InvalidOperation(f"the fileName '{clip(name)}' cannot be used: {wrong}")
    return parts


def _no_file(parts: list[str]) -> InvalidOperation:
    return InvalidOperation(f"'{_shown(parts)}' is no regular file (links are not followed)")


def _shown(parts: list[str]) -> str:
    return clip("/".join(parts))


def _open(setup: Setup) -> LocalStorage:
    return LocalStorage(Path(setup.settings["rootPath"]), decode=setup.settings["decodeBase64"])


SPEC = ComponentSpec(
    type="bindings.localstorage",
    title="Local storage",
    about=(
        "Output: files in a folder of the sidecar's machine. Operations `create`, `get`, `list`, `delete`; the "
        "metadata `fileName` is relative to `rootPath` and may have folders. `create` without one makes a name, and "
        'answers `{"fileName": …}`; the file is on the disk, and complete, when the answer comes. `list` answers with '
        "the absolute paths of all files in the folder `fileName` and those within. No name leads out of `rootPath`: "
        "absolute ones, `..` and links are refused. As in Dapr, data that happens to be valid base64 is decoded before "
        "it is stored, which also hits a text like `test`: switch `decodeBase64` off where only texts are stored."
    ),
    open=_open,
    fields=(
        Field(
            "rootPath",
            "The folder, which is made if need be. Not within `/proc`, `/sys`, `/dev`, `/boot`, `/var/run/secrets`, "
            "nor one that these are in.",
            required=True,
        ),
        Field(
            "decodeBase64",
            "Decode data that is valid base64 before it is stored. Meshwire's own: Dapr always does.",
            Kind.BOOL,
            True,
        ),
    ),
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: files
spec:
  type: bindings.localstorage
  version: v1
  metadata:
    - name: rootPath
      value: /var/lib/orders
""",
)
