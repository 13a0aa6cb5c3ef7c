"""The thread that has a connection to SQLite."""

import asyncio
import sqlite3
from pathlib import Path

from bindings.sqlite import Database, Worker
from mesh.ports.stores import StoreError


def one(connection: sqlite3.Connection) -> int:
    [(number,)] = connection.execute("SELECT 1").fetchall()
    return int(number)


async def test_a_connection_that_cannot_even_roll_back_is_replaced(tmp_path: Path) -> None:
    """Else the thread would end, and every later operation wait in vain."""
    database = Database(f"file:{tmp_path / 'a.db'}", [], busy_timeout=1, wal=True, alone=False)
    worker = Worker(database, grouped=True, timeout=5)
    await worker.start()
    outcomes = await asyncio.gather(worker.run(sqlite3.Connection.close), worker.run(one), return_exceptions=True)
    assert all(isinstance(outcome, StoreError) for outcome in outcomes)
    assert await worker.run(one) == 1
    await asyncio.wait_for(worker.close(), 10)
