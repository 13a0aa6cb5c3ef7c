from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from brokers.streams import CHUNK, CHUNK_COST, GRANT, WINDOW, BodyReader, Credit, write
from mesh.ports import PeerLost


async def pieces(*sizes: int) -> AsyncGenerator[bytes, None]:
    for size in sizes:
        yield bytes(size)


class Reader(BodyReader):
    """Notes what it tells its owner."""

    def __init__(self) -> None:
        self.granted: list[int] = []
        self.begun = 0
        self.abandoned = 0
        super().__init__(self.on_begin, self.granted.append, self.on_abandon)

    async def on_begin(self) -> None:
        self.begun += 1

    def on_abandon(self) -> None:
        self.abandoned += 1


@pytest.mark.parametrize(
    ("body", "chunks"),
    [
        (b"", []),
        (bytes(CHUNK), [CHUNK]),
        (bytes(2 * CHUNK + 1), [CHUNK, CHUNK, 1]),
        (pieces(), []),
        (pieces(1, 0, 2 * CHUNK, 3), [1, CHUNK, CHUNK, 3]),
    ],
)
async def test_bodies_are_cut_into_chunks_and_not_joined(body: bytes, chunks: list[int]) -> None:
    credit = Credit()
    credit.grant(WINDOW)
    sent: list[int] = []
    await write(body, credit, lambda chunk: sent.append(len(chunk)))
    assert sent == chunks


async def test_a_writer_waits_for_credit() -> None:
    credit = Credit()
    sent: list[int] = []
    writer = asyncio.ensure_future(write(bytes(3 * CHUNK), credit, lambda chunk: sent.append(len(chunk))))
    for granted, expected in ((CHUNK, 0), (CHUNK_COST - 1, 0), (1, 1), (2 * (CHUNK + CHUNK_COST), 3)):
        credit.grant(granted)
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(sent) == expected
    await asyncio.wait_for(writer, 1)


async def test_a_reader_begins_at_the_first_read_and_grants_what_was_read() -> None:
    reader = Reader()
    reader.put(bytes(CHUNK))
    assert reader.begun == 0
    reading = 1
    await anext(reader)
    while not reader.granted:
        reader.put(bytes(CHUNK))
        await anext(reader)
        reading += 1
    assert reader.begun == 1
    assert reader.granted == [reading * (CHUNK + CHUNK_COST)]
    assert GRANT <= reader.granted[0] < GRANT + CHUNK + CHUNK_COST


async def test_a_body_ends_only_when_it_is_whole() -> None:
    reader = Reader()
    reader.put(b"a")
    waiting = asyncio.ensure_future(anext(reader))
    assert await waiting == b"a"
    waiting = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    assert not waiting.done()
    reader.put(b"b")
    reader.end()
    reader.fail(PeerLost("too late"))
    assert await waiting == b"b"
    with pytest.raises(StopAsyncIteration):
        await anext(reader)
    await reader.aclose()
    assert reader.abandoned == 0


async def test_a_body_that_breaks_off_says_so_again_and_again() -> None:
    reader = Reader()
    reader.put(b"a")
    reader.fail(PeerLost("gone"))
    reader.put(b"b")
    reader.end()
    for _ in range(2):
        with pytest.raises(PeerLost, match="gone"):
            await anext(reader)


async def test_closing_early_abandons_once() -> None:
    reader = Reader()
    reader.put(b"a")
    for _ in range(2):
        await reader.aclose()
    reader.put(b"b")
    assert reader.abandoned == 1
    with pytest.raises(StopAsyncIteration):
        await anext(reader)


@pytest.mark.parametrize("size", [0, 1, CHUNK])
async def test_a_writer_that_spends_more_than_it_was_granted_breaks_the_stream(size: int) -> None:
    reader = Reader()
    for _ in range(WINDOW // (size + CHUNK_COST)):
        reader.put(bytes(size))
    assert not reader.over
    reader.put(bytes(size))
    with pytest.raises(PeerLost, match="more than it was allowed"):
        await anext(reader)
