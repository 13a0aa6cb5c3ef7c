"""The source of one input binding at work: under a lease where only one replica may run it, and again when it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import platform

from mesh import addressing
from mesh.errors import MeshError, clip
from mesh.ownership.lease import Lease
from mesh.ports import Clock
from mesh.ports.bindings import Accept, InputBinding
from mesh.ports.tables import Tables

logger = logging.getLogger("meshwire.bindings")

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds before a source that has failed runs again; doubling."""
STEADY = 60.0
"""Seconds after which a source that ran counts as one that works."""
END_LIMIT = 10.0
"""Seconds that a source gets to let go of what it has under way."""


class Source:
    """Runs until it is ended. What goes wrong is logged, and told by `status`."""

    def __init__(
        self, app_id: str, name: str, binding: InputBinding, accept: Accept, *, tables: Tables, clock: Clock
    ) -> None:
        self._app_id = app_id
        self._name = name
        self._binding = binding
        self._accept = accept
        self._tables = tables
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self.status = "not started"
        """In one line, for people."""

    def begin(self) -> None:
        """Does nothing when it runs already."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._keep_running(), name=f"source {self._name}")

    async def end(self) -> None:
        """Returns when it takes no more items, and none is under way. Safe for one that never began."""
        task, self._task = self._task, None
        if task is None:
            return
        self.status = "ended"
        task.cancel()
        _, late = await asyncio.wait([task], timeout=END_LIMIT)
        if late:
            logger.warning("the source of binding %s has not ended within %g s", self._name, END_LIMIT)

    async def _keep_running(self) -> None:
        pause = FIRST_PAUSE
        while True:
            begun = self._clock.now()
            try:
                if self._binding.exclusive:
                    await self._run_under_lease()
                else:
                    await self._run()
                problem = "it ended by itself"
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                problem = "its library has cancelled what it waited for"
            except MeshError as error:
                problem = str(error)
            except Exception as error:  # components may raise anything
                problem = f"{type(error).__name__}: {clip(str(error))}"
            if self._clock.now() - begun >= STEADY:
                pause = FIRST_PAUSE
            self.status = f"failed, runs again after {pause:g} s: {problem}"
            logger.warning("the source of binding %s runs again after %g s: %s", self._name, pause, problem)
            await self._clock.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _run(self) -> None:
        self.status = "running"
        await self._binding.run(self._accept)

    async def _run_under_lease(self) -> None:
        """Until the lease is lost: then another replica may run it, and this one waits again."""
        self.status = "waiting: another replica runs it"
        lost = asyncio.Event()
        lease = Lease(
            self._tables,
            addressing.bindings_scope(self._app_id),
            f"source/{self._name}",
            node=f"{platform.node()}:{os.getpid()}",
            clock=self._clock,
            lost=lost.set,
        )
        await lease.acquire()
        running = asyncio.get_running_loop().create_task(self._run(), name=f"run {self._name}")
        losing = asyncio.get_running_loop().create_task(lost.wait(), name=f"lease of {self._name}")
        try:
            await asyncio.wait((running, losing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (running, losing):
                task.cancel()
            await asyncio.gather(running, losing, return_exceptions=True)
            await lease.release()
        if not running.cancelled():
            running.result()
