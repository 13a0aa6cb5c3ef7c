"""Actors on six hosts that crash, freeze, leave and come back under load, while their broker does: a log of all turns
is judged afterwards (`tests/chaos/turns.py`).

`ACTORS_SECONDS` is how long the storm lasts, `ACTORS_RATE` how many calls a second are made. Hosts, apps, broker and
load share the machine: 40 calls a second leave half of two cores to it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from mesh.addressing import ACTOR_PARTITIONS, actor_partition
from tests.chaos import turns
from tests.chaos.actor_host import TYPE
from tests.chaos.brokers import BROKERS, mesh_on
from tests.e2e.mesh import JSON, Mesh, Process, Sidecar, until
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("ACTORS_SECONDS", "4"))
RATE = float(os.environ.get("ACTORS_RATE", "40"))
ACTORS = 10_000
HOT = 60
"""Actors that get half of all calls."""
LONG = 40
"""Actors that have long turns when a fault is near."""
HOSTS = 6
LEASE = 6.0
CALM = 3.0
"""Seconds of load before the first fault."""
FREEZE = LEASE + 3.0
GAP = 2.0
"""Seconds between the beginnings of two faults."""
AT_ONCE = 3
"""Faults that go on at the same time."""
PREFIX = "error invoke actor method: "
SLACK = 10.0
"""Seconds that a busy machine may take for what is due at once."""

pytestmark = [pytest.mark.quiet, pytest.mark.timeout(200 + 3 * SECONDS)]


class Host(NamedTuple):
    """A sidecar and its app."""

    sidecar: Sidecar
    app: Process

    async def leave(self) -> None:
        await self.sidecar.end()

    def freeze(self) -> None:
        self.sidecar.send(signal.SIGSTOP)
        os.waitid(os.P_PID, self.sidecar.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        self.sidecar.send(signal.SIGCONT)


class Call(NamedTuple):
    """What became of a call that was made while the directory was known."""

    actor: str
    due: float
    done: float
    ok: bool

    @property
    def wait(self) -> float:
        return self.done - self.due


class Fleet:
    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.random = random.Random()
        self.hosts: list[Host] = []
        self.gate = mesh.add("gate")
        """Most calls are made here. Hosts nothing, and is left alone."""
        self.calls: list[Call] = []
        self.acknowledged: dict[str, str] = {}
        """The turn that answered each call."""
        self.refused: Counter[str] = Counter()
        self.called: set[str] = set()
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    # The fleet

    async def start(self) -> None:
        for number in range(HOSTS):
            name, port = f"host{number}", free_port()
            sidecar = self.mesh.add(name, app=port, MESHWIRE_ACTOR_LEASE=f"{LEASE:g}s")
            log = self._log(name)
            log.touch()
            command = [sys.executable, "-P", "-m", "tests.chaos.actor_host"]
            command += [name, str(port), str(sidecar.port), str(log)]
            app = Process(self.mesh.folder, f"{name}-app", command, {"PYTHONPATH": str(ROOT)})
            self.mesh.processes.append(app)
            self.hosts.append(Host(sidecar, app))
        for process in (self.gate, *itertools.chain(*self.hosts)):
            process.start()
        await asyncio.gather(*(sidecar.ready() for sidecar in (self.gate, *(host.sidecar for host in self.hosts))))
        await self.settled()

    def _log(self, name: str) -> Path:
        return self.mesh.folder / f"{name}.turns"

    async def owners(self) -> dict[int, str]:
        """The app id of each partition's owner, as the gate knows it."""
        told = (await self.gate.call("GET", "/mesh/v1/actors")).json["types"]
        hosts = [host for one in told if one["type"] == TYPE for host in one["hosts"]]
        return {partition: host["appID"] for host in hosts for partition in host["partitions"]}

    async def settled(self) -> None:
        """Returns when all hosts have their share."""
        async with asyncio.timeout(60):
            while True:
                shares = Counter((await self.owners()).values())
                spread = max(shares.values(), default=0) - min(shares.values(), default=0)
                if len(shares) == HOSTS and sum(shares.values()) == ACTOR_PARTITIONS and spread <= 1:
                    return
                await asyncio.sleep(0.1)

    # Load

    def actor(self) -> str:
        return f"a{self.random.randrange(HOT if self.random.random() < 0.5 else ACTORS)}"

    async def load(self) -> None:
        """Call at a fixed rate, whatever becomes of the calls."""
        begun = time.monotonic()
        for number in itertools.count():
            await asyncio.sleep(max(0.0, begun + number / RATE - time.monotonic()))
            self.call(self.actor())

    def call(self, actor: str, *, pause: float = 0.0, by: Sidecar | None = None) -> None:
        task = asyncio.get_running_loop().create_task(self._call(actor, pause, by or self.gate))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(self, actor: str, pause: float, by: Sidecar) -> None:
        name, due = f"c{next(self._numbers)}", time.monotonic()
        self.called.add(actor)
        body = json.dumps({"call": name, "pause": pause}).encode()
        try:
            answer = await by.call("POST", f"/v1.0/actors/{TYPE}/{actor}/method/add", [JSON], body)
        except (OSError, AssertionError, TimeoutError) as error:
            self.refused[type(error).__name__] += 1
            self.calls.append(Call(actor, due, time.monotonic(), ok=False))
            return
        if answer.status == 200:
            self.acknowledged[name] = answer.body.decode()
        else:
            said = answer.json["message"]
            self.refused[re.sub(r"PUT \S+|http://\S+|: \[.*", "…", said.removeprefix(PREFIX))] += 1
        self.calls.append(Call(actor, due, time.monotonic(), ok=answer.status == 200))

    def long_turns(self, pause: float) -> None:
        """On all hosts, so that whoever is struck within `pause` seconds is struck in the middle of some."""
        for number in range(LONG):
            self.call(f"long{number}", pause=pause)

    async def in_the_middle(self, host: Host) -> None:
        """Returns when a long turn of `host` has read, and has not written yet."""
        log = self._log(host.sidecar.app_id)
        await until(
            lambda: any(
                turn.actor.startswith("long") and turn.read is not None and turn.ended is None
                for turn in turns.read([log]).values()
            ),
            lambda: f"{host.sidecar.app_id} has no long turn",
            20,
        )

    async def answers_to_all_until_now(self) -> None:
        """Whatever comes in the meantime."""
        await asyncio.wait(set(self._tasks), timeout=90)

    async def answered(self) -> None:
        await until(lambda: not self._tasks, lambda: f"{len(self._tasks)} calls were never answered", 90)

    # What is true at the end

    async def kept(self) -> dict[str, tuple[int, str]]:
        """What each actor that was called has."""
        found: dict[str, tuple[int, str]] = {}
        for actor in self.called:
            answer = await self.hosts[0].sidecar.call("GET", f"/v1.0/actors/{TYPE}/{actor}/state/sum")
            assert answer.status in (200, 204), answer
            if answer.status == 200:
                number, turn = answer.json
                found[actor] = (number, turn)
        return found

    async def judged(self) -> turns.Verdict:
        log = turns.read(self._log(host.sidecar.app_id) for host in self.hosts)
        verdict = turns.judge(log, self.acknowledged, await self.kept())
        print(
            f"{len(self.calls)} calls of {len(self.called)} actors, {len(self.acknowledged)} acknowledged; "
            f"{len(log)} turns, {sum(turn.saved for turn in log.values())} saved; overlapping under two leases: "
            f"{verdict.overlaps}, of these the older one refused: {verdict.older_refused}, "
            f"had written before: {verdict.older_first}; not acknowledged: {dict(self.refused)}"
        )
        return verdict


