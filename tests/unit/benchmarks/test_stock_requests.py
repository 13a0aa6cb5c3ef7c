import asyncio
from collections.abc import Iterator
from pathlib import Path

import nats
import pytest

from benchmarks.histogram import Histogram
from benchmarks.pair import HEADERS
from benchmarks.processes import NatsServer
from benchmarks.stock_requests import Plan, Requester, Responder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.mark.parametrize("rate", [None, 200.0], ids=["closed loop", "open loop"])
async def test_requests_are_answered_by_another_process(server: NatsServer, tmp_path: Path, rate: float | None) -> None:
    with await asyncio.to_thread(Responder, server.url, "echo", tmp_path / "responder.log"):
        client = await nats.connect(server.url)
        plan = Plan(url=server.url, subject="echo", headers=HEADERS, seconds=0.2, rate=rate, tasks=4)
        result = await Requester(client, plan).run()
        await client.close()
    assert result.requests == Histogram.from_pairs(result.latencies).count > 0
    if rate is not None:
        assert result.requests == 0.2 * rate


async def test_without_an_answer_there_is_no_result(server: NatsServer) -> None:
    client = await nats.connect(server.url)
    plan = Plan(url=server.url, subject="echo", headers=HEADERS, seconds=0.1, rate=100)
    with pytest.raises(ExceptionGroup):
        await Requester(client, plan).run()
    await client.close()
