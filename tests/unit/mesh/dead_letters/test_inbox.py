"""Letters are kept as they were, listed by the time of their death, filtered, counted and removed."""

import msgspec
import pytest

from mesh.dead_letters.inbox import InvalidCursor, InvalidLetterId
from mesh.dead_letters.selection import Filter
from mesh.delivery import Reason
from mesh.ports import Message, Mode, Topic
from tests.unit.mesh.dead_letters.bench import ORDERS, Bench, letter, settle

ALL = Filter()
BILLS = Topic("other", "ns-bills")
BINARY = Message(
    mode=Mode.BINARY,
    payload=b"\x00\xff",
    attributes={"specversion": "1.0", "id": "b", "source": "/b", "type": "billed", "flag": True, "n": 7},
    headers={"traceparent": "x", "baggage": "a=b"},
)
RAW = Message(mode=Mode.RAW, payload=b"any \xff bytes", content_type="text/plain")
NO_DATA = Message(mode=Mode.BINARY, payload=None, attributes={"specversion": "1.0", "id": "n"})


@pytest.mark.parametrize("message", [None, BINARY, RAW, NO_DATA])
async def test_a_letter_is_kept_as_it_is(bench, message):
    kept = letter(7, message=message, died=5.0, excerpt=b"no \xff", destination="/orders")
    await bench.keep(kept)
    found = await bench.inbox.get("pubsub/orders/7")
    assert found.letter == kept
    assert found.expires == pytest.approx(bench.clock.now() + 30 * 24 * 3600)


@pytest.mark.parametrize("size", [100, 2_000, 60_000, 200_000])
async def test_no_letter_is_too_large(size):
    """A broker may hold a message that, with what is known of its death, is larger than it takes."""
    async with Bench(max_message_size=66_000) as bench:
        large = letter(1, message=Message(mode=Mode.RAW, payload=bytes(range(256)) * (size // 256)))
        await bench.keep(large, letter(2))
        assert (await bench.inbox.get("pubsub/orders/1")).letter == large
        assert await bench.ids(ALL) == ["2", ""]
        assert await bench.inbox.remove("pubsub/orders/1")
        left = await bench.store.table.scan((), limit=1000)
        assert [entry.key[-1] for entry in left.entries] == ["2".zfill(20)]


async def test_a_letter_that_is_kept_twice_is_one(bench):
    await bench.keep(letter(1, text="first"), letter(1, text="again"))
    page = await bench.inbox.page(ALL, limit=10)
    assert [shown.row.text for shown in page.letters] == ["again"]


async def test_positions_of_any_kind(bench):
    positions = ["1-0", "a/b", "ü" * 300, "0", ""]
    for position in positions:
        await bench.keep(msgspec.structs.replace(letter(1), position=position))
    page = await bench.inbox.page(ALL, limit=10)
    assert len({shown.id for shown in page.letters}) == len(positions)
    for shown in page.letters:
        assert (await bench.inbox.get(shown.id)).key == shown.row.key


async def test_pages_in_both_orders(bench):
    await bench.keep(*(letter(number, died=float(number % 7)) for number in range(50)))
    whole = await bench.ids(ALL, newest=False)
    assert [int(number) % 7 for number in whole] == sorted(number % 7 for number in range(50))
    for newest, expected in ((False, whole), (True, whole[::-1])):
        seen, cursor = [], None
        while True:
            page = await bench.inbox.page(ALL, newest=newest, limit=7, cursor=cursor)
            seen += [shown.row.id for shown in page.letters]
            cursor = page.cursor
            if cursor is None:
                break
            await bench.inbox.remove(page.letters[-1].id)  # the place stays where it was
        assert seen == [number for number in expected if number in seen]
        assert len(seen) == len(expected) if not newest else len(seen) < len(whole)


async def test_what_happens_after_the_first_look_is_seen(bench):
    assert await bench.ids(ALL) == []
    await bench.keep(letter(1), letter(2, died=1.0))
    await settle()
    assert await bench.ids(ALL) == ["2", "1"]
    await bench.inbox.remove("pubsub/orders/2")
    assert await bench.ids(ALL) == ["1"]


async def test_nothing_is_kept_in_memory_for_nobody(bench):
    await bench.keep(letter(1))
    assert await bench.ids(ALL) == ["1"]
    await bench.clock.advance(61)
    assert bench.clock.pending == 1  # the letter's own expiry
    assert await bench.ids(ALL) == ["1"]


async def test_letters_are_forgotten_after_thirty_days(bench):
    await bench.keep(letter(1))
    await bench.clock.advance(30 * 24 * 3600 - 1)
    assert await bench.ids(ALL) == ["1"]
    await bench.clock.advance(2)
    assert await bench.ids(ALL) == []


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Filter(), "1 2 3 b"),
        (Filter(pubsubname="other"), "b"),
        (Filter(topic="bills"), "b"),
        (Filter(topic="ns-bills"), ""),
        (Filter(topic="orders"), "1 2 3"),
        (Filter(reason=Reason.DROPPED), "2"),
        (Filter(status=404), "2"),
        (Filter(after=2.0), "2 3 b"),
        (Filter(before=2.0), "1"),
        (Filter(after=2.0, before=3.0), "2"),
        (Filter(type="billed"), "b"),
        (Filter(source="/shop"), "1 2 3"),
        (Filter(source="/shop", id="3"), "3"),
        (Filter(text='"NUMBER":2'), "2"),
        (Filter(text="refused"), "3"),
        (Filter(text="excerpt of 1"), "1"),
        (Filter(text="flag=true"), "b"),
        (Filter(text="nowhere"), ""),
    ],
)
async def test_filters(bench, wanted, expected):
    await bench.keep(
        letter(1, died=1.0, excerpt=b"an excerpt of 1"),
        letter(2, died=2.0, reason=Reason.DROPPED, status=404),
        letter(3, died=3.0, text="Refused for good"),
        letter(4, topic=BILLS, message=BINARY, died=4.0, status=None),
    )
    assert await bench.ids(wanted, newest=False) == expected.split()
    assert sum((await bench.inbox.count(wanted)).values()) == len(expected.split())


