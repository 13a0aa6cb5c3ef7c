"""The actors of one type that this sidecar owns: activated by their first call, one turn at a time, deactivated when
they are idle or move."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import NamedTuple, Protocol

from mesh import addressing, ids
from mesh.actors.callbacks import DEACTIVATION_LIMIT, Call, Callbacks, Refusal
from mesh.actors.configuration import Settings
from mesh.actors.names import ActorName
from mesh.actors.turns import Actor, MailboxFull, NotMine, TooDeep, Turn
from mesh.errors import Code
from mesh.fencing import FenceToken
from mesh.ownership.partitions import REVOKE_LIMIT, PartitionHandler, Partitions
from mesh.ownership.waits import end, within
from mesh.ports import Clock, Peer, Response
from mesh.ports.clock import Timer
from mesh.resiliency.policy import Policy, TimedOut
from mesh.resiliency.retry import Failure
from mesh.telemetry import ActorWork

logger = logging.getLogger("meshwire.actors")

TICKS = 32
"""Into how many ticks the idle timeout is cut: an actor is deactivated within one of them."""
DEACTIVATIONS = 64
"""Of one type under way at the same time."""
ABANDONED_LIMIT = 60.0
"""Seconds that a turn has for its end when nobody waits for it any more. What the app is at cannot be taken back, and
of two turns at once here nobody could say which of them writes."""
LOOK_PAUSE = 1.0
"""Seconds between two looks whether an actor whose last turn has not ended is still to be had here."""
LOST_DRAIN = 2.0
"""Seconds at most that a turn has for its end when its lease was lost: its answer is of no use any more."""


class Join(Protocol):
    """Makes this sidecar a member of those that share the partitions of the type."""

    def __call__(self, handler: PartitionHandler, *, revoke_limit: float) -> Partitions: ...


class _Closing(NamedTuple):
    actor: Actor
    done: asyncio.Future[None]


class Hosting:
    """One type. A `PartitionHandler`."""

    def __init__(
        self,
        actor_type: str,
        settings: Settings,
        callbacks: Callbacks,
        join: Join,
        clock: Clock,
        *,
        tell: Callable[[dict[int, int]], None],
        limit: Policy | None = None,
        work: ActorWork,
    ) -> None:
        """`tell` is told of the partitions that are owned, with their tokens, whenever that changes. `limit` bounds a
        turn. `work` counts."""
        self.type = actor_type
        self.settings = settings
        self._callbacks = callbacks
        self._clock = clock
        self._tell = tell
        self._limit = limit
        self._work = work
        self._partitions = join(self, revoke_limit=settings.drain_timeout + REVOKE_LIMIT)
        self._actors: list[dict[str, Actor]] = [{} for _ in range(addressing.ACTOR_PARTITIONS)]
        self._closing: dict[str, _Closing] = {}
        """Actors that are being deactivated: a call of one waits, and then activates it anew."""
        self._tokens: dict[int, int] = {}
        self._leaving: dict[int, int] = {}
        """Partitions that are being given up."""
        self._tick = settings.idle_timeout / TICKS
        self._idle: dict[int, list[Actor]] = {}
        """Actors to look at when a tick has passed: each is in one list."""
        self._timer: Timer | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(DEACTIVATIONS)

    def start(self) -> None:
        self._partitions.start()

    async def close(self) -> None:
        """Give up all partitions, their actors deactivated."""
        try:
            await self._partitions.close()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            await end(*self._turns)
            if self._tasks:
                await within(self._clock, DEACTIVATION_LIMIT, _settled(self._tasks))
            await end(*self._tasks)

    @property
    def active(self) -> int:
        """How many actors are active."""
        return sum(map(len, self._actors))

    @property
    def partitions(self) -> dict[int, int]:
        """Number and token of those that are owned."""
        return self._leaving | self._tokens

    def fence(self, actor_id: str) -> FenceToken | None:
        """What a write of the actor has to depend on: the token under which its turn began, or that of now between
        turns; `None` when it is not active here."""
        partition = addressing.actor_partition(actor_id)
        actor = self._actors[partition].get(actor_id)
        if actor is None:
            closing = self._closing.get(actor_id)
            turn = None if closing is None else closing.actor.turn  # it may still write
            return None if turn is None or turn.is_broken_off() else turn.token
        turn = actor.turn
        return self._partitions.token(partition) if turn is None or turn.token is None else turn.token

    async def turn(self, call: Call, caller: Peer) -> tuple[Response, int]:
        """One turn of an actor: the answer, and the token under which it was made. Raises `NotMine`.

        Cancelling it ends the wait for a turn, but not a turn: the app may still be at it.
        """
        actor_id = call.actor.id
        partition = addressing.actor_partition(actor_id)
        if self._partitions.token(partition) is None:
            raise NotMine(f"{call.actor} is not here")
        actor = self._actors[partition].get(actor_id) or await self._activated(call, partition)
        chain = call.chain
        if self.settings.reentrant and not chain:
            chain = ids.uuid4()
        self._work.pending(1)
        turn: Turn | None = None
        try:
            turn = await actor.enter(chain if self.settings.reentrant else "", self.settings.max_stack_depth)
        except MailboxFull as error:
            return Refusal(Code.ACTOR_BUSY, f"actor {call.actor} takes no more calls: {error}").response(), 0
        except TooDeep as error:
            return Refusal(Code.ACTOR_STACK_DEPTH, str(error)).response(), 0
        finally:
            if turn is None:
                self._work.pending(-1)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[Response, int]] = loop.create_future()
        work = loop.create_task(self._take_turn(call, caller, actor, turn, partition, chain, answer), name="turn")
        self._turns.add(work)
        turn.waits.append(answer)
        try:
            return await answer
        except asyncio.CancelledError:
            if not work.done():
                self._bound(work)
            task = asyncio.current_task()
            if turn.is_broken_off() and task is not None and not task.cancelling():
                raise NotMine(f"the turn of {call.actor} was broken off: it moves") from None
            raise
        finally:
            turn.waits.remove(answer)

    async def _activated(self, call: Call, partition: int) -> Actor:
        """The actor that a call is for, if it is not active. Raises `NotMine`.

        One that is being deactivated is waited for. But when the call belongs to its turn, the turn waits for the call.
        """
        actor_id = call.actor.id
        while (closing := self._closing.get(actor_id)) is not None:
            if closing.actor.is_in_turn(call.chain):
                return closing.actor
            self._check_mine(call.actor, partition)
            await within(self._clock, LOOK_PAUSE, _wait_for(asyncio.shield(closing.done)))
        self._check_mine(call.actor, partition)
        actor = self._actors[partition].get(actor_id)  # others may have waited, too
        if actor is None:
            actor = self._actors[partition][actor_id] = Actor(actor_id)
            self._expect(actor, new=True)
        return actor

    def _check_mine(self, actor: ActorName, partition: int) -> None:
        if partition not in self._tokens or self._partitions.token(partition) is None:
            raise NotMine(f"{actor} is not here")

    def _bound(self, abandoned: asyncio.Task[None]) -> None:
        def cut() -> None:
            abandoned.cancel()

        limit = self._clock.call_later(ABANDONED_LIMIT, cut)
        abandoned.add_done_callback(lambda _: limit.cancel())

    async def _take_turn(
        self,
        call: Call,
        caller: Peer,
        actor: Actor,
        turn: Turn,
        partition: int,
        chain: str,
        answer: asyncio.Future[tuple[Response, int]],
    ) -> None:
        """`answer` is told of the outcome, unless nobody waits for it any more."""
        try:
            outcome = await self._act(call, caller, actor, turn, partition, chain)
            if not answer.done():
                answer.set_result(outcome)
        except Exception as error:
            if not answer.done():
                answer.set_exception(error)
        finally:
            answer.cancel()
            actor.leave(turn)
            self._work.pending(-1)
            task = asyncio.current_task()
            if task is not None:
                self._turns.discard(task)

    async def _act(
        self, call: Call, caller: Peer, actor: Actor, turn: Turn, partition: int, chain: str
    ) -> tuple[Response, int]:
        token = self._partitions.token(partition)  # it may have waited long
        if turn.token is None:
            turn.token = token
        if token is None or turn.token != token or turn.is_broken_off():
            raise NotMine(f"{call.actor} is not here any more")
        self._expect(actor)
        if self._limit is None:
            response = await self._callbacks.call(call, caller, turn, chain)
        else:
            response = await self._bounded(self._limit, call, caller, turn, chain)
        if self._partitions.token(partition) != token:
            raise NotMine(f"{call.actor} moved during its turn")
        return response, token.revision

    async def _bounded(self, limit: Policy, call: Call, caller: Peer, turn: Turn, chain: str) -> Response:
        try:
            return await limit.run(lambda: self._callbacks.call(call, caller, turn, chain), failed=_never)
        except TimedOut as error:
            return Refusal(Code.ACTOR_INVOKE, f"error invoke actor method: {error}").response()

    # Partitions

    def gained(self, partition: int, token: FenceToken) -> None:
        self._tokens[partition] = token.revision
        self._tell(self.partitions)

    async def revoke(self, partition: int) -> None:
        """Takes no new turns; lets those under way end, as long as the settings say. Until then they are still to be
        found here: they may wait for calls that come back to them."""
        token = self._tokens.pop(partition, None)
        if token is not None:
            self._leaving[partition] = token
        try:
            await self._vacate(partition, self.settings.drain_timeout if self.settings.drain else 0.0)
        finally:
            self._leaving.pop(partition, None)
            self._tell(self.partitions)

    def lost(self, partition: int) -> None:
        self._tokens.pop(partition, None)
        self._tell(self.partitions)
        self._run(self._vacate(partition, min(self.settings.drain_timeout, LOST_DRAIN)), f"lost partition {partition}")

    async def _vacate(self, partition: int, limit: float) -> None:
        actors, self._actors[partition] = self._actors[partition], {}
        for actor in actors.values():
            self._work.moved()
            actor.turn_away(NotMine(f"{self.type}/{actor.id} moves"))
            self._closing[actor.id] = _Closing(actor, asyncio.get_running_loop().create_future())
        await asyncio.gather(*(self._close(actor, limit) for actor in actors.values()))

    # The end of actors

    async def _close(self, actor: Actor, limit: float) -> None:
        """The turn ends, then the app hears of it. One that does not end in time is waited for in the background:
        until then the actor is not activated here again, whoever owns it."""
        turn = actor.turn
        if turn is not None:
            turn.ended = asyncio.get_running_loop().create_future()
            in_time = limit and await within(self._clock, limit, _wait_for(asyncio.shield(turn.ended)))
            if not in_time:
                turn.break_off()
            actor.turn_away(NotMine(f"{self.type}/{actor.id} moves"))
            if not in_time:
                self._run(self._bury(actor, turn.ended), f"last turn of {self.type}/{actor.id}")
                return
        await self._bury(actor)

    async def _bury(self, actor: Actor, ended: asyncio.Future[None] | None = None) -> None:
        """Whoever waits for that goes on, whatever happens."""
        try:
            if ended is not None:
                await ended
            async with self._places:
                self._work.deactivated(await self._callbacks.deactivate(ActorName(self.type, actor.id)))
        finally:
            closing = self._closing.pop(actor.id, None)
            if closing is not None and not closing.done.done():
                closing.done.set_result(None)

    def _expect(self, actor: Actor, *, new: bool = False) -> None:
        """The actor is used now: it is idle one timeout later (Dapr: counted from the beginning of a call)."""
        actor.due = int(self._clock.now() / self._tick) + TICKS + 1
        if new:
            self._look_at(actor)

    def _look_at(self, actor: Actor) -> None:
        others = self._idle.get(actor.due)
        if others is None:
            self._idle[actor.due] = [actor]
            if self._timer is None:
                self._plan()
        else:
            others.append(actor)

    def _plan(self) -> None:
        first = min(self._idle) * self._tick
        self._timer = self._clock.call_later(max(0.0, first - self._clock.now()), self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._clock.now() / self._tick
        for tick in [tick for tick in self._idle if tick <= now]:
            for actor in self._idle.pop(tick):
                actors = self._actors[addressing.actor_partition(actor.id)]
                if actors.get(actor.id) is not actor:
                    continue  # it has gone on another way
                if actor.turn is None and actor.due <= now:
                    del actors[actor.id]
                    self._closing[actor.id] = _Closing(actor, asyncio.get_running_loop().create_future())
                    self._run(self._close(actor, 0.0), f"deactivate {self.type}/{actor.id}")
                else:
                    actor.due = max(actor.due, int(now) + 1)
                    self._look_at(actor)
        if self._idle and self._timer is None:
            self._plan()

    def _run(self, work: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("actors of %s: %s", self.type, error, exc_info=error)


async def _wait_for(future: asyncio.Future[None]) -> None:
    await future


async def _settled(tasks: set[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks)


def _never(_outcome: object) -> Failure | None:
    return None
