"""What the alarms on NATS promise when servers and members fail, and what outsiders may do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from brokers.nats import consumer, jetstream
from brokers.nats.firings import NatsFiring
from mesh import addressing
from mesh.ports.alarms import Alarm, Firing
from mesh.ports.tables import ABSENT
from tests.contract.alarms import LoneAlarmClocks, nats_alarms
from tests.contract.nats_server import NatsServer, cluster
from tests.contract.nats_tables import nats_tables

NIGHTLY = ("job", "nightly")

namespaces = (f"alarm-faults{number}" for number in count(1))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
def namespace() -> str:
    return next(namespaces)


@pytest.fixture
async def clocks(server: NatsServer, namespace: str) -> AsyncIterator[LoneAlarmClocks]:
    clocks = await nats_alarms([server.url], namespace)
    yield clocks
    await clocks.close()


async def until(condition: Callable[[], object], within: float = 30.0) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.01)


async def test_what_became_due_while_the_server_was_down_fires_soon_after(
    clocks: LoneAlarmClocks, server: NatsServer
) -> None:
    alarms = clocks.alarms("shop")
    seen: list[float] = []

    def handle(firing: Firing) -> None:
        seen.append(time.time())
        firing.ack()

    await alarms.serve("job", handle, concurrency=5)
    await alarms.set(Alarm(key=NIGHTLY, due=time.time() + 0.5))
    server.kill()
    await asyncio.sleep(0.7)
    server.start()
    back = time.time()
    await until(lambda: seen)
    assert seen[0] - back < 8


async def test_what_is_set_while_the_server_restarts_is_set_once(clocks: LoneAlarmClocks, server: NatsServer) -> None:
    alarms = clocks.alarms("shop")
    await alarms.set(Alarm(key=("job", "first"), due=time.time() + 3600))
    tasks = [
        asyncio.ensure_future(alarms.set(Alarm(key=("job", str(n)), due=time.time() + 3600), expected=ABSENT))
        for n in range(300)
    ]
    await asyncio.sleep(0.02)
    server.kill()
    server.start()
    revisions = await asyncio.gather(*tasks)  # none of them takes its own first attempt for somebody else's
    assert len(set(revisions)) == 300
    found = [entry for page in [await alarms.scan(("job",), limit=1000)] for entry in page.alarms]
    assert len(found) == 301


async def test_an_alarm_whose_acknowledgement_is_lost_is_not_taken_for_somebody_elses(
    clocks: LoneAlarmClocks, server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brokers.nats.alarms.ATTEMPT_TIMEOUT", 0.3)
    alarms = clocks.alarms("shop")
    first = await alarms.set(Alarm(key=NIGHTLY, due=time.time() + 3600))
    store = alarms._store

    async def store_while_the_server_stands_still(*message: Any) -> int:
        server.freeze()
        asyncio.get_running_loop().call_later(0.8, server.thaw)
        return await store(*message)

    monkeypatch.setattr(alarms, "_store", store_while_the_server_stands_still)
    later = await alarms.set(Alarm(key=NIGHTLY, due=time.time() + 7200), expected=first)
    found = await alarms.get(NIGHTLY)
    assert found is not None
    assert found.revision == later > first


@pytest.mark.parametrize("behind", [0.0, 30.0])
async def test_the_server_never_removes_what_was_set_while_it_fired(
    clocks: LoneAlarmClocks, monkeypatch: pytest.MonkeyPatch, behind: float
) -> None:
    """It moves what is due, and then purges its address, whatever stands there by then. Its clock decides, not ours."""
    alarms = clocks.alarms("shop")
    keys = [("job", str(number)) for number in range(2000)]
    right_time = time.time
    due = right_time() + 2.5
    monkeypatch.setattr("time.time", lambda: right_time() - behind)
    await asyncio.gather(*(alarms.set(Alarm(key=key, due=due)) for key in keys))

    async def set_again(key: tuple[str, ...], moment: float) -> None:
        await asyncio.sleep(moment - right_time())
        await alarms.set(Alarm(key=key, due=due + 3600, payload=b"new"))

    await asyncio.gather(*(set_again(key, due - 0.2 + 0.4 * n / len(keys)) for n, key in enumerate(keys)))
    await asyncio.sleep(0.3)
    found = await asyncio.gather(*map(alarms.get, keys))
    assert sum(entry is None or entry.alarm.payload != b"new" for entry in found) == 0


async def test_a_clock_that_is_ahead_does_not_hold_up_a_cancellation(
    clocks: LoneAlarmClocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    alarms = clocks.alarms("shop")
    right_time = time.time
    monkeypatch.setattr("time.time", lambda: right_time() + 3600)
    await alarms.set(Alarm(key=NIGHTLY, due=right_time() + 600))
    assert await asyncio.wait_for(alarms.cancel(NIGHTLY), 2.0)


async def test_schedules_are_listed_where_state_has_a_history(
    clocks: LoneAlarmClocks, server: NatsServer, namespace: str
) -> None:
    """For its sake the stream answers no direct gets, from one moment to the next."""
    alarms = clocks.alarms("shop")
    for number in range(20):
        await alarms.set(Alarm(key=("job", str(number)), due=time.time() + 3600))
    assert len((await alarms.scan(("job",), limit=100)).alarms) == 20
    tables = await nats_tables([server.url], namespace)
    await tables.table("shop").keep_history(("state",), 5)
    async with asyncio.timeout(30):
        page = await alarms.scan(("job",), limit=15)
        rest = await alarms.scan(("job",), limit=15, cursor=page.cursor)
    assert {entry.alarm.key for entry in [*page.alarms, *rest.alarms]} == {("job", str(n)) for n in range(20)}
    await tables.close()


async def test_a_stream_that_was_deleted_is_made_again(clocks: LoneAlarmClocks, namespace: str) -> None:
    alarms = clocks.alarms("shop")
    seen: list[bytes] = []

    def handle(firing: Firing) -> None:
        seen.append(firing.alarm.payload)
        firing.ack()

    await alarms.serve("job", handle, concurrency=5)
    await alarms.set(Alarm(key=NIGHTLY, due=time.time() + 3600))
    for _ in range(5):
        # the consumer makes the stream again at once: a server that is still at the files of the old one finds them
        await jetstream.call(clocks.connection, f"STREAM.DELETE.{addressing.state_stream('mesh', namespace, 'shop')}")
        if await alarms.scan(("job",), limit=5) == ([], None):
            break
    assert await alarms.get(NIGHTLY) is None
    await alarms.set(Alarm(key=NIGHTLY, due=time.time(), payload=b"again"))
    await until(lambda: seen)
    assert seen == [b"again"]


async def test_a_member_that_ends_between_the_next_alarm_and_its_verdict_leaves_one_series(
    clocks: LoneAlarmClocks,
) -> None:
    alarms = clocks.alarms("shop")
    firings: list[Firing] = []
    subscription = await alarms.serve("job", firings.append, concurrency=5)
    await alarms.set(Alarm(key=NIGHTLY, due=time.time(), payload=b"1"))
    await until(lambda: firings)
    firing = firings[0]
    assert isinstance(firing, NatsFiring)
    assert firing._delivery is not None
    sequence = int(firing._delivery.position)
    await alarms.follow(sequence, Alarm(key=NIGHTLY, due=time.time() + 3600, payload=b"2"))
    subscription.cut()  # and here it ends

    await alarms.serve("job", firings.append, concurrency=5)
    await until(lambda: len(firings) == 2)
    assert firings[1].alarm.payload == b"1"
    firings[1].ack(Alarm(key=NIGHTLY, due=time.time() + 1800, payload=b"2 again"))
    await asyncio.sleep(0.3)
    found = await alarms.get(NIGHTLY)
    assert found is not None
    assert (found.alarm.payload, found.fired) == (b"2", False)


async def test_a_member_that_falls_silent_loses_its_alarm_to_another(
    clocks: LoneAlarmClocks, server: NatsServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brokers.nats.alarms.ACK_WAIT", 1.0)
    monkeypatch.setattr(consumer, "ACK_WAIT", 1.0)
    silent = await nats_alarms([server.url], namespace)
    held: list[Firing] = []
    await silent.alarms("shop").serve("job", held.append, concurrency=5)
    alarms = clocks.alarms("shop")
    await alarms.set(Alarm(key=NIGHTLY, due=time.time()))
    await until(lambda: held)
    await silent.connection.close()
    seen: list[int] = []

    def handle(firing: Firing) -> None:
        seen.append(firing.attempt)
        firing.ack()

    await alarms.serve("job", handle, concurrency=5)
    await until(lambda: seen)
    assert seen == [2]
    await silent.close()


async def test_an_outsider_may_set_an_alarm(clocks: LoneAlarmClocks, namespace: str) -> None:
    alarms = clocks.alarms("my shop")
    seen: list[Alarm] = []

    def handle(firing: Firing) -> None:
        seen.append(firing.alarm)
        firing.ack()

    await alarms.serve("job", handle, concurrency=5)
    root = f"mesh.{namespace}.state.my%20shop.alarm"
    headers = f"NATS/1.0\r\nNats-Schedule: @at 2020-01-01T00:00:00Z\r\nNats-Schedule-Target: {root}.due.job.x\r\n\r\n"
    await clocks.connection.call(f"{root}.set.job.x", headers.encode(), b"hello", 5)
    await clocks.connection.call(f"{root}.due.job.y", b"", b"nonsense", 5)
    await until(lambda: seen)
    await asyncio.sleep(0.1)
    assert [(alarm.key, alarm.payload, alarm.headers) for alarm in seen] == [(("job", "x"), b"hello", {})]


async def test_an_alarm_is_a_cloud_event(clocks: LoneAlarmClocks, namespace: str) -> None:
    revision = await clocks.alarms("shop").set(Alarm(key=("job", "a.b"), due=2e9, payload=b"x", headers={"n": "v"}))
    stream = addressing.state_stream("mesh", namespace, "shop")
    reply = await clocks.connection.call(f"$JS.API.DIRECT.GET.{stream}", b"", b'{"seq":%d}' % revision, 5)
    lines = dict(line.split(": ", 1) for line in reply.headers.decode().split("\r\n")[1:] if line)
    root = f"mesh.{namespace}.state.shop.alarm"
    assert lines["Nats-Subject"] == f"{root}.set.job.a%2Eb"
    assert lines["Nats-Schedule-Target"] == f"{root}.due.job.a%2Eb"
    assert lines["Nats-Schedule"] == "@at 2033-05-18T03:33:20.000000Z"
    assert lines["ce-type"] == "io.meshwire.schedule.fired.v1"
    assert lines["ce-specversion"] == "1.0"
    assert lines["ce-source"] == f"/mesh/{namespace}/state/shop"
    assert lines["ce-subject"] == "job.a%252Eb"
    assert lines["ce-time"] == "2033-05-18T03:33:20.000000Z"
    assert lines["Meshwire-Alarm"] == '[2000000000.0,{"n":"v"}]'
    assert reply.payload == b"x"


@pytest.mark.quiet  # an election has time limits of its own
async def test_a_cluster_keeps_its_alarms_when_the_leader_is_killed(tmp_path: Path) -> None:
    servers = cluster(tmp_path)
    try:
        for server in servers:
            server.start(wait=False)
        for server in servers:
            server.wait_until_ready()
        clocks = await nats_alarms([server.url for server in servers], "cluster", replicas=3)
        alarms = clocks.alarms("shop")
        seen: list[str] = []

        def handle(firing: Firing) -> None:
            seen.append(firing.alarm.key[1])
            number = int(firing.alarm.payload)
            firing.ack(
                Alarm(key=firing.alarm.key, due=time.time() + 1, payload=b"%d" % (number + 1)) if number < 2 else None
            )

        await alarms.serve("job", handle, concurrency=50)
        names = [str(n) for n in range(50)]
        due = time.time() + 1.5
        await asyncio.gather(*(alarms.set(Alarm(key=("job", name), due=due, payload=b"1")) for name in names))
        info = await jetstream.call(
            clocks.connection, f"STREAM.INFO.{addressing.state_stream('mesh', 'cluster', 'shop')}"
        )
        next(server for server in servers if server.name == info["cluster"]["leader"]).kill()
        await until(lambda: all(seen.count(name) >= 2 for name in names), within=30)
        await clocks.close()
    finally:
        for server in servers:
            server.kill()
