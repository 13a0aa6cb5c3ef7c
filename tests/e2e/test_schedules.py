"""Jobs, delayed events, reminders and timers, also over the end of everything: real processes, a real broker,
`kill -9`."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.actor_app import ActorApp
from tests.e2e.mesh import JSON, MESHWIRE, App, Mesh, Sidecar, subscription, until

LIMIT = 60.0
CART = "/v1.0/actors/Cart/7"


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with Mesh(tmp_path) as mesh:
        yield mesh


async def make(sidecar: Sidecar, name: str, **job: object) -> None:
    await post(sidecar, f"/v1.0/jobs/{quote(name)}", **job)


async def post(sidecar: Sidecar, path: str, **body: object) -> None:
    answer = await sidecar.call("POST", path, [JSON], json.dumps(body).encode())
    assert answer.status == 204, answer


def at(due: float) -> str:
    return datetime.fromtimestamp(due, UTC).isoformat().replace("+00:00", "Z")


async def publish_later(sidecar: Sidecar, event_id: str, due: float) -> None:
    await sidecar.publish(b"1", query=f"?metadata.deliverAt={at(due)}&metadata.cloudevent.id={event_id}")


async def meshwire(sidecar: Sidecar, *words: str, code: int = 0) -> str:
    child = await asyncio.create_subprocess_exec(
        *(*MESHWIRE, *words, "--dapr-http-port", str(sidecar.port)),
        env=sidecar.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(child.communicate(), LIMIT)
    assert child.returncode == code, said.decode()
    return said.decode()


async def test_what_was_scheduled_before_everything_died_happens_after_it_came_back(mesh: Mesh) -> None:
    """One falls due while all is down, one after. Whichever replica takes it."""
    apps = [ActorApp(subscribe=[subscription()]) for _ in range(2)]
    async with apps[0], apps[1]:
        sidecars = [
            mesh.add("app1", app=app, name=name, MESHWIRE_ACTOR_LEASE="6s").start()
            for app, name in zip(apps, ("one", "two"), strict=True)
        ]
        await asyncio.gather(*(sidecar.ready("A") for sidecar in sidecars))
        await sidecars[0].says("hosting actors of type Cart")
        soon, later = time.time() + 2, time.time() + 7
        for name, due in (("soon", soon), ("later", later)):
            await make(sidecars[0], name, dueTime=at(due), data=name)
            await publish_later(sidecars[0], name, due)
            await post(sidecars[0], f"{CART}/reminders/{name}", dueTime=at(due))
        for sidecar in sidecars:
            sidecar.kill()
    mesh.server.kill()
    await asyncio.sleep(max(0.0, soon + 0.5 - time.time()))
    mesh.server.start()

    def got() -> list[str]:
        calls = [call for app in apps for call in app.calls]
        return [call.event["id"] if call.path == "/A" else call.path for call in calls]

    due_later = {"later", "/job/later", "/actors/Cart/7/method/remind/later"}
    all_due = due_later | {path.replace("later", "soon") for path in due_later}
    async with apps[0], apps[1]:
        for sidecar in sidecars:
            sidecar.start()
        await until(lambda: all_due <= set(got()), lambda: f"never came: {all_due - set(got())}", LIMIT)
        assert time.time() >= later
        async with asyncio.timeout(LIMIT):
            for path in ("/mesh/v1/jobs", "/mesh/v1/scheduled", "/mesh/v1/actors/Cart/7/reminders"):
                while any((await sidecars[1].call("GET", path)).json.values()):
                    await asyncio.sleep(0.05)


async def test_series_of_jobs_and_events_go_on_until_they_end_or_are_deleted(mesh: Mesh) -> None:
    async with App([subscription()]) as app:
        sidecar = await mesh.sidecar("app1", app=app, topics=["A"])
        every = "metadata.deliverEvery=@every%201s&metadata.cloudevent.id"
        await make(sidecar, "twice", schedule="@every 1s", repeats=2, dueTime="0s")
        await make(sidecar, "on and on", schedule="* * * * * *")
        await sidecar.publish(b"1", query=f"?{every}=twice&metadata.deliverTimes=2")
        await sidecar.publish(b"1", query=f"?{every}=on")
        begun = time.time()
        await sidecar.publish(b"1", query="?metadata.deliverAfter=1s&metadata.cloudevent.id=once")

        def got() -> Counter[str]:
            ids = [one.path if one.path != "/A" else one.event["id"].partition("@")[0] for one in app.events]
            return Counter(ids)

        least = Counter({"/job/twice": 2, "/job/on%20and%20on": 2, "twice": 2, "on": 2, "once": 1})
        await until(lambda: got() >= least, lambda: f"{got()}", LIMIT)
        assert time.time() >= begun + 1
        [job] = (await sidecar.call("GET", "/mesh/v1/jobs")).json["jobs"]
        [event] = (await sidecar.call("GET", "/mesh/v1/scheduled")).json["scheduled"]
        assert (job["name"], event["name"], event["deliverEvery"]) == ("on and on", "pubsub/A/on", "@every 1s")

        assert (await sidecar.call("DELETE", "/mesh/v1/jobs?prefix=on")).json == {"deleted": 1}
        assert (await sidecar.call("DELETE", "/mesh/v1/scheduled/pubsub/A/on")).status == 204
        deleted = got()
        await sidecar.publish(b"1", query="?metadata.deliverAfter=1500ms&metadata.cloudevent.id=end")
        await until(lambda: got()["end"], lambda: f"{got()}", LIMIT)
        # one of each may have been on its way
        assert got() <= deleted + Counter({"/job/on%20and%20on": 1, "on": 1, "end": 1})
        assert (got()["/job/twice"], got()["twice"], got()["once"]) == (2, 2, 1)
        assert (await sidecar.call("GET", "/mesh/v1/jobs")).json == {"jobs": []}
        assert (await sidecar.call("GET", "/mesh/v1/scheduled")).json == {"scheduled": []}


async def test_actors_are_woken_by_reminders_and_timers_until_they_end_or_are_deleted(mesh: Mesh) -> None:
    remind, timer = "/actors/Cart/7/method/remind/", "/actors/Cart/7/method/timer/"
    async with ActorApp() as app:
        sidecar = await mesh.sidecar("app1", app=app)
        await sidecar.says("hosting actors of type Cart")
        for name in ("twice", "on"):
            repeats = "R2/" if name == "twice" else ""
            await post(sidecar, f"{CART}/reminders/{name}", dueTime="0s", period=f"{repeats}PT1S", data={"n": name})
            await post(sidecar, f"{CART}/timers/{name}", dueTime="0s", period=f"{repeats}PT1S", data=name, callback="c")
        await post(sidecar, f"{CART}/reminders/in-an-hour", dueTime="1h", data=1)

        def got() -> Counter[str]:
            return Counter(call.path for call in app.calls if call.method == "PUT")

        least = Counter({f"{kind}{name}": 2 for kind in (remind, timer) for name in ("twice", "on")})
        await until(lambda: got() >= least, lambda: f"{got()}", LIMIT)
        assert app.called(f"{remind}twice")[0].event["data"] == {"n": "twice"}
        assert app.called(f"{timer}twice")[0].event["callback"] == "c"
        shown = (await sidecar.call("GET", f"{CART}/reminders/on")).json
        assert (shown["period"], shown["data"]) == ("@every 1s", {"n": "on"})
        async with asyncio.timeout(LIMIT):
            while len(left := (await sidecar.call("GET", "/mesh/v1/actors/Cart/7/reminders")).json["reminders"]) != 2:
                await asyncio.sleep(0.05)
        assert {row["name"] for row in left} == {"in-an-hour", "on"}

        for kind in ("reminders", "timers"):
            assert (await sidecar.call("DELETE", f"{CART}/{kind}/on")).status == 204
        assert (await sidecar.call("DELETE", f"{CART}/reminders/in-an-hour")).status == 204
        deleted = got()
        await post(sidecar, f"{CART}/reminders/end", dueTime="1500ms")
        await until(lambda: got()[f"{remind}end"], lambda: f"{got()}", LIMIT)
        # one of each may have been on its way
        assert got() <= deleted + Counter({f"{remind}on": 1, f"{timer}on": 1, f"{remind}end": 1})
        assert (got()[f"{remind}twice"], got()[f"{timer}twice"]) == (2, 2)
        assert app.overlaps == 1


async def test_replicas_share_and_each_fires_once(mesh: Mesh) -> None:
    names = [f"n{number}" for number in range(60)]
    async with App([subscription()]) as one, App([subscription()]) as two:
        sidecars = [
            await mesh.sidecar("app1", app=app, topics=["A"], name=name) for app, name in ((one, "one"), (two, "two"))
        ]
        due = time.time() + 2
        for number, name in enumerate(names):
            await make(sidecars[number % 2], name, dueTime=at(due))
            await publish_later(sidecars[number % 2], name, due)
        async with asyncio.timeout(LIMIT):
            while (await sidecars[0].call("GET", "/mesh/v1/jobs")).json["jobs"] or (
                await sidecars[0].call("GET", "/mesh/v1/scheduled")
            ).json["scheduled"]:
                await asyncio.sleep(0.1)
        async with asyncio.timeout(LIMIT):
            while len(one.events) + len(two.events) < 2 * len(names):
                await asyncio.sleep(0.1)
        got = [*one.events, *two.events]
        assert Counter(each.path for each in got if each.path != "/A") == {f"/job/{name}": 1 for name in names}
        assert Counter(json.loads(each.body)["id"] for each in got if each.path == "/A") == dict.fromkeys(names, 1)
        assert all(any(each.path.startswith("/job/") for each in app.events) for app in (one, two))


async def test_the_command_line(mesh: Mesh) -> None:
    async with App([subscription()]) as app:
        sidecar = await mesh.sidecar("app1", app=app, topics=["A"])
        await make(sidecar, "report 1", schedule="0 30 2 * * *", data={"a": 1})
        await make(sidecar, "report 2", dueTime="1h")
        await make(sidecar, "other", dueTime="1h")
        table = await meshwire(sidecar, "jobs", "list", "--prefix", "report")
        assert [line.split("  ")[0] for line in table.splitlines()] == ["NAME", "report 1", "report 2"]
        assert json.loads(await meshwire(sidecar, "jobs", "get", "report 1"))["data"]["value"] == {"a": 1}
        assert "runs" in await meshwire(sidecar, "jobs", "run", "report 1")
        (got,) = await app.got(1)
        assert (got.path, got.body) == ("/job/report%201", b'{"a":1}')
        assert "no job 'none'" in await meshwire(sidecar, "jobs", "delete", "none", code=1)
        assert "other deleted" in await meshwire(sidecar, "jobs", "delete", "other")
        assert "2 deleted" in await meshwire(sidecar, "jobs", "delete", "--prefix", "report")
        assert "No jobs." in await meshwire(sidecar, "jobs", "list")
        assert "needs NAMEs or a --prefix" in await meshwire(sidecar, "jobs", "delete", code=2)

        await publish_later(sidecar, "a/7", time.time() + 3600)
        name = "pubsub/A/a%2F7"
        assert name in await meshwire(sidecar, "scheduled", "list", "--topic", "A")
        assert "Nothing is scheduled." in await meshwire(sidecar, "scheduled", "list", "--topic", "B")
        assert json.loads(await meshwire(sidecar, "scheduled", "get", name))[0]["event"]["id"] == "a/7"
        assert "cancelled" in await meshwire(sidecar, "scheduled", "cancel", name)
        assert "no event 'a/7' is scheduled" in await meshwire(sidecar, "scheduled", "cancel", name, code=1)
        assert "looks like pubsub/topic/id" in await meshwire(sidecar, "scheduled", "cancel", "7", code=2)
