"""Input bindings over a real broker, with sidecars that are killed."""

from __future__ import annotations

import asyncio
import calendar
import hashlib
import hmac
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.nats_server import NatsServer
from tests.e2e.mesh import JSON, Answer, App, Mesh, Sidecar, call, until
from tests.ports import free_port

SECONDS = int(os.environ.get("CRON_SECONDS", "12"))
"""For which a cron fires while replicas are killed."""
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
    """The flag for a folder with this component."""
    folder = mesh.folder / "resources"
    folder.mkdir(exist_ok=True)
    entries = ", ".join(f'{{name: {key}, value: "{value}"}}' for key, value in metadata.items())
    (folder / f"{name}.yaml").write_text(MANIFEST.format(name=name, type=type_, metadata=entries))
    return f"--resources-path={folder}"


# Cron


async def fire(mesh: Mesh, seconds: float, kills: list[float]) -> None:
    """Three replicas and a trigger every second; one replica is killed, and replaced, at each of the moments."""
    flag = component(mesh, "tick", "bindings.cron", schedule="* * * * * *", direction="input")
    async with App() as app:
        replicas = [await mesh.sidecar("app1", flag, app=app, name=f"replica-{number}") for number in range(3)]
        await app.got(1)
        started = time.monotonic()
        for number, moment in enumerate(kills):
            await asyncio.sleep(started + moment - time.monotonic())
            replicas[number].kill()
            replicas.append(await mesh.sidecar("app1", flag, app=app, name=f"successor-{number}"))
        await asyncio.sleep(started + seconds - time.monotonic())
        ended = int(time.time())

        def times() -> Counter[int]:
            return Counter(
                calendar.timegm(time.strptime(event.headers["scheduledtime"], "%Y-%m-%dT%H:%M:%SZ"))
                for event in app.events
            )

        # The moments behind one that was in the hands of a replica that was killed come when the broker misses it.
        await until(lambda: ended in times(), lambda: f"only {sorted(times())}", 40)
        delivered = times()
        first, last = min(delivered), max(delivered)
        assert sorted(delivered) == list(range(first, last + 1)), "a second has no event"
        assert last - first >= seconds - 2
        assert delivered.total() - len(delivered) <= len(kills), "repeats"
        stored = await stored_items(mesh.server, "app1", "tick")
        moments = [int(float(name)) for name in stored]
        assert moments == list(range(moments[0], moments[-1] + 1)), "a second is not stored exactly once"
        assert delivered.keys() <= set(moments)


async def stored_items(server: NatsServer, app_id: str, binding: str) -> list[str]:
    """The ids of the items that are stored."""
    import nats

    client = await nats.connect(server.url)
    try:
        subscription = await client.jetstream().subscribe(
            f"mesh.default.event.%24bindings.{app_id}.{binding}.>", ordered_consumer=True
        )
        ids = []
        while True:
            try:
                message = await subscription.next_msg(timeout=1)
            except nats.errors.TimeoutError:
                return ids
            ids.append(message.headers["ce-id"])
    finally:
        await client.close()


