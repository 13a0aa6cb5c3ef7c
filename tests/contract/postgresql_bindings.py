"""`bindings.postgresql` for the contract suites of bindings, against a real server."""

# ruff: noqa: S608 - the names of tables are our own

from __future__ import annotations

import itertools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bindings.bindings.lanes import LANES
from bindings.bindings.postgresql import SPEC
from mesh.ports.bindings import Invocation, Result
from tests.opened import opened
from tests.ports import free_port
from tests.servers.postgres import PostgresServer

Invoke = Callable[..., Awaitable[Result]]

_numbers = itertools.count(1)


class Rows:
    """A table of its own, and a slot."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.table = f"rows{next(_numbers)}"
        server.execute(f"CREATE TABLE {self.table} (id int PRIMARY KEY, text text)")

    def binding(self, **settings: str) -> Any:
        given = {"slot": self.table, "tables": self.table, "pollInterval": "50ms", "timeout": "5s"} | settings
        return opened(SPEC, **self.server.settings, **given)

    async def offer(self, number: int) -> bytes:
        self.server.execute(f"INSERT INTO {self.table} VALUES (%s, %s)", number, f"text {number}")
        new = {"id": number, "text": f"text {number}"}
        body = {"operation": "insert", "schema": "public", "table": self.table, "new": new, "old": None}
        return json.dumps(body, separators=(",", ":")).encode()

    async def prepared(self) -> Rows:
        """From now on the server keeps what is inserted."""
        binding = self.binding()
        await binding.start()
        await binding.close()
        return self


class PostgresRows:
    name = "postgresql-rows"
    bound = LANES
    has_ids = True

    def start(self, folder: Path) -> None:
        self.server = PostgresServer(wal_level="logical", max_replication_slots="50")
        self.server.start()

    def stop(self) -> None:
        self.server.remove()

    async def source(self) -> Rows:
        return await Rows(self.server).prepared()

    async def restart(self, source: Rows) -> None:
        self.server.stop()
        self.server.start()


class PostgresStatements:
    name = "postgresql"
    refused = (
        Invocation(operation="query"),
        Invocation(operation="exec", metadata={"sql": "SELECT nonsense FROM nowhere"}),
        Invocation(operation="exec", metadata={"sql": "SELECT 1 +"}),
        Invocation(operation="query", metadata={"sql": "SELECT $1::int", "params": "1"}),
        Invocation(operation="query", metadata={"sql": "SELECT $1::int", "params": "[1, 2]"}),
        Invocation(operation="query", metadata={"sql": "SELECT $1::int", "params": '["x"]'}),
        Invocation(operation="query", metadata={"sql": "SELECT $1::text", "params": '["\\u0000"]'}),
    )

    def start(self, folder: Path) -> None:
        self.server = PostgresServer()
        self.server.start()

    def stop(self) -> None:
        self.server.remove()

    async def binding(self) -> Any:
        self._table = f"statements{next(_numbers)}"
        return opened(SPEC, **self.server.settings)

    async def use(self, invoke: Invoke) -> None:
        def parameters(*values: object) -> str:
            return json.dumps(values)

        done = await invoke("exec", sql=f"CREATE TABLE IF NOT EXISTS {self._table} (id int, text text)")
        done = await invoke("exec", sql=f"INSERT INTO {self._table} VALUES ($1, $2)", params=parameters(1, "it's"))
        assert done.data is None
        assert done.metadata["rows-affected"] == "1"
        assert self.server.execute(f"SELECT * FROM {self._table}") == [(1, "it's")]
        found = await invoke("query", sql=f"SELECT * FROM {self._table} WHERE id = $1", params=parameters(1))
        assert found.data is not None
        assert json.loads(found.data) == [[1, "it's"]]
        assert {"operation", "sql", "start-time", "end-time", "duration"} == set(found.metadata)
        await invoke("close")
        done = await invoke("exec", sql=f"DELETE FROM {self._table}")
        assert done.metadata["rows-affected"] == "1"

    def unreachable(self) -> Any:
        where = {"host": "127.0.0.1", "port": str(free_port()), "user": "postgres", "password": "open-sesame"}
        return opened(SPEC, **where, timeout="1s")
