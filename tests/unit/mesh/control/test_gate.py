import pytest

from mesh.control.gate import Gate
from tests.virtual_clock import VirtualClock


class Broker:
    """Has as many events as anybody wants; gives as many as the gate lets it. Handlers take `busy` seconds each."""

    def __init__(self, clock, busy=0.0, *, most=64):
        self.clock = clock
        self.busy = busy
        self.concurrency = 0
        self.in_hand = 0
        self.times = []
        self.gate = Gate(most, clock, lambda: self.in_hand)
        self.handler = self.gate.around(self.handle)

    def start(self):
        self.gate.attach(self)

    def set_concurrency(self, concurrency):
        self.concurrency = concurrency
        self.clock.call_later(0, self.deliver)

    def deliver(self):
        while self.in_hand < self.concurrency and len(self.times) < 5_000:
            self.handler(object())

    def handle(self, _delivery):
        self.in_hand += 1
        self.times.append(self.clock.now())
        self.clock.call_later(self.busy, self.settle)

    def settle(self):
        self.in_hand -= 1
        self.deliver()


@pytest.fixture
def clock():
    return VirtualClock(0.0)


def test_the_least_wish_holds(clock):
    broker = Broker(clock)
    broker.start()
    assert broker.concurrency == 64
    broker.gate.wish("a", 10)
    broker.gate.wish("b", 3)
    assert (broker.concurrency, broker.gate.allowed) == (3, 3)
    broker.gate.wish("b", None)
    assert broker.concurrency == 10
    broker.gate.wish("a", 1000)
    assert broker.concurrency == 64


def test_wishes_from_before_the_subscription_hold_when_it_begins(clock):
    broker = Broker(clock)
    broker.gate.wish("paused", 0)
    assert broker.gate.allowed == 0
    broker.start()
    assert broker.concurrency == 0


@pytest.mark.parametrize("rate", [0.5, 7, 100])
@pytest.mark.parametrize("busy", [0.001, 7.0])
async def test_a_rate_is_kept_and_made_use_of(clock, rate, busy):
    broker = Broker(clock, busy, most=5_000)
    broker.gate.limit(rate)
    broker.start()
    await clock.advance(20.0)
    assert rate * 20 - max(1, rate / 10) <= len(broker.times) <= rate * 20 + 1
    within = [sum(start <= moment < start + 2 for moment in broker.times) for start in range(18)]
    assert max(within) <= 2 * rate + max(2, rate / 10)


async def test_events_are_left_with_the_broker_rather_than_held(clock):
    broker = Broker(clock, 0.001)
    broker.gate.limit(2)
    broker.start()
    await clock.advance(0.2)
    assert (len(broker.times), broker.in_hand, broker.concurrency) == (1, 0, 0) or broker.concurrency <= 1


async def test_a_rate_is_taken_away_at_once(clock):
    broker = Broker(clock, 1.0)
    broker.gate.limit(0.01)
    broker.start()
    await clock.advance(0.5)
    assert len(broker.times) == 1
    broker.gate.limit(None)
    await clock.advance(0.1)
    assert broker.in_hand == 64
    assert broker.gate.rate is None


async def test_a_rate_that_is_raised_does_not_wait_for_the_moment_of_the_old_one(clock):
    broker = Broker(clock, 0.001)
    broker.gate.limit(0.001)
    broker.start()
    await clock.advance(1.0)
    broker.gate.limit(10)
    await clock.advance(5.0)
    assert len(broker.times) >= 50
    assert clock.pending <= 2


async def test_what_comes_too_many_is_paid_by_waiting(clock):
    broker = Broker(clock)
    broker.gate.limit(1)
    for _ in range(5):
        broker.handler(object())
    broker.start()
    await clock.advance(4.9)
    assert len(broker.times) == 5
    await clock.advance(0.2)
    assert len(broker.times) == 6


async def test_a_gate_whose_subscription_ends_lets_go_of_its_timers(clock):
    broker = Broker(clock)
    broker.gate.limit(1)
    broker.start()
    await clock.advance(5)
    assert clock.pending == 1
    broker.gate.detach()
    await clock.advance(5)
    assert clock.pending == 0
