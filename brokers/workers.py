"""The tasks of a server: a bounded number at once, a bounded queue of calls that wait, and an end in good order."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

MAX_WAITING = 4_096
MAX_WAITING_BYTES = 16 * 1024 * 1024
"""Bounds on the calls that wait for a free place; one more is refused."""


class Job(Protocol):
    """One call."""

    size: int
    """Bytes that it holds while it waits."""
    task: asyncio.Task[None] | None
    """Set when it begins."""

    async def run(self) -> None:
        """Answer it. Raises nothing but `CancelledError`."""
        ...


class Workers:
    """Runs jobs, `concurrency` of them at once, each in a task of its own; the others wait in order."""

    def __init__(self, concurrency: int, name: str) -> None:
        self._concurrency = concurrency
        self._name = name
        self._running: set[asyncio.Task[None]] = set()
        self._waiting: deque[Job] = deque()
        self._waiting_bytes = 0
        self._idle: asyncio.Future[None] | None = None

    def submit(self, job: Job) -> bool:
        """Run `job` now or later. False when too much waits already."""
        if len(self._running) < self._concurrency:
            self._start(job)
            return True
        if len(self._waiting) >= MAX_WAITING or self._waiting_bytes + job.size > MAX_WAITING_BYTES:
            return False
        self._waiting.append(job)
        self._waiting_bytes += job.size
        return True

    def withdraw(self, job: Job) -> None:
        """Cancel `job`, or forget it if it still waits."""
        if job.task is not None:
            job.task.cancel()
        elif job in self._waiting:
            self._waiting.remove(job)
            self._waiting_bytes -= job.size
            self._check_idle()

    def _start(self, job: Job) -> None:
        job.task = asyncio.get_running_loop().create_task(job.run(), name=self._name)
        self._running.add(job.task)
        job.task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self._waiting:
            job = self._waiting.popleft()
            self._waiting_bytes -= job.size
            self._start(job)
        self._check_idle()

    def _check_idle(self) -> None:
        if self._idle is not None and not (self._running or self._waiting or self._idle.done()):
            self._idle.set_result(None)

    async def drain(self) -> None:
        """Returns when every job is done. Cancelled, it cancels them, and returns when they have ended."""
        try:
            if self._running or self._waiting:
                self._idle = asyncio.get_running_loop().create_future()
                await self._idle
        finally:
            await self.cut()

    async def cut(self) -> None:
        """Cancel every job that runs and forget those that wait."""
        self._waiting.clear()
        self._waiting_bytes = 0
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
