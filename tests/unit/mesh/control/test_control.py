"""Two replicas of an app, and what is set for their subscriptions."""

import asyncio

import pytest

from brokers.memory_tables import MemoryTables
from mesh.control import control as module
from mesh.control.control import Control
from mesh.control.gate import Gate
from mesh.control.setting import NOTHING, Name, Setting, parse
from mesh.errors import BrokerUnavailable
from mesh.ports.tables import Put
from tests.virtual_clock import VirtualClock

ORDERS = Name("pubsub", "orders")
LATE = Name("pubsub", "orders", "late")


@pytest.fixture
def clock():
    return VirtualClock()


@pytest.fixture
def table(clock):
    return MemoryTables(clock).table("app1")


class Replica:
    """A sidecar whose subscription has `busy` events in hand."""

    def __init__(self, sidecar, table, clock, *names):
        self.busy = 0
        self.gates = {name: Gate(64, clock, lambda: self.busy) for name in names}
        self.control = Control(sidecar, table, clock)
        for name, gate in self.gates.items():
            self.control.steer(name, gate)

    @property
    def allowed(self):
        return self.gates[ORDERS].allowed


@pytest.fixture
async def start(table, clock):
    started = []

    async def start(sidecar, *names):
        started.append(Replica(sidecar, table, clock, *(names or [ORDERS])))
        await clock.settle()
        return started[-1]

    yield start
    await asyncio.gather(*(replica.control.stop() for replica in started))


async def finished(clock, work, limit=70):
    """The result of `work`, for which the clock is turned."""
    task = asyncio.ensure_future(work)
    for _ in range(limit * 20):
        if task.done():
            break
        await clock.advance(0.05)
    return await task


def action(text):
    return parse(text.encode())


async def test_what_is_set_holds_for_all_replicas(start, clock):
    one, two = await start("one"), await start("two")
    assert (one.allowed, two.allowed) == (64, 64)
    replicas = await finished(clock, one.control.act(ORDERS, action('{"action": "pause"}')))
    assert (one.allowed, two.allowed) == (0, 0)
    assert {name: there.concurrency for name, there in replicas.of(ORDERS).items()} == {"one": 0, "two": 0}
    await finished(clock, two.control.act(ORDERS, action('{"action": "limit", "concurrency": 3, "rate": 50}')))
    await finished(clock, one.control.act(ORDERS, action('{"action": "resume"}')))
    assert [(replica.gates[ORDERS].rate, replica.allowed) for replica in (one, two)] == [(50, 1), (50, 1)]
    assert one.control.setting(ORDERS) == Setting(rate=50, concurrency=3)


async def test_it_holds_for_replicas_that_come_later_before_they_take_anything(start, clock, table):
    one = await start("one")
    await finished(clock, one.control.act(ORDERS, action('{"action": "pause"}')))
    gate = Gate(64, clock, int)
    later = Control("later", table, clock)
    later.steer(ORDERS, gate)
    assert not gate.known.is_set()
    await clock.settle()
    assert (gate.known.is_set(), gate.allowed) == (True, 0)
    await finished(clock, one.control.act(ORDERS, action('{"action": "resume"}')))
    assert gate.allowed == 64
    await later.stop()


async def test_a_replica_begins_when_it_is_counted(start, clock, table, monkeypatch):
    """Else it may take events while an answer to `pause` says that all replicas obey, and does not mean this one."""
    one = await start("one")
    commit, stored = table.commit, asyncio.Event()

    async def slow(*given):
        await stored.wait()
        return await commit(*given)

    monkeypatch.setattr(table, "commit", slow)
    two = await start("two")
    assert (one.gates[ORDERS].known.is_set(), two.gates[ORDERS].known.is_set()) == (True, False)
    stored.set()
    await clock.settle()
    assert two.gates[ORDERS].known.is_set()
    replicas = await finished(clock, one.control.act(ORDERS, action('{"action": "pause"}')))
    assert replicas.of(ORDERS).keys() == {"one", "two"}


