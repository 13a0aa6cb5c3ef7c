"""Files that change under running processes, on a real broker."""

import asyncio
from pathlib import Path

import pytest

from tests.e2e.mesh import App, Load, Mesh, subscription

BUS = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: bus}}
spec:
  type: pubsub.meshwire
  version: v1
  metadata: [{{name: allowedTopics, value: "A,{number}"}}]
"""
SUBSCRIPTION = """\
apiVersion: dapr.io/v2alpha1
kind: Subscription
metadata: {name: declared}
spec: {pubsubname: bus, topic: A, routes: {default: /A}}
"""
ENDPOINT = """\
apiVersion: dapr.io/v1alpha1
kind: HTTPEndpoint
metadata: {name: outside}
spec: {baseUrl: "http://127.0.0.1:1"}
"""


@pytest.fixture
async def mesh(tmp_path):
    async with Mesh(tmp_path) as mesh:
        yield mesh


def write(path: Path, text: str) -> None:
    """At once, as editors and deployment tools do."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


async def test_no_event_is_lost_while_components_change(mesh, tmp_path):
    """Publisher and subscriber change their component under load; each event that was accepted arrives."""
    folder = tmp_path / "resources"
    folder.mkdir()
    write(folder / "bus.yaml", BUS.format(number=0))
    flags = ["--resources-path", str(folder)]
    async with App([subscription("A", pubsubname="bus")]) as app:
        sub = await mesh.sidecar("sub", *flags, app=app, topics=["A"])
        pub = await mesh.sidecar("pub", *flags)
        load = Load(pub.port, 200, target="/v1.0/publish/bus/A")
        async with load:
            for number in range(1, 4):
                write(folder / "bus.yaml", BUS.format(number=number))
                await asyncio.gather(*(one.says(r"Component loaded: bus", number + 1) for one in (sub, pub)))
                await sub.says(r"app is subscribed to the following topics: \[A\]", number + 1)
        assert not load.refused
        assert len(load.accepted) > 100
        async with asyncio.timeout(20):
            while not load.accepted <= {request.event["data"]["n"] for request in app.events}:
                await asyncio.sleep(0.05)


async def test_a_subscription_comes_and_the_sidecar_starts_anew_for_the_rest(mesh, tmp_path):
    folder = tmp_path / "resources"
    folder.mkdir()
    write(folder / "bus.yaml", BUS.format(number=0))
    async with App() as app:
        sidecar = await mesh.sidecar("app", "--resources-path", str(folder), app=app)
        write(folder / "declared.yaml", SUBSCRIPTION)
        await sidecar.says(r"app is subscribed to the following topics: \[A\] through pubsub=bus")
        assert (await sidecar.call("POST", "/v1.0/publish/bus/A", body=b"1")).status == 204
        await app.got(1, "/A")
        write(folder / "outside.yaml", ENDPOINT)
        await sidecar.says("starting anew")
        await sidecar.says("dapr initialized", 2)
        described = (await sidecar.call("GET", "/v1.0/metadata")).json
        assert described["httpEndpoints"] == [{"name": "outside"}]
        await sidecar.ready("A")
