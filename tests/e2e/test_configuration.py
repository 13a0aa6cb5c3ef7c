"""Configuration from the outside: sidecars as processes, a real nats-server, and their sudden ends."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.e2e.mesh import Answer, App, Mesh, Run, Sidecar, running, until
from tests.ports import free_port

V = "/v1.0/configuration/configstore"
OWN = "/mesh/v1/configuration/configstore"
EXAMPLE = Path(__file__).parents[2] / "examples" / "configuration"


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with Mesh(tmp_path) as mesh:
        yield mesh


async def put(sidecar: Sidecar, key: str, value: str) -> None:
    answer = await sidecar.call("PUT", f"{OWN}/{key}", (), value.encode())
    assert answer.status == 200, answer


async def subscribe(sidecar: Sidecar, query: str = "") -> str:
    answer = await sidecar.call("GET", f"{V}/subscribe{query}")
    assert answer.status == 200, answer
    return str(answer.json["id"])


def told(app: App) -> list[tuple[str, str]]:
    """Keys and values that the app was told, in their order."""
    return [
        (key, item["value"])
        for request in app.events
        for key, item in json.loads(request.body)["items"].items()
        if request.path.endswith(f"/{key}")
    ]


async def test_what_one_app_sets_others_are_told(mesh: Mesh) -> None:
    async with App() as app, App() as second:
        shop, stock, writer = await asyncio.gather(
            mesh.sidecar("shop", app=app), mesh.sidecar("stock", app=second), mesh.sidecar("writer")
        )
        await asyncio.gather(subscribe(shop), subscribe(stock, "?key=b"))
        await put(writer, "a", "1")
        await put(writer, "b", "2")
        await app.got(2)
        await second.got(1)
        assert (told(app), told(second)) == ([("a", "1"), ("b", "2")], [("b", "2")])
        assert (await shop.call("GET", f"{V}?key=a")).json["a"]["value"] == "1"
        elsewhere = await mesh.sidecar("shop", name="elsewhere", NAMESPACE="elsewhere")
        assert (await elsewhere.call("GET", V)).status == 204


async def test_changes_while_the_broker_was_away(mesh: Mesh) -> None:
    """The server is killed; what others have changed by the time that this sidecar is connected again is told."""
    async with App() as app:
        shop, writer = await asyncio.gather(mesh.sidecar("shop", app=app), mesh.sidecar("writer"))
        await put(writer, "goes", "1")
        await subscribe(shop)
        mesh.server.kill()
        mesh.server.start()

        async def set_it() -> Answer:
            return await writer.call("PUT", f"{OWN}/a", (), b"1")

        async with asyncio.timeout(20):
            while (await set_it()).status != 200:
                await asyncio.sleep(0.05)
        assert (await writer.call("DELETE", f"{OWN}/goes")).status == 204
        await until(lambda: {("a", "1"), ("goes", "")} <= set(told(app)), lambda: f"told: {told(app)}")


async def test_a_sidecar_ends_while_its_app_is_told(mesh: Mesh) -> None:
    held = asyncio.Event()

    async def answer(_: object) -> int:
        held.set()
        await asyncio.sleep(60)
        return 200

    async with App(answer=answer) as app:
        shop = await mesh.sidecar("shop", app=app)
        await subscribe(shop)
        await put(shop, "a", "1")
        await asyncio.wait_for(held.wait(), 20)
        assert await shop.end() == 0


async def test_the_example(tmp_path: Path) -> None:
    home = tmp_path / "home"
    folder = tmp_path / "configuration"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    greeter = Run(home, "greeter", sys.executable, str(folder / "greeter.py"), app_port=free_port())
    greeter.start()
    try:
        await greeter.says("== APP == following")
        await greeter.says("== APP == Hello, world")
        for number, words in enumerate((["greeting=Ahoy", "pause=0.05"], ["greeting="])):
            setter = Run(home, "operator", sys.executable, str(folder / "set.py"), *words)
            setter.file = tmp_path / f"operator{number}.log"
            setter.start()
            assert await setter.end(None) == 0, setter.log
        await greeter.says("== APP == greeting is 'Ahoy'")
        await greeter.says("== APP == pause is '0.05'")
        await greeter.says("== APP == Ahoy, world")
        await greeter.says("== APP == greeting is ''")
    finally:
        await greeter.end()
    await until(lambda: not running(home), lambda: f"left behind: {running(home)}")
    assert "Traceback" not in greeter.log
