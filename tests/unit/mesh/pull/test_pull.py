"""Pull on the memory broker, in virtual time."""

import asyncio
import json

import pytest

from brokers.memory import MemoryEventLog
from mesh import addressing
from mesh.delivery.settings import Stated
from mesh.delivery.watch import Outcome
from mesh.errors import ApiError, Code
from mesh.ports import Group, Message, Mode, Topic
from mesh.pubsub import Component
from mesh.pull import block
from mesh.pull.block import Pulls
from mesh.pull.group import PROMPT
from mesh.pull.request import Pull
from mesh.resiliency.targets import Resiliency
from mesh.scopes import TopicScopes
from tests.virtual_clock import VirtualClock

TOPIC = Topic("pubsub", "A")


class Letters:
    """A `DeadLetters`, for what is given up."""

    def __init__(self):
        self.letters = []

    async def keep(self, letter):
        self.letters.append(letter)


class Outcomes:
    """A `DeliveryWatch`."""

    def __init__(self):
        self.attempts = []
        self.outcomes = []

    def skipped(self, record, why):
        pass

    def started(self, record, attempt, now):
        pass

    def attempted(self, record, attempt, found, seconds, next_in):
        self.attempts.append((attempt, getattr(found, "reason", str(found)), round(seconds, 3)))

    def settled(self, record, outcome):
        self.outcomes.append(outcome)


@pytest.fixture
def clock():
    return VirtualClock()


@pytest.fixture
async def log(clock):
    log = MemoryEventLog(clock)
    await log.start()
    yield log
    await log.close()


class Sidecar:
    def __init__(self, log, clock, name="app1-one", *, pushed=(), scopes=None, **settings):
        self.clock = clock
        self.letters = Letters()
        self.watch = Outcomes()
        self.components = {
            "pubsub": Component(name="pubsub", log=log, scopes=TopicScopes.from_metadata(scopes or {}), **settings)
        }
        self.pulls = Pulls(
            "app1",
            name,
            self.components,
            clock,
            resiliency=Resiliency(clock=clock),
            is_pushed=lambda name: name in pushed,
            dead_letters=self.letters,
            watch=lambda _: self.watch,
        )

    async def pull(self, *, topic="A", **asked):
        """What is there; time goes on until it is answered."""
        pulling = asyncio.create_task(self.pulls.pull("pubsub", topic, Pull(**asked)))
        for _ in range(1000):
            await self.clock.settle()
            if pulling.done():
                break
            await self.clock.advance(0.01)
        return await pulling

    def settle(self, how, lock, *args):
        return self.pulls.settle([lock.token], lambda token: getattr(self.pulls.locks, how)(token, *args))


@pytest.fixture
async def sidecar(log, clock):
    made = []

    def sidecar(name="app1-one", **settings):
        made.append(Sidecar(log, clock, name, **settings))
        return made[-1]

    yield sidecar
    for one in made:
        await one.pulls.close()


def event(number, **attributes):
    body = {"specversion": "1.0", "type": "t", "source": "s", "id": str(number)} | attributes
    return Message(mode=Mode.STRUCTURED, payload=json.dumps(body).encode(), key=attributes.get("partitionkey"))


def numbers(locks):
    return [int(json.loads(lock.body)["id"]) for lock in locks]


async def publish(log, *messages):
    for message in messages:
        await log.publish(TOPIC, message)


async def test_the_first_pull_declares_the_group(sidecar, log):
    one = sidecar()
    await publish(log, event(1))
    assert list(await one.pull()) == []
    await publish(log, event(2), event(3))
    locks = await one.pull(max_messages=10)
    assert numbers(locks) == [2, 3]
    assert len({lock.token for lock in locks}) == 2
    assert all(lock.token.startswith("app1-one.") and len(lock.token) == len("app1-one.") + 32 for lock in locks)


async def test_a_new_group_begins_where_it_is_told(sidecar, log):
    await publish(log, event(1), event(2))
    assert numbers(await sidecar().pull(group="old", start="oldest", max_messages=5)) == [1, 2]


async def test_what_is_acknowledged_does_not_come_again(sidecar, log):
    one = sidecar()
    await one.pull()
    await publish(log, event(1))
    [lock] = await one.pull()
    assert one.settle("ack", lock) == []
    await one.clock.settle()
    assert list(await one.pull()) == []
    assert one.watch.outcomes == [Outcome.ACKED]


