"""Rows of PostgreSQL, as an app gets them from sidecars that are killed."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import defaultdict
from pathlib import Path

import nats
import psycopg
import pytest

from bindings.bindings.pgoutput import lsn_number
from tests.contract.nats_server import NatsServer
from tests.e2e.mesh import App, Mesh, Request, Sidecar, until
from tests.servers.postgres import PASSWORD, PostgresServer

ROWS = int(os.environ.get("BINDING_ROWS", "10000"))
WRITERS = 4
BATCH = 20
"""Rows of a transaction."""
UPDATED = 5
"""Every how manieth row is updated, twice."""
LIMIT = 90.0
"""Seconds until everything has arrived."""

pytestmark = pytest.mark.timeout(180)

COMPONENT = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: rows}
spec:
  type: bindings.postgresql
  version: v1
  metadata:
  - {name: slot, value: orders}
  - {name: tables, value: orders}
  - {name: pollInterval, value: 50ms}
  - {name: direction, value: input}
  - {name: order, value: key}
"""


def write(port: int, writer: int) -> None:
    """This writer's share of the rows, in many transactions; some are undone, and done again."""
    ids = range(writer, ROWS, WRITERS)
    with psycopg.connect(
        host="127.0.0.1", port=port, user="postgres", password=PASSWORD, autocommit=True
    ) as connection:
        for first in range(0, len(ids), BATCH):
            batch = ids[first : first + BATCH]
            rows = [(number, 0) for number in batch]
            if first % (5 * BATCH) == 0:
                with connection.transaction(force_rollback=True), connection.cursor() as cursor:
                    cursor.executemany("INSERT INTO orders VALUES (%s, %s)", rows)
            with connection.transaction(), connection.cursor() as cursor:
                cursor.executemany("INSERT INTO orders VALUES (%s, %s)", rows)
            for version in (1, 2):
                updates = [(version, number) for number in batch if number % UPDATED == 0]
                with connection.transaction(), connection.cursor() as cursor:
                    cursor.executemany("UPDATE orders SET version = %s WHERE id = %s", updates)


async def test_rows_survive_the_death_of_the_sidecar_in_order(tmp_path: Path) -> None:
    server = PostgresServer(wal_level="logical")
    arrived: dict[int, list[int]] = defaultdict(list)
    repeats = 0

    def take(request: Request) -> int:
        nonlocal repeats
        row = json.loads(request.body)["new"]
        if row["version"] in arrived[row["id"]]:
            repeats += 1
        else:
            arrived[row["id"]].append(row["version"])
        return 200

    def number() -> int:
        return sum(map(len, arrived.values()))

    wanted = {id_: [0, 1, 2] if id_ % UPDATED == 0 else [0] for id_ in range(ROWS)}
    total = sum(map(len, wanted.values()))
    try:
        server.start()
        server.execute("CREATE TABLE orders (id int PRIMARY KEY, version int)")
        # Another slot, which nobody advances, tells later what was committed.
        server.execute("SELECT pg_create_logical_replication_slot('witness', 'test_decoding')")
        folder = tmp_path / "resources"
        folder.mkdir()
        settings = "".join(
            f"  - {{name: {name}, value: {json.dumps(value)}}}\n" for name, value in server.settings.items()
        )
        (folder / "rows.yaml").write_text(COMPONENT + settings)
        async with Mesh(tmp_path) as mesh, App(answer=take) as app:
            sidecar = mesh.add("shop", "--resources-path", str(folder), app=app)
            await sidecar.start().ready()
            await sidecar.says(r"subscribed to the following topics: \[shop\.rows\]")
            writing = [asyncio.create_task(asyncio.to_thread(write, server.port, writer)) for writer in range(WRITERS)]
            for share in (0.2, 0.6):
                await until(lambda share=share: number() >= share * total, lambda: f"{number()} of {total}", LIMIT)
                sidecar.kill()
                await is_behind_the_broker(server, mesh.server)
                await sidecar.start().ready()
            await asyncio.gather(*writing)
            await until(lambda: number() >= total, lambda: f"{number()} of {total}:\n{sidecar.log[-3000:]}", LIMIT)
            await until_done(server, sidecar)
        assert {id_: versions for id_, versions in arrived.items() if versions != wanted[id_]} == {}
        assert len(arrived) == ROWS
        assert repeats <= 2 * 1000, "what was in the app's hands at a kill comes again"
    finally:
        server.remove()


async def is_behind_the_broker(server: PostgresServer, broker: NatsServer) -> None:
    """All that the slot has let go of is stored: everything that was committed before its position."""
    position = confirmed(server)
    stored = await stored_rows(broker)
    there = server.execute("SELECT lsn::text, data FROM pg_logical_slot_peek_changes('witness', NULL, NULL)")
    rows: list[tuple[int, int]] = []
    behind: set[tuple[int, int]] = set()
    for lsn, data in there:
        if data.startswith("table "):
            rows.append(tuple(map(int, re.findall(r"\[integer\]:(\d+)", data))))  # type: ignore[arg-type]
        elif data.startswith("COMMIT"):
            if lsn_number(lsn) <= position:
                behind.update(rows)
            rows = []
    assert behind, "nothing was let go of yet: the kill proves nothing"
    assert behind <= stored, f"{len(behind - stored)} rows of {len(behind)} are gone from the slot, and stored nowhere"


async def stored_rows(broker: NatsServer) -> set[tuple[int, int]]:
    """Number and version of the rows that the broker has."""
    client = await nats.connect(broker.url)
    try:
        stream = client.jetstream()
        subject = "mesh.default.event.%24bindings.shop.rows.>"
        subscription = await stream.subscribe(subject, ordered_consumer=True)
        rows: set[tuple[int, int]] = set()
        while True:
            try:
                row = json.loads((await subscription.next_msg(timeout=1)).data)["new"]
            except nats.errors.TimeoutError:
                return rows
            rows.add((row["id"], row["version"]))
    finally:
        await client.close()


def confirmed(server: PostgresServer) -> int:
    return lsn_number(
        server.execute("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'orders'")[0][0]
    )


def flushed(server: PostgresServer) -> int:
    return lsn_number(server.execute("SELECT pg_current_wal_flush_lsn()::text")[0][0])


async def until_done(server: PostgresServer, sidecar: Sidecar) -> None:
    """The slot is advanced to the end."""
    end = flushed(server)
    await until(lambda: confirmed(server) >= end, lambda: f"the slot stays behind:\n{sidecar.log[-3000:]}")
