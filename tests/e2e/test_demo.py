"""`make demo`, as a newcomer runs it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def demo(temporary: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    temporary.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-P", ROOT / "examples" / "demo.py"],
        env=os.environ | {"TMPDIR": str(temporary)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def processes_that_use(folder: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command:
            found.append(command)
    return found


def test_everything_arrives_and_nothing_stays(tmp_path):
    # A short name: the keeper's files live below it.
    ended = demo(tmp_path / "t")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Everything arrived." in ended.stdout
    assert ended.stdout.count("as it was sent") == 4
    assert list((tmp_path / "t").iterdir()) == []
    assert processes_that_use(tmp_path) == []


def test_a_broker_that_cannot_run_is_told(tmp_path):
    """It fails, and says why; `$TMPDIR` is where all of its files go."""
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "sitecustomize.py").write_text(
        "import sys\nsys.argv[1:2] == ['subscriber'] and sys.exit('this app does not start')\n"
    )
    ended = demo(tmp_path / "t", PYTHONPATH=str(tmp_path / "t"))
    assert ended.returncode == 1
    assert "✗" in ended.stderr
    assert processes_that_use(tmp_path) == []
