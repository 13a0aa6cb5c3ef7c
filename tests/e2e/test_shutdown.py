"""A sidecar that is told to stop: it takes nothing new, from anybody, and finishes what it has."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.e2e.mesh import JSON, App, Mesh, Request, Sidecar, subscription
from tests.e2e.test_operating_bindings import component


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with Mesh(tmp_path) as mesh:
        yield mesh


async def publish(sidecar: Sidecar, *numbers: int) -> None:
    for number in numbers:
        await sidecar.publish(b'{"n":%d}' % number)


async def schedule(sidecar: Sidecar, name: str) -> None:
    job = json.dumps({"dueTime": "1ms", "data": name}).encode()
    answer = await sidecar.call("POST", f"/v1.0/jobs/{name}", [JSON], job)
    assert answer.status == 204, answer


async def test_it_takes_nothing_new_while_others_hold_it_up(mesh: Mesh) -> None:
    """A call of a binding that it hosts, one of its app, an event and a job are under way when the signal comes."""
    gate = asyncio.Event()

    async def hold(_: Request) -> int:
        await gate.wait()
        return 200

    async with App([subscription()], hold) as app, App((), hold) as outside:
        flag = component(
            mesh, "out", "bindings.http", url=f"http://127.0.0.1:{outside.port}", hostedBy="stopped", hostedFor="shop"
        )
        stopped = await mesh.sidecar("stopped", flag, "--dapr-graceful-shutdown-seconds", "60", app=app, topics=["A"])
        shop = await mesh.sidecar("shop", flag)
        await publish(shop, 0)
        await schedule(stopped, "begun")
        invoke = json.dumps({"operation": "post", "data": "x"}).encode()
        calls = [
            asyncio.ensure_future(shop.call("POST", "/v1.0/bindings/out", [JSON], invoke)),
            asyncio.ensure_future(shop.call("POST", "/v1.0/invoke/stopped/method/call")),
        ]
        begun = {request.path for request in await app.got(3)}
        assert begun == {"/A", "/job/begun", "/call"}
        await outside.got(1)
        stopped.send(signal.SIGTERM)
        await stopped.says("dapr shutting down")
        await schedule(stopped, "later")  # its API serves while anything is under way
        await publish(shop, *range(1, 21))
        refused = await shop.call("POST", "/v1.0/invoke/stopped/method/late")
        assert refused.status == 500, refused
        await asyncio.sleep(1)  # the events and the job would have come by now
        assert len(app.events) == 3, app.events[3:]
        gate.set()
        assert [(await call).status for call in calls] == [200, 200]
        assert await stopped.end(None) == 0
        assert len(app.events) == 3, app.events[3:]
        await stopped.start().says("app is subscribed", 2)
        later = (await app.got(3 + 21))[3:]
        events = Counter(request.event["data"]["n"] for request in later if request.path == "/A")
        assert events == dict.fromkeys(range(1, 21), 1)
        assert [request.path for request in later if request.path != "/A"] == ["/job/later"]
