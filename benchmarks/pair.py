"""Two sidecars on one broker, and an app that is called through both."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from benchmarks import load, worker
from benchmarks.app import ACTOR_TYPE, ECHO, App
from benchmarks.conditions import Place
from benchmarks.events import request
from benchmarks.processes import START_LIMIT, Kind, Sidecar, free_port, publish

HEADERS = {
    "Content-Type": "application/json",
    "Accept": "application/json",
    "User-Agent": "meshwire-bench",
    "X-Request-Id": "0123456789abcdef0123456789abcdef",
}
"""Those of every call, whichever way it goes."""
CALLEE = "bench-callee"


class Pair(NamedTuple):
    """The caller's sidecar and the callee's."""

    caller: Sidecar
    callee: Sidecar

    def path(self, method: str) -> str:
        """Where the caller's sidecar takes calls of the app's `method`, which begins with `/`."""
        return f"/v1.0/invoke/{CALLEE}/method{method}"

    def actor(self, actor_id: str, *, keys: int = 0) -> str:
        """Where the caller's sidecar takes calls of an actor that the app hosts, which reads and writes so many items
        of its state in each turn."""
        method = f"save?port={self.callee.port}&keys={keys}" if keys else "echo"
        return f"/v1.0/actors/{ACTOR_TYPE}/{actor_id}/method/{method}"

    def cpu(self) -> tuple[float, float]:
        """Seconds of CPU that each used until now."""
        return self.caller.cpu(), self.callee.cpu()


@contextmanager
def pair(here: Place, kind: Kind, app: App, name: str, flags: Sequence[str] = ()) -> Iterator[Pair]:
    """A pair that passes calls on to `app`, until the `with` block ends. `name` is for its logs, `flags` are
    those of the callee's sidecar."""
    with (
        Sidecar(
            kind, here.folder / f"{kind.name}-{name}-callee.log", app_id=CALLEE, app_port=app.port, flags=flags
        ) as callee,
        Sidecar(kind, here.folder / f"{kind.name}-{name}-caller.log", app_id="bench-caller") as caller,
    ):
        both = Pair(caller, callee)
        caller.wait_until_listening(caller.port)
        deadline = time.monotonic() + START_LIMIT
        while not publish(caller.port, both.path(ECHO)):
            caller.check()
            callee.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{kind.name} passes no call on to the app")
            time.sleep(0.02)
        yield both


@contextmanager
def app(here: Place) -> Iterator[App]:
    with App(free_port(), here.folder / "app.log") as it:
        yield it


def small_calls(
    port: int,
    path: str,
    *,
    seconds: float,
    rate: float | None = None,
    numbers: int | None = None,
    requests: int | None = None,
) -> load.Result:
    """Calls with 1 KiB of data and as much in the answer, to the app itself or to a sidecar: for so long, or so many.
    Raises `RuntimeError` unless all were answered."""
    plan = load.Plan(
        port=port, request=request(path, HEADERS), seconds=seconds, rate=rate, numbers=numbers, requests=requests
    )
    result = worker.run("benchmarks.load", plan, load.Result)
    result.check()
    return result
