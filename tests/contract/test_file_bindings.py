"""What the contract suites do not ask: `bindings.localstorage` and `bindings.files`."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sqlite3
import subprocess
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bindings import folders
from bindings.bindings import files, localstorage, sqlite
from mesh.errors import BrokerUnavailable, ConfigurationError, MessageTooLarge
from mesh.ports.bindings import BindingError, InputBinding, InvalidOperation, Invocation, Item, OutputBinding
from mesh.ports.stores import StoreError, StoreUnavailable
from tests.opened import opened


def created(name: str, data: bytes) -> Invocation:
    return Invocation(operation="create", data=data, metadata={"fileName": name})


@pytest.mark.parametrize("root", ["/proc/self", "/sys", "/dev/shm", "/var/run/secrets/x", "/tmp/../proc", "/"])
async def test_some_roots_are_refused(root: str) -> None:
    with pytest.raises(StoreError, match="nothing may be stored there"):
        await opened(localstorage.SPEC, rootPath=root).start()


async def test_a_root_that_is_a_link_into_them_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/proc")
    with pytest.raises(StoreError, match="nothing may be stored there"):
        await opened(localstorage.SPEC, rootPath=str(tmp_path / "link/self")).start()


async def test_texts_can_be_kept_from_being_decoded(tmp_path: Path) -> None:
    as_dapr, as_given = (opened(localstorage.SPEC, rootPath=str(tmp_path), decodeBase64=flag) for flag in ("", "false"))
    for binding, stored in ((as_dapr, b"\xb5\xeb\x2d"), (as_given, b"test")):
        await binding.start()
        await binding.invoke(created("a", b'"test"'))
        assert (tmp_path / "a").read_bytes() == stored
        await binding.close()


async def test_a_folder_that_becomes_a_link_does_not_lead_out(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    (root / "inner").mkdir(parents=True)
    outside.mkdir()
    binding = opened(localstorage.SPEC, rootPath=str(root))
    await binding.start()
    stop = asyncio.Event()

    (root / "link").symlink_to(outside)
    libc = ctypes.CDLL(None)

    async def swap() -> None:
        while not stop.is_set():
            # 2 is RENAME_EXCHANGE: there is always one of the two.
            assert libc.renameat2(-100, bytes(root / "inner"), -100, bytes(root / "link"), 2) == 0
            await asyncio.sleep(0)

    swapping = asyncio.create_task(swap())
    stored = 0
    for number in range(300):
        with suppress(BindingError):
            await binding.invoke(created(f"inner/{number}", b"x"))
            stored += 1
    stop.set()
    await swapping
    await binding.close()
    assert stored
    assert not list(outside.iterdir())


async def test_nobody_sees_half_a_file(tmp_path: Path) -> None:
    binding = opened(localstorage.SPEC, rootPath=str(tmp_path), decodeBase64="false")
    await binding.start()
    contents = {b"a" * 200_000, b"b" * 200_000}
    await binding.invoke(created("f", b"a" * 200_000))

    async def read() -> None:
        for _ in range(50):
            got = await binding.invoke(Invocation(operation="get", metadata={"fileName": "f"}))
            assert got.data in contents

    async def write() -> None:
        for _ in range(10):
            for content in contents:
                await binding.invoke(created("f", content))

    await asyncio.gather(read(), write())
    await binding.close()
    assert [path.name for path in tmp_path.iterdir()] == ["f"], "nothing is left behind"


async def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    binding = opened(localstorage.SPEC, rootPath=str(tmp_path))
    await binding.start()
    for operation in ("get", "create", "delete"):
        with pytest.raises(InvalidOperation, match="no regular file"):
            await binding.invoke(Invocation(operation=operation, metadata={"fileName": "pipe"}))
    await binding.close()


async def listed(binding: OutputBinding) -> list[str]:
    names: list[str] = msgspec.json.decode((await binding.invoke(Invocation(operation="list"))).data or b"")
    return names


async def test_a_list_of_names_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.txt")).write_text("x")
    binding = opened(localstorage.SPEC, rootPath=str(tmp_path))
    await binding.start()
    assert await listed(binding) == [f"{tmp_path}/\ufffd.txt"]
    await binding.close()


async def test_a_list_has_a_bound_and_any_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binding = opened(localstorage.SPEC, rootPath=str(tmp_path))
    await binding.start()
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(960):
        os.mkdir("d", dir_fd=folder)
        inner = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    assert await listed(binding) == []
    monkeypatch.setattr(localstorage, "MAX_LISTED", 500)
    with pytest.raises(BindingError, match="over 500"):
        await listed(binding)
    await binding.close()
    subprocess.run(["rm", "-r", str(tmp_path / "d")], check=True)  # Python's own functions cannot


async def test_new_folders_are_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[int] = set()
    sync = os.fsync

    def fsync(file: int) -> None:
        synced.add(os.fstat(file).st_ino)
        sync(file)

    monkeypatch.setattr(os, "fsync", fsync)
    binding = opened(localstorage.SPEC, rootPath=str(tmp_path))
    await binding.start()
    await binding.invoke(created("a/b/c", b"x"))
    await binding.close()
    assert {path.stat().st_ino for path in (tmp_path, *tmp_path.rglob("*"))} == synced


async def test_a_folder_that_hangs_holds_up_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "TIME_LIMIT", 0.2)
    binding = opened(localstorage.SPEC, rootPath=str(tmp_path))
    await binding.start()
    hanging = threading.Event()
    monkeypatch.setattr(os, "stat", lambda *_, **__: hanging.wait(20))
    try:
        calls = [binding.invoke(created(str(number), b"x")) for number in range(40)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 10) == "free"
        await asyncio.wait_for(binding.close(), 10)
    finally:
        hanging.set()


def statement(operation: str, sql: str) -> Invocation:
    return Invocation(operation=operation, metadata={"sql": sql})


async def test_statements_have_bounds(tmp_path: Path) -> None:
    binding = opened(sqlite.SPEC, connectionString=str(tmp_path / "data.db"))
    await binding.start()
    many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 20000) SELECT zeroblob(10000) FROM n"
    tracemalloc.start()
    try:
        await binding.invoke(statement("exec", many))
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    for operation, sql, error in (("query", many, "use LIMIT"), ("query", "SELECT zeroblob(100000000)", "this size")):
        with pytest.raises(StoreError, match=error):
            await binding.invoke(statement(operation, sql))
    assert (await binding.invoke(statement("query", "PRAGMA TABLE_LIST"))).data
    await binding.close()


class Taken(list[Item]):
    def __init__(self) -> None:
        self.refuse: Callable[[Item], Exception | None] = lambda item: None

    async def accept(self, item: Item) -> None:
        error = self.refuse(item)
        if error is not None:
            raise error
        self.append(item)

    async def until(self, number: int) -> None:
        async with asyncio.timeout(20):
            while len(self) < number:
                await asyncio.sleep(0.02)


def watch(folder: Path, **settings: str) -> InputBinding:
    given = {"path": str(folder), "settled": "100ms", "rescanInterval": "500ms"} | settings
    binding: InputBinding = opened(files.SPEC, **given)
    return binding


@asynccontextmanager
async def watched(folder: Path, **settings: str) -> AsyncIterator[Taken]:
    taken = Taken()
    binding = watch(folder, **settings)
    await binding.start()
    run = asyncio.create_task(binding.run(taken.accept))
    try:
        yield taken
    finally:
        assert not run.done(), run.exception()
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run
        await binding.close()


async def test_each_version_of_a_file_fires_once(tmp_path: Path) -> None:
    file = tmp_path / "ä b.json"
    async with watched(tmp_path) as taken:
        file.write_text("1")
        await taken.until(1)
        file.write_text("22")
        await taken.until(2)
        index = sqlite3.connect(tmp_path / ".meshwire-test.db")
        async with asyncio.timeout(30):
            while not index.execute("SELECT 1 FROM accepted WHERE version LIKE '%-2'").fetchall():
                await asyncio.sleep(0.02)
        index.close()
    async with watched(tmp_path) as later:
        (tmp_path / "other.txt").write_text("3")
        await later.until(1)
        await asyncio.sleep(0.7)
    assert [item.data for item in [*taken, *later]] == [b"1", b"22", b"3"]
    assert taken[0].id != taken[1].id
    assert taken[0].metadata["fileName"] == "%C3%A4 b.json"
    assert taken[0].content_type == "application/json"
    assert taken[0].time == pytest.approx(file.stat().st_mtime, abs=60)


@pytest.mark.parametrize("send", ["content", "reference"])
async def test_a_name_that_is_no_text(tmp_path: Path, send: str) -> None:
    (tmp_path / os.fsdecode(b"\xff \n.txt")).write_text("x")
    for number in (1, 0):
        async with watched(tmp_path, send=send) as taken:
            await taken.until(number)
            await asyncio.sleep(0.5)
        assert [item.metadata["fileName"] for item in taken] == ["%FF %0A.txt"] * number


async def test_a_file_that_is_being_written_is_left_until_it_is_complete(tmp_path: Path) -> None:
    async with watched(tmp_path, settled="400ms") as taken:
        with (tmp_path / "slow").open("wb", buffering=0) as file:
            for _ in range(8):
                file.write(b"x" * 10)
                await asyncio.sleep(0.1)
                assert not taken
        await taken.until(1)
    assert taken[0].data == b"x" * 80


async def test_names_that_count(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (folder / "link.csv").symlink_to(tmp_path / "secret")
    (folder / "linked").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.csv")
    for name in ("a.csv", "b.txt", ".hidden.csv", "deep/c.csv"):
        (folder / name).write_text(name)
    async with watched(folder, pattern="*.csv") as flat:
        await flat.until(1)
        await asyncio.sleep(0.7)
    async with watched(folder, pattern="*.csv", recursive="true", index=str(tmp_path / "index.db")) as deep:
        await deep.until(2)
        await asyncio.sleep(0.7)
    assert [item.data for item in flat] == [b"a.csv"]
    assert sorted(item.data for item in deep) == [b"a.csv", b"deep/c.csv"]


async def test_what_was_stored_is_moved_and_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "done").mkdir()
    (tmp_path / "done/a.txt").write_text("earlier")
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text("now")
    (tmp_path / "deep/b.txt").write_text("b")
    async with watched(tmp_path, after="move", recursive="true") as taken:
        await taken.until(2)
        async with asyncio.timeout(30):
            while (tmp_path / "a.txt").exists() or (tmp_path / "deep/b.txt").exists():
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.7)
    assert len(taken) == 2
    assert sorted(path.read_text() for path in (tmp_path / "done").rglob("*.txt")) == ["b", "earlier", "now"]


async def test_a_file_too_large_is_left_out_and_the_others_come(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "large").write_bytes(bytes(1001))
    async with watched(tmp_path, maxSize="1000", after="delete") as taken:
        taken.refuse = lambda item: MessageTooLarge(10, 5) if item.data == b"odd" else None
        (tmp_path / "odd").write_text("odd")
        await asyncio.sleep(0.3)
        (tmp_path / "small").write_text("small")
        await taken.until(1)
    assert [item.data for item in taken] == [b"small"]
    assert (tmp_path / "large").exists()
    assert (tmp_path / "odd").exists(), "nothing is lost"
    assert "maxSize is 1000" in caplog.text
    async with watched(tmp_path, maxSize="1000", send="reference") as taken:
        await taken.until(2)
    shown = next(msgspec.json.decode(item.data) for item in taken if b"large" in item.data)
    assert (shown["path"], shown["size"]) == (str(tmp_path / "large"), 1001)


async def test_a_folder_that_becomes_a_link_is_not_followed(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    outside.mkdir()
    for file in (folder / "first", folder / "sub/file", outside / "file"):
        file.write_text("secret" if file.parent == outside else "public")
        os.utime(file, ns=(0, 1_000_000 if file.name == "first" else 2_000_000))
    async with watched(folder, recursive="true", after="delete") as taken:

        def swap(item: Item) -> None:
            if item.metadata["fileName"] == "first":
                (folder / "sub").rename(folder / "sub-2")
                (folder / "sub").symlink_to(outside)

        taken.refuse = swap
        await taken.until(2)
    assert {item.data for item in taken} == {b"public"}
    assert (outside / "file").exists()


@pytest.mark.parametrize("step", ["open", "unlink"])
async def test_a_file_that_cannot_be_worked_keeps_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    stuck, real = True, getattr(os, step)

    def refuse(path: object, *arguments: Any, **more: Any) -> Any:
        if stuck and str(path).endswith("stuck"):
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, step, refuse)
    (tmp_path / "stuck").write_text("stuck")
    os.utime(tmp_path / "stuck", (1, 1))
    (tmp_path / "other").write_text("other")
    async with watched(tmp_path, after="delete", rescanInterval="100ms") as taken:
        await taken.until(1 if step == "open" else 2)
        await asyncio.sleep(0.5)  # in which it could come again
        stuck = False
        async with asyncio.timeout(30):
            while list(tmp_path.iterdir()):
                await asyncio.sleep(0.02)
    assert sorted(item.data for item in taken) == [b"other", b"stuck"]
    assert caplog.text.count("stuck waits until") == 1


async def test_a_folder_that_cannot_be_read_keeps_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, real = False, os.open

    def refuse(path: Any, *arguments: Any, **more: Any) -> int:
        if closed and path == "closed":
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, "open", refuse)
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed/a").write_text("a")
    async with watched(tmp_path, recursive="true", rescanInterval="100ms") as taken:
        await taken.until(1)
        closed = True
        (tmp_path / "b").write_text("b")
        await taken.until(2)
        closed = False
        await asyncio.sleep(0.5)  # in which the first could come again
    assert [item.data for item in taken] == [b"a", b"b"]


async def test_a_run_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    taken = Taken()
    taken.refuse = lambda item: BrokerUnavailable("away")
    binding = watch(tmp_path, settled="0s")
    await binding.start()
    failed: list[BaseException] = []  # which hold on to what was under way
    with pytest.raises(BrokerUnavailable) as caught:
        await binding.run(taken.accept)
    failed.append(caught.value)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await binding.close()


async def test_an_index_that_cannot_be_used_leaves_no_thread(tmp_path: Path) -> None:
    (tmp_path / "index.db").write_text("no database at all, but long enough to be looked at" * 20)
    binding = watch(tmp_path, index=str(tmp_path / "index.db"))
    with pytest.raises(StoreError, match="not a database"):
        await binding.start()
    await binding.close()
    for thread in threading.enumerate():
        if thread.name == "sqlite":
            await asyncio.to_thread(thread.join, 5)
            assert not thread.is_alive()


async def test_a_name_that_looks_like_a_url_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "data:text").mkdir()
    (tmp_path / "data:text/html\r\nX-Evil: 1,.json").write_text("1")
    async with watched(tmp_path, recursive="true") as taken:
        await taken.until(1)
    assert taken[0].content_type == "application/json"


@pytest.mark.parametrize(
    "settings",
    [
        *({"pattern": "a/*"}, {"after": "delete", "index": "x.db"}, {"after": "burn"}),
        *({"doneFolder": "..", "after": "move"}, {"doneFolder": "archive"}),
    ],
)
def test_settings_that_cannot_be_obeyed(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="metadata"):
        watch(tmp_path, **settings)


async def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="No such file"):
        await watch(tmp_path / "nowhere").start()
