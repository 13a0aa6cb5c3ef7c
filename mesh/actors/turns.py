"""One actor as its owner knows it: whose turn it is, and who waits for one.

All that is kept of an idle actor is one small object, since there may be very many; `tests/unit/mesh/actors/
test_turns.py` holds it to its size.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from mesh.errors import MeshError
from mesh.fencing import FenceToken

MAX_WAITING = 1024
"""Calls that wait for the turn of one actor; one more is refused."""


class NotMine(MeshError):
    """The actor is not, or not any more, this sidecar's: its owner, or the next one, is to be asked. An answer that
    there may be is not passed on."""


class MailboxFull(MeshError):
    """Too many calls wait for the actor already."""


class TooDeep(MeshError):
    """Reentrant calls are nested too deeply."""


class Turn:
    """The turn that an actor has now."""

    __slots__ = ("_cut", "chain", "depth", "ended", "token", "waits")

    def __init__(self, chain: str) -> None:
        self.token: FenceToken | None = None
        """Of the lease under which it began; what it writes depends on that."""
        self.chain = chain
        """The id of the chain of calls that may enter it again; empty for none."""
        self.depth = 1
        self.waits: list[asyncio.Future[Any]] = []
        """Those who wait for an answer."""
        self._cut = False
        self.ended: asyncio.Future[None] | None = None
        """Done at its end, if somebody waits for that."""

    def is_broken_off(self) -> bool:
        return self._cut

    def break_off(self) -> None:
        """Nobody gets its answers, and nothing that it writes from now on is stored. It ends when the app is done."""
        self._cut = True
        for wait in self.waits:
            wait.cancel()


class Actor:
    """An active actor."""

    __slots__ = ("due", "id", "turn", "waiting")

    def __init__(self, actor_id: str) -> None:
        self.id = actor_id
        self.due = 0
        """Until when it is not idle, in ticks of its type's clock."""
        self.turn: Turn | None = None
        self.waiting: deque[asyncio.Future[Turn]] | None = None

    async def enter(self, chain: str, max_depth: int) -> Turn:
        """Begin a turn, or enter the one that the same chain of calls has; to be left by `leave`.

        Turns begin in the order of the calls. Raises `MailboxFull`, `TooDeep`, and whatever `turn_away` is given.
        """
        turn = self.turn
        if turn is None:
            turn = self.turn = Turn(chain)
            return turn
        if self.is_in_turn(chain):
            if turn.depth >= max_depth:
                raise TooDeep("maximum stack depth exceeded")
            turn.depth += 1
            return turn
        if self.waiting is None:
            self.waiting = deque()
        if len(self.waiting) >= MAX_WAITING:
            raise MailboxFull(f"{MAX_WAITING} calls wait for it already")
        place: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
        self.waiting.append(place)
        try:
            turn = await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self.leave(place.result())  # it came while the caller gave up
            elif self.waiting is not None and place in self.waiting:
                self.waiting.remove(place)
            raise
        turn.chain = chain
        return turn

    def is_in_turn(self, chain: str) -> bool:
        """Whether the actor has a turn that calls of this chain may enter."""
        turn = self.turn
        return bool(chain) and turn is not None and turn.chain == chain and not turn.is_broken_off()

    def leave(self, turn: Turn) -> None:
        """The way out of `enter`. The next one's turn begins when the last of a chain has left."""
        turn.depth -= 1
        if turn.depth:
            return
        if turn.ended is not None and not turn.ended.done():
            turn.ended.set_result(None)
        while self.waiting:
            place = self.waiting.popleft()
            if not place.done():
                self.turn = Turn("")
                place.set_result(self.turn)
                return
        self.turn = self.waiting = None

    def turn_away(self, error: MeshError) -> None:
        """Nobody who waits gets a turn."""
        waiting, self.waiting = self.waiting, None
        for place in waiting or ():
            if not place.done():
                place.set_exception(error)
