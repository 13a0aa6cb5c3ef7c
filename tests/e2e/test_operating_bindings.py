"""What a user does to bindings while they run, with real processes and the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest

from tests.contract.nats_server import NatsServer
from tests.e2e.mesh import JSON, MESHWIRE, App, Mesh, Reply, Request, Sidecar, call
from tests.ports import free_port

MANIFEST = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: {name}}}
spec:
  type: {type}
  version: v1
  metadata: [{metadata}]
"""


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with Mesh(tmp_path) as mesh:
        yield mesh


def component(mesh: Mesh, name: str, type_: str, **metadata: str) -> str:
    """The flag for a folder with this component, which takes the place of one of its name."""
    folder = mesh.folder / "resources"
    folder.mkdir(exist_ok=True)
    entries = ", ".join(f"{{name: {key}, value: {json.dumps(value)}}}" for key, value in metadata.items())
    (folder / f"{name}.yaml").write_text(MANIFEST.format(name=name, type=type_, metadata=entries))
    return f"--resources-path={folder}"


def webhook(mesh: Mesh, port: int) -> str:
    return component(mesh, "hook", "bindings.webhook", port=str(port), signature="none", direction="input")


async def meshwire(sidecar: Sidecar, *words: str) -> str:
    """What a command that succeeds says."""
    child = await asyncio.create_subprocess_exec(
        *(*MESHWIRE, *words, "--dapr-http-port", str(sidecar.port)),
        env=sidecar.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(child.communicate(), 20)
    assert child.returncode == 0, said.decode()
    return said.decode()


async def inputs(sidecar: Sidecar) -> dict[str, dict[str, str]]:
    """What `GET /mesh/v1/bindings` says, by name."""
    told = (await sidecar.call("GET", "/mesh/v1/bindings")).json["inputs"]
    return {one["name"]: one for one in told}


async def is_answered(port: int) -> bool:
    try:
        return (await call(port, "POST", "/", [JSON], b"{}")).status == 202
    except OSError:
        return False


async def comes_true(port: int, wanted: bool) -> None:
    async with asyncio.timeout(20):
        while await is_answered(port) is not wanted:
            await asyncio.sleep(0.05)


async def test_a_binding_is_paused_and_goes_on(mesh: Mesh) -> None:
    async with App() as app:
        sidecar = await mesh.sidecar("app1", webhook(mesh, free_port()), app=app)
        await sidecar.says("subscribed to the following topics")
        name = "app1.hook", "--pubsub", "$bindings"
        assert "paused" in await meshwire(sidecar, "subscriptions", "pause", *name)
        await meshwire(sidecar, "trigger", "hook", "--data", "1")
        assert (await inputs(sidecar))["hook"]["delivery"] == "paused"
        assert app.events == []
        await meshwire(sidecar, "subscriptions", "resume", *name)
        [request] = await app.got(1)
        assert (request.path, request.body) == ("/hook", b"1")


async def test_an_app_that_fails_gets_an_item_again_and_what_it_never_takes_is_a_dead_letter(mesh: Mesh) -> None:
    policy = {"maxAttempts": "2", "backOffPolicy": "constant", "backOffDuration": "50ms"}
    port = str(free_port())
    flag = component(mesh, "hook", "bindings.webhook", port=port, signature="none", direction="input", **policy)

    def answer(request: Request) -> Reply:
        is_first = request.headers["meshwire-attempt"] == "1"
        return 500 if request.body == b"never" or is_first else 200

    async with App(answer=answer) as app:
        sidecar = await mesh.sidecar("app1", flag, app=app)
        for body in ("never", "later"):
            await meshwire(sidecar, "trigger", "hook", "--data", body)
        await app.got(4)
        async with asyncio.timeout(20):
            while "$bindings/app1.hook/" not in (letters := await meshwire(sidecar, "dead", "list")):
                pass
        assert letters.count("$bindings/app1.hook/") == 1
        app.answer = lambda _: 200
        await meshwire(sidecar, "dead", "redrive", "--pubsub", "$bindings", "--topic", "app1.hook")
        assert (await app.got(5))[-1].body == b"never"


async def test_an_item_that_is_too_large_holds_up_nothing_and_is_kept(mesh: Mesh) -> None:
    large = b"x" * (1_500_000)
    with NatsServer(mesh.folder / "source", max_payload=4_000_000) as server:
        client = await nats.connect(server.url)
        stream = client.jetstream()
        await stream.add_stream(name="orders", subjects=["orders"])
        for body in (b"1", large, b"2"):
            await stream.publish("orders", body)
        await client.close()
        flag = component(mesh, "orders", "bindings.nats", url=server.url, stream="orders", direction="input")
        async with App() as app:
            sidecar = await mesh.sidecar("app1", flag, app=app)
            assert [request.body for request in await app.got(2)] == [b"1", b"2"]
            [line] = [
                line
                for line in (await meshwire(sidecar, "dead", "list", "--reason", "oversized")).splitlines()
                if line.startswith("$bindings/app1.orders/")
            ]
            letter = await meshwire(sidecar, "dead", "show", line.split()[0], "--raw")
            assert letter.encode().strip() == large


async def test_a_schedule_and_a_port_are_changed_while_the_sidecar_runs(mesh: Mesh) -> None:
    before, after = free_port(), free_port()
    component(mesh, "tick", "bindings.cron", schedule="@every 1h", direction="input")
    async with App() as app:
        sidecar = await mesh.sidecar("app1", webhook(mesh, before), app=app)
        await comes_true(before, True)
        component(mesh, "tick", "bindings.cron", schedule="@every 1s", direction="input")
        webhook(mesh, after)
        await app.got(2, "/tick")
        await comes_true(after, True)
        await comes_true(before, False)
        assert sidecar.runs


async def test_two_apps_with_one_port(mesh: Mesh) -> None:
    port = free_port()
    component(mesh, "files", "bindings.localstorage", rootPath=str(mesh.folder))
    flag = webhook(mesh, port)
    async with App() as app:
        first = await mesh.sidecar("app1", flag, app=app)
        await comes_true(port, True)
        second = await mesh.sidecar("app2", flag, app=app)
        await second.says(f"port {port}: it is in use by another program")
        assert "in use" in (await inputs(second))["hook"]["source"]
        answer = await second.call("POST", "/v1.0/bindings/files", [JSON], b'{"operation": "list"}')
        assert answer.status == 200, "the others go on"
        await first.end()
        await comes_true(port, True)  # the second one takes it


@pytest.mark.parametrize(("answer", "wanted"), [(200, True), (405, True), (404, False), (500, False), (None, False)])
async def test_an_app_is_asked_whether_it_wants_a_binding(mesh: Mesh, answer: int | None, wanted: bool) -> None:
    async def handle(request: Request) -> Reply:
        if request.method == "OPTIONS":
            if answer is None:
                await asyncio.sleep(4)
            return answer or 200
        return 200

    async with App(answer=handle) as app:
        port = free_port()
        flag = component(mesh, "hook", "bindings.webhook", port=str(port), signature="none")
        sidecar = await mesh.sidecar("app1", flag, app=app)
        async with asyncio.timeout(20):
            while "was not asked yet" in (source := (await inputs(sidecar))["hook"]["source"]):
                await asyncio.sleep(0.05)
        assert ("running" in source) is wanted, source
        if wanted:
            await app.got(0)
            await comes_true(port, True)
            await app.got(1, "/hook")
        else:
            assert not await is_answered(port)
