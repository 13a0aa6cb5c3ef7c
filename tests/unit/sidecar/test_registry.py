from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.registry import Entry, entries, register

OWNER = """
import os, sys
from pathlib import Path
from sidecar.registry import Entry, register
register(Path(sys.argv[1]), Entry(app_id=sys.argv[2], http_port=1, daprd_pid=os.getpid(), created=1.0))
print("registered", flush=True)
sys.stdin.read()
"""


def owner(folder: Path, app_id: str) -> subprocess.Popen[bytes]:
    """A process that is registered as `app_id` until its stdin closes."""
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", OWNER, str(folder), app_id],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"registered\n"
    return process


def entry(app_id: str = "orders", **changes: object) -> Entry:
    told = {"app_id": app_id, "http_port": 3500, "daprd_pid": os.getpid(), "created": 1.0, **changes}
    return Entry(**told)


def test_an_entry_is_listed_from_register_to_close(tmp_path: Path) -> None:
    mine = entry(app_port=6001, cli_pid=7, socket="/run/x.socket")
    registration = register(tmp_path, mine)
    assert entries(tmp_path) == [mine]
    with registration.path.open() as seen:
        registration.close()
        registration.close()
        fcntl.flock(seen, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock is free, too
    assert entries(tmp_path) == []
    assert list((tmp_path / "run").iterdir()) == []


def test_a_mesh_that_never_ran_is_empty_and_stays_unmade(tmp_path: Path) -> None:
    assert entries(tmp_path / "mesh") == []
    assert not (tmp_path / "mesh").exists()


def test_only_the_user_can_read_it(tmp_path: Path) -> None:
    registration = register(tmp_path, entry())
    assert stat.S_IMODE(registration.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(registration.path.parent.stat().st_mode) == 0o700
    registration.close()


def test_the_file_speaks_camel_case(tmp_path: Path) -> None:
    registration = register(tmp_path, entry(app_port=6001))
    assert json.loads(registration.path.read_bytes()) == {
        "appId": "orders",
        "httpPort": 3500,
        "appPort": 6001,
        "daprdPid": os.getpid(),
        "cliPid": None,
        "socket": None,
        "created": 1.0,
    }
    registration.close()


@pytest.mark.parametrize("app_id", ["../../etc/passwd", "a/b", "..", "ü" * 300, "a\nb", ""])
def test_no_app_id_leaves_the_folder(tmp_path: Path, app_id: str) -> None:
    registration = register(tmp_path, entry(app_id))
    assert registration.path.parent == tmp_path / "run"
    assert [found.app_id for found in entries(tmp_path)] == [app_id]
    registration.close()


def test_a_killed_sidecar_disappears_and_its_file_is_deleted(tmp_path: Path) -> None:
    with owner(tmp_path, "victim") as victim, owner(tmp_path, "survivor") as survivor:
        assert sorted(found.app_id for found in entries(tmp_path)) == ["survivor", "victim"]
        victim.kill()
        victim.wait(30)
        assert len(list((tmp_path / "run").iterdir())) == 2
        assert [found.daprd_pid for found in entries(tmp_path)] == [survivor.pid]
        assert [path.name for path in (tmp_path / "run").iterdir()] == [f"survivor-{survivor.pid}.json"]
        survivor.kill()


def test_the_file_of_a_dead_process_with_the_same_id_is_taken_over(tmp_path: Path) -> None:
    stale = tmp_path / "run" / f"orders-{os.getpid()}.json"
    stale.parent.mkdir()
    stale.write_text('{"appId": "of somebody else"}')
    registration = register(tmp_path, entry())
    assert entries(tmp_path) == [entry()]
    registration.close()


def test_the_oldest_comes_first(tmp_path: Path) -> None:
    kept = [
        register(tmp_path, entry(app_id, created=created)) for app_id, created in (("b", 2.0), ("a", 3.0), ("c", 1.0))
    ]
    assert [found.app_id for found in entries(tmp_path)] == ["c", "b", "a"]
    for registration in kept:
        registration.close()


def test_what_a_living_sidecar_of_another_release_wrote_is_left_alone(tmp_path: Path) -> None:
    registration = register(tmp_path, entry())
    registration.path.write_text('{"who": "knows"}')
    assert entries(tmp_path) == []
    assert registration.path.exists()
    registration.close()


def test_two_who_look_at_once_do_not_take_each_other_for_the_owner(tmp_path: Path) -> None:
    registration = register(tmp_path, entry())
    path, kept = registration.path, registration.path.read_bytes()
    registration.close()
    path.write_bytes(kept)
    with path.open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert entries(tmp_path) == []
