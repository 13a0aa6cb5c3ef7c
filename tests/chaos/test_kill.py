"""Whoever is killed, under load and with no warning: every event that was accepted reaches the app."""

import asyncio
import os
import re
import signal
import time

import pytest

from tests.e2e.mesh import SINK, Load, Mesh, Process, Run, running, until
from tests.ports import free_port

RATE = 2000
"""Events per second; the load keeps to it as far as the machine has room."""
CALM = 1.5
"""Seconds of load before each kill."""
OUTAGE = 1.0
"""Seconds until somebody starts again what is not started by itself."""
ARRIVAL_LIMIT = 60.0
"""Seconds from the last restart in which everything must have arrived. An event that a killed sidecar held comes
back when the broker's patience (20 s) is over."""

pytestmark = pytest.mark.timeout(180)


class Seen:
    """The file in which the sink notes what it gets."""

    def __init__(self, path):
        self.path = path

    @property
    def numbers(self):
        return [int(line) for line in self.path.read_bytes().split()] if self.path.exists() else []

    async def everything(self, load, since, what):
        """Returns when all that was accepted has been seen; prints how that went."""
        while missing := load.accepted - set(self.numbers):
            assert time.monotonic() < since + ARRIVAL_LIMIT, f"{what}: {len(missing)} lost: {sorted(missing)[:20]}"
            await asyncio.sleep(0.1)
        numbers = self.numbers
        assert len(load.accepted) > 1000
        print(
            f"{what}: {len(load.accepted)} of {load.made} accepted (not: {dict(load.refused)}), all seen "
            f"{time.monotonic() - since:.1f} s after the last restart, {len(numbers) - len(set(numbers))} repeats"
        )

    async def growing(self):
        """Returns when events arrive."""
        before = len(self.numbers)
        await until(lambda: len(self.numbers) > before, lambda: "nothing arrives any more")


async def test_kill_under_load_with_a_server_of_its_own(tmp_path):
    seen, port = Seen(tmp_path / "seen"), free_port()
    async with Mesh(tmp_path) as mesh:
        app = Process(tmp_path, "app", [*SINK, str(port), str(seen.path)], {}).start()
        mesh.processes.append(app)
        sub = await mesh.sidecar("sub", app=port, topics=["A"])
        pub = await mesh.sidecar("pub")

        async with Load(pub.port, RATE) as load:
            for victim in (sub, app, mesh.server):
                await seen.growing()
                await asyncio.sleep(CALM)
                victim.kill()
                await asyncio.sleep(OUTAGE)
                if victim is mesh.server:
                    victim.start(wait=False)
                else:
                    victim.start()
            restarted = time.monotonic()
            await seen.growing()
            await asyncio.sleep(CALM)
        await seen.everything(load, restarted, "sidecar, app and server killed")


KILLED = {
    "the sidecar": r" -m sidecar .*--app-id=sub ",
    "the app": r"^\S+ -P \S+/sink\.py ",
    "the first run": r"cli import main.* --app-id first ",
    "the server": r"nats-server -c ",
    "the keeper": r"/keeper\.py ",
}
"""The command of each victim."""


def victim(home, command):
    """Its process id; `None` when there is none."""
    found = [pid for pid, words in running(home).items() if re.search(command, words)]
    assert len(found) < 2
    return found[0] if found else None


async def test_kill_under_load_with_the_embedded_server(tmp_path):
    home, seen, port = tmp_path / "home", Seen(tmp_path / "seen"), free_port()
    first, pub = Run(home, "first"), Run(home, "pub")
    sub = Run(home, "sub", *SINK, str(port), str(seen.path), app_port=port)
    try:
        await first.start().says("up and running")
        await pub.start().says("up and running")
        await sub.start().says("app is subscribed")
        starts = 1
        async with Load(pub.port, RATE) as load:
            for who, command in KILLED.items():
                await seen.growing()
                await asyncio.sleep(CALM)
                os.kill(victim(home, command), signal.SIGKILL)
                if who in ("the sidecar", "the app"):  # either ending ends both, so both are started again
                    assert await sub.end(None) != 0
                    starts += 1
                    await sub.start().says("app is subscribed", starts)
            await until(lambda: victim(home, KILLED["the server"]), lambda: "the server does not come back")
            restarted = time.monotonic()
            await seen.growing()
            await asyncio.sleep(CALM)
        await seen.everything(load, restarted, ", ".join(KILLED))
    finally:
        for each in (first, sub, pub):
            each.send(signal.SIGTERM)
        await until(lambda: not running(home), lambda: f"left behind: {running(home)}", 15)
        for each in (first, sub, pub):
            each.kill()
    for each in (sub, pub):
        assert "Traceback" not in each.log, each.log
