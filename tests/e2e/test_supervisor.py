"""The supervisor with a stand-in for the sidecar: who starts when, who ends whom, and what is left (nothing)."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ports import free_port

STAND_IN = Path(__file__).with_name("stand_in_sidecar.py")

DRIVER = """
import os, sys
from mesh.errors import ConfigurationError
from sidecar import supervisor
from sidecar.supervisor import Api, App, Plan, supervise
supervisor.GRACE, supervisor.START_LIMIT, supervisor.LEFT_BEHIND = {grace!r}, {start_limit!r}, 0.3
supervisor.KILL_LIMIT = supervisor.ANSWER_LIMIT = 30.0  # the machine may be busy
supervisor.GUARD = supervisor.GUARD.replace("sleep 5", "sleep {orphaned!r}")
def tend():
    if os.path.exists({trouble!r}):
        raise ConfigurationError("the broker is in trouble")
app = App({app!r}, dict(os.environ), waits={waits!r}) if {app!r} else None
plan = Plan({sidecar!r}, app, Api("127.0.0.1", {port}), dict(os.environ))
beside = [Plan(["sleep", "60"], None, Api("127.0.0.1", 1), dict(os.environ))] if {beside!r} else []
sys.exit(supervise([plan, *beside], tend=tend))
"""


class Run:
    def __init__(
        self, tmp_path, app, behaviour="", waits=False, grace=60.0, start_limit=60.0, orphaned=0.5, beside=False
    ):
        self.port = free_port()
        self.trouble = tmp_path / "trouble"
        sidecar = [sys.executable, "-P", str(STAND_IN), str(self.port), behaviour]
        driver = DRIVER.format(
            trouble=str(self.trouble),
            app=app,
            sidecar=sidecar,
            waits=waits,
            port=self.port,
            grace=grace,
            start_limit=start_limit,
            orphaned=orphaned,
            beside=beside,
        )
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", driver],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )
        self.lines = []

    def until(self, pattern):
        """Read until a line matches, unless one did already; return the match."""
        if match := re.search(pattern, "".join(self.lines)):
            return match
        for line in self.process.stdout:
            self.lines.append(line)
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"no {pattern!r} in {''.join(self.lines)!r}")

    def end(self):
        """The exit code and all output. Nobody may hold the output open any more."""
        rest, _ = self.process.communicate(timeout=30)
        return self.process.returncode, "".join(self.lines) + rest


@pytest.fixture
def start(tmp_path):
    started = []

    def start(script, *args, **options):
        run = Run(tmp_path, ["sh", "-c", script, "sh", *args] if script else None, **options)
        started.append(run)
        return run

    yield start
    for run in started:
        if run.process.poll() is None:
            run.process.terminate()
        run.process.wait(30)
        run.process.stdout.close()


def runs(pid):
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(shown.strip()) and not shown.startswith("Z")


def wait_until_gone(*pids, limit=30.0):
    deadline = time.monotonic() + limit
    while any(map(runs, pids)):
        assert time.monotonic() < deadline, [pid for pid in pids if runs(pid)]
        time.sleep(0.01)


def test_end_of_the_app_ends_the_sidecar_and_gives_the_exit_code(start):
    run = start("echo one; echo two >&2; exit 3")
    code, output = run.end()
    assert code == 3
    assert re.findall("== APP == (.*)", output) == ["one", "two"]
    assert "The app exited with exit status 3" in output


def test_app_that_succeeds(start):
    assert start("exit 0").end()[0] == 0


def test_app_that_a_signal_ends(start):
    code, output = start("kill -KILL $$").end()
    assert code == 128 + signal.SIGKILL
    assert "The app exited with signal SIGKILL" in output


def test_app_without_a_port_starts_when_the_sidecar_answers(start):
    code, output = start("echo app", waits=True).end()
    assert code == 0
    assert output.index("asked: GET /v1.0/healthz/outbound") < output.index("== APP == app")


def test_app_without_a_port_starts_at_last_even_if_the_sidecar_does_not_answer(start):
    code, output = start("echo app", waits=True, behaviour="deaf", start_limit=0.5).end()
    assert code == 0
    assert output.index("The sidecar does not answer") < output.index("== APP == app")


def test_sidecar_learns_who_runs(start):
    run = start("echo pid $$; sleep 60")
    app = int(run.until(r"== APP == pid (\d+)")[1])
    run.until("You're up and running! Both")
    run.process.send_signal(signal.SIGTERM)
    _, output = run.end()
    assert f"asked: PUT /v1.0/metadata/cliPID {run.process.pid}\n" in output
    assert f"asked: PUT /v1.0/metadata/appPID {app}\n" in output
    assert "asked: PUT /v1.0/metadata/appCommand sh -c echo pid $$; sleep 60 sh\n" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_stops_app_and_sidecar_once_each(start, number):
    run = start("trap 'echo told; exit 5' TERM; echo ready; while :; do sleep 0.01; done")
    run.until("== APP == ready")
    run.until("up and running")
    os.killpg(run.process.pid, number)  # as a terminal does
    code, output = run.end()
    assert code == 5
    assert output.count("== APP == told") == 1
    assert "sidecar stops after signals: 1" in output


def test_sidecar_alone_runs_until_the_signal(start):
    run = start(None)
    run.until("The sidecar's logs will appear here")
    run.process.send_signal(signal.SIGINT)
    assert run.end()[0] == 0


def test_who_ignores_the_request_to_stop_is_killed_after_the_grace(start):
    run = start("trap '' TERM; echo ready; while :; do sleep 0.1; done", behaviour="hang", grace=1.0)
    run.until("up and running")
    run.process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    assert run.end()[0] == 128 + signal.SIGKILL
    assert time.monotonic() - started > 0.9


def test_second_signal_kills_at_once(start):
    run = start("trap '' TERM; echo ready; while :; do sleep 0.1; done", behaviour="hang")
    run.until("up and running")
    for _ in range(100):  # one that comes early may be merged with the one before
        if run.process.poll() is None:
            run.process.send_signal(signal.SIGINT)
            time.sleep(0.1)
    assert run.end()[0] == 128 + signal.SIGKILL  # sooner than the grace


def test_sidecar_that_fails_ends_the_app(start):
    code, output = start("exec sleep 60", behaviour="fail").end()
    assert code == 1
    assert "The sidecar exited with exit status 7" in output


def test_sidecar_that_fails_before_the_app_starts(start):
    code, output = start("echo app", behaviour="fail", waits=True).end()
    assert code == 1
    assert "== APP ==" not in output


def test_sidecar_that_leaves_in_good_order_ends_the_app(start):
    code, _ = start("trap 'exit 0' TERM; while :; do sleep 0.01; done", behaviour="leave").end()
    assert code == 0


def test_broker_in_trouble_ends_the_run(start):
    run = start("exec sleep 60")
    run.trouble.touch()
    code, output = run.end()
    assert code == 1
    assert "the broker is in trouble" in output


def test_broker_in_trouble_ends_several_and_is_told_once(start):
    run = start("exec sleep 60", beside=True)
    run.trouble.touch()
    code, output = run.end()
    assert code == 1
    assert output.count("the broker is in trouble") == 1


def test_of_several_each_ends_for_itself(start):
    run = start("exit 3", beside=True)
    run.until("The app exited with exit status 3")
    with pytest.raises(subprocess.TimeoutExpired):
        run.process.wait(0.3)
    run.process.send_signal(signal.SIGTERM)
    assert run.end()[0] == 1


def test_what_an_app_leaves_behind_is_ended(start):
    run = start("(trap '' TERM; echo pid $(exec sh -c 'echo $PPID'); while :; do sleep 0.1; done) & sleep 0.2; exit 4")
    left = int(run.until(r"== APP == pid (\d+)")[1])
    assert run.end()[0] == 4  # sooner than the grace
    wait_until_gone(left)


@pytest.mark.parametrize("waits", [False, True])
def test_nothing_survives_the_kill_of_the_supervisor(start, waits, tmp_path):
    asked = tmp_path / "asked"
    script = "trap 'touch $1; exit' TERM; echo pid $$; sleep 60 & echo child $!; wait"
    run = start(script, str(asked), waits=waits, orphaned=5)
    app = int(run.until(r"== APP == pid (\d+)")[1])
    child = int(run.until(r"== APP == child (\d+)")[1])
    run.until("up and running")
    sidecar = int(run.until(r"sidecar runs (\d+)")[1])
    run.process.kill()
    wait_until_gone(app, child, sidecar)
    assert "sidecar stops after signals: 0" in run.end()[1]
    assert asked.exists()


def test_nothing_survives_the_kill_of_the_sidecar(start):
    run = start("echo pid $$; sleep 60 & echo child $!; wait")
    app = int(run.until(r"== APP == pid (\d+)")[1])
    child = int(run.until(r"== APP == child (\d+)")[1])
    run.until("up and running")
    os.kill(int(run.until(r"sidecar runs (\d+)")[1]), signal.SIGKILL)
    code, output = run.end()
    assert code == 1
    assert "The sidecar exited with signal SIGKILL" in output
    wait_until_gone(app, child)


@pytest.mark.parametrize("first", ["sidecar", "supervisor"])
def test_nothing_survives_the_kill_of_both(start, first):
    run = start("trap '' TERM; echo pid $$; sleep 60 & echo child $!; while :; do sleep 0.1; done")
    app = int(run.until(r"== APP == pid (\d+)")[1])
    child = int(run.until(r"== APP == child (\d+)")[1])
    group = os.getpgid(app)
    run.until("up and running")
    both = [int(run.until(r"sidecar runs (\d+)")[1]), run.process.pid]
    for pid in both if first == "sidecar" else reversed(both):
        os.kill(pid, signal.SIGKILL)
    run.process.wait()
    wait_until_gone(app, child, group)


def test_app_that_leaves_its_process_group_is_ended_all_the_same(start):
    run = start('exec "$@"', sys.executable, "-c", "import os, time; os.setsid(); print(os.getpid()); time.sleep(60)")
    run.until("up and running")
    run.process.send_signal(signal.SIGTERM)
    assert run.end()[0] == 0


def test_program_that_cannot_be_run(start, tmp_path):
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF")
    broken.chmod(0o700)
    run = Run(tmp_path, [str(broken)])
    code, output = run.end()
    assert code == 1
    assert f"'{broken}' cannot be started" in output


def test_output_is_copied_line_by_line_and_what_does_not_end_in_pieces(start):
    script = "import sys; sys.stdout.write('short\\n' + 'a' * 400_000 + '\\nno end')"
    run = start('exec "$@"', sys.executable, "-c", script)
    _, output = run.end()
    first, *pieces, last = re.findall("== APP == (.*)", output)
    assert (first, last) == ("short", "no end")
    assert "".join(pieces) == "a" * 400_000
    assert max(map(len, pieces)) <= 65536 + 16384


def test_app_goes_on_when_nobody_reads_its_output(start, tmp_path):
    go, done = tmp_path / "go", tmp_path / "done"
    lines = "i=0; while [ $i -lt 20000 ]; do echo line; i=$((i+1)); done"
    run = start(f"until [ -e {go} ]; do sleep 0.01; done; {lines}; touch {done}; exit 6")
    run.until("up and running")
    run.process.stdout.close()
    go.touch()
    assert run.process.wait(30) == 6
    assert done.exists()