async def test_each_second_has_one_event_though_replicas_are_killed(mesh: Mesh) -> None:
    await fire(mesh, SECONDS, [SECONDS // 3, 2 * SECONDS // 3])


# Webhook


class Sender:
    """Posts signed events, each until it has had a 2xx; forged ones and repeats among them."""

    def __init__(self, port: int, secret: str) -> None:
        self.port = port
        self.secret = secret
        self.stored: set[bytes] = set()
        self.forged: set[bytes] = set()

    async def post(self, body: bytes, secret: str) -> Answer | None:
        signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
        try:
            return await call(self.port, "POST", "/", [JSON, ("X-Hub-Signature-256", f"sha256={signature}")], body)
        except (OSError, AssertionError):  # it is being killed
            return None

    async def send(self, number: int) -> None:
        body = b'{"n": %d}' % number
        deadline = time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline
            answer = await self.post(body, self.secret)
            if answer is not None and answer.status == 202:
                break
            await asyncio.sleep(0.05)
        self.stored.add(body)
        if number % 10 == 0:
            again = await self.post(body, self.secret)
            assert again is None or again.status == 202
        if number % 7 == 0:
            forged = b'{"forged": %d}' % number
            self.forged.add(forged)
            refused = await self.post(forged, "wrong")
            assert refused is None or refused.status == 401


async def post_while_all_is_down(mesh: Mesh, count: int) -> None:
    port = free_port()
    flag = component(
        mesh, "hook", "bindings.webhook", port=str(port), signature="github", secret="s", direction="input"
    )
    app = App()
    sidecar: Sidecar = mesh.add("app1", flag, app=app).start()
    await sidecar.says("listening for requests")
    sender = Sender(port, "s")
    numbers = iter(range(count))

    async def lane() -> None:
        for number in numbers:
            await sender.send(number)

    async def kills() -> None:
        for part in (count // 3, 2 * count // 3):
            await until(lambda part=part: len(sender.stored) >= part, lambda: "nothing is stored", 60)
            sidecar.kill()
            sidecar.start()

    await asyncio.gather(kills(), *(lane() for _ in range(16)))
    async with app:
        await app.got(count, limit=60)
        await asyncio.sleep(0.5)
        bodies = Counter(event.body for event in app.events)
        assert bodies.keys() == sender.stored
        assert not bodies.keys() & sender.forged
        assert sum(bodies.values()) == count, "replayed ones arrived"


async def test_webhooks_while_app_and_sidecar_are_down(mesh: Mesh) -> None:
    await post_while_all_is_down(mesh, 300)


@pytest.mark.quiet
async def test_thousands_of_webhooks_while_app_and_sidecar_are_down(mesh: Mesh) -> None:
    await post_while_all_is_down(mesh, 5000)


# Outputs that another app hosts


async def invoke(sidecar: Sidecar, **request: object) -> Answer:
    return await sidecar.call("POST", "/v1.0/bindings/files", [JSON], json.dumps(request).encode())


async def test_an_output_that_another_app_hosts(mesh: Mesh) -> None:
    """One file for all: the host has its folder, the others call it there."""
    folder = mesh.folder / "files"
    flag = component(mesh, "files", "bindings.localstorage", rootPath=str(folder), hostedBy="billing", hostedFor="shop")
    async with App() as app:
        host = await mesh.sidecar("billing", flag, app=app)
        shop = await mesh.sidecar("shop", flag)
        stranger = await mesh.sidecar("stranger", flag)
        text = "ä" * 300_000  # more than one message takes
        answer = await invoke(shop, operation="create", data=text, metadata={"fileName": "ä.txt"})
        assert (answer.status, b"fileName" in answer.body) == (200, True), answer
        assert (folder / "ä.txt").read_text() == text
        answer = await invoke(shop, operation="get", metadata={"fileName": "ä.txt"})
        assert (answer.status, answer.body.decode()) == (200, text)
        for request, cause in (
            ({"operation": "get", "metadata": {"fileName": "../x"}}, ""),
            ({"operation": "paint"}, "binding files does not support operation paint. supported operations:create"),
        ):
            there, here = await invoke(shop, **request), await invoke(host, **request)
            assert (there.status, there.json) == (here.status, here.json), "as if it were here"
            assert cause in there.json["message"]
        answer = await invoke(stranger, operation="get", metadata={"fileName": "ä.txt"})
        assert answer.status == 500
        assert answer.json["message"].endswith(
            "app stranger may not call it: its hostedFor at app billing does not say so"
        )
        for method in ("POST /files", "POST /$bindings/files", "POST /v1.0/bindings/files"):
            verb, path = method.split()
            before = len(app.requests)
            await shop.call(verb, f"/v1.0/invoke/billing/method{path}", [JSON], b'{"operation": "list"}')
            assert len(app.requests) == before + 1, "a call by path is the app's"
        answer = await shop.call("POST", "/v1.0/invoke/$bindings.billing/method/files", [JSON], b"{}")
        assert answer.status == 500
        assert "invalid app id" in answer.json["message"]
        asked = len(app.requests)
        await invoke(shop, operation="list")
        assert len(app.requests) == asked, "the app of the host has no part in it"
        await host.end()
        began = time.monotonic()
        answer = await invoke(shop, operation="list")
        assert answer.status == 500
        assert "app billing hosts it, and no sidecar of it takes the call" in answer.json["message"]
        assert time.monotonic() - began < 10
