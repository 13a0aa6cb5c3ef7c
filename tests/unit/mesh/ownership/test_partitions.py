"""Groups whose members come, go, crash and pause: who owns what, how soon, and how much moves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from mesh.ports.tables import Delete, Put
from tests.unit.mesh.ownership.group import GROUP, SCOPE, TTL, Group

TAKEOVER = TTL + 3.0
"""Seconds within which what a crashed member owned is owned again."""


@pytest.fixture
async def group() -> AsyncIterator[Group]:
    group = Group(16)
    yield group
    await group.close()


async def test_one_member_owns_all_at_once(group: Group) -> None:
    member = group.join("a")
    await group.clock.settle()
    assert member.partitions.owned == list(range(16))


async def test_one_that_joins_gets_its_share_and_nothing_else_moves(group: Group) -> None:
    for members, moved in ((1, 16), (2, 8), (3, 5), (4, 4), (5, 3)):
        before = group.moves
        group.join(f"node{members}")
        await group.pass_time(2)
        group.assert_settled()
        assert group.moves - before == moved


async def test_what_a_leaver_owned_is_owned_at_once_and_nothing_else_moves(group: Group) -> None:
    members = [group.join(f"node{number}") for number in range(4)]
    await group.pass_time(2)
    before = group.moves
    await group.leave(members[1])
    await group.clock.settle()
    group.assert_settled()
    assert group.moves - before == 4


async def test_what_a_crashed_one_owned_is_owned_after_its_ttl_and_nothing_else_moves(group: Group) -> None:
    members = [group.join(f"node{number}") for number in range(4)]
    await group.pass_time(2)
    before = group.moves
    members[1].stop()
    await group.pass_time(TTL / 3)
    assert group.moves == before
    await group.pass_time(TAKEOVER - TTL / 3)
    group.assert_settled()
    assert group.moves - before == 4


async def test_a_paused_one_knows_at_once_that_it_has_lost_all(group: Group) -> None:
    paused, other = group.join("a"), group.join("b")
    await group.pass_time(2)
    paused.stop()
    await group.pass_time(TAKEOVER)
    assert other.partitions.owned == list(range(16))
    assert len(paused.believed) == 8
    assert paused.partitions.owned == [], "before anything of it could run"
    assert paused.partitions.token(paused.tokens[0][0]) is None
    await paused.write_with_all_tokens()
    assert (group.refused, group.written) == (len(paused.tokens), 0)
    paused.resume()
    await group.pass_time(2)
    assert paused.lost_ones == 8
    group.assert_settled()


async def test_a_pause_shorter_than_the_margin_loses_nothing(group: Group) -> None:
    paused, _ = group.join("a"), group.join("b")
    await group.pass_time(2)
    before = group.moves
    paused.stop()
    await group.pass_time(TTL / 2)
    paused.resume()
    await group.pass_time(2 * TTL)
    assert (group.moves, paused.lost_ones) == (before, 0)


async def test_work_has_its_time_to_end_before_a_partition_moves(group: Group) -> None:
    slow = group.join("a", revoking=3.0)
    await group.pass_time(1)
    group.join("b")
    await group.pass_time(2.5)
    assert len(slow.partitions.owned) == 16
    await group.pass_time(2)
    group.assert_settled()
    assert slow.lost_ones == 0


async def test_work_that_does_not_end_is_ended(group: Group) -> None:
    slow = group.join("a", revoking=60.0)
    await group.pass_time(1)
    group.join("b")
    await group.pass_time(6)
    group.assert_settled()
    assert slow.lost_ones == 8


async def test_a_member_that_loses_partitions_while_it_gives_them_up(group: Group) -> None:
    slow = group.join("a", revoking=3.0)
    await group.pass_time(1)
    other = group.join("b")
    await group.pass_time(1)
    slow.stop()
    await group.pass_time(TAKEOVER)
    assert other.partitions.owned == list(range(16))
    slow.resume()
    await group.pass_time(6)
    assert slow.lost_ones == 16
    group.assert_settled()


async def test_a_claim_whose_answer_was_lost_is_made_again_with_a_token_of_its_own(group: Group) -> None:
    group.join("a", revoking=1.0)
    await group.pass_time(1)
    member = group.join("b")
    await group.pass_time(0.5)
    member.tables.unanswered = 8
    await group.pass_time(0.6)
    assert (member.tables.unanswered, member.partitions.owned) == (0, [])
    await group.pass_time(2)
    group.assert_settled()
    assert len(member.tokens) == 8


async def test_a_claim_whose_answer_was_lost_and_that_is_another_s_share_by_now_is_given_up(group: Group) -> None:
    group.join("a", revoking=1.0)
    await group.pass_time(1)
    member = group.join("b")
    await group.pass_time(0.5)
    member.tables.unanswered = 8
    await group.pass_time(0.6)
    last = group.join("c")
    await group.pass_time(3)
    group.assert_settled()
    assert len(last.partitions.owned) == 5
    assert len(member.tokens) < 8, "some of those that it never knew of have moved on"


async def test_a_joining_whose_answer_was_lost_keeps_no_share_for_a_ghost(group: Group) -> None:
    group.join("a")
    await group.pass_time(1)
    member = group.join("b")
    member.tables.unanswered = 1
    await group.pass_time(2)
    group.assert_settled()


async def test_records_that_nobody_here_can_read(group: Group, caplog: pytest.LogCaptureFixture) -> None:
    """Of a later version, say: what they own is left to them."""
    table = group.tables.table(SCOPE)
    await table.commit([Put(key=("lease", GROUP, "owner", "3"), value=b"\xff", expected=0)])
    await table.commit([Put(key=("lease", GROUP, "member", "x"), value=b"[]", expected=0)])
    await table.commit([Put(key=("lease", GROUP, "later"), value=b"", expected=0)])
    member = group.join("a")
    await group.pass_time(3)
    assert member.partitions.owned == [partition for partition in range(16) if partition != 3]
    assert "lease/orders/owner/3 cannot be read" in caplog.text
    before = member.tables.commits
    await group.pass_time(TTL)
    assert member.tables.commits - before == 3, "nothing but renewals"


async def test_time_tells_what_no_word_of_a_watch_did(group: Group) -> None:
    crashed, other = group.join("a"), group.join("b")
    await group.pass_time(2)
    other.tables.deaf = True
    crashed.stop()
    await group.pass_time(TTL + 6)
    assert len(other.partitions.owned) == 16


async def test_a_member_that_hears_of_no_release_asks(group: Group) -> None:
    group.join("a")
    await group.pass_time(1)
    deaf = group.join("b")
    deaf.tables.deaf = True
    await group.pass_time(TTL - 1)
    assert deaf.partitions.owned == []
    await group.pass_time(TTL / 3 + 2)
    group.assert_settled()


async def test_a_leaver_has_its_time_to_end_all_work(group: Group) -> None:
    leaver, other = group.join("a"), group.join("b")
    await group.pass_time(2)
    leaver.slow_ones = {leaver.partitions.owned[0]: 3.0}
    leaving = asyncio.create_task(leaver.partitions.close())
    await group.pass_time(2)
    assert len(other.partitions.owned) == 8
    await group.pass_time(1)
    await group.clock.settle()
    assert leaving.done()
    assert leaver.lost_ones == 0
    assert len(other.partitions.owned) == 16


async def test_a_farewell_that_is_cancelled_loses_everything(group: Group) -> None:
    leaver, other = group.join("a", revoking=3.0), group.join("b")
    await group.pass_time(5)
    leaving = asyncio.create_task(leaver.partitions.close())
    await group.pass_time(1)
    leaving.cancel()
    await group.pass_time(1)
    assert leaving.done()
    assert leaver.lost_ones == 8
    assert leaver.partitions.owned == []
    await group.pass_time(TAKEOVER)
    assert len(other.partitions.owned) == 16


async def test_a_record_that_an_operator_removes_is_owned_again(group: Group) -> None:
    members = [group.join("a"), group.join("b")]
    await group.pass_time(2)
    table = group.tables.table(SCOPE)
    await table.commit([Delete(key=("lease", GROUP, "owner", str(partition))) for partition in range(16)])
    await group.pass_time(2)
    group.assert_settled()
    assert [member.lost_ones for member in members] == [8, 8]
    for member in members:
        for partition in member.partitions.owned:
            token = member.partitions.token(partition)
            assert token is not None
            await table.commit([Put(key=("written", str(partition)), value=b"")], [token.check()])


async def test_one_that_leaves_while_it_joins_leaves_nothing_behind(group: Group) -> None:
    member = group.join("a")
    await asyncio.sleep(0)  # its record is on the broker …
    member.pause.stop()  # … and the answer on its way
    await group.clock.settle()
    leaving = asyncio.create_task(group.leave(member))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    member.pause.resume()
    await leaving
    page = await group.tables.table(SCOPE).scan(("lease", GROUP, "member"), limit=9)
    assert page.entries == []


@pytest.mark.parametrize("seed", range(200))
async def test_any_schedule(seed: int) -> None:
    """Joins, leaves, pauses and crashes at random moments, then quiet: every partition has one owner soon after."""
    choice = random.Random(seed)
    group = Group(choice.choice([1, 5, 16, 32]))
    names = iter(range(1000))
    for _ in range(choice.randint(4, 14)):
        event = choice.choice(["join", "join", "leave", "stop", "resume", "resume", "trouble"])
        stopped = [member for member in group.members if member.stopped]
        if event == "join" and len(group.members) < 6:
            group.join(f"node{next(names)}", revoking=choice.choice([0.0, 0.0, 1.5, 60.0]))
        elif event == "leave" and group.live:
            await group.leave(choice.choice(group.live))
        elif event == "stop" and group.live:
            choice.choice(group.live).stop()
        elif event == "resume" and stopped:
            choice.choice(stopped).resume()
        elif event == "trouble" and group.live:
            choice.choice(group.live).tables.unanswered = choice.randint(1, 4)
        await group.pass_time(choice.choice([0.0, 0.5, 2.0, TTL / 2, TTL + 4.0]))
        for member in group.members:
            await member.write_with_all_tokens()
    if not group.live:
        group.join("last")
    await group.pass_time(TAKEOVER + 6.0)  # a revocation that does not end may have begun in it
    group.assert_settled()
    quiet = group.moves
    await group.pass_time(2 * TTL)
    assert group.moves == quiet, "nothing moves without a reason"
    await group.close()
