"""Order per key and strict order: the promises of `Order` in `mesh/ports/events.py`."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from mesh.ports import OLDEST, Delivery, EventLog, Feature, Group, Message, Mode, Order, Subscription, Topic
from tests.contract.conftest import namespaces, parameters, started
from tests.contract.implementations import IMPLEMENTATIONS, Implementation, KafkaInOnePartition
from tests.contract.inbox import Inbox

ORDERS = Topic("pubsub", "orders")
SHIPPING = Group("shipping", ORDERS)
LIMIT = 20.0
"""Seconds in which whatever must happen has happened."""

Connect = Callable[[], Awaitable[EventLog]]
MakeInbox = Callable[..., Inbox]


@pytest.fixture(scope="module", params=parameters([*IMPLEMENTATIONS, KafkaInOnePartition]))
def implementation(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Implementation]:
    yield from started(request, tmp_path_factory)


@pytest.fixture(autouse=True)
def ordered(needs: Callable[[Feature], None], request: pytest.FixtureRequest) -> None:
    needs(Feature.KEY_ORDER)
    if request.node.callspec.params.get("order") is Order.STRICT or "strict" in request.node.originalname:
        needs(Feature.STRICT_ORDER)


@pytest.fixture
async def connect(implementation: Implementation) -> AsyncIterator[Connect]:
    """One more member's log. One that nothing is behind is shared by all."""
    namespace = next(namespaces)
    logs: list[EventLog] = []

    async def connect() -> EventLog:
        if not logs or Feature.DURABLE in implementation.features:
            logs.append(implementation.event_log(namespace))
            await logs[-1].start()
        return logs[-1]

    yield connect
    for log in logs:
        await asyncio.wait_for(log.close(), 10)


@pytest.fixture
async def log(connect: Connect) -> EventLog:
    return await connect()


def raw(text: str, key: str | None = None, **options: float) -> Message:
    return Message(mode=Mode.RAW, payload=text.encode(), key=key, **options)  # type: ignore[arg-type]


def texts(inbox: Inbox) -> list[str]:
    return [(payload or b"").decode() for payload in inbox.payloads]


async def publish(log: EventLog, keys: list[str], numbers: range) -> None:
    """One event for each key at a time, so that those of a key are stored in the order of their numbers."""
    for number in numbers:
        await asyncio.gather(*(log.publish(ORDERS, raw(f"{key}:{number}", key)) for key in keys))


async def until(condition: Callable[[], bool], implementation: Implementation) -> None:
    """Lets time pass until `condition` holds."""
    async with asyncio.timeout(LIMIT):
        while not condition():
            await implementation.elapse(0.02)
            await asyncio.sleep(0.001)


class Handled:
    """A handler that notes what is handled, after random failures and pauses."""

    def __init__(self, seed: int, failures: float) -> None:
        self.by_key: dict[str, dict[int, None]] = defaultdict(dict)
        self.in_work: set[str] = set()
        self.total = 0
        self._chance = random.Random(seed)
        self._failures = failures

    def __call__(self, delivery: Delivery) -> None:
        assert delivery.payload is not None
        key, number = delivery.payload.decode().split(":")
        assert key not in self.in_work, f"two events of {key} at once"
        choice = self._chance.random()
        if choice < self._failures / 2:
            delivery.retry(self._chance.random() * 0.05)
        elif choice < self._failures:
            delivery.release()
        else:
            self.in_work.add(key)
            asyncio.get_running_loop().call_later(self._chance.random() * 0.002, self._finish, key, number, delivery)

    def _finish(self, key: str, number: str, delivery: Delivery) -> None:
        self.in_work.remove(key)
        self.by_key[key][int(number)] = None
        self.total = sum(map(len, self.by_key.values()))
        delivery.ack()

    @property
    def orders(self) -> dict[str, list[int]]:
        return {key: list(numbers) for key, numbers in self.by_key.items()}


