"""The example `rows`, as its README has it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.mesh import Run, running, until
from tests.ports import free_port
from tests.servers.postgres import PostgresServer

EXAMPLE = Path(__file__).parents[2] / "examples" / "rows"
README = (EXAMPLE / "README.md").read_text()
STATEMENTS = re.findall(r"```sql\n(.*?)\n```", README, re.DOTALL)
SAID = re.findall(r"^== APP == (.*)$", README, re.MULTILINE)


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    server = PostgresServer(wal_level="logical")
    server.start()
    yield server
    server.remove()


async def test_rows_wake_the_packer_also_those_of_while_it_was_away(server: PostgresServer, tmp_path: Path) -> None:
    create, insert = STATEMENTS
    server.execute(create)
    home = tmp_path / "home"
    command = [sys.executable, "-P", str(EXAMPLE / "packer.py")]
    packer = Run(home, "packer", *command, app_port=free_port(), SHOP_DATABASE=server.conninfo)
    place = packer.command.index("run") + 1
    packer.command[place:place] = ["--resources-path", str(EXAMPLE / "resources")]
    try:
        packer.start()
        await packer.says(r"subscribed to the following topics: \[[^\]]*\.new-orders\]")
        server.execute(insert)
        await packer.says(re.escape(SAID[0]))
        assert server.execute("SELECT state FROM orders") == [("packed",)]
        await packer.end()
        server.execute("INSERT INTO orders VALUES (2, 'two cups')")
        packer.start()
        await packer.says("order 2: two cups is packed")
        assert packer.log.count("is packed") == 2
    finally:
        if packer.runs:
            await packer.end()
        await until(lambda: not running(home), lambda: f"left behind: {running(home)}")
