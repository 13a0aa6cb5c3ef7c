"""A process that is a member of a group and settles nothing, to be killed: `python -m` with the server's address, the
namespace, and how many it may have in hand. It writes a line for each delivery."""

from __future__ import annotations

import asyncio
import sys

from mesh.ports import Delivery, Group, Topic
from tests.contract.implementations import kafka_event_log


def tell(delivery: Delivery) -> None:
    sys.stdout.write(f"{(delivery.payload or b'').decode()}\n")
    sys.stdout.flush()


async def main(address: str, namespace: str, concurrency: str) -> None:
    log = kafka_event_log([address], namespace)
    await log.start()
    await log.subscribe(Group("shipping", Topic("pubsub", "orders")), tell, concurrency=int(concurrency))
    await asyncio.sleep(120)


asyncio.run(main(*sys.argv[1:]))
