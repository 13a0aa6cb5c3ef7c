"""A folder that two replicas watch, one of which is killed: each file reaches the app, and hardly one of them twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from tests.e2e.mesh import App, Mesh, until

FILES = 200
COMPONENT = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: incoming
spec:
  type: bindings.files
  version: v1
  metadata:
    - name: path
      value: {folder}
    - name: settled
      value: 50ms
    - name: direction
      value: input
"""


async def test_each_file_arrives(tmp_path: Path) -> None:
    folder, resources = tmp_path / "incoming", tmp_path / "resources"
    folder.mkdir()
    resources.mkdir()
    (resources / "incoming.yaml").write_text(COMPONENT.format(folder=folder))
    async with App() as app, Mesh(tmp_path / "mesh") as mesh:
        replicas = [
            await mesh.sidecar("reader", "--resources-path", str(resources), app=app, name=name) for name in "ab"
        ]

        async def write() -> None:
            for number in range(FILES):
                partial = folder / f".{number}"
                partial.write_text(str(number))
                partial.rename(folder / f"{number}.txt")
                await asyncio.sleep(0.01)

        writing = asyncio.create_task(write())
        await app.got(20, "/incoming")
        replicas[0].kill()  # the one that started first has the lease
        before = len(app.events)
        await writing
        wanted = {b"%d" % number for number in range(FILES)}
        await until(
            lambda: {event.body for event in app.events} >= wanted,
            lambda: f"{len(wanted - {event.body for event in app.events})} of {FILES} never came:\n{replicas[1].log}",
            40,
        )
        assert before < FILES, "the other one had something left to do"
        # What was under way at the end of the first comes again: stored once, and yet delivered by both.
        repeated = Counter(event.body for event in app.events).total() - FILES
        assert repeated <= 64, repeated