async def test_counts_of_each_subscription(bench):
    await bench.keep(*(letter(number) for number in range(3)), letter(1, topic=BILLS))
    assert list((await bench.inbox.count(ALL)).items()) == [(ORDERS, 3), (Topic("other", "bills"), 1)]


async def test_purge_removes_what_is_meant(bench):
    await bench.keep(*(letter(number, died=float(number)) for number in range(200)))
    assert await bench.inbox.purge(Filter(before=150.0)) == 150
    assert len(await bench.ids(ALL)) == 50
    assert await bench.inbox.purge(ALL) == 50
    assert await bench.ids(ALL) == []


async def test_a_letter_that_dies_once_more_while_it_is_removed_stays(bench):
    await bench.keep(letter(1, text="first"))
    read = await bench.inbox.get("pubsub/orders/1")
    await bench.keep(letter(1, text="again"))
    assert await bench.inbox.remove_many([read]) == []
    assert (await bench.inbox.get("pubsub/orders/1")).letter.text == "again"


@pytest.mark.parametrize("wrong", ["", "x", "pubsub/orders", "pubsub//1", "/orders/1", "pubsub/orders/"])
async def test_ids_that_are_none(bench, wrong):
    with pytest.raises(InvalidLetterId, match="pubsub/topic/position"):
        await bench.inbox.get(wrong)


async def test_cursors_that_are_none(bench):
    await bench.keep(letter(1), letter(2))
    cursor = (await bench.inbox.page(ALL, limit=1)).cursor
    with pytest.raises(InvalidCursor, match="other order"):
        await bench.inbox.page(ALL, limit=1, newest=False, cursor=cursor)
    for wrong in ("x", "!", cursor[:-4], "é"):
        with pytest.raises(InvalidCursor, match="is no cursor"):
            await bench.inbox.page(ALL, limit=1, cursor=wrong)


async def test_more_letters_than_are_shown(bench):
    bench.inbox._index._most = 10
    await bench.keep(*(letter(number, died=float(number)) for number in range(25)))
    assert await bench.ids(ALL) == [str(number) for number in range(24, 14, -1)]
    assert bench.inbox.left_out
    assert await bench.inbox.purge(ALL) == 25
