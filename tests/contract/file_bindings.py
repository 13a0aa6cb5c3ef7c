"""Bindings of files, for the contract suites."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from bindings.bindings import files, localstorage, sqlite
from mesh.ports.bindings import BindingError, InputBinding, Invocation, OutputBinding, Result
from tests.opened import opened

if TYPE_CHECKING:
    from tests.contract.bindings import Invoke, Source


class LocalStorage:
    name = "localstorage"
    refused = (
        Invocation(operation="get"),
        Invocation(operation="delete"),
        Invocation(operation="create", data=b"x", metadata={"fileNaem": "a"}),
        *(
            Invocation(operation=operation, data=b"x", metadata={"fileName": name})
            for operation in ("create", "get", "delete", "list")
            for name in (
                *("../out", "a/../../out", "/etc/passwd", "link/in"),
                *("a\0b", "a\\b", "\ud800", "x" * 256, "a/" * 101 + "a"),
            )
        ),
        *(
            Invocation(operation=operation, data=b"x", metadata={"fileName": "file-link"})
            for operation in ("create", "get", "delete")
        ),
    )

    def start(self, folder: Path) -> None:
        self._folder = folder
        (folder / "secret").write_text("secret")

    def stop(self) -> None:
        assert (self._folder / "secret").read_text() == "secret", "nothing led out of the root"

    async def binding(self) -> OutputBinding:
        self._root = self._folder / secrets.token_hex(4) / "root"
        self._root.mkdir(parents=True)
        (self._root / "link").symlink_to(self._folder)
        (self._root / "file-link").symlink_to(self._folder / "secret")
        binding: OutputBinding = opened(localstorage.SPEC, rootPath=str(self._root))
        return binding

    async def use(self, invoke: Invoke) -> None:
        made = await invoke("create", b'"hello you"', fileName="a/b/c.txt")
        assert made.data == b'{"fileName":"a/b/c.txt"}'
        assert (self._root / "a/b/c.txt").read_text() == "hello you"
        await invoke("create", b'"eHl6"', FILENAME="./b64")
        assert (await invoke("get", fileName="b64")).data == b"xyz"
        named = msgspec.json.decode((await invoke("create", b'{"a": 1}')).data or b"")["fileName"]
        assert (await invoke("get", fileName=named)).data == b'{"a": 1}'
        root = self._root.resolve()
        listed = await invoke("list")
        assert msgspec.json.decode(listed.data or b"") == sorted(
            map(str, (root / "a/b/c.txt", root / "b64", root / named))
        )
        assert (await invoke("list", fileName="a/b")).data == msgspec.json.encode([str(root / "a/b/c.txt")])
        assert (await invoke("delete", fileName="a/b/c.txt")) == Result()
        assert not (self._root / "a/b/c.txt").exists()
        with pytest.raises(BindingError, match="not found"):
            await invoke("get", fileName="a/b/c.txt")

    def unreachable(self) -> OutputBinding:
        pytest.skip("a folder is always there")


class Sqlite:
    name = "sqlite"
    refused = (
        *(
            Invocation(operation=operation, metadata=metadata)
            for operation in ("exec", "query")
            for metadata in (
                {},
                {"sql": "nonsense"},
                {"sql": "SELECT 1; SELECT 2"},
                {"sql": "SELECT ?"},
                {"sql": "SELECT ?", "params": "[1, 2]"},
                {"sql": "SELECT ?", "params": "1"},
                {"sql": "SELECT ?", "params": "[{}]"},
                {"sql": "SELECT ?", "params": "[[1]]"},
                {"sql": "SELECT ?", "params": "[9223372036854775808]"},
                {"sql": "SELECT ?", "params": "[1"},
                {"sql": "SELECT ?", "params": "[" * 100_000},
                {"sql": "SELECT 1", "parms": "[]"},
                {"sql": "ATTACH 'other.db' AS other"},
                {"sql": "VACUUM INTO 'other.db'"},
                {"sql": "BEGIN"},
                {"sql": "PRAGMA synchronous = OFF"},
                {"sql": "SELECT load_extension('x')"},
            )
        ),
    )

    def start(self, folder: Path) -> None:
        self._folder = folder

    def stop(self) -> None:
        pass

    async def binding(self) -> OutputBinding:
        self._file = self._folder / f"{secrets.token_hex(4)}.db"
        binding: OutputBinding = opened(sqlite.SPEC, connectionString=str(self._file))
        return binding

    async def use(self, invoke: Invoke) -> None:
        await invoke("exec", sql="CREATE TABLE t (a INTEGER, b TEXT, c BLOB) STRICT")
        made = await invoke("exec", sql="INSERT INTO t VALUES (?, ?, x'00ff'), (2, NULL, NULL)", params='[1, "ä"]')
        assert (made.data, made.metadata["rows-affected"]) == (None, "2")
        with contextlib.closing(sqlite3.connect(self._file)) as own:
            assert own.execute("SELECT a, b FROM t ORDER BY a").fetchall() == [(1, "ä"), (2, None)]
        found = await invoke("query", sql="SELECT * FROM t WHERE a < ? ORDER BY a", params="[3]")
        assert msgspec.json.decode(found.data or b"") == [[1, "ä", "AP8="], [2, None, None]]
        assert found.metadata["operation"] == "query"
        with pytest.raises(BindingError, match="TEXT value in INTEGER"):
            await invoke("exec", sql="INSERT INTO t VALUES (?, NULL, NULL)", params='["x"]')

    def unreachable(self) -> OutputBinding:
        binding: OutputBinding = opened(sqlite.SPEC, connectionString=str(self._folder / "nowhere/data.db"))
        return binding


class Folder:
    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.folder = folder
        self._settings = settings

    def binding(self) -> InputBinding:
        binding: InputBinding = opened(
            files.SPEC, path=str(self.folder), settled="100ms", rescanInterval="1s", **self._settings
        )
        return binding

    async def offer(self, number: int) -> bytes:
        data = b"\x00\xff\r\n%d" % number
        (self.folder / f"{number} ä.bin").write_bytes(data)
        return data


class Files:
    """Files stay, and are remembered."""

    name = "files-keep"
    bound = 1
    has_ids = True
    settings: Mapping[str, str] = {"after": "keep"}

    def start(self, folder: Path) -> None:
        self._folder = folder

    def stop(self) -> None:
        pass

    async def source(self) -> Source:
        folder = self._folder / secrets.token_hex(4)
        folder.mkdir()
        return Folder(folder, self.settings)

    async def restart(self, source: Source) -> None:
        pytest.skip("a folder has no server")


class FilesDeleted(Files):
    name = "files-delete"
    settings: Mapping[str, str] = {"after": "delete"}


class FilesMoved(Files):
    name = "files-move"
    settings: Mapping[str, str] = {"after": "move", "recursive": "true"}
