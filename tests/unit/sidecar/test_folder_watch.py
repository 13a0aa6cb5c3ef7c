import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar import folder_watch
from sidecar.folder_watch import FolderWatch


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_watch, "PERIOD", 0.01)
    monkeypatch.setattr(folder_watch, "QUIET", 0.02)


def link_to_another(path: Path) -> None:
    """As Kubernetes exchanges a mounted ConfigMap: the link stays, what it leads to is another file."""
    (path / "other.txt").write_text("two")
    (path / "linked.yaml.new").symlink_to(path / "other.txt")
    (path / "linked.yaml.new").rename(path / "linked.yaml")


@pytest.mark.parametrize(
    "change",
    [
        lambda path: (path / "a.yaml").write_text("longer"),
        lambda path: (path / "new.YML").write_text(""),
        lambda path: (path / "a.yaml").unlink(),
        lambda path: (path / "a.yaml").rename(path / "b.yaml"),
        link_to_another,
    ],
)
async def test_a_change_is_seen(tmp_path: Path, change: Callable[[Path], object]) -> None:
    (tmp_path / "a.yaml").write_text("one")
    (tmp_path / "one.txt").write_text("one")
    (tmp_path / "linked.yaml").symlink_to(tmp_path / "one.txt")
    watch = FolderWatch([tmp_path])
    change(tmp_path)
    async with asyncio.timeout(30):
        await watch.changed()


async def test_a_link_that_leads_nowhere_hides_nothing(tmp_path: Path) -> None:
    """Editors make such links as locks: `.#a.yaml`."""
    (tmp_path / "a.yaml").write_text("one")
    for number in range(20):  # before and after, in whatever order the folder lists them
        (tmp_path / f".#{number}.yaml").symlink_to("user@host.1")
    watch = FolderWatch([tmp_path])
    (tmp_path / "a.yaml").write_text("longer")
    async with asyncio.timeout(30):
        await watch.changed()


async def test_what_is_no_manifest_does_not_count(tmp_path: Path) -> None:
    watch = FolderWatch([tmp_path])
    (tmp_path / "a.txt").write_text("")
    (tmp_path / ".a.yaml.swp").write_text("")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await watch.changed()


async def test_a_row_of_changes_is_one(tmp_path: Path) -> None:
    watch = FolderWatch([tmp_path])
    seen = asyncio.create_task(watch.changed())
    for number in range(10):
        (tmp_path / f"{number}.yaml").write_text("")
        await asyncio.sleep(0.01)
        assert not seen.done()
    async with asyncio.timeout(30):
        await seen
    assert len(watch._seen) == 10


async def test_a_folder_that_goes_and_comes(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    watch = FolderWatch([folder])
    async with asyncio.timeout(30):
        folder.rmdir()
        await watch.changed()
        folder.mkdir()
        await watch.changed()