@pytest.mark.parametrize(("order", "keys"), [(Order.KEY, 20), (Order.STRICT, 1)])
async def test_order_holds_while_members_come_and_go(
    connect: Connect, implementation: Implementation, order: Order, keys: int
) -> None:
    names = [f"key-{number}" for number in range(keys)]
    handled = Handled(seed=1, failures=0.2)
    logs = [await connect() for _ in range(3)]
    members = [await log.subscribe(SHIPPING, handled, concurrency=8, order=order) for log in logs[:2]]
    await publish(logs[0], names, range(20))
    await until(lambda: handled.total > 2 * keys, implementation)
    members.append(await logs[2].subscribe(SHIPPING, handled, concurrency=8, order=order))
    await publish(logs[0], names, range(20, 40))
    await asyncio.wait_for(members[0].close(), 10)
    await publish(logs[0], names, range(40, 60))
    await until(lambda: handled.total == 60 * keys, implementation)
    assert handled.orders == {name: list(range(60)) for name in names}
    for member in members[1:]:
        await asyncio.wait_for(member.close(), 10)


async def test_keys_are_handled_in_parallel(log: EventLog, inbox: MakeInbox) -> None:
    arrivals = inbox(lambda delivery: None)
    await log.subscribe(SHIPPING, arrivals, concurrency=8, order=Order.KEY)
    await publish(log, ["a", "b", "c"], range(2))
    await arrivals.reaches(3)
    assert sorted(texts(arrivals)) == ["a:0", "b:0", "c:0"]
    for delivery in arrivals.deliveries[:3]:
        delivery.ack()
    await arrivals.reaches(6)
    assert sorted(texts(arrivals)[3:]) == ["a:1", "b:1", "c:1"]


@pytest.mark.parametrize("order", [Order.KEY, Order.STRICT])
async def test_what_failed_keeps_its_turn(
    log: EventLog, inbox: MakeInbox, implementation: Implementation, order: Order
) -> None:
    failures = iter([0.05, 0.0, 0.05])

    def settle(delivery: Delivery) -> None:
        delay = next(failures, None)
        if delay is None:
            delivery.ack()
        else:
            delivery.retry(delay)

    arrivals = inbox(settle)
    await log.subscribe(SHIPPING, arrivals, concurrency=8, order=order)
    await publish(log, ["a"], range(3))
    await until(lambda: len(arrivals.deliveries) >= 6, implementation)
    assert texts(arrivals) == ["a:0"] * 4 + ["a:1", "a:2"]
    assert [delivery.attempt for delivery in arrivals.deliveries] == [1, 2, 3, 4, 1, 1]


@pytest.mark.parametrize("order", [Order.KEY, Order.STRICT])
async def test_what_is_released_comes_again_in_its_turn_and_counts_no_attempt(
    log: EventLog, inbox: MakeInbox, order: Order
) -> None:
    released = iter([True, True])
    arrivals = inbox(lambda delivery: delivery.release() if next(released, False) else delivery.ack())
    await log.subscribe(SHIPPING, arrivals, concurrency=8, order=order)
    await publish(log, ["a"], range(2))
    await arrivals.reaches(4)
    assert texts(arrivals) == ["a:0", "a:0", "a:0", "a:1"]
    assert [delivery.attempt for delivery in arrivals.deliveries] == [1, 1, 1, 1]


async def test_a_second_verdict_does_nothing(log: EventLog, inbox: MakeInbox, implementation: Implementation) -> None:
    def settle(delivery: Delivery) -> None:
        delivery.ack()
        delivery.release()
        delivery.retry(0)
        delivery.ack()

    arrivals = inbox(settle)
    await log.subscribe(SHIPPING, arrivals, concurrency=1, order=Order.KEY)
    await publish(log, ["a"], range(3))
    await arrivals.reaches(3)
    await implementation.quiet()
    assert texts(arrivals) == ["a:0", "a:1", "a:2"]


async def test_a_blocked_key_holds_up_no_other_and_loses_nothing(
    log: EventLog, inbox: MakeInbox, implementation: Implementation
) -> None:
    """The handler has one place only, and more waits behind the blocked key than is kept in memory."""
    blocked = True

    def settle(delivery: Delivery) -> None:
        if blocked and delivery.payload == b"stuck:0":
            delivery.retry(0.05)
        else:
            delivery.ack()

    arrivals = inbox(settle)
    await log.subscribe(SHIPPING, arrivals, concurrency=1, order=Order.KEY)
    keys = [f"key-{number}" for number in range(16)]
    await publish(log, ["stuck"], range(300))
    await publish(log, keys, range(5))
    await until(lambda: sum(text.startswith("key-") for text in texts(arrivals)) == 80, implementation)
    assert set(texts(arrivals)) & {f"stuck:{number}" for number in range(300)} == {"stuck:0"}
    blocked = False
    await until(lambda: "stuck:299" in texts(arrivals), implementation)
    assert list(dict.fromkeys(text for text in texts(arrivals) if text.startswith("stuck"))) == [
        f"stuck:{number}" for number in range(300)
    ]