class Storm:
    """Faults at random, no more than a few at a time, each host in one of them at most."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._idle = set(range(HOSTS))
        self._broker_rests = 0.0
        """Until then it is left alone: three quarters of the time it is there, however long it takes to start."""
        self.away = 0.0
        """Seconds for which the broker was not there."""
        self._faults: list[Callable[[Host], Awaitable[None]]] = [self.restart_broker, self.leave, self.crash_app]
        """Those to come: first what has not been seen, then all in any order."""
        self.count: Counter[str] = Counter()

    async def rage(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            while time.monotonic() < end:
                if HOSTS - len(self._idle) < AT_ONCE:
                    group.create_task(self._strike())
                await asyncio.sleep(GAP)

    async def _strike(self) -> None:
        if not self._faults:
            self._faults = [self.crash, self.crash_app, self.freeze, self.freeze_app, self.leave, self.restart_broker]
            self._fleet.random.shuffle(self._faults)
        fault = self._faults.pop()
        if fault == self.restart_broker and time.monotonic() < self._broker_rests:
            return
        self.count[fault.__name__] += 1
        number = self._fleet.random.choice(sorted(self._idle))
        self._idle.discard(number)
        try:
            self._fleet.long_turns(pause=1.0)
            await self._pause(0.5, 0.5)
            await fault(self._fleet.hosts[number])
        finally:
            self._idle.add(number)

    async def _pause(self, least: float, most: float) -> None:
        await asyncio.sleep(self._fleet.random.uniform(least, most))

    async def crash(self, host: Host) -> None:
        host.sidecar.kill()
        await self._pause(0.5, LEASE + 3)
        await host.sidecar.start().ready()

    async def crash_app(self, host: Host) -> None:
        host.app.kill()
        await self._pause(0.2, 1.0)
        host.app.start()

    async def freeze(self, host: Host) -> None:
        host.freeze()
        await self._pause(FREEZE, FREEZE + 4)
        host.thaw()

    async def freeze_app(self, host: Host) -> None:
        host.app.send(signal.SIGSTOP)
        await self._pause(1.0, FREEZE)
        host.app.send(signal.SIGCONT)

    async def leave(self, host: Host) -> None:
        await host.leave()
        await host.sidecar.start().ready()

    async def restart_broker(self, _host: Host) -> None:
        begun, self._broker_rests = time.monotonic(), math.inf
        await asyncio.to_thread(self._fleet.mesh.server.kill)
        await self._pause(0.2, 1.5)
        await asyncio.to_thread(self._fleet.mesh.server.start)
        took = time.monotonic() - begun
        self.away += took
        self._broker_rests = begun + 4 * took


def quantile(calls: list[Call], share: float = 0.99) -> float:
    waits = sorted(call.wait for call in calls)
    return waits[int(share * (len(waits) - 1))] if waits else 0.0


@pytest.fixture(params=BROKERS)
async def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with mesh_on(request.param, tmp_path) as mesh:
        fleet = Fleet(mesh)
        await fleet.start()
        yield fleet


async def test_turns_are_fenced_and_nothing_acknowledged_is_lost(fleet: Fleet) -> None:
    """First two hosts go at the same time, one dead and one frozen: whoever calls their actors waits for their leases,
    nobody else does. Then comes the storm."""
    load = asyncio.create_task(fleet.load())
    await asyncio.sleep(CALM)
    owners = await fleet.owners()
    dead, frozen = fleet.hosts[0], fleet.hosts[1]
    fleet.long_turns(pause=5.0)
    await asyncio.gather(fleet.in_the_middle(dead), fleet.in_the_middle(frozen))
    dead.sidecar.kill()
    frozen.freeze()
    struck = time.monotonic()
    await asyncio.sleep(LEASE + 2.0)
    after = time.monotonic()
    answers = asyncio.create_task(fleet.answers_to_all_until_now())
    await dead.sidecar.start().ready()
    await asyncio.sleep(max(0.0, struck + FREEZE - time.monotonic()))
    frozen.thaw()
    await answers

    storm = Storm(fleet)
    await storm.rage(SECONDS)
    load.cancel()
    await fleet.answered()
    await fleet.settled()
    verdict = await fleet.judged()

    gone = {dead.sidecar.app_id, frozen.sidecar.app_id}
    calls = [call for call in fleet.calls if not call.actor.startswith("long")]
    owned = {call: owners[actor_partition(call.actor)] for call in calls}
    window = [call for call in calls if struck <= call.due < after]
    before = [call for call in calls if call.due < struck - 2.5]
    others = [call for call in window if owned[call] not in gone]
    waits = {host: quantile([call for call in window if owned[call] == host.sidecar.app_id]) for host in (dead, frozen)}
    print(
        f"faults: {dict(storm.count)}, broker away for {storm.away:.0f} s; lease {LEASE:g} s, {RATE:g} calls/s; "
        f"p50 and p99 before {quantile(before, 0.5) * 1e3:.0f}, {quantile(before) * 1e3:.0f} ms, others meanwhile "
        f"{quantile(others, 0.5) * 1e3:.0f}, {quantile(others) * 1e3:.0f} ms; "
        f"p99 of the dead host's {waits[dead]:.2f} s, of the frozen one's {waits[frozen]:.2f} s "
        f"({len(window) - len(others)} calls of both, {len(others)} of others)"
    )
    assert not verdict.wrong, f"{len(verdict.wrong)}:\n" + "\n".join(verdict.wrong[:10])
    assert verdict.older_refused, "no turn was late: nothing was shown"
    assert len(fleet.acknowledged) > 0.8 * len(fleet.calls)
    assert [call for call in window if not call.ok] == [], "calls failed, whose owner was gone"
    slowness = 5 * quantile(before)  # of a busy machine
    assert quantile(others) < LEASE / 2 + slowness
    assert max(waits.values()) < LEASE + SLACK + slowness
