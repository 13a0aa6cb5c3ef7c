import asyncio
import time

import pytest

from benchmarks.pace import keep_pace


async def test_everything_is_sent_when_it_is_due_and_not_before() -> None:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    dues: list[int] = []
    start = time.monotonic_ns()

    def send(due: int) -> None:
        assert due <= time.monotonic_ns()
        dues.append(due - start)
        if len(dues) == 20:
            done.set_result(None)

    await keep_pace(1000, 20, start, send, done)
    assert dues == [number * 1_000_000 for number in range(20)]


async def test_what_is_overdue_is_sent_with_the_moment_at_which_it_was_due() -> None:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    dues: list[int] = []
    start = time.monotonic_ns() - 10**9

    def send(due: int) -> None:
        dues.append(due - start)
        if len(dues) == 3:
            done.set_result(None)

    await keep_pace(10, 3, start, send, done)
    assert dues == [0, 10**8, 2 * 10**8]


async def test_it_ends_with_the_error_of_who_waits() -> None:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def send(due: int) -> None:
        done.set_exception(ConnectionError("gone"))

    with pytest.raises(ConnectionError):
        await keep_pace(1000, 1, time.monotonic_ns(), send, done)
