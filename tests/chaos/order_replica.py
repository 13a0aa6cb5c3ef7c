"""One replica of a group, as a process: it notes each event that it has handled in a file that all replicas append to,
answers RETRY at random, and leaves in good order on SIGTERM.

    python -m tests.chaos.order_replica <url> <namespace> <order> <file> <seed>
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys

from brokers.nats import ordered
from brokers.nats.connection import Connection, Lookup, Servers
from brokers.nats.event_log import NatsEventLog
from brokers.nats.tables import NatsTables
from mesh.ports import Delivery, Group, Order, Topic

GROUP = Group("shipping", Topic("pubsub", "orders"))
LEASE_TTL = 3.0
CONCURRENCY = 32
RETRIES = 0.05
"""Part of the attempts that fail."""
WORK = 0.005
"""Most seconds of one attempt."""


async def main(url: str, namespace: str, order: str, path: str, seed: str) -> None:
    ordered.LEASE_TTL = LEASE_TTL
    chance = random.Random(seed)
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    loop = asyncio.get_running_loop()

    def handle(delivery: Delivery) -> None:
        if chance.random() < RETRIES:
            delivery.retry(chance.random() * 0.1)
        elif chance.random() < 0.5:
            loop.call_later(chance.random() * WORK, finish, delivery)
        else:
            finish(delivery)

    def finish(delivery: Delivery) -> None:
        assert delivery.payload is not None
        os.write(file, delivery.payload + b"\n")
        delivery.ack()

    connection = Connection(Lookup(lambda: Servers([url])), name=GROUP.app_id)
    tables = NatsTables(connection, namespace=namespace)
    log = NatsEventLog(connection, namespace=namespace, tables=tables)
    await log.start()
    subscription = await log.subscribe(GROUP, handle, concurrency=CONCURRENCY, order=Order(order))
    leaving = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, leaving.set)
    await leaving.wait()
    await subscription.close()
    await tables.close()
    await log.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
