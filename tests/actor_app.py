"""An app in the process of a test that hosts actors."""

import asyncio
import json
from collections.abc import Awaitable, Callable

from tests.e2e.mesh import App, Reply, Request


class ActorApp(App):
    """Hosts actors. What it answers to a call is up to `answer`, if given, by the method's name."""

    def __init__(self, *, subscribe: object = (), **config: object) -> None:
        super().__init__(subscribe, answer=self._act)
        self.config = {"entities": ["Cart"], **config}
        self.methods: dict[str, Callable[[Request], Reply | Awaitable[Reply]]] = {}
        self.calls: list[Request] = []
        self.running: dict[str, int] = {}
        self.overlaps = 0

    async def _reply(self, request: Request) -> tuple[int, bytes]:
        if request.path == "/dapr/config":
            return 200, json.dumps(self.config).encode()
        return await super()._reply(request)

    async def _act(self, request: Request) -> Reply:
        self.calls.append(request)
        actor = "/".join(request.path.split("/")[:4])
        self.running[actor] = self.running.get(actor, 0) + 1
        self.overlaps = max(self.overlaps, self.running[actor])
        try:
            method = request.path.split("?")[0].rpartition("/method/")[2]
            reply = self.methods.get(method, lambda _: (200, b""))(request)
            return reply if isinstance(reply, int | tuple) else await reply
        finally:
            self.running[actor] -= 1

    def called(self, end: str) -> list[Request]:
        return [call for call in self.calls if call.path.endswith(end)]

    async def until(self, end: str, count: int = 1) -> list[Request]:
        async with asyncio.timeout(20):
            while len(self.called(end)) < count:
                await asyncio.sleep(0.01)
        return self.called(end)
