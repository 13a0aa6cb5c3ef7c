"""Jobs and delayed events over the end of everything: real processes, a real broker, `kill -9`."""

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

from tests.e2e.mesh import JSON, MESHWIRE, App, Mesh, Sidecar, subscription

LIMIT = 60.0


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with Mesh(tmp_path) as mesh:
        yield mesh


async def make(sidecar: Sidecar, name: str, **job: object) -> None:
    answer = await sidecar.call("POST", f"/v1.0/jobs/{quote(name)}", [JSON], json.dumps(job).encode())
    assert answer.status == 204, answer


async def publish_later(sidecar: Sidecar, event_id: str, due: float) -> None:
    moment = datetime.fromtimestamp(due, UTC).isoformat().replace("+00:00", "Z")
    query = f"?metadata.deliverAt={moment}&metadata.cloudevent.id={event_id}"
    await sidecar.publish(b"1", query=query)


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
    """One falls due while all is down, one after."""
    app = App([subscription()])
    async with app:
        sidecar = await mesh.sidecar("app1", app=app, topics=["A"])
        soon, later = time.time() + 2, time.time() + 7
        for name, due in (("soon", soon), ("later", later)):
            moment = datetime.fromtimestamp(due, UTC).isoformat()
            await make(sidecar, name, dueTime=moment.replace("+00:00", "Z"), data=name)
            await publish_later(sidecar, name, due)
        sidecar.kill()
    mesh.server.kill()
    await asyncio.sleep(max(0.0, soon + 0.5 - time.time()))
    mesh.server.start()
    async with app:
        sidecar.start()
        got = [(one.path, json.loads(one.body)) for one in await app.got(4, limit=LIMIT)]
        assert time.time() >= later
        jobs = {data for path, data in got if path.startswith("/job/")}
        events = {event["id"] for path, event in got if path == "/A"}
        assert jobs == events == {"soon", "later"}
        async with asyncio.timeout(LIMIT):
            while (await sidecar.call("GET", "/mesh/v1/jobs")).json["jobs"]:
                await asyncio.sleep(0.05)
        assert (await sidecar.call("GET", "/mesh/v1/scheduled")).json == {"scheduled": []}


async def test_replicas_share_and_each_fires_once(mesh: Mesh) -> None:
    names = [f"n{number}" for number in range(60)]
    async with App([subscription()]) as one, App([subscription()]) as two:
        sidecars = [
            await mesh.sidecar("app1", app=app, topics=["A"], name=name) for app, name in ((one, "one"), (two, "two"))
        ]
        due = time.time() + 2
        moment = datetime.fromtimestamp(due, UTC).isoformat().replace("+00:00", "Z")
        for number, name in enumerate(names):
            await make(sidecars[number % 2], name, dueTime=moment)
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