async def test_nothing_is_taken_that_nobody_asked_for(sidecar, log, clock):
    one, two = sidecar("app1-one"), sidecar("app1-two")
    await one.pull()
    await two.pull()
    await publish(log, *(event(number) for number in range(6)))
    first = await one.pull(max_messages=2)
    assert len(first) == 2
    assert (await log.backlog(Group("app1", TOPIC))).waiting == 4
    assert len(await two.pull(max_messages=10)) == 4


async def test_a_pull_waits_for_an_event_and_no_longer(sidecar, log, clock):
    one = sidecar()
    await one.pull()
    waiting = asyncio.create_task(one.pulls.pull("pubsub", "A", Pull(wait_seconds=30)))
    await clock.advance(29)
    assert not waiting.done()
    await publish(log, event(1))
    await clock.settle()
    assert numbers(await waiting) == [1]
    began = clock.now()
    assert list(await one.pull(wait_seconds=2)) == []
    assert clock.now() - began == pytest.approx(2, abs=0.02)


async def test_a_client_that_hangs_up_leaves_its_events_to_others(sidecar, log, clock):
    one = sidecar()
    await one.pull()
    waiting = asyncio.create_task(one.pulls.pull("pubsub", "A", Pull(wait_seconds=30, max_messages=5)))
    await clock.settle()
    await publish(log, event(1))
    await clock.settle()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    [lock] = await one.pull()
    assert (numbers([lock]), lock.delivery.attempt) == ([1], 1)


async def test_a_lock_that_expires_is_a_failed_attempt(sidecar, log, clock):
    one = sidecar()
    await one.pull()
    await publish(log, event(1))
    [lock] = await one.pull(lock_seconds=10)
    await clock.advance(9.9)
    assert len(one.pulls.locks) == 1
    await clock.advance(0.2)
    [failed] = one.settle("ack", lock)
    assert (failed.error.code, failed.error.status) == (Code.PULL_TOKEN_EXPIRED, 410)
    assert one.watch.attempts == [(1, "the lock expired before the client said what became of the event", 10.0)]
    [again] = await one.pull(wait_seconds=5)
    assert (numbers([again]), again.delivery.attempt) == ([1], 2)


async def test_after_the_last_attempt_it_becomes_a_dead_letter(sidecar, log, clock):
    one = sidecar(delivery={"maxAttempts": Stated(2, "here")})
    await one.pull()
    await publish(log, event(1))
    for _ in range(2):
        await one.pull(lock_seconds=1, wait_seconds=5)
        await clock.advance(1.1)
    [letter] = one.letters.letters
    assert (letter.reason.value, letter.attempts) == ("attempts", 2)
    assert list(await one.pull(wait_seconds=5)) == []


async def test_a_renewed_lock_holds(sidecar, log, clock):
    one = sidecar()
    await one.pull()
    await publish(log, event(1))
    [lock] = await one.pull(lock_seconds=10)
    await clock.advance(9)
    assert one.settle("renew", lock, 10) == []
    await clock.advance(9)
    assert one.settle("ack", lock) == []


async def test_a_rejected_event_becomes_a_dead_letter_with_the_reason(sidecar, log, clock):
    one = sidecar()
    await one.pull()
    await publish(log, event(1))
    [lock] = await one.pull()
    assert one.settle("reject", lock, "no such order") == []
    await clock.settle()
    [letter] = one.letters.letters
    assert (letter.reason.value, letter.text, letter.excerpt) == ("refused", "the client rejected it", b"no such order")
    assert list(await one.pull()) == []


async def test_a_released_event_comes_again_uncounted(sidecar, log, clock):
    one = sidecar()
    await one.pull()
    await publish(log, event(1))
    [lock] = await one.pull()
    assert one.settle("release", lock, 0) == []
    [lock] = await one.pull()
    assert one.settle("release", lock, 20) == []
    assert list(await one.pull(wait_seconds=5)) == []
    [failed] = one.settle("ack", lock)
    assert failed.error.status == 410
    await clock.advance(15)
    [lock] = await one.pull()
    assert lock.delivery.attempt == 1


async def test_events_of_a_key_come_one_after_another(sidecar, log, clock):
    one = sidecar()
    await one.pull()
    await publish(log, *(event(number, partitionkey="k") for number in (1, 2)), event(3, partitionkey="other"))
    locks = await one.pull(max_messages=10)
    assert numbers(locks) == [1, 3]
    one.settle("ack", locks[0])
    assert numbers(await one.pull(max_messages=10)) == [2]


