"""A piece of work in a process of its own: a plan in on stdin, a result out on stdout, both JSON.

What is measured must not share its interpreter with what measures it.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import msgspec
import uvloop

ResultType = TypeVar("ResultType")

LIMIT = 180.0
"""Seconds after which a worker has failed."""


def serve(work: Callable[[Any], Awaitable[object]], plan_type: Any) -> None:
    """In the worker: take the plan, do the `work` on uvloop, give its result."""
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=plan_type)
    gc.freeze()

    async def run() -> object:
        return await work(plan)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(run())
    sys.stdout.buffer.write(msgspec.json.encode(result))


class Worker(Generic[ResultType]):
    """`module` at work on `plan`. Leaving the `with` block ends it."""

    def __init__(self, module: str, plan: object, result_type: type[ResultType]) -> None:
        self._module = module
        self._result_type = result_type
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(plan))
        self._process.stdin.close()
        self._process.stdin = None

    @property
    def done(self) -> bool:
        return self._process.poll() is not None

    def result(self) -> ResultType:
        """Wait for it. Raises `RuntimeError` with what the worker said when it failed."""
        output, errors = self._process.communicate(timeout=LIMIT)
        if self._process.returncode:
            raise RuntimeError(f"{self._module} failed:\n{errors.decode(errors='replace')[-1500:]}")
        return msgspec.json.decode(output, type=self._result_type)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if not self.done:
            self._process.kill()
        self._process.communicate()


def run(module: str, plan: object, result_type: type[ResultType]) -> ResultType:
    """The result of `module` for `plan`. Raises `RuntimeError` with what the worker said when it failed."""
    with Worker(module, plan, result_type) as worker:
        return worker.result()
