"""`bindings.localstorage`: files in a folder of the sidecar's machine, of which no request can lead out."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from bindings.invocations import check_metadata, check_size, decoded, required, unquoted
from mesh.components import ComponentSpec, Field, Kind, Setup
from mesh.errors import clip
from mesh.ports.bindings import BindingError, InvalidOperation, Invocation, Result
from mesh.ports.stores import StoreError, StoreUnavailable

T = TypeVar("T")

OPERATIONS = ("create", "get", "list", "delete")
TIME_LIMIT = 30.0
"""Seconds for one operation, which a network file system can hold up."""
MAX_SIZE = 100 << 20
"""Bytes of a file."""
MAX_LISTED = 100_000
"""Files."""
BEING_WRITTEN = ".meshwire-"
"""How the names of files begin that are not complete yet."""

_NOT_HERE = tuple(map(Path, ("/proc", "/sys", "/dev", "/boot", "/run/secrets", "/var/run/secrets")))
_NO_SUCH_NAME = (errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class LocalStorage:
    """An `OutputBinding`. Each name is opened one part after the other, without following links, from a root that
    stays open: what happens on the disk meanwhile cannot lead elsewhere."""

    operations = OPERATIONS

    def __init__(self, root: Path, *, decode: bool) -> None:
        """`decode`: data to store that is valid base64 is decoded."""
        self._path = root
        self._decode = decode
        self._root: int | None = None

    async def start(self) -> None:
        self._root = await _in_thread(self._open_root)

    def _open_root(self) -> int:
        path = self._path.resolve()
        if any(path.is_relative_to(place) for place in _NOT_HERE):
            raise StoreError(f"rootPath is {path}: nothing may be stored there")
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        return os.open(path, _FOLDER)

    async def ping(self) -> None:
        await _in_thread(lambda: os.fstat(self._opened()))

    async def close(self) -> None:
        root, self._root = self._root, None
        if root is not None:
            os.close(root)

    async def invoke(self, invocation: Invocation) -> Result:
        check_metadata(invocation, ("fileName",))
        match invocation.operation:
            case "create":
                name = invocation.text("fileName") or str(uuid.uuid4())
                parts, data = _parts(name), self._data(invocation.data)
                await _in_thread(lambda: self._create(parts, data))
                return Result(data=msgspec.json.encode({"fileName": "/".join(parts)}))
            case "get":
                parts = _parts(required(invocation, "fileName"))
                return Result(data=await _in_thread(lambda: self._get(parts)))
            case "list":
                parts = _parts(invocation.text("fileName") or ".", folder=True)
                return Result(data=msgspec.json.encode(await _in_thread(lambda: self._list(parts))))
            case _:
                parts = _parts(required(invocation, "fileName"))
                await _in_thread(lambda: self._delete(parts))
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
            # Without O_NONBLOCK the open of a pipe would wait for its writer.
            file = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            with os.fdopen(file, "rb") as stream:
                found = os.fstat(file)
                if not stat.S_ISREG(found.st_mode):
                    raise _no_file(parts)
                data = stream.read(MAX_SIZE + 1)
                if len(data) > MAX_SIZE:
                    raise BindingError(f"the file '{_shown(parts)}' has over {MAX_SIZE} bytes")
                return data

    def _list(self, parts: list[str]) -> list[str]:
        found: list[str] = []
        with self._folder(parts) as folder:
            for inside, _, names, here in os.fwalk(".", dir_fd=folder, follow_symlinks=False):
                for name in names:
                    if name.startswith(BEING_WRITTEN) or not _is_regular(name, here):
                        continue
                    if len(found) == MAX_LISTED:
                        raise BindingError(f"there are over {MAX_LISTED} files: list one of the folders within")
                    found.append(str(self._path.joinpath(*parts, inside, name)))
        return sorted(found)

    def _delete(self, parts: list[str]) -> None:
        with self._folder(parts[:-1]) as folder:
            if _is_regular(parts[-1], folder) is False:
                raise _no_file(parts)
            os.unlink(parts[-1], dir_fd=folder)

    @contextlib.contextmanager
    def _folder(self, parts: list[str], *, create: bool = False) -> Iterator[int]:
        """The folder of this name, open. Raises `OSError` for an element that is none, as a link to one is."""
        folder = os.dup(self._opened())
        try:
            for part in parts:
                if create:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=folder)
                inner = os.open(part, _FOLDER, dir_fd=folder)
                os.close(folder)
                folder = inner
            yield folder
        finally:
            os.close(folder)

    def _opened(self) -> int:
        if self._root is None:
            raise StoreUnavailable("the folder is closed")
        return self._root


def _is_regular(name: str, folder: int) -> bool | None:
    """`None` when there is nothing of this name."""
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return None


async def _in_thread(work: Callable[[], T]) -> T:
    """Raises `StoreError`; never shows more of a path than the app gave."""
    try:
        async with asyncio.timeout(TIME_LIMIT):
            return await asyncio.to_thread(work)
    except FileNotFoundError:
        raise BindingError("file not found") from None
    except TimeoutError:
        raise StoreUnavailable(f"the file system did not answer within {TIME_LIMIT:g} s") from None
    except OSError as error:
        if error.errno in _NO_SUCH_NAME:
            raise InvalidOperation(f"no such file can be: {error.strerror} (links are not followed)") from None
        raise BindingError(f"the file system refused: {error.strerror}") from None


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
            "The folder, which is made if need be. Not within `/proc`, `/sys`, `/dev`, `/boot`, `/var/run/secrets`.",
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
