"""Many reminders that are due one after the other, on three hosts of which one dies, with a broker that does, too.

`REMINDERS` is how many there are, `REMINDERS_SECONDS` over how long they are due. Hosts, apps, broker and test share
the machine: 200 a second is what a busy one of two cores bears.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.chaos.brokers import BROKERS, mesh_on
from tests.e2e.mesh import App, Request, Sidecar

NUMBER = int(os.environ.get("REMINDERS", "2000"))
SECONDS = float(os.environ.get("REMINDERS_SECONDS", "10"))
CREATED = 400
"""Reminders a second that can surely be made."""
CONNECTIONS = 8
"""Over which they are made, for each host."""
HOSTS = 3
LEASE = 6.0
OUTAGE = 1.0
LIMIT = 90.0
"""Seconds after the last was due in which all must have fired: an attempt that died with its host comes again after the
broker's patience."""

pytestmark = [pytest.mark.quiet, pytest.mark.timeout(240 + 2 * SECONDS + NUMBER / 100)]


class Bells:
    """When each reminder rang, at whichever host."""

    def __init__(self) -> None:
        self.first: dict[int, float] = {}
        self.repeats = 0

    def ring(self, number: int) -> None:
        if number in self.first:
            self.repeats += 1
        else:
            self.first[number] = time.time()


class Host(App):
    """Keeps no request: there may be very many."""

    def __init__(self, bells: Bells) -> None:
        super().__init__()
        self._bells = bells
        self.count: Counter[str] = Counter()

    async def _reply(self, request: Request) -> tuple[int, bytes]:
        if request.path == "/dapr/config":
            return 200, b'{"entities": ["Alarm"]}'
        if request.path.endswith("/method/remind/wake"):
            self.count[request.method] += 1
            self._bells.ring(int(request.path.split("/")[3]))
        return 200, b""


async def create(sidecar: Sidecar, numbers: range, start: float) -> None:
    """Over one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
    try:
        for number in numbers:
            moment = datetime.fromtimestamp(due(number, start), UTC).isoformat(timespec="milliseconds")
            body = json.dumps({"dueTime": moment.replace("+00:00", "Z")}).encode()
            path = f"/v1.0/actors/Alarm/{number}/reminders/wake"
            writer.write(f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode())
            writer.write(body)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT)
            assert head.startswith(b"HTTP/1.1 204 "), head
    finally:
        writer.close()


def due(number: int, start: float) -> float:
    return start + number * SECONDS / NUMBER


def outstanding(bells: Bells, start: float, now: float) -> set[int]:
    """Those that were due and did not ring."""
    last = min(NUMBER, int((now - start) * NUMBER / SECONDS))
    return {number for number in range(last) if number not in bells.first}


async def rung(bells: Bells, numbers: set[int], limit: float) -> float:
    """When all of these had rung."""
    deadline = time.monotonic() + limit
    while missing := numbers - bells.first.keys():
        assert time.monotonic() < deadline, f"{len(missing)} reminders never fired: {sorted(missing)[:10]}"
        await asyncio.sleep(0.05)
    return max((bells.first[number] for number in numbers), default=time.time())


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))] if values else 0.0


@pytest.mark.parametrize("broker", BROKERS)
async def test_every_reminder_fires_though_a_host_dies_and_the_broker_restarts(tmp_path: Path, broker: str) -> None:
    bells = Bells()
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(mesh_on(broker, tmp_path))
        apps = [await stack.enter_async_context(Host(bells)) for _ in range(HOSTS)]
        hosts = [
            mesh.add("alarms", app=app, name=f"host{number}", MESHWIRE_ACTOR_LEASE=f"{LEASE:g}s").start()
            for number, app in enumerate(apps)
        ]
        await asyncio.gather(*(host.ready() for host in hosts))
        async with asyncio.timeout(60):
            while len(hosting := (await hosts[0].call("GET", "/mesh/v1/actors")).json["types"]) < 1 or sorted(
                len(host["partitions"]) for host in hosting[0]["hosts"]
            ) != [21, 21, 22]:
                await asyncio.sleep(0.1)

        begun = time.time()
        start = begun + 2.0 + NUMBER / CREATED
        lanes = HOSTS * CONNECTIONS
        await asyncio.gather(*(create(hosts[lane % HOSTS], range(lane, NUMBER, lanes), start) for lane in range(lanes)))
        created = time.time()

        await asyncio.sleep(max(0.0, start + 0.1 * SECONDS - time.time()))
        hosts[0].kill()
        await asyncio.sleep(max(0.0, start + 0.3 * SECONDS - time.time()))
        await asyncio.to_thread(mesh.server.kill)
        await asyncio.sleep(OUTAGE)
        await asyncio.to_thread(mesh.server.start)
        recovered = time.time()
        backlog = outstanding(bells, start, recovered)
        cleared = await rung(bells, backlog, SECONDS + LIMIT)
        await asyncio.sleep(max(0.0, start + SECONDS - time.time()))
        await rung(bells, set(range(NUMBER)), LIMIT)

    rate = NUMBER / SECONDS
    rang = sum(recovered < moment <= cleared for moment in bells.first.values())
    late = [moment - due(number, start) for number, moment in bells.first.items() if due(number, start) > cleared]
    print(
        f"{NUMBER} reminders made in {created - begun:.1f} s, due within {SECONDS:g} s ({rate:g}/s): "
        f"backlog when the broker was back {len(backlog)}, gone after {cleared - recovered:.1f} s, "
        f"meanwhile {rang / (cleared - recovered) / rate:.2f} of the rate; after that, {len(late)} of them: lateness "
        f"p50 {quantile(late, 0.5):.2f} s, p99 {quantile(late, 0.99):.2f} s; repeats {bells.repeats}; "
        f"by host {[app.count['PUT'] for app in apps]}"
    )
    assert created < start, "they were not made in time"
    assert backlog, "nothing was late: nothing was shown"
    assert bells.repeats < NUMBER / 2
    assert all(app.count["PUT"] for app in apps)
