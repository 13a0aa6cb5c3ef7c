"""An app in a process of its own, for tests that kill it or weigh it: `python -P -m tests.contract.stream_peer URL`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

from mesh.ports import Peer, Request, Response
from tests.contract.implementations import nats_requests

PEER = Peer("faults", "peer")
PIECE = bytes(range(256)) * 1024


def memory(measure: str) -> int:
    """MiB that this process has in memory now (`VmRSS`), or had at most (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(measure)) // 1024


async def pieces(size: int) -> AsyncGenerator[bytes, None]:
    for _ in range(size // len(PIECE)):
        yield PIECE


async def handle(request: Request) -> Response:
    match request.path.split("/")[1:]:
        case ["wait"]:
            await asyncio.Event().wait()
        case ["down", size]:
            return Response(status=200, body=pieces(int(size)))
        case ["up"]:
            assert not isinstance(request.body, bytes)
            received = 0
            async for piece in request.body:
                received += len(piece)
            return Response(status=200, body=b"%d" % received)
        case ["memory"]:
            return Response(status=200, body=b"%d" % memory("VmHWM"))
    return Response(status=200, body=b"peer")


async def main(url: str, beat: float) -> None:
    requests = await nats_requests(url, PEER, beat=beat)
    await requests.serve(PEER.app_id, handle, concurrency=64)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
