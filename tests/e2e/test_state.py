"""State from the outside: sidecars as processes, a real nats-server, and their sudden ends."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.mesh import JSON, App, Mesh, Run, Sidecar, call, running, subscription, until

S = "/v1.0/state/statestore"
EXAMPLE = Path(__file__).parents[2] / "examples" / "state"

OUTBOX = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: statestore}
spec:
  type: state.meshwire
  version: v1
  metadata:
  - {name: outboxPublishPubsub, value: pubsub}
  - {name: outboxPublishTopic, value: A}
  - {name: history, value: "3"}
"""


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with Mesh(tmp_path) as mesh:
        yield mesh


async def save(sidecar: Sidecar, *items: dict[str, Any]) -> int:
    return (await sidecar.call("POST", S, [JSON], json.dumps(items).encode())).status


async def value(sidecar: Sidecar, key: str, query: str = "") -> Any:
    answer = await sidecar.call("GET", f"{S}/{key}{query}")
    assert answer.status in (200, 204), answer
    return answer.json if answer.status == 200 else None


async def test_replicas_share_state_and_apps_do_not(mesh: Mesh) -> None:
    one, two, other = await asyncio.gather(
        mesh.sidecar("shop", name="one"), mesh.sidecar("shop", name="two"), mesh.sidecar("other")
    )
    assert await save(one, {"key": "a", "value": 1}) == 204
    assert await value(two, "a", "?consistency=strong") == 1
    assert await value(other, "a", "?consistency=strong") is None
    await until_value(two, "a", 1)
    etag = (await two.call("GET", f"{S}/a")).headers["etag"]
    assert await save(two, {"key": "a", "value": 2, "etag": etag}) == 204
    assert await save(one, {"key": "a", "value": 3, "etag": etag}) == 409
    await until_value(one, "a", 2)


async def until_value(sidecar: Sidecar, key: str, expected: Any) -> None:
    async with asyncio.timeout(30):
        while await value(sidecar, key) != expected:
            await asyncio.sleep(0.01)


