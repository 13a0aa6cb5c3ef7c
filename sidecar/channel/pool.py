"""The connections to the app, shared out among the calls."""

from __future__ import annotations

import asyncio
import errno
import os
from collections import OrderedDict, deque
from functools import partial
from math import inf

from mesh.errors import AppUnreachable
from sidecar.channel.call import Call
from sidecar.channel.connection import Connection, Limits

_SWEEP_PAUSE = 0.01
"""Least time between two sweeps, in seconds: how late a call may time out."""

_SHORTEST_DIAL = 0.05
_LONGEST_DIAL = 5.0
_DIAL_FACTOR = 8
_DIALLED_IN_VAIN = 120.0
"""Seconds without any connection after which an app that does not even refuse counts as gone; about the system's."""


class ConnectionPool:
    """`CallHolder` of the calls that wait, and `ConnectionOwner`.

    A call takes an idle connection; without one it waits in line for the next that becomes idle or is made. Few are
    made at once (`Limits.dials`), at most `slots` are kept; a call holds its connection until the whole answer is read.
    An error of a dial fails all calls that wait: the app is not there.

    A dial that an app with a full queue has dropped would be repeated by the system after 1, 3, 7, 15 s, long after
    the app has room again. So it is given the time that an answer takes by the dials before it, and made anew.

    Hot: guarded by benchmarks/app_channel.py.
    """

    def __init__(self, address: str, port: int, *, app: str, slots: int, limits: Limits) -> None:
        self.app = app
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self._address = address
        self._port = port
        self._slots = slots
        self._busy = 0
        """Connections that carry a call; with the idle ones and the dials they are never more than the slots."""
        self._idle: deque[Connection] = deque()  # longest unused first
        self._dials: dict[asyncio.Task[Connection | None], None] = {}  # oldest first
        self._open: set[Connection] = set()  # until the socket is closed
        self._waiting: OrderedDict[Call, None] = OrderedDict()
        self._again: OrderedDict[Call, None] = OrderedDict()
        """Calls that were sent on a dead connection: they wait for a fresh one."""
        self._dial_time = inf
        """How long a dial takes that is not dropped: the shortest of the last ones."""
        self._reached_at = -inf
        self._sweep_at = inf
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._all_gone = asyncio.Event()

    @property
    def under_way(self) -> int:
        """Calls that are not answered yet."""
        return self._busy + len(self._waiting) + len(self._again)

    def start(self, call: Call) -> None:
        """Send the call now, or when it is its turn."""
        if self._closed:
            call.fail("the sidecar is shutting down")
            return
        if self._idle:
            self._busy += 1
            self._idle.pop().carry(call)
        elif self._busy + len(self._waiting) < self._slots + self.limits.waiting:
            call.holder = self
            self._waiting[call] = None
            self._dial_more()
        else:
            call.fail(
                f"{self.app} works on {self._busy} calls and {len(self._waiting)} are waiting, which is the limit; "
                "make the app faster, or run more of it",
                AppUnreachable,
            )
            return
        if call.deadline < self._sweep_at:
            self._sweep_no_later_than(call.deadline)

    async def close(self) -> None:
        """Calls under way fail with `AppError`, as do later ones. Returns when all sockets are closed."""
        self._closed = True
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        for call in self._take_waiting():
            call.fail("the sidecar is shutting down")
        for dial in self._dials:
            dial.cancel()
        for connection in tuple(self._open):
            connection.fail("the sidecar is shutting down")
        if self._open or self._dials:
            await self._all_gone.wait()

    # From calls

    def call_off(self, call: Call) -> None:
        self._waiting.pop(call, None)
        self._again.pop(call, None)
        self._dial_less()

    # From connections

    def settled(self, connection: Connection, *, reusable: bool) -> None:
        if not reusable:
            self._busy -= 1
            self._dial_more()
        elif self._waiting:
            connection.carry(self._waiting.popitem(last=False)[0])
        else:
            self._busy -= 1
            self._keep(connection)

    def try_again(self, call: Call) -> None:
        self._busy -= 1
        call.holder = self
        self._again[call] = None
        self._dial_more()

    def finished(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def gone(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._check_closed()

    # Dials

    def _dial_more(self) -> None:
        if self._closed:
            return
        wanted = min(self.limits.dials, len(self._waiting) + len(self._again))
        while len(self._dials) < wanted and self._busy + len(self._idle) + len(self._dials) < self._slots:
            dial = self.loop.create_task(self._dial(), name="dial the app")
            self._dials[dial] = None
            dial.add_done_callback(self._dialled)

    def _dial_less(self) -> None:
        surplus = len(self._dials) - len(self._waiting) - len(self._again)
        for dial in list(self._dials)[::-1][: max(surplus, 0)]:
            dial.cancel()

    async def _dial(self) -> Connection | None:
        """A connection; `None` when nobody waits for it any more."""
        patience = min(max(self._dial_time * _DIAL_FACTOR, _SHORTEST_DIAL), _LONGEST_DIAL)
        first = self.loop.time()
        while True:
            began = self.loop.time()
            try:
                async with asyncio.timeout(patience) as limit:
                    _, connection = await self.loop.create_connection(
                        partial(Connection, self, self.limits), self._address, self._port
                    )
            except TimeoutError:
                if not limit.expired():
                    raise
                if self.loop.time() - max(first, self._reached_at) > _DIALLED_IN_VAIN:
                    raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
                if not (self._waiting or self._again):
                    return None
                patience = min(2 * patience, _LONGEST_DIAL)
            else:
                self._reached_at = self.loop.time()
                # The way to the app may grow longer for good, so one quick dial is not remembered for ever.
                self._dial_time = min(self._reached_at - began, 2 * self._dial_time)
                return connection

    def _dialled(self, dial: asyncio.Task[Connection | None]) -> None:
        del self._dials[dial]
        if not dial.cancelled():
            error = dial.exception()
            if error is not None:
                self._fail_waiting(error)
            elif connection := dial.result():
                self._share(connection)
        self._dial_more()
        self._check_closed()

    def _share(self, connection: Connection) -> None:
        """Give a fresh connection to the call that has waited longest."""
        waiting = self._again or self._waiting
        if connection.is_closing:
            if waiting:
                waiting.popitem(last=False)[0].fail(
                    f"{self.app} closed the connection without waiting for the call; see the app's own log",
                    AppUnreachable,
                )
            return
        self._open.add(connection)
        if self._closed:
            connection.close()
        elif waiting:
            self._busy += 1
            connection.carry(waiting.popitem(last=False)[0])
        else:
            self._keep(connection)

    def _fail_waiting(self, error: BaseException) -> None:
        reason = (isinstance(error, OSError) and error.strerror) or error
        for call in self._take_waiting():
            call.fail(
                f"cannot connect to {self.app} ({reason}); is it running, and listening on this port?", AppUnreachable
            )

    # The rest

    def _take_waiting(self) -> list[Call]:
        waiting = [*self._again, *self._waiting]
        self._again.clear()
        self._waiting.clear()
        return waiting

    def _check_closed(self) -> None:
        if self._closed and not self._open and not self._dials:
            self._all_gone.set()

    def _keep(self, connection: Connection) -> None:
        connection.idle_since = self.loop.time()
        self._idle.append(connection)
        if (end := connection.idle_since + self.limits.idle) < self._sweep_at:
            self._sweep_no_later_than(end)

    def _sweep_no_later_than(self, moment: float) -> None:
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        self._sweep_at = moment
        self._sweep_timer = self.loop.call_at(moment, self._sweep)

    def _sweep(self) -> None:
        """One timer for all: fail the calls and close the idle connections whose time is over."""
        now = self.loop.time()
        for line in (self._again, self._waiting):
            for call in [call for call in line if call.deadline <= now]:
                del line[call]
                call.fail(self._why_it_waits(), AppUnreachable)
        self._dial_less()
        for connection in tuple(self._open):
            if connection.call is not None and connection.call.deadline <= now:
                connection.expire()
        while self._idle and self._idle[0].idle_since + self.limits.idle <= now:
            self._idle.popleft().close()

        self._sweep_at = inf
        self._sweep_timer = None
        ends = [call.deadline for line in (self._again, self._waiting) for call in line]
        ends += [connection.call.deadline for connection in self._open if connection.call is not None]
        if self._idle:
            ends.append(self._idle[0].idle_since + self.limits.idle)
        following = min(ends, default=inf)
        if following < inf:
            self._sweep_no_later_than(max(following, now + _SWEEP_PAUSE))

    def _why_it_waits(self) -> str:
        if self._busy < self._slots:
            return f"no connection to {self.app} could be made in time"
        return (
            f"{self.app} still worked on {self._busy} other calls when the time for this one was over; "
            "make the app faster, raise --app-max-concurrency, or allow the call more time"
        )
