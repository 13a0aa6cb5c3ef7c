"""An app in a process of its own, for tests that kill or freeze it.

`python -P -m tests.contract.kafka_peer ADDRESS BEAT`
"""

from __future__ import annotations

import asyncio
import sys

from tests.contract.kafka_backbone import kafka_requests
from tests.contract.stream_peer import PEER, handle


async def main(address: str, beat: float) -> None:
    requests = await kafka_requests(address, PEER, beat=beat)
    await requests.serve(PEER.app_id, handle, concurrency=64)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