async def test_events_without_a_key_are_in_no_order(log: EventLog, inbox: MakeInbox) -> None:
    arrivals = inbox(lambda delivery: None)
    await log.subscribe(SHIPPING, arrivals, concurrency=8, order=Order.KEY)
    await log.publish(ORDERS, raw("a:0", "a"))
    for number in range(3):
        await log.publish(ORDERS, raw(f"free:{number}"))
    await arrivals.reaches(4)
    assert sorted(texts(arrivals)) == ["a:0", "free:0", "free:1", "free:2"]


async def test_strict_order_has_one_in_hand(log: EventLog, inbox: MakeInbox, implementation: Implementation) -> None:
    arrivals = inbox(lambda delivery: None)
    await log.subscribe(SHIPPING, arrivals, concurrency=8, order=Order.STRICT)
    for number in range(80):
        await log.publish(ORDERS, raw(f"any:{number}", None if number % 2 else f"key-{number}"))
    for number in range(80):
        await arrivals.reaches(number + 1)
        if number == 3:
            await implementation.quiet()
        assert len(arrivals.deliveries) == number + 1
        arrivals.deliveries[-1].ack()
    assert texts(arrivals) == [f"any:{number}" for number in range(80)]


@pytest.mark.parametrize("order", [Order.KEY, Order.STRICT])
async def test_a_successor_goes_on_where_the_member_left(
    connect: Connect, inbox: MakeInbox, implementation: Implementation, order: Order
) -> None:
    """What is done is not repeated, though something before it is not. Attempts are counted on, and the pause before
    the next one is kept."""
    first, second = await connect(), await connect()
    others = "a" if order is Order.STRICT else "b"

    def settle(delivery: Delivery) -> None:
        if delivery.payload == b"a:0":
            delivery.retry(0.0 if delivery.attempt < 3 else 2.0)
        else:
            delivery.ack()

    arrivals = inbox(settle)
    member = await first.subscribe(SHIPPING, arrivals, concurrency=8, order=order)
    await publish(first, ["a"], range(3))
    await publish(first, ["b"], range(3))
    await arrivals.reaches(3 if others == "a" else 6)
    await asyncio.wait_for(member.close(), 10)
    successor = inbox()
    await second.subscribe(SHIPPING, successor, concurrency=8, order=order)
    expected = ["a:0", "a:1", "a:2"] + (["b:0", "b:1", "b:2"] if others == "a" else [])
    await until(lambda: len(successor.deliveries) >= len(expected), implementation)
    await implementation.quiet()
    assert texts(successor) == expected
    assert successor.times[0] - arrivals.times[-1 if others == "a" else 2] > 1.9
    assert [delivery.attempt for delivery in successor.deliveries] == [4] + [1] * (len(expected) - 1)


async def test_what_a_leaving_member_has_in_hand_is_waited_for(
    connect: Connect, inbox: MakeInbox, implementation: Implementation
) -> None:
    first, second = await connect(), await connect()
    arrivals = inbox(lambda delivery: None)
    member = await first.subscribe(SHIPPING, arrivals, concurrency=8, order=Order.KEY)
    await publish(first, ["a"], range(2))
    await arrivals.reaches(1)
    closing = asyncio.create_task(member.close())
    successor = inbox()
    await second.subscribe(SHIPPING, successor, concurrency=8, order=Order.KEY)
    await implementation.quiet()
    assert not closing.done()
    assert not successor.deliveries
    arrivals.deliveries[0].ack()
    await asyncio.wait_for(closing, 10)
    await successor.reaches(1)
    assert texts(successor) == ["a:1"]
    assert texts(arrivals) == ["a:0"]