async def test_other_subscriptions_of_the_app_go_on(start, clock):
    one = await start("one", ORDERS, LATE)
    await finished(clock, one.control.act(LATE, action('{"action": "pause", "group": "late"}')))
    assert (one.gates[ORDERS].allowed, one.gates[LATE].allowed) == (64, 0)
    assert one.control.named() == {LATE}


async def test_a_drain_answers_when_nothing_is_in_hand(start, clock):
    one, two = await start("one"), await start("two")
    two.busy = 3
    draining = asyncio.create_task(one.control.act(ORDERS, action('{"action": "drain", "waitSeconds": 30}')))
    await clock.advance(20)
    assert (one.allowed, two.allowed, draining.done()) == (0, 0, False)
    two.busy = 0
    await clock.advance(2)
    assert {name: there.in_hand for name, there in (await draining).of(ORDERS).items()} == {"one": 0, "two": 0}


async def test_a_drain_waits_no_longer_than_it_was_told(start, clock):
    one = await start("one")
    one.busy = 1
    began = clock.now()
    replicas = await finished(clock, one.control.act(ORDERS, action('{"action": "drain", "waitSeconds": 5}')))
    assert [there.in_hand for there in replicas.of(ORDERS).values()] == [1]
    assert 5 <= clock.now() - began <= 5.5


async def test_nothing_is_kept_of_what_is_as_planned(start, clock, table):
    one = await start("one")
    await finished(clock, one.control.act(ORDERS, action('{"action": "pause"}')))
    assert await table.get(ORDERS.key) is not None
    await finished(clock, one.control.act(ORDERS, action('{"action": "resume"}')))
    assert await table.get(ORDERS.key) is None
    assert one.control.setting(ORDERS) == NOTHING


async def test_changes_at_the_same_time_add_up(start, clock):
    one, two = await start("one"), await start("two")
    await finished(
        clock,
        asyncio.gather(
            one.control.act(ORDERS, action('{"action": "limit", "rate": 7}')),
            two.control.act(ORDERS, action('{"action": "limit", "concurrency": 2}')),
            one.control.act(ORDERS, action('{"action": "pause"}')),
        ),
    )
    assert two.control.setting(ORDERS) == Setting(paused=True, rate=7, concurrency=2)


@pytest.mark.parametrize(
    "garbage",
    [
        b"pause!",
        b"\xff",
        b'{"rate":0}',
        b'{"rate":1e300}',
        b'{"concurrency":-5}',
        b'{"more":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=range(6),
)
async def test_an_unreadable_record_changes_nothing_and_can_be_replaced(start, clock, table, caplog, garbage):
    one = await start("one")
    await table.commit([Put(key=ORDERS.key, value=garbage)])
    await clock.settle()
    assert (one.allowed, one.gates[ORDERS].rate) == (64, None)
    assert "pubsub/orders cannot be read" in caplog.text
    await finished(clock, one.control.act(ORDERS, action('{"action": "pause"}')))
    assert (one.allowed, one.control.setting(ORDERS)) == (0, Setting(paused=True))


class Away:
    """A table of a broker that is not there."""

    async def watch(self, *_args, **_kwargs):
        raise BrokerUnavailable("away")
        yield

    async def commit(self, *_args):
        raise BrokerUnavailable("away")


async def test_without_the_table_subscriptions_begin_as_planned_after_a_while(clock, caplog):
    control = Control("one", Away(), clock)
    gate = Gate(64, clock, int)
    control.steer(ORDERS, gate)
    await clock.advance(module.KNOWN_LIMIT - 0.1)
    assert not gate.known.is_set()
    await clock.advance(0.2)
    assert gate.known.is_set()
    assert gate.allowed == 64
    assert "begin as planned" in caplog.text
    await control.stop()


async def test_a_subscription_that_is_replaced_is_not_let_go_of(start, clock):
    one = await start("one")
    earlier, later = one.gates[ORDERS], Gate(64, clock, int)
    one.control.steer(ORDERS, later)
    one.control.let_go(ORDERS, earlier)
    await finished(clock, one.control.act(ORDERS, action('{"action": "pause"}')))
    assert (earlier.allowed, later.allowed) == (64, 0)
