"""Order per key, parking and the bounds of memory, against random schedules."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Hashable

import pytest

from brokers.key_order import KeyOrder

Message = tuple[str, int]


class Log:
    """A lane's surroundings: messages by number, what is in work, and recalls that are answered when the test says."""

    def __init__(self, *, per_key: int = 64, most: int = 4096, most_bytes: int = 1 << 20) -> None:
        self.messages: dict[int, Message] = {}
        self.in_work: list[Message] = []
        self.offered: dict[str, list[int]] = defaultdict(list)
        self.recalls: list[tuple[Hashable, list[int]]] = []
        self.order: KeyOrder[Message] = KeyOrder(
            self.offer, self.recall, per_key=per_key, most=most, most_bytes=most_bytes
        )

    def offer(self, message: Message) -> bool:
        self.in_work.append(message)
        self.offered[message[0]].append(message[1])
        return True

    def recall(self, key: Hashable, numbers: list[int]) -> None:
        assert all(key != waiting for waiting, _ in self.recalls), "asked twice"
        self.recalls.append((key, numbers))

    def add(self, key: str, number: int, size: int = 1) -> None:
        self.messages[number] = (key, number)
        self.order.add(key, (key, number), sequence=number, size=size)

    def finish(self, message: Message) -> None:
        self.in_work.remove(message)
        self.order.done(message[0])

    def answer(self, place: int = 0) -> None:
        key, numbers = self.recalls.pop(place)
        self.order.recalled(key, [(self.messages[number], 1) for number in numbers if number in self.messages])


def test_a_message_waits_for_the_one_before_it() -> None:
    log = Log()
    log.add("a", 1)
    log.add("a", 2)
    log.add("b", 3)
    assert log.in_work == [("a", 1), ("b", 3)]
    log.finish(("a", 1))
    assert log.in_work == [("b", 3), ("a", 2)]


def test_a_key_that_is_done_leaves_nothing_behind() -> None:
    log = Log()
    for number in range(100):
        log.add("a", number)
    while log.in_work or log.recalls:
        if log.recalls:
            log.answer()
        log.finish(log.in_work[0])
    assert log.offered["a"] == list(range(100))
    assert not log.order._lines
    assert log.order.waiting == log.order._bytes == 0


def test_what_waits_behind_a_blocked_key_is_parked_and_others_flow() -> None:
    log = Log(per_key=4)
    for number in range(1000):
        log.add("blocked", number)
    log.add("free", 1000)
    assert log.in_work == [("blocked", 0), ("free", 1000)]
    assert log.order.waiting == 4
    assert not log.recalls


@pytest.mark.parametrize("bounds", [{"most": 10}, {"most_bytes": 10}])
def test_all_keys_together_are_bounded(bounds: dict[str, int]) -> None:
    log = Log(**bounds)
    for number in range(1000):
        log.add(f"key {number % 20}", number)
    assert log.order.waiting == 10
    # No key starves: each goes on, one message at a time while memory is full.
    while log.in_work or log.recalls:
        while log.recalls:
            log.answer()
        log.finish(log.in_work[0])
    assert {key: len(numbers) for key, numbers in log.offered.items()} == {f"key {n}": 50 for n in range(20)}
    assert all(numbers == sorted(numbers) for numbers in log.offered.values())


def test_messages_that_are_gone_when_recalled_hold_up_nothing() -> None:
    log = Log(per_key=2)
    for number in range(10):
        log.add("a", number)
    for number in range(3, 9):
        del log.messages[number]
    while log.in_work or log.recalls:
        while log.recalls:
            log.answer()
        log.finish(log.in_work[0])
    assert log.offered["a"] == [0, 1, 2, 9]


def test_a_message_that_is_not_taken_is_skipped() -> None:
    taken: list[int] = []

    def offer(number: int) -> bool:
        if number % 2:
            return False
        taken.append(number)
        return True

    order: KeyOrder[int] = KeyOrder(offer)
    for number in range(1, 6):
        order.add("a", number)
    assert taken == [2]
    order.done("a")
    assert taken == [2, 4]
    order.done("a")
    assert not order._lines


def test_who_is_done_at_once_does_not_pile_up_calls() -> None:
    finished: list[int] = []

    def offer(number: int) -> bool:
        finished.append(number)
        if number:
            order.done("a")
        return True

    order: KeyOrder[int] = KeyOrder(offer)
    for number in range(100_000):
        order.add("a", number)
    order.done("a")
    assert finished == list(range(100_000))


@pytest.mark.parametrize("seed", range(50))
def test_any_schedule_keeps_the_order_of_each_key(seed: int) -> None:
    chance = random.Random(seed)
    log = Log(per_key=chance.choice([1, 2, 8]), most=chance.choice([1, 5, 100]))
    added: dict[str, list[int]] = defaultdict(list)
    number = 0
    while number < 500 or log.in_work or log.recalls:
        choice = chance.random()
        if number < 500 and choice < 0.5:
            key = f"key {int(chance.expovariate(1))}"
            log.add(key, number)
            added[key].append(number)
            number += 1
        elif log.in_work and choice < 0.8:
            log.finish(chance.choice(log.in_work))
        elif log.recalls:
            log.answer(chance.randrange(len(log.recalls)))
        keys = [key for key, _ in log.in_work]
        assert len(keys) == len(set(keys)), "two of one key in work"
    assert log.offered == added
