"""Senders of webhooks, for the contract suite of input bindings."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from pathlib import Path
from typing import cast

import pytest

from bindings import http_listener
from bindings.bindings.webhook import SPEC
from mesh.ports.bindings import InputBinding
from tests.e2e.mesh import JSON, call
from tests.opened import opened
from tests.ports import free_port

SECRET = "a secret"


class Sender:
    """Posts what it has until it gets a 2xx, as a sender that loses nothing does."""

    def __init__(self) -> None:
        self._port = free_port()
        self._sending: set[asyncio.Task[None]] = set()

    def binding(self) -> InputBinding:
        return cast(InputBinding, opened(SPEC, port=str(self._port), signature="github", secret=SECRET))

    async def offer(self, number: int) -> bytes:
        body = b'{"number": %d}' % number
        task = asyncio.create_task(self._send(body))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        return body

    async def _send(self, body: bytes) -> None:
        signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        headers = [JSON, ("X-Hub-Signature-256", f"sha256={signature}")]
        while True:
            try:
                if (await call(self._port, "POST", "/", headers, body)).status == 202:
                    return
            except (OSError, TimeoutError, AssertionError):  # nobody listens, or it hung up
                pass
            await asyncio.sleep(0.05)


class Webhook:
    """An `InputBacking`. The source is the sender; there is no server that could be away."""

    name = "webhook"
    bound = http_listener.MAX_CONNECTIONS
    has_ids = True

    def start(self, folder: Path) -> None: ...

    def stop(self) -> None: ...

    async def source(self) -> Sender:
        return Sender()

    async def restart(self, source: object) -> None:
        pytest.skip("a sender has no server that could end")
