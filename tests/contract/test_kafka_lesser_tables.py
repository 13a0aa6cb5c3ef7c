"""Tables on a server of Kafka that lacks much: it says that a log ends before it does."""

# ruff: noqa: F401 -- what is imported is run

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from brokers.kafka.tables import KafkaTable
from mesh.ports.tables import Current, Put
from tests.contract.kafka_tables import KafkaBacking
from tests.contract.test_tables import (
    Connect,
    test_a_commit_does_all,
    test_a_conflict_leaves_nothing_of_a_commit,
    test_a_key_expires,
    test_a_scan_has_the_keys_within_a_prefix,
    test_one_of_many_wins,
    test_the_newest_value_is_read_by_every_client,
    test_writes_that_check_each_other_do_not_both_happen,
)
from tests.servers.kafka import BINARY, KafkaServer

pytestmark = pytest.mark.servers


class LesserBacking(KafkaBacking):
    name = "tansu"

    def start(self, folder: Path) -> None:
        if BINARY is None or not BINARY.exists():
            pytest.skip("tansu is not installed")
        self._server = KafkaServer()
        self._server.start()


@pytest.fixture(scope="module")
def backing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LesserBacking]:
    started = LesserBacking()
    started.start(tmp_path_factory.mktemp(started.name))
    yield started
    started.stop()


async def test_a_log_that_is_said_to_end_early_is_not_taken_for_lost(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Many records come to the server as one batch, of which it counts the first."""
    table, reader = (await connect()).table("orders"), (await connect()).table("orders")
    assert isinstance(table, KafkaTable)
    async with aclosing(table.watch(("state",))) as watch:
        assert isinstance(await anext(watch), Current)
        for turn in range(5):
            changes = [Put(key=("state", f"{number}"), value=b"%d" % turn) for number in range(20)]
            await asyncio.gather(*(table.commit([change]) for change in changes))
            await table.feel_pulse()
            entries = await reader.get_many([change.key for change in changes])
            assert [entry and entry.value for entry in entries] == [b"%d" % turn] * 20
    assert "is read anew" not in caplog.text
