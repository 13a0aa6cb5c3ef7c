"""The plan on a real broker, in real time: nothing beside it delivers again, and what it frees is free."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import count

import pytest

from mesh.clock import SystemClock
from mesh.delivery import BackOff, EventTarget, Plan, deliverer
from mesh.delivery.live import Live
from mesh.delivery.plan import schedule
from mesh.errors import AppUnreachable
from mesh.ports import EventLog, Group, Message, Mode, Topic
from mesh.resiliency.breaker import BreakerSettings
from tests.contract.implementations import Nats
from tests.unit.mesh.delivery.bench import EVENT, TOPIC, App, Store, answer

LATE = 0.4
"""Seconds that a broker on a busy machine may be late."""
namespaces = (f"plan{number}" for number in count(1))


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nats]:
    nats = Nats()
    nats.start(tmp_path_factory.mktemp("nats"))
    yield nats
    nats.stop()


class Bench:
    def __init__(self, log: EventLog) -> None:
        self.log = log
        self.clock = SystemClock()
        self.app = App(self.clock)  # type: ignore[arg-type]
        self.store = Store()
        self.lives: list[Live] = []

    async def member(self, plan: Plan, app: App | None = None) -> Live:
        app = app or self.app
        live = Live(
            group=Group("app", TOPIC),
            target=EventTarget(TOPIC, "/A", app),  # type: ignore[arg-type]
            plan=plan,
            log=self.log,
            channel=app,  # type: ignore[arg-type]
            clock=self.clock,
            dead_letters=self.store,
        )
        self.lives.append(live)
        live.begin()
        await until(lambda: live.subscription is not None)
        return live

    async def publish(self, payload: bytes = EVENT, *, topic: Topic = TOPIC) -> None:
        await self.log.publish(topic, Message(mode=Mode.STRUCTURED, payload=payload))


async def until(condition, limit: float = 30.0) -> None:  # type: ignore[no-untyped-def]
    async with asyncio.timeout(limit):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
async def bench(nats: Nats) -> AsyncIterator[Bench]:
    log = nats.event_log(next(namespaces))
    await asyncio.wait_for(log.start(), 30)
    bench = Bench(log)
    yield bench
    for call in bench.app.open:
        call.cancel()
    for live in bench.lives:
        await asyncio.wait_for(live.end(), 30)
    await asyncio.wait_for(log.close(), 10)


async def test_attempts_come_when_they_were_told_once_each(bench: Bench) -> None:
    plan = Plan(attempts=5, back_off=BackOff(first=0.1, factor=2, jitter=0))
    await bench.member(plan)
    await bench.member(plan)  # the attempts are those of the group
    bench.app.answers = [answer(500)] * 20
    await bench.publish()
    await until(lambda: bench.store.letters)
    await asyncio.sleep(LATE)
    told = list(schedule(plan))
    assert len(bench.app.times) == len(told)
    for moment, attempt in zip(bench.app.times, told, strict=True):
        # Each pause begins when the one before has ended, late or not.
        assert attempt.earliest - 0.02 <= moment <= attempt.latest + 5 * attempt.attempt
    assert bench.store.only.attempts == 5
    assert [headers.split(b"\r\n")[0][-1:] for _, _, headers in bench.app.calls] == [b"1", b"2", b"3", b"4", b"5"]


async def test_a_slow_handler_and_a_poison_message_hold_up_nobody(bench: Bench) -> None:
    await bench.member(Plan(attempts=3, concurrency=2, back_off=BackOff(first=0.2, factor=1, jitter=0)))
    bench.app.answers = [None]
    await bench.publish()
    await until(lambda: bench.app.open)
    bench.app.answers = [answer(500)]
    await bench.publish(b'{"poison":1}')
    for _ in range(50):
        await bench.publish()
    await until(lambda: len(bench.app.calls) >= 52)
    bench.app.answers = [answer(500)] * 2
    await until(lambda: bench.store.letters)
    assert bench.store.only.message.payload == b'{"poison":1}'
    bench.app.open.pop().set_result(answer(200))
    await asyncio.sleep(LATE)
    assert len(bench.app.calls) == 1 + 3 + 50


async def test_an_open_breaker_takes_nothing_and_burns_nothing(bench: Bench) -> None:
    breaker = BreakerSettings(timeout=1.0, trip=lambda counts: counts.consecutive_failures >= 2)
    live = await bench.member(Plan(attempts=3, breaker=breaker, back_off=BackOff(first=0.1, factor=1, jitter=0)))
    bench.app.answers = [answer(500)] * 2
    await bench.publish()
    await until(lambda: live.gate.allowed == 0)
    assert len(bench.app.calls) == 2
    for _ in range(10):
        await bench.publish()
    await asyncio.sleep(0.3)
    assert len(bench.app.calls) == 2
    await until(lambda: len(bench.app.calls) == 13)
    await asyncio.sleep(LATE)
    assert (len(bench.app.calls), bench.store.letters, live.gate.allowed) == (13, {}, 64)
    assert bench.app.times[2] >= 1.0


async def test_what_was_given_back_is_no_attempt(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliverer, "HOLD_LIMIT", 0.3)
    await bench.member(Plan(attempts=1))
    bench.app.answers = [AppUnreachable("refused")] * 8
    await bench.publish()
    await until(lambda: len(bench.app.calls) == 9)
    await asyncio.sleep(LATE)
    assert {headers for _, _, headers in bench.app.calls} == {b"meshwire-attempt: 1\r\n"}
    assert (len(bench.app.calls), bench.store.letters) == (9, {})
