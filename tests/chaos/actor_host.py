"""An app that hosts actors, as a process: each turn adds 1 to what its actor keeps, and is noted in a file.

    python -m tests.chaos.actor_host <name> <port> <port of the sidecar> <file>

A turn is three lines: what is known at its beginning, what it read, then what came of it. Times are of the clock that
all processes of the machine share.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time

from tests.actor_app import ActorApp
from tests.e2e.mesh import JSON, Reply, Request, call

TYPE = "Account"
FENCE = "meshwire-fence"


class Host:
    def __init__(self, name: str, sidecar: int, file: str) -> None:
        self._name = f"{name}-{os.getpid()}"
        self._sidecar = sidecar
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._numbers = itertools.count()

    def _note(self, **what: object) -> None:
        os.write(self._file, json.dumps(what).encode() + b"\n")

    async def add(self, request: Request) -> Reply:
        """The body names the call, and says how long the turn takes between its read and its write."""
        actor = request.path.split("/")[3]
        asked = json.loads(request.body)
        turn = f"{self._name}-{next(self._numbers)}"
        fence = int(request.headers[FENCE])
        self._note(turn=turn, actor=actor, fence=fence, call=asked["call"], begun=time.monotonic())
        read: int | None = None
        before, saved = "", False
        try:
            found = await call(self._sidecar, "GET", f"/v1.0/actors/{TYPE}/{actor}/state/sum")
            if found.status in (200, 204):
                read, before = found.json if found.body else (0, "")
                self._note(turn=turn, read=read, before=before)
                await asyncio.sleep(asked["pause"])
                operation = {"operation": "upsert", "request": {"key": "sum", "value": [read + 1, turn]}}
                body = json.dumps([operation]).encode()
                answer = await call(self._sidecar, "POST", f"/v1.0/actors/{TYPE}/{actor}/state", [JSON], body)
                saved = answer.status == 204
        except (OSError, AssertionError, TimeoutError):  # the sidecar is gone
            pass
        self._note(turn=turn, read=read, before=before, saved=saved, ended=time.monotonic())
        return (200, turn.encode()) if saved else (500, b"not saved")


async def main(name: str, port: str, sidecar: str, file: str) -> None:
    app = ActorApp(entities=[TYPE], drainOngoingCallTimeout="1s")
    app.port = int(port)
    app.methods["add"] = Host(name, int(sidecar), file).add
    async with app:
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
