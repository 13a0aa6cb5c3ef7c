"""Actors on hosts that crash, freeze, join and leave: real sidecars around a real broker."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from mesh.addressing import actor_partition
from tests.actor_app import ActorApp
from tests.e2e.mesh import JSON, Answer, Mesh, Reply, Request, Sidecar

LEASE = 6.0
SLACK = 10.0
"""Seconds that a busy machine may take for what is due at once."""


class Host(NamedTuple):
    sidecar: Sidecar
    app: ActorApp


class Fleet(NamedTuple):
    mesh: Mesh
    hosts: list[Host]
    shop: Sidecar
    """Calls, and hosts nothing."""

    async def join(self, stack: AsyncExitStack, number: int) -> Host:
        app = await stack.enter_async_context(ActorApp(entities=["Cart"], drainOngoingCallTimeout="2s"))
        lease = f"{LEASE:g}s"
        sidecar = await self.mesh.sidecar("cart", app=app, name=f"cart{number}", MESHWIRE_ACTOR_LEASE=lease)
        self.hosts.append(Host(sidecar, app))
        return self.hosts[-1]

    async def owners(self) -> dict[int, int]:
        """How many partitions each number of hosts has; who owns each partition, as `shop` knows it."""
        told = (await self.shop.call("GET", "/mesh/v1/actors")).json["types"]
        return {
            partition: number
            for one in told
            for number, host in enumerate(one["hosts"])
            for partition in host["partitions"]
        }

    async def settled(self, hosts: int) -> None:
        """Returns once so many hosts share all partitions evenly."""
        async with asyncio.timeout(60):
            while True:
                owners = list((await self.owners()).values())
                if len(owners) == 64 and {owners.count(number) for number in set(owners)} <= {64 // hosts}:
                    return
                await asyncio.sleep(0.05)

    async def call(self, actor: str, method: str, body: bytes = b"") -> Answer:
        return await self.shop.call("POST", f"/v1.0/actors/Cart/{actor}/method/{method}", (), body)

    async def owner(self, actor: str) -> tuple[Host, Host]:
        """The host that an actor lives on, and another one."""
        assert (await self.call(actor, "locate")).status == 200
        for number, host in enumerate(self.hosts):
            if host.app.called(f"/{actor}/method/locate"):
                return host, self.hosts[1 - number]
        raise AssertionError(actor)


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(Mesh(tmp_path))
        shop = mesh.add("shop").start()
        fleet = Fleet(mesh, [], shop)
        await asyncio.gather(shop.ready(), fleet.join(stack, 0), fleet.join(stack, 1))
        await fleet.settled(2)
        yield fleet


def counts(host: Host) -> None:
    """Makes `count` add 1 to the actor's state and answer the sum."""

    async def count(request: Request) -> Reply:
        actor = request.path.split("/")[3]
        url = f"/v1.0/actors/Cart/{actor}/state"
        number = int((await host.sidecar.call("GET", f"{url}/n")).body or b"0") + 1
        operation = {"operation": "upsert", "request": {"key": "n", "value": number}}
        saved = await host.sidecar.call("POST", url, [JSON], json.dumps([operation]).encode())
        return (200, b"%d" % number) if saved.status == 204 else (500, saved.body)

    host.app.methods["count"] = count


