"""A member of a group, as a process: it writes a record for each partition with every token that it ever had, without
asking whether it is still the owner, and says what becomes of it, a line of JSON each time something changes.

    python -m tests.contract.partition_member <url> <namespace> <node> <partitions> <ttl>
"""

from __future__ import annotations

import asyncio
import json
import sys

from mesh.clock import SystemClock
from mesh.errors import BrokerUnavailable
from mesh.fencing import FenceToken
from mesh.ownership import Partitions
from mesh.ports.tables import Conflict, Put
from tests.contract.tables import connected

SCOPE = "shop"
GROUP = "orders"
WRITTEN = "written"
PAUSE = 0.05
"""Seconds between the writes for one partition."""


class Member:
    def __init__(self, url: str, namespace: str, node: str, count: int, ttl: float) -> None:
        self._url = url
        self._namespace = namespace
        self._node = node
        self._count = count
        self._ttl = ttl
        self._tokens: dict[int, FenceToken] = {}
        self._said = ""
        self._stored: set[FenceToken] = set()
        self._refused = self._lost = self._sequence = 0

    async def run(self) -> None:
        tables = await connected(self._url, self._namespace)
        self._table = tables.table(SCOPE)
        self._partitions = Partitions(
            tables, SCOPE, GROUP, self._count, self, node=self._node, clock=SystemClock(), ttl=self._ttl
        )
        self._partitions.start()
        leaving = asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        writers = [asyncio.create_task(self._write(partition)) for partition in range(self._count)]
        while not leaving.done():
            self._say()
            await asyncio.sleep(0.02)
        await self._partitions.close()
        for writer in writers:
            writer.cancel()
        self._say()
        await tables.close()

    def _say(self) -> None:
        owned = self._partitions.owned
        writing = [partition for partition in owned if self._tokens[partition] in self._stored]
        said = json.dumps({"owned": owned, "writing": writing, "refused": self._refused, "lost": self._lost})
        if said != self._said:
            self._said = said
            print(said, flush=True)

    async def _write(self, partition: int) -> None:
        while True:
            await asyncio.sleep(PAUSE)
            token = self._tokens.get(partition)
            if token is None:
                continue
            self._sequence += 1
            put = Put(
                key=(WRITTEN, str(partition), f"{self._node}-{self._sequence}"), value=str(token.revision).encode()
            )
            try:
                await self._table.commit([put], [token.check()])
            except Conflict:
                self._refused += 1
            except BrokerUnavailable:
                pass
            else:
                self._stored.add(token)

    def gained(self, partition: int, token: FenceToken) -> None:
        self._tokens[partition] = token

    async def revoke(self, partition: int) -> None: ...

    def lost(self, partition: int) -> None:
        self._lost += 1


if __name__ == "__main__":
    url, namespace, node, count, ttl = sys.argv[1:]
    asyncio.run(Member(url, namespace, node, int(count), float(ttl)).run())
