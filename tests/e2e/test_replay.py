"""Replay from the outside: to a second app while live traffic flows, by sidecars that are killed, and back to one's own
app; redrive by processes."""

import asyncio
import json
import re
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from tests.e2e.mesh import JSON, App, Mesh, subscription, until

ROOT = "/mesh/v1/replays"
STORED, LIVE = 300, 150


@pytest.fixture
async def mesh(tmp_path):
    async with Mesh(tmp_path) as mesh:
        yield mesh


async def ask(sidecar, method, path, body=None, status=200):
    answer = await sidecar.call(method, path, [JSON], b"" if body is None else json.dumps(body).encode())
    assert answer.status == status, answer
    return answer.json


async def over(sidecar, path, limit=30):
    async with asyncio.timeout(limit):
        while (found := await ask(sidecar, "GET", path))["state"] in ("running", "cancelling"):
            await asyncio.sleep(0.05)
        return found


def numbers(requests):
    return Counter(json.loads(request.body)["data"]["n"] for request in requests)


def replayed(app):
    return [request for request in app.events if "meshwire-replay" in request.headers]


def last_hour(**more):
    since = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    return {"topic": "A", "from": {"time": since}, **more}


async def test_the_last_hour_to_a_second_app_while_live_traffic_flows(mesh):
    async with App([subscription("A")]) as live, App([]) as audit:
        shop = await mesh.sidecar("shop", app=live, topics=["A"])
        other = await mesh.sidecar("audit", app=audit)
        await asyncio.gather(*(shop.publish(b'{"n":%d}' % number) for number in range(STORED)))
        await live.got(STORED)

        assert await ask(shop, "POST", ROOT, last_hour(dryRun=True)) == {"matching": STORED, "complete": True}
        order = last_hour(appId="audit", route="/again", rate=200)
        run = await ask(shop, "POST", ROOT, order, 202)
        for number in range(STORED, STORED + LIVE):
            await shop.publish(b'{"n":%d}' % number)
        done = await over(other, f"{ROOT}/{run['id']}")
        assert (done["state"], done["handled"]) == ("done", STORED)
        assert (await ask(shop, "GET", f"{ROOT}/{run['id']}?appId=audit"))["state"] == "done"

        assert numbers(audit.events) == Counter(range(STORED))
        assert {(request.path, request.headers["meshwire-replay"]) for request in audit.events} == {
            ("/again", run["id"])
        }
        assert numbers(await live.got(STORED + LIVE)) == Counter(range(STORED + LIVE))
        assert replayed(live) == []


async def test_another_replica_goes_on_after_a_kill(mesh):
    """What was delivered since the last note comes again; nothing is left out."""
    async with App([subscription("A")]) as app:
        replicas = {}
        for name in ("one", "two"):
            replicas[name] = await mesh.sidecar("shop", app=app, topics=["A"], name=name)
        await asyncio.gather(*(replicas["one"].publish(b'{"n":%d}' % number) for number in range(STORED)))
        await app.got(STORED)
        run = await ask(replicas["one"], "POST", ROOT, last_hour(rate=60), 202)
        await until(lambda: len(replayed(app)) > 120, lambda: f"{len(replayed(app))}")

        # Whichever has the lease: the other one goes on.
        victim = replicas["one"]
        victim.kill()
        before = len(replayed(app))
        await asyncio.sleep(1)
        if len(replayed(app)) > before + 10:
            victim = replicas["two"]
            replicas["one"] = await mesh.sidecar("shop", app=app, topics=["A"], name="three")
            victim.kill()
        survivor = next(replica for replica in replicas.values() if replica.runs)
        done = await over(survivor, f"{ROOT}/{run['id']}")
        assert done["state"] == "done"
        got = numbers(replayed(app))
        assert set(got) == set(range(STORED))
        assert sum(got.values()) < STORED + 3 * 60


async def test_a_redrive_goes_on_after_a_kill(mesh):
    metadata = {"maxAttempts": "1"}
    taking = False
    async with App([subscription("A", metadata=metadata)], lambda _: 200 if taking else 500) as app:
        one = await mesh.sidecar("shop", app=app, topics=["A"], name="one")
        await asyncio.gather(*(one.publish(b'{"n":%d}' % number) for number in range(100)))
        async with asyncio.timeout(20):
            while (await ask(one, "GET", "/mesh/v1/dead-letters:count"))["matching"] < 100:
                await asyncio.sleep(0.05)
        taking = True
        path = "/mesh/v1/dead-letters"
        run = await ask(one, "POST", f"{path}:redrive", {"filter": {"reason": "attempts"}, "rate": 20}, 202)
        await app.got(130)
        one.kill()
        two = await mesh.sidecar("shop", app=app, topics=["A"], name="two")
        began = time.monotonic()
        done = await over(two, f"/mesh/v1/redrives/{run['id']}", 40)
        assert (done["state"], "failed" in done) == ("done", False), time.monotonic() - began
        async with asyncio.timeout(30):
            while len(set(again(app, run))) < 100:
                await asyncio.sleep(0.05)
        assert (await ask(two, "GET", path))["deadLetters"] == []


def again(app, run):
    """The numbers of the events that came by a redrive."""
    mark = re.compile(rb'"meshwireredrive":"%b"' % run["id"].encode())
    return [json.loads(request.body)["data"]["n"] for request in app.events if mark.search(request.body)]


@pytest.mark.quiet
async def test_live_traffic_is_as_fast_as_ever(mesh):
    """The p99 of its latency stays within twice the normal one; below 5 ms nobody minds."""
    arrived = {}
    async with (
        App(
            [subscription("A")], lambda request: arrived.setdefault(number_of(request), time.perf_counter()) and 200
        ) as live,
        App([]) as audit,
    ):
        shop = await mesh.sidecar("shop", app=live, topics=["A"])
        other = await mesh.sidecar("audit", app=audit)
        sent = {}

        async def send(first, total):
            for number in range(first, first + total):
                sent[number] = time.perf_counter()
                await shop.publish(b'{"n":%d}' % number)
                await asyncio.sleep(0.005)

        def p99(first, total):
            times = sorted(arrived[number] - sent[number] for number in range(first, first + total))
            return times[int(0.99 * total)]

        await send(0, 600)
        await live.got(600)
        run = await ask(shop, "POST", ROOT, last_hour(appId="audit", route="/again", rate=200), 202)
        await send(600, 400)
        await live.got(1000)
        assert (await over(other, f"{ROOT}/{run['id']}"))["handled"] == 600
        normal, meanwhile = p99(200, 400), p99(600, 400)
        assert meanwhile < 2 * max(normal, 0.005), (normal, meanwhile)


def number_of(request):
    return json.loads(request.body)["data"]["n"] if request.body else None
