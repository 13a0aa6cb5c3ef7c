"""Delivery as a user sees it: apps under `meshwire run`, and what its commands tell of them."""

import asyncio
import json
import os
import time

import pytest

from tests.e2e.mesh import JSON, MESHWIRE, App, Run, call, running, subscription, until

EVENT = ("content-type", "application/cloudevents+json")
BRIEF = {"maxAttempts": "4", "backOffPolicy": "constant", "backOffDuration": "500ms"}


class Shell:
    """What is started and asked with one `MESHWIRE_HOME`."""

    def __init__(self, home):
        self.home = home
        self.runs = []

    async def run(self, app_id, app=None):
        run = Run(self.home, app_id, app_port=None if app is None else app.port).start()
        self.runs.append(run)
        await run.says("up and running" if app is None else "app is subscribed to the following topics")
        return run

    async def ask(self, *words):
        """What a command says on stdout."""
        process = await asyncio.create_subprocess_exec(
            *MESHWIRE,
            *words,
            env=os.environ | {"MESHWIRE_HOME": str(self.home)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0, err.decode()
        return out.decode()

    async def story(self, event_id):
        told = json.loads(await self.ask("where", "/shop", event_id, "-o", "json"))
        return [line["what"] for line in told["steps"]], [one["state"] for one in told["subscriptions"]]


@pytest.fixture
async def shell(tmp_path):
    shell = Shell(tmp_path / "home")
    yield shell
    for run in shell.runs:
        await run.end()
        assert "Traceback" not in run.log, run.log
    await until(lambda: not running(shell.home), lambda: str(running(shell.home)))


async def publish(run, body, *headers, query=""):
    answer = await call(run.port, "POST", f"/v1.0/publish/pubsub/A{query}", headers or [JSON], body)
    assert answer.status == 204, answer


async def publish_event(run, event_id, query="", **more):
    event = {"specversion": "1.0", "id": event_id, "source": "/shop", "type": "t"} | more
    await publish(run, json.dumps(event).encode(), EVENT, query=query)


async def test_the_story_of_each_end(shell):
    """Delivered, retried, filtered out, expired, dead, and sent again."""
    failures = {"retried": 1, "dead": 4}

    def answer(request):
        left = failures.get(request.event["id"], 0)
        failures[request.event["id"]] = left - 1
        return 503 if left > 0 else 200

    wanted = BRIEF | {"filters": json.dumps([{"not": {"exact": {"type": "unwanted"}}}])}
    async with App([subscription(metadata=wanted)], answer) as app:
        shop = await shell.run("shop")
        await shell.run("billing", app)
        for event_id in ("delivered", "retried", "dead"):
            await publish_event(shop, event_id)
        await publish_event(shop, "filtered", type="unwanted")
        await app.got(1 + 2 + 4)

        await shell.ask("subscriptions", "pause", "A", "-a", "billing")
        await publish_event(shop, "expired", "?metadata.ttlInSeconds=1")
        await asyncio.sleep(2.1)  # longer than the broker takes to forget what it is told to forget after a second
        await shell.ask("subscriptions", "resume", "A", "-a", "billing")
        await publish_event(shop, "last")
        await app.got(8)

        begins = ["accepted", "stored"]
        assert await shell.story("delivered") == ([*begins, "attempt", "acked"], ["acked"])
        assert await shell.story("retried") == ([*begins, "attempt", "attempt", "acked"], ["acked"])
        assert await shell.story("filtered") == ([*begins, "skipped"], ["skipped"])
        assert await shell.story("expired") == ([*begins, "expired"], ["expired"])
        dead = [*begins, *4 * ["attempt"], "dead-lettered"]
        assert await shell.story("dead") == (dead, ["dead-lettered"])

        await shell.ask("dead", "redrive", "--topic", "A", "-a", "billing", "--wait")
        await app.got(9)
        assert await shell.story("dead") == ([*dead, "redriven", "attempt", "acked"], ["acked"])


async def test_letters_are_sent_again_at_the_rate_that_was_said(shell):
    """Each arrives once, with its first trace."""
    letters, rate = 1_000, 500
    mended = False
    arrived = []

    def answer(request):
        if mended:
            arrived.append((time.monotonic(), request))
        return 200 if mended else 500

    async with App([subscription(metadata={"maxAttempts": "1"})], answer) as app:
        shop = await shell.run("shop", app)

        async def publish_each(first, step):
            for number in range(first, letters, step):
                trace = f"00-{number + 1:032x}-{number + 1:016x}-01"
                await publish(shop, b'{"n": %d}' % number, JSON, ("traceparent", trace))

        await asyncio.gather(*(publish_each(lane, 32) for lane in range(32)))
        async with asyncio.timeout(20):
            while "1000 dead letters" not in await shell.ask("dead", "redrive", "--all", "--dry-run"):
                await asyncio.sleep(0.1)
        assert len((await shell.ask("dead", "list", "--limit", "2000")).splitlines()) == 1 + letters
        [_, found] = (await shell.ask("dead", "list", "--text", '"n": 999}')).splitlines()
        assert " attempts " in found

        mended = True
        await shell.ask("dead", "redrive", "--all", "--rate", str(rate), "--wait")
        await app.got(2 * letters)
        traces = {json.loads(request.body)["data"]["n"]: request.headers["traceparent"] for _, request in arrived}
        assert {number: int(trace.split("-")[1], 16) for number, trace in traces.items()} == {
            number: number + 1 for number in range(letters)
        }
        assert len(arrived) == letters
        assert letters / (arrived[-1][0] - arrived[0][0]) < 1.3 * rate
        assert await shell.ask("dead", "list") == ""


@pytest.mark.quiet
async def test_a_poison_message_and_a_slow_handler_harm_no_neighbour(shell):
    """The p99 of the others stays within twice what it was; below 10 ms nobody minds. Attempts come as told."""
    arrived, sent, poison = {}, {}, []
    over = asyncio.Event()

    async def answer(request):
        number = json.loads(request.body)["data"]["n"]
        if number == "poison":
            poison.append(time.monotonic())
            return 500
        if number == "slow":
            await over.wait()
        arrived.setdefault(number, []).append(time.perf_counter())
        return 200

    async with App([subscription(metadata=BRIEF)], answer) as app:
        shop = await shell.run("shop", app)
        [plan] = json.loads(await shell.ask("explain", "-o", "json"))["plans"]
        told = [(attempt["earliest"], attempt["latest"]) for attempt in plan["attempts"]]

        async def load(first, total):
            for number in range(first, first + total):
                sent[number] = time.perf_counter()
                await publish(shop, b'{"n": %d}' % number, query=f"?metadata.partitionKey=key-{number % 50}")
                await asyncio.sleep(0.003)

        def p99(first, total):
            return sorted(arrived[number][0] - sent[number] for number in range(first, first + total))[
                total * 99 // 100
            ]

        await load(0, 800)
        await publish(shop, b'{"n": "slow"}', query="?metadata.partitionKey=slow")
        await publish(shop, b'{"n": "poison"}', query="?metadata.partitionKey=poison")
        await load(800, 600)
        await until(lambda: len(poison) == len(told), lambda: f"{len(poison)} attempts")
        assert set(range(1_400)) <= arrived.keys()
        assert "slow" not in arrived
        over.set()
        await until(lambda: "slow" in arrived, lambda: "the slow one is not done")
        assert {len(times) for times in arrived.values()} == {1}

        for moment, (earliest, latest) in zip(poison, told, strict=True):
            assert earliest - 0.01 < moment - poison[0] < latest + 0.25
        normal, meanwhile = p99(200, 600), p99(800, 600)
        assert meanwhile < 2 * max(normal, 0.010), (normal, meanwhile)
