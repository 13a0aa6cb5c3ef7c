"""What a newcomer meets first: `make demo`, and the quick start of the README, word for word."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from tests.ports import free_port

ROOT = Path(__file__).parents[2]
LIMIT = 45.0


def processes_that_use(folder):
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command:
            found.append(command)
    return found


def demo(temporary, **environment):
    temporary.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-P", ROOT / "examples" / "demo.py"],
        env=os.environ | {"TMPDIR": str(temporary)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_in_the_demo_everything_arrives_and_nothing_stays(tmp_path):
    ended = demo(tmp_path / "t")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Everything arrived." in ended.stdout
    assert ended.stdout.count("as it was sent") == 4
    assert list((tmp_path / "t").iterdir()) == []
    assert processes_that_use(tmp_path) == []


def test_a_demo_whose_app_does_not_start_says_so(tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "sitecustomize.py").write_text(
        "import sys\nsys.orig_argv[-1] == 'subscriber' and sys.exit('this app does not start')\n"
    )
    ended = demo(tmp_path / "t", PYTHONPATH=str(tmp_path / "t"))
    assert ended.returncode == 1
    assert "this app does not start" in ended.stderr
    assert processes_that_use(tmp_path) == []


CURL = f"""#!{sys.executable} -P
# As much of curl as the README uses, since a bare machine has none.
import sys, urllib.request
words, headers = sys.argv[1:], {{}}
while words:
    match words.pop(0):
        case "-X": method = words.pop(0)
        case "-H": headers.update([words.pop(0).split(": ", 1)])
        case "-d": data = words.pop(0).encode()
        case url: address = f"http://{{url}}"
print(urllib.request.urlopen(urllib.request.Request(address, data, headers, method=method)).status)
"""


@contextmanager
def running(command, environment, folder, until):
    """A command of the README in a terminal of its own; it is stopped at the end. Gives the file it prints to."""
    printed = folder / "printed"
    with printed.open("wb") as sink:
        process = subprocess.Popen(
            shlex.split(command), env=environment, cwd=folder, stdout=sink, stderr=subprocess.STDOUT
        )
    try:
        wait_for(until, printed)
        yield printed
    finally:
        process.terminate()
        process.wait(LIMIT)


def wait_for(text, printed):
    limit = time.monotonic() + LIMIT
    while text not in printed.read_text():
        assert time.monotonic() < limit, f"no {text!r} in:\n{printed.read_text()}"
        time.sleep(0.02)


def test_the_quick_start_of_the_readme(tmp_path):
    readme = (ROOT / "README.md").read_text()
    (app,) = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    (tmp_path / "app.py").write_text(app)
    subscribe, publish = re.findall(r"^\$ (meshwire run .*)$", readme, re.MULTILINE)[:2]
    assert "curl" in publish
    for port in ("6001", "3501", "3500"):
        free = str(free_port())
        subscribe, publish = (re.sub(rf"\b{port}\b", free, command) for command in (subscribe, publish))
    (programs := tmp_path / "bin").mkdir()
    (programs / "curl").write_text(CURL)
    (programs / "curl").chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DAPR_", "MESHWIRE_"))}
    environment["MESHWIRE_HOME"] = str(tmp_path / "home")
    environment["PATH"] = os.pathsep.join([str(programs), str(Path(sys.executable).parent), environment["PATH"]])
    assert shutil.which("meshwire", path=environment["PATH"])

    def publish_once():
        ended = subprocess.run(
            shlex.split(publish), env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "== APP == 204" in ended.stdout

    event = "== APP == {'data': {'status': 'completed'}, 'datacontenttype': 'application/json', 'id': "
    with running(subscribe, environment, tmp_path, until="app is subscribed") as printed:
        publish_once()
        wait_for(event, printed)
    # "stop `sub`, publish again, start `sub`, and the event arrives"
    publish_once()
    with running(subscribe, environment, tmp_path, until="app is subscribed") as printed:
        wait_for(event, printed)
    assert wait_until_gone(tmp_path) == []


def wait_until_gone(folder):
    limit = time.monotonic() + LIMIT
    while (found := processes_that_use(folder)) and time.monotonic() < limit:
        time.sleep(0.05)
    return found
