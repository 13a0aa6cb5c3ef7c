"""`bindings.mqtt3` for the contract suites of bindings, against the MQTT listener of nats-server."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiomqtt

from bindings.bindings.lanes import LANES
from bindings.bindings.mqtt3 import SPEC
from mesh.ports.bindings import Invocation, Result
from tests.opened import opened
from tests.ports import free_port
from tests.servers.mqtt import PASSWORD, USER, MqttServer

Invoke = Callable[..., Awaitable[Result]]

_numbers = itertools.count(1)


def client(server: MqttServer, name: str) -> aiomqtt.Client:
    return aiomqtt.Client("127.0.0.1", server.mqtt_port, username=USER, password=PASSWORD, identifier=name, timeout=20)


class Topic:
    """A topic of its own, and a session that takes from it."""

    def __init__(self, server: MqttServer) -> None:
        self.server = server
        self.name = f"topic{next(_numbers)}"

    def binding(self, **settings: str) -> Any:
        return opened(SPEC, url=self.server.mqtt_url, topic=f"{self.name}/#", consumerID=self.name, **settings)

    async def offer(self, number: int) -> bytes:
        data = b'{"number":%d}' % number
        # The server makes a client wait, or refuses it, whose name it takes for one that comes and goes.
        async with client(self.server, f"{self.name}-test{next(_numbers)}") as publisher:
            await publisher.publish(f"{self.name}/{number % 7}", data, qos=1)
        return data

    async def subscribed(self) -> Topic:
        """From now on the broker keeps what is published."""
        session = aiomqtt.Client(
            "127.0.0.1",
            self.server.mqtt_port,
            username=USER,
            password=PASSWORD,
            identifier=f"{self.name}-consumer",
            clean_session=False,
        )
        async with session:
            await session.subscribe(f"{self.name}/#", qos=1)
        return self


class MqttMessages:
    name = "mqtt3"
    bound = LANES
    has_ids = False

    def start(self, folder: Path) -> None:
        self.server = MqttServer(folder)
        self.server.start()

    def stop(self) -> None:
        self.server.kill()

    async def source(self) -> Topic:
        return await Topic(self.server).subscribed()

    async def restart(self, source: Topic) -> None:
        self.server.stop()
        self.server.start()

    # as an output

    refused = (
        Invocation(operation="create", metadata={"topic": "a/#"}),
        Invocation(operation="create", metadata={"topic": "x" * 70_000}),
        Invocation(operation="create", metadata={"retain": "true"}),
    )

    async def binding(self) -> Any:
        self._topic = f"topic{next(_numbers)}"
        return opened(SPEC, url=self.server.mqtt_url, topic=self._topic)

    async def use(self, invoke: Invoke) -> None:
        async with client(self.server, f"{self._topic}-test") as reader:
            await reader.subscribe(f"{self._topic}/#", qos=1)
            assert await invoke("create", b'"as it is"') == Result()
            await invoke("create", b"2", topic=f"{self._topic}/other")
            messages = [await anext(reader.messages) for _ in range(2)]
        assert {(str(message.topic), message.payload) for message in messages} == {
            (self._topic, b'"as it is"'),
            (f"{self._topic}/other", b"2"),
        }

    def unreachable(self) -> Any:
        return opened(SPEC, url=f"tcp://machine:open-sesame@127.0.0.1:{free_port()}", topic="a")