async def test_tokens_of_others_and_of_nobody(sidecar, log):
    one, two = sidecar("app1-one"), sidecar("app1-two")
    await one.pull()
    await publish(log, event(1))
    [lock] = await one.pull()
    [foreign] = two.settle("ack", lock)
    assert (foreign.error.code, foreign.error.status) == (Code.PULL_TOKEN_FOREIGN, 409)
    assert "given out by sidecar 'app1-one', this is app1-two" in foreign.error.message
    [unknown] = one.pulls.settle(["app1-one." + 32 * "0"], one.pulls.locks.ack)
    assert (unknown.error.code, unknown.error.status) == (Code.PULL_TOKEN_UNKNOWN, 404)
    assert one.pulls.settle([lock.token, lock.token], one.pulls.locks.ack) == []
    [twice] = one.settle("ack", lock)
    assert (twice.error.status, "was acknowledged already" in twice.error.message) == (410, True)


async def test_expired_and_foreign_events_are_passed_over_and_what_is_none_is_a_dead_letter(sidecar, log, clock):
    one = sidecar()
    await one.pull()
    await publish(
        log,
        event(1, expirytime="2001-01-01T00:00:00Z"),
        Message(mode=Mode.STRUCTURED, payload=event(2).payload, headers={addressing.ONLY_FOR: "app2"}),
        Message(mode=Mode.STRUCTURED, payload=b"{"),
        event(3),
    )
    assert numbers(await one.pull(max_messages=10, wait_seconds=1)) == [3]
    assert [letter.reason.value for letter in one.letters.letters] == ["malformed"]


async def test_the_end_of_the_sidecar_gives_back_what_is_locked(sidecar, log, clock):
    one, two = sidecar("app1-one"), sidecar("app1-two")
    await one.pull()
    await publish(log, event(1), event(2))
    first = await one.pull(lock_seconds=3600)
    [resting] = await one.pull()
    one.settle("release", resting, 3600)
    waiting = asyncio.create_task(one.pulls.pull("pubsub", "A", Pull(wait_seconds=60)))
    await clock.settle()
    await one.pulls.close()
    assert list(await waiting) == []
    with pytest.raises(ApiError, match="the sidecar ends"):
        await one.pulls.pull("pubsub", "A", Pull())
    locks = await two.pull(max_messages=5, wait_seconds=1)
    assert sorted(numbers(locks)) == [1, 2]
    assert [lock.delivery.attempt for lock in locks] == [1, 1]
    assert numbers(first) == [1]


async def test_a_group_is_left_when_it_is_idle_and_keeps_its_place(sidecar, log, clock):
    one = sidecar()
    await one.pull()
    assert len(one.pulls.running()) == 1
    await clock.advance(block.IDLE_LIMIT / 2)
    await one.pull()
    await clock.advance(block.IDLE_LIMIT - 1)
    assert len(one.pulls.running()) == 1
    await clock.advance(2)
    assert one.pulls.running() == {}
    await publish(log, event(1))
    assert numbers(await one.pull()) == [1]
    await clock.advance(block.IDLE_LIMIT - 1)
    assert len(one.pulls.running()) == 1, "somebody has an event in hand"


async def test_groups_and_clients_are_bounded(sidecar, clock, monkeypatch):
    monkeypatch.setattr(block, "MAX_GROUPS", 2)
    monkeypatch.setattr(block, "MAX_WAITING", 3)
    one = sidecar()
    await one.pull(group="a")
    await one.pull(group="b")
    with pytest.raises(ApiError, match="2 groups already") as refused:
        await one.pull(group="c")
    assert refused.value.status == 429
    waiting = [asyncio.create_task(one.pulls.pull("pubsub", "A", Pull(group="a", wait_seconds=1))) for _ in range(3)]
    await clock.settle()
    with pytest.raises(ApiError, match="3 clients wait already"):
        await one.pull(group="a")
    await clock.advance(1)
    await asyncio.gather(*waiting)