async def test_state_outlives_everything(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("shop")
    assert await save(sidecar, {"key": "a", "value": {"n": 1}}) == 204
    sidecar.kill()
    mesh.server.kill()
    mesh.server.start()
    await sidecar.start().ready()
    assert await value(sidecar, "a") == {"n": 1}


async def test_a_broker_that_is_away(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("shop")
    assert await save(sidecar, {"key": "a", "value": 1}) == 204
    mesh.server.kill()
    answers = await asyncio.gather(
        sidecar.call("POST", S, [JSON], b'[{"key":"a","value":2}]'),
        sidecar.call("GET", f"{S}/a?consistency=strong"),
        sidecar.call("GET", "/mesh/v1/state/statestore?prefix=a"),
    )
    assert [(answer.status, answer.json["errorCode"]) for answer in answers] == [
        (500, "ERR_STATE_SAVE"),
        (500, "ERR_STATE_GET"),
        (503, "ERR_STATE_READ"),
    ]
    assert answers[0].json["message"].startswith("failed saving state in state store statestore: ")
    mesh.server.start()
    async with asyncio.timeout(20):
        while await save(sidecar, {"key": "b", "value": 3}) != 204:
            await asyncio.sleep(0.05)
    assert await value(sidecar, "b", "?consistency=strong") == 3
    assert await value(sidecar, "a", "?consistency=strong") in (1, 2)


async def test_an_outbox_survives_the_sudden_end_of_its_sidecar(mesh: Mesh) -> None:
    """Each event of a transaction that was acknowledged is delivered, and none of one that did not happen."""
    resources = mesh.folder / "resources"
    resources.mkdir()
    (resources / "statestore.yaml").write_text(OUTBOX)
    numbers = itertools.count()
    committed: set[int] = set()
    refused: set[int] = set()
    async with App([subscription()]) as app:
        await mesh.sidecar("reader", app=app, topics=["A"])
        sidecar = mesh.add("shop", "--resources-path", str(resources))

        async def transact() -> None:
            while True:
                number = next(numbers)
                bad = number % 5 == 0
                operations = [
                    {"operation": "upsert", "request": {"key": f"k{number}", "value": number}},
                    {"operation": "delete", "request": {"key": "none", **({"etag": "1"} if bad else {})}},
                ]
                body = json.dumps({"operations": operations}).encode()
                try:
                    answer = await sidecar.call("POST", f"{S}/transaction", [JSON], body)
                except (OSError, AssertionError):
                    return  # killed: nobody knows
                if answer.status == 204:
                    assert not bad
                    committed.add(number)
                elif bad:
                    assert answer.status == 500, answer
                    refused.add(number)

        for _ in range(3):
            await sidecar.start().ready()
            before = len(committed)
            lanes = [asyncio.create_task(transact()) for _ in range(16)]
            await until(lambda before=before: len(committed) >= before + 40, lambda: sidecar.log)  # type: ignore[misc]
            sidecar.kill()
            await asyncio.gather(*lanes)
        await sidecar.start().ready()

        def delivered() -> set[int]:
            return {int(request.event["data"]) for request in app.events}

        await until(
            lambda: committed <= delivered(),
            lambda: f"{len(committed - delivered())} of {len(committed)} events were lost:\n{sidecar.log}",
        )
        assert refused
        assert not refused & delivered()
        keys = {"keys": [f"k{number}" for number in delivered()]}
        bulk = await sidecar.call("POST", f"{S}/bulk", [JSON], json.dumps(keys).encode())
        assert {entry["data"] for entry in bulk.json} == delivered()
        assert len({request.event["id"] for request in app.events}) == len(delivered())


async def test_earlier_values_and_changes(mesh: Mesh) -> None:
    resources = mesh.folder / "resources"
    resources.mkdir()
    (resources / "statestore.yaml").write_text(OUTBOX)
    sidecar = await mesh.sidecar("shop", "--resources-path", str(resources))
    for number in range(3):
        assert await save(sidecar, {"key": "a", "value": number}) == 204
    path = "/mesh/v1/state/statestore/a/history"
    async with asyncio.timeout(30):
        while len(versions := (await sidecar.call("GET", path)).json["versions"]) < 3:
            await asyncio.sleep(0.01)
    assert [version["data"] for version in versions] == [2, 1, 0]
    answer = await sidecar.call("GET", f"/mesh/v1/state/statestore/a?revision={versions[2]['etag']}")
    assert (answer.status, answer.json) == (200, 0)


async def test_the_example(tmp_path: Path) -> None:
    await check_the_example(tmp_path)


async def check_the_example(tmp_path: Path, **environment: str) -> None:
    home = tmp_path / "home"
    folder = tmp_path / "state"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    runs: list[Run] = []

    def start(name: str, *words: str) -> Run:
        run = Run(home, "counter", sys.executable, str(folder / words[0]), *words[1:], **environment)
        run.name, run.file = name, tmp_path / f"{name}.log"
        runs.append(run)
        run.start()
        return run

    try:
        watch = start("watch", "watch.py")
        await watch.says("== APP == watching")
        counters = [start(f"counter{number}", "counter.py", "20") for number in range(2)]
        for counter in counters:
            assert await counter.end(None) == 0, counter.log
            await counter.says(r"== APP == counted 20 times, \d+ conflicts")
        await watch.says("== APP == count is 40\n")
        answer = await call(watch.port, "GET", f"{S}/count")
        assert answer.body == b"40"
    finally:
        await asyncio.gather(*(run.end() for run in runs))
    await until(lambda: not running(home), lambda: f"left behind: {running(home)}")
    assert not [run.log for run in runs if "Traceback" in run.log]


async def test_state_waits_for_a_broker_that_starts_later(mesh: Mesh) -> None:
    mesh.server.kill()
    sidecar = mesh.add("shop").start()
    await sidecar.says("no connection to (NATS|Kafka)")
    saved = asyncio.create_task(save(sidecar, {"key": "a", "value": 1}))
    assert not (await asyncio.wait([saved], timeout=3))[0]
    mesh.server.start()
    assert await saved == 204
    assert await value(sidecar, "a", "?consistency=strong") == 1
