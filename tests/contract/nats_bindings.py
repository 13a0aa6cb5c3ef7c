"""`bindings.nats` for the contract suites of bindings, against a real server."""

from __future__ import annotations

import itertools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import nats

from bindings.bindings.lanes import LANES
from bindings.bindings.nats import SPEC
from mesh.ports.bindings import Invocation, Result
from tests.contract.nats_server import NatsServer
from tests.opened import opened
from tests.ports import free_port

Invoke = Callable[..., Awaitable[Result]]

USER, PASSWORD = "orders", "open-sesame"

_numbers = itertools.count(1)


def server(folder: Path) -> NatsServer:
    return NatsServer(folder, authorization={"users": [{"user": USER, "password": PASSWORD}]}, max_payload=65_536)


def url(server: NatsServer) -> str:
    return f"nats://{USER}:{PASSWORD}@127.0.0.1:{server.port}"


class Stream:
    """A stream of its own."""

    def __init__(self, server: NatsServer) -> None:
        self.server = server
        self.name = f"stream{next(_numbers)}"

    def binding(self, **settings: str) -> Any:
        given = {"stream": self.name, "subject": f"{self.name}.*", "durable": "reader"} | settings
        return opened(SPEC, url=url(self.server), **given)

    async def made(self) -> Stream:
        client = await nats.connect(url(self.server))
        await client.jetstream().add_stream(name=self.name, subjects=[f"{self.name}.*"])
        await client.close()
        return self

    async def offer(self, number: int) -> bytes:
        data = json.dumps({"number": number}).encode()
        client = await nats.connect(url(self.server))
        await client.jetstream().publish(f"{self.name}.{number % 7}", data, headers={"Origin": "test"})
        await client.close()
        return data


class NatsStream:
    name = "nats"
    bound = LANES
    has_ids = True

    def start(self, folder: Path) -> None:
        self.server = server(folder)
        self.server.start()

    def stop(self) -> None:
        self.server.kill()

    async def source(self) -> Stream:
        return await Stream(self.server).made()

    async def restart(self, source: Stream) -> None:
        self.server.stop()
        self.server.start()

    # as an output

    refused = (
        Invocation(operation="create", metadata={"subject": "a.*"}),
        Invocation(operation="create", metadata={"subject": "a b"}),
        Invocation(operation="create", metadata={"topic": "a"}),
        Invocation(operation="create", data=b"x" * 70_000),
    )

    async def binding(self) -> Any:
        self._subject = f"subject{next(_numbers)}"
        return opened(SPEC, url=url(self.server), subject=self._subject)

    async def use(self, invoke: Invoke) -> None:
        client = await nats.connect(url(self.server))
        try:
            reader = await client.subscribe(f"{self._subject}.>")

            async def answer(message: Any) -> None:
                await message.respond(message.data[::-1])

            await client.subscribe(self._subject, cb=answer)
            await client.flush()
            assert await invoke("create", b'"as it is"', subject=f"{self._subject}.a") == Result()
            assert (await reader.next_msg(5)).data == b'"as it is"'
            assert (await invoke("request", b"abc")).data == b"cba"
        finally:
            await client.close()

    def unreachable(self) -> Any:
        return opened(SPEC, url=f"nats://orders:open-sesame@127.0.0.1:{free_port()}", subject="a")
