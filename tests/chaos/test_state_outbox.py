"""An outbox whose sidecars and server are killed: each transaction that happened has its event in the log, once; one
that did not happen has none."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import nats
import pytest

from tests.e2e.mesh import JSON, App, Mesh, Sidecar, subscription, until

LOAD = 5.0
"""Seconds of transactions."""
LANES = 12
S = "/v1.0/state/statestore"
OUTBOX = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: statestore}
spec:
  type: state.meshwire
  version: v1
  metadata:
  - {name: outboxPublishPubsub, value: pubsub}
  - {name: outboxPublishTopic, value: A}
"""

pytestmark = pytest.mark.timeout(120)


class Shop:
    """Transactions through any of the sidecars; some are made to be refused."""

    def __init__(self, sidecars: list[Sidecar]) -> None:
        self.sidecars = sidecars
        self.numbers = itertools.count()
        self.committed: set[int] = set()
        self.refused: set[int] = set()
        self.counts: Counter[str] = Counter()

    async def transact(self) -> None:
        number = next(self.numbers)
        condition = {"etag": "1"} if number % 4 == 0 else {}
        operations = [
            {"operation": "upsert", "request": {"key": f"order-{number}", "value": number}},
            {"operation": "delete", "request": {"key": "none", **condition}},
        ]
        body = json.dumps({"operations": operations}).encode()
        try:
            answer = await random.choice(self.sidecars).call("POST", f"{S}/transaction", [JSON], body)
        except (OSError, AssertionError, TimeoutError):
            self.counts["lost"] += 1
            await asyncio.sleep(0.02)
            return
        if answer.status == 204:
            assert not condition, "this transaction could not happen"
            self.committed.add(number)
        elif "etag mismatch" in answer.json["message"]:
            self.refused.add(number)
        else:
            self.counts["unknown"] += 1
            await asyncio.sleep(0.02)

    async def work(self, end: float) -> None:
        while time.monotonic() < end:
            await self.transact()

    async def stored(self) -> set[int]:
        """The orders that there are."""
        found: set[int] = set()
        cursor = ""
        while True:
            page = (await self.sidecars[0].call("GET", f"/mesh/v1/state/statestore?limit=1000{cursor}")).json
            found |= {item["data"] for item in page["items"]}
            if "cursor" not in page:
                return found
            cursor = f"&cursor={page['cursor']}"


async def logged(mesh: Mesh) -> list[dict[str, Any]]:
    """The events of the topic, as anybody reads them from the log."""
    client = await nats.connect(mesh.server.url)
    try:
        stream = client.jetstream()
        state = (await stream.stream_info("mesh-default-events")).state
        messages = [
            await stream.get_msg("mesh-default-events", seq, direct=True)
            for seq in range(state.first_seq, state.last_seq + 1)
        ]
    finally:
        await client.close()
    assert {message.subject for message in messages} == {"mesh.default.event.pubsub.A.u"}
    return [json.loads(message.data or b"") for message in messages]


async def test_an_event_for_each_transaction_and_for_no_other(tmp_path: Path) -> None:
    resources = tmp_path / "resources"
    resources.mkdir()
    (resources / "statestore.yaml").write_text(OUTBOX)
    async with App([subscription()]) as app, Mesh(tmp_path) as mesh:
        await mesh.sidecar("reader", app=app, topics=["A"])
        sidecars = [mesh.add("shop", "--resources-path", str(resources), name=f"shop-{number}") for number in range(2)]
        await asyncio.gather(*(sidecar.start().ready() for sidecar in sidecars))
        shop = Shop(sidecars)

        async def kill(end: float) -> None:
            half = (time.monotonic() + end) / 2
            await asyncio.sleep(0.5)
            while time.monotonic() < end:
                if half and time.monotonic() > half:
                    half = 0
                    mesh.server.kill()
                    await asyncio.sleep(0.5)
                    mesh.server.start(wait=False)
                victim = random.choice(sidecars)
                victim.kill()
                await victim.start().ready()
                await asyncio.sleep(random.uniform(0.1, 0.5))

        end = time.monotonic() + LOAD
        await asyncio.gather(kill(end), *(shop.work(end) for _ in range(LANES)))
        await asyncio.gather(*(sidecar.ready() for sidecar in sidecars))

        stored = await shop.stored()
        assert shop.committed <= stored
        assert shop.refused
        assert not shop.refused & stored

        def delivered() -> set[int]:
            return {int(request.event["data"]) for request in app.events}

        await until(
            lambda: stored <= delivered(), lambda: f"{len(stored - delivered())} of {len(stored)} events were lost", 30
        )
        assert delivered() == stored, "an event of a transaction that did not happen"
        ids = [(event["id"], int(event["data"])) for event in await logged(mesh)]
        print(f"{len(stored)} done, {len(shop.refused)} refused, {dict(shop.counts)}; {len(app.events)} deliveries")
        assert sorted(number for _, number in ids) == sorted(stored), "an event stands in the log twice"
        assert len(dict(ids)) == len(ids)