async def test_a_host_that_crashes_is_replaced_and_nothing_acknowledged_is_lost(fleet: Fleet) -> None:
    for host in fleet.hosts:
        counts(host)
    actors = [f"a{number}" for number in range(40)]
    first = await asyncio.gather(*(fleet.call(actor, "count") for actor in actors))
    assert {answer.body for answer in first} == {b"1"}
    dead, alive = fleet.hosts
    theirs = [actor for actor in actors if dead.app.called(f"/{actor}/method/count")]
    others = [actor for actor in actors if alive.app.called(f"/{actor}/method/count")]
    assert theirs
    assert others
    reminder = b'{"dueTime": "3s"}'
    url = f"/v1.0/actors/Cart/{theirs[0]}/reminders/r"
    assert (await alive.sidecar.call("POST", url, [JSON], reminder)).status == 204

    dead.sidecar.kill()
    killed = time.monotonic()

    async def timed(actor: str) -> tuple[Answer, float]:
        begun = time.monotonic()
        return await fleet.call(actor, "count"), time.monotonic() - begun

    late = [asyncio.ensure_future(timed(actor)) for actor in theirs]
    quick = await asyncio.gather(*(timed(actor) for actor in others))
    assert {answer.body for answer, _ in quick} == {b"2"}
    assert time.monotonic() - killed < LEASE, "calls of other actors waited, too"
    answers = await asyncio.gather(*late)
    assert {(answer.status, answer.body) for answer, _ in answers} == {(200, b"2")}
    assert max(wait for _, wait in answers) < LEASE + 1 + SLACK
    await alive.app.until(f"/{theirs[0]}/method/remind/r")


async def test_of_two_turns_that_overlap_only_the_newer_ones_writes_and_answers_count(fleet: Fleet) -> None:
    old, new = await fleet.owner("x")
    url = "/v1.0/actors/Cart/x/state"
    woken = asyncio.Event()
    late: list[Answer] = []

    def write(host: Host, value: str) -> bytes:
        return json.dumps([{"operation": "upsert", "request": {"key": "k", "value": value}}]).encode()

    async def turn_of_old(_request: Request) -> Reply:
        await woken.wait()
        late.append(await old.sidecar.call("POST", url, [JSON], write(old, "old")))
        return 200, b"old"

    async def turn_of_new(_request: Request) -> Reply:
        saved = await new.sidecar.call("POST", url, [JSON], write(new, "new"))
        return 200, b"new %d" % saved.status

    old.app.methods["work"], new.app.methods["work"] = turn_of_old, turn_of_new
    asked = asyncio.ensure_future(fleet.call("x", "work"))
    local = asyncio.ensure_future(old.sidecar.call("POST", "/v1.0/actors/Cart/x/method/work"))
    await old.app.until("/x/method/work")
    old.sidecar.send(signal.SIGSTOP)
    try:
        answer = await asyncio.wait_for(asked, LEASE + SLACK + 10)
        assert (answer.status, answer.body) == (200, b"new 204")
    finally:
        old.sidecar.send(signal.SIGCONT)
    woken.set()
    async with asyncio.timeout(20):
        while not late:
            await asyncio.sleep(0.01)
    assert late[0].json["errorCode"] in ("ERR_ACTOR_STATE_TRANSACTION_SAVE", "ERR_ACTOR_INSTANCE_MISSING")
    assert (await new.sidecar.call("GET", f"{url}/k")).body == b'"new"'
    assert (await asyncio.wait_for(local, 20)).body == b"new 204"


async def test_no_call_fails_while_hosts_join_and_leave(fleet: Fleet) -> None:
    counts(fleet.hosts[0])
    counts(fleet.hosts[1])
    stop = asyncio.Event()
    sums: dict[str, int] = {}

    async def load(actor: str) -> None:
        while not stop.is_set():
            answer = await fleet.call(actor, "count")
            assert answer.status == 200, answer
            sums[actor] = sums.get(actor, 0) + 1

    work = [asyncio.ensure_future(load(f"a{number}")) for number in range(12)]
    async with AsyncExitStack() as stack:
        host = await fleet.join(stack, 2)
        counts(host)
        async with asyncio.timeout(60):
            while len(set((await fleet.owners()).values())) < 3:
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        leaving = fleet.hosts[0]
        await leaving.sidecar.end()
        async with asyncio.timeout(60):
            while len(await fleet.owners()) < 64:
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        stop.set()
        await asyncio.wait_for(asyncio.gather(*work), 60)
        for actor, total in sums.items():
            answer = await fleet.call(actor, "count")
            assert int(answer.body) == total + 1, actor
        await host.sidecar.end()
    assert len({actor_partition(f"a{number}") for number in range(12)}) > 6
