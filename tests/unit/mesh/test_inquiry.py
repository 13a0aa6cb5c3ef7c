import asyncio
from contextlib import asynccontextmanager

import pytest

from brokers.memory_tables import MemoryTables
from mesh import inquiry
from mesh.inquiry import Inquirer, TooManyQuestions, Witness
from tests.virtual_clock import VirtualClock


@asynccontextmanager
async def witnesses(clock, table, **answers):
    """Give their answers, by their names."""
    there = [Witness("weather", name, table, clock, answer) for name, answer in answers.items()]
    for witness in there:
        witness.start()
    await clock.settle()
    try:
        yield there
    finally:
        await asyncio.gather(*(witness.close() for witness in there))


@pytest.fixture
def clock():
    return VirtualClock()


@pytest.fixture
def table(clock):
    return MemoryTables(clock).table("app1")


async def test_all_answer_at_once(clock, table):
    async with witnesses(clock, table, a=lambda asked: b"a:" + asked, b=lambda asked: b"b:" + asked):
        answers = await Inquirer("weather", table, clock).ask(b"here?")
    assert answers.given == {"a": b"a:here?", "b": b"b:here?"}
    assert answers.silent == []


async def test_nobody_is_waited_for_where_nobody_is(clock, table):
    assert await Inquirer("weather", table, clock).ask(b"?") == ({}, [])


async def test_a_witness_of_another_subject_is_not_asked(clock, table):
    async with witnesses(clock, table, a=lambda _: b"a"):
        assert await Inquirer("trade", table, clock).ask(b"?") == ({}, [])


async def test_who_does_not_answer_is_waited_for_no_longer_than_that(clock, table):
    async with witnesses(clock, table, a=lambda _: b"a", b=lambda _: None):
        asking = asyncio.create_task(Inquirer("weather", table, clock).ask(b"?"))
        await clock.advance(inquiry.PATIENCE - 0.01)
        assert not asking.done()
        await clock.advance(0.02)
        assert await asking == ({"a": b"a"}, ["b"])


async def test_a_witness_that_has_stopped_is_not_waited_for(clock, table):
    async with witnesses(clock, table, a=lambda _: b"a"):
        async with witnesses(clock, table, b=lambda _: b"b"):
            pass
        assert await Inquirer("weather", table, clock).ask(b"?") == ({"a": b"a"}, [])


async def test_a_witness_says_that_it_is_there_for_as_long_as_it_is(clock, table):
    async with witnesses(clock, table, a=lambda _: b"a"):
        await clock.advance(10 * inquiry.WITNESS_TTL)
        assert (await Inquirer("weather", table, clock).ask(b"?")).given == {"a": b"a"}


async def test_what_was_asked_and_answered_is_forgotten(clock, table):
    async with witnesses(clock, table, a=lambda _: b"a"):
        await Inquirer("weather", table, clock).ask(b"?")
        await clock.advance(inquiry.RECORD_TTL + 2)
        left = await table.scan(("weather",), limit=10)
        assert [entry.key for entry in left.entries] == [("weather", "witness", "a")]
    assert (await table.scan(("weather",), limit=10)).entries == []


async def test_there_is_an_end_to_open_questions(clock, table):
    async with witnesses(clock, table, a=lambda _: None):
        inquirer = Inquirer("weather", table, clock)
        asking = [asyncio.create_task(inquirer.ask(b"?")) for _ in range(inquiry.MOST_QUESTIONS)]
        await clock.settle()
        with pytest.raises(TooManyQuestions):
            await inquirer.ask(b"?")
        await clock.advance(inquiry.PATIENCE)
        await asyncio.gather(*asking)
        again = asyncio.create_task(inquirer.ask(b"?"))
        await clock.advance(inquiry.PATIENCE)
        assert (await again).silent == ["a"]