async def test_expired_events_hold_up_nothing(
    log: EventLog, inbox: MakeInbox, needs: Callable[[Feature], None], implementation: Implementation
) -> None:
    needs(Feature.TTL)
    gate: list[Delivery] = []
    arrivals = inbox(lambda delivery: gate.append(delivery) if not gate else delivery.ack())
    await log.subscribe(SHIPPING, arrivals, concurrency=8, order=Order.KEY)
    await log.publish(ORDERS, raw("first", "a"))
    await asyncio.gather(*(log.publish(ORDERS, raw(f"short-lived {number}", "a", ttl=1)) for number in range(200)))
    await log.publish(ORDERS, raw("last", "a"))
    await arrivals.reaches(1)
    await implementation.elapse(2.5)
    gate[0].ack()
    await until(lambda: "last" in texts(arrivals), implementation)
    assert len(texts(arrivals)) < 130, "most were parked, and are gone"


@pytest.mark.parametrize("order", [Order.KEY, Order.STRICT])
async def test_a_group_in_order_is_paused_and_goes_on(
    log: EventLog, inbox: MakeInbox, implementation: Implementation, order: Order
) -> None:
    arrivals = inbox()
    subscription = await log.subscribe(SHIPPING, arrivals, concurrency=8, order=order)
    await publish(log, ["a", "b"], range(2))
    await arrivals.reaches(4)
    subscription.set_concurrency(0)
    await publish(log, ["a", "b"], range(2, 4))
    await implementation.quiet()
    assert len(arrivals.deliveries) == 4
    subscription.set_concurrency(1)
    await arrivals.reaches(8)
    for key in "ab":
        assert [text for text in texts(arrivals) if text[0] == key] == [f"{key}:{number}" for number in range(4)]


@pytest.mark.parametrize("order", [Order.KEY, Order.STRICT])
@pytest.mark.parametrize("how", ["paused", "of no use"])
async def test_a_member_that_takes_nothing_leaves_its_keys_to_others(
    connect: Connect, implementation: Implementation, inbox: MakeInbox, order: Order, how: str
) -> None:
    idle, taken = inbox(lambda delivery: delivery.release() if how == "of no use" else delivery.ack()), inbox()
    first = await (await connect()).subscribe(SHIPPING, idle, concurrency=8, order=order)
    if how == "paused":
        first.set_concurrency(0)
    log = await connect()
    await log.subscribe(SHIPPING, taken, concurrency=8, order=order)
    names = [f"key-{number}" for number in range(20)]
    await publish(log, names, range(3))
    async with asyncio.timeout(LIMIT):
        while len(set(texts(taken))) < 60:
            await implementation.elapse(0.1)
            await asyncio.sleep(0.01)
    for name in names:
        assert [text for text in dict.fromkeys(texts(taken)) if text.startswith(f"{name}:")] == [
            f"{name}:{number}" for number in range(3)
        ]


@pytest.mark.parametrize("order", [Order.KEY, Order.STRICT])
async def test_a_group_in_order_may_begin_at_the_oldest_event(
    log: EventLog, inbox: MakeInbox, needs: Callable[[Feature], None], order: Order
) -> None:
    needs(Feature.READ)
    await publish(log, ["a"], range(5))
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8, order=order, start=OLDEST)
    await arrivals.reaches(5)
    assert texts(arrivals) == [f"a:{number}" for number in range(5)]


@pytest.mark.parametrize("order", [Order.KEY, Order.STRICT])
async def test_a_forgotten_group_begins_anew(
    log: EventLog, inbox: MakeInbox, implementation: Implementation, order: Order
) -> None:
    arrivals = inbox(lambda delivery: delivery.retry(3600))
    subscription: Subscription = await log.subscribe(SHIPPING, arrivals, concurrency=8, order=order)
    await publish(log, ["a"], range(3))
    await arrivals.reaches(1)
    await asyncio.wait_for(subscription.close(), 10)
    assert await log.unsubscribe(SHIPPING)
    assert not await log.unsubscribe(SHIPPING)
    later = inbox()
    await log.subscribe(SHIPPING, later, concurrency=8, order=order)
    await publish(log, ["a"], range(3, 5))
    await later.reaches(2)
    await implementation.quiet()
    assert texts(later) == ["a:3", "a:4"]
    assert [delivery.attempt for delivery in later.deliveries] == [1, 1]