@pytest.mark.parametrize(
    ("asked", "settings", "code"),
    [
        ({"topic": "a\x01b"}, {}, Code.TOPIC_INVALID),
        ({"topic": "secret"}, {"scopes": {"allowedTopics": "A"}}, Code.PUBSUB_FORBIDDEN),
        ({}, {"scopes": {"subscriptionScopes": "app1="}}, Code.PUBSUB_FORBIDDEN),
        ({}, {"pushed": [("pubsub", "A", "")]}, Code.SUBSCRIPTION_PUSHED),
    ],
)
async def test_what_the_app_may_not_pull(sidecar, asked, settings, code):
    with pytest.raises(ApiError) as refused:
        await sidecar(**settings).pull(**asked)
    assert refused.value.code is code


async def test_a_component_that_is_configured_anew_is_used_from_then_on(sidecar, log, clock):
    one = sidecar()
    await one.pull()
    earlier = one.pulls.running()
    one.components["pubsub"] = Component(name="pubsub", log=log)
    await one.pull()
    assert list(earlier) == list(one.pulls.running())
    assert earlier != one.pulls.running()
    await publish(log, event(1))
    assert numbers(await one.pull()) == [1]


async def test_a_pull_is_answered_when_its_group_has_its_place(sidecar, log, clock, monkeypatch):
    subscribe, taken = log.subscribe, asyncio.Event()

    async def late(*args, **options):
        await taken.wait()
        return await subscribe(*args, **options)

    monkeypatch.setattr(log, "subscribe", late)
    one = sidecar()
    pulling = asyncio.create_task(one.pull())
    await clock.advance(1)
    assert not pulling.done(), "what is published now would not be for it"
    monkeypatch.setattr(block, "PLACE_LIMIT", 0.01)
    with pytest.raises(ApiError, match="not taken the subscription to topic A yet") as refused:
        await one.pull()
    assert refused.value.status == 503
    taken.set()
    assert await pulling == []
    await publish(log, event(1))
    assert numbers(await one.pull(wait_seconds=1)) == [1]


async def test_who_waits_for_the_place_of_a_group_does_not_hold_up_the_end(sidecar, log, clock, monkeypatch):
    monkeypatch.setattr(log, "subscribe", lambda *_, **__: asyncio.Event().wait())
    one = sidecar()
    pulling = asyncio.create_task(one.pull())
    await clock.advance(1)
    one.pulls.turn_away()
    assert not await asyncio.wait_for(pulling, 5)


async def test_an_answer_that_nobody_waits_for_takes_no_longer_than_the_broker(sidecar, clock):
    began = clock.now()
    await sidecar().pull()
    assert clock.now() - began <= PROMPT + 0.02


async def test_a_lock_that_ended_keeps_nothing(sidecar, log, clock):
    one = sidecar()
    await one.pull()
    await clock.advance(60)
    pending = clock.pending
    await publish(log, *map(event, range(4)))
    acked, released, rejected, renewed = await one.pull(max_messages=4, lock_seconds=3600)
    one.settle("renew", renewed, 3000)
    one.settle("renew", renewed, 30)
    await clock.advance(1)
    assert clock.pending == pending + 4
    for how, lock, more in (("ack", acked, ()), ("release", released, (0,)), ("reject", rejected, ("bad",))):
        one.settle(how, lock, *more)
    one.settle("ack", renewed)
    assert clock.pending <= pending + 1  # of the group, which is idle


async def test_a_clock_that_is_set_back_keeps_neither_lock_nor_group(sidecar, log, clock):
    one = sidecar()
    await one.pull()
    await publish(log, event(1))
    await one.pull(lock_seconds=10)
    now = clock.now
    clock.now = lambda: now() - 5
    await clock.advance(10)
    assert one.watch.attempts[0][1] == "the lock expired before the client said what became of the event"
    clock.now = lambda: now() - 10
    await clock.advance(block.IDLE_LIMIT)
    assert not one.pulls.running()


async def test_clients_that_wait_are_promised_no_more_than_there_may_be(sidecar, monkeypatch):
    monkeypatch.setattr(block, "MAX_LOCKS", 150)
    one = sidecar()
    waiting = asyncio.create_task(one.pulls.pull("pubsub", "A", Pull(max_messages=100, wait_seconds=60)))
    await one.clock.settle()
    with pytest.raises(ApiError, match="wait for 100 more, of at most 150") as refused:
        await one.pulls.pull("pubsub", "A", Pull(max_messages=100))
    assert refused.value.code is Code.PULL_LIMIT
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert list(await one.pull(max_messages=100)) == []
