"""A process that serves two routes: a value from the local view of a state store, and a bare 204."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from pathlib import Path

import uvloop
from starlette.types import Receive, Scope, Send

from benchmarks.events import DATA
from benchmarks.processes import Process, free_port
from benchmarks.stock_kv import KEY
from brokers.memory_tables import MemoryTables
from mesh.clock import SystemClock
from mesh.ports.stores import SetState
from mesh.pubsub import PubSub
from mesh.resiliency.targets import Resiliency
from mesh.state.backbone import MeshStateStore
from mesh.state.block import State
from mesh.state.component import StateComponent
from sidecar.api.state import StateApi
from sidecar.http.responses import CatchErrors, send_response
from sidecar.http.routing import Router
from sidecar.http.server import HttpServer

BARE = "/bare"
GET = f"/v1.0/state/statestore/{KEY}"


class Routes(Process):
    """Listens once it is made."""

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        super().__init__([sys.executable, "-P", "-m", "benchmarks.state_routes", str(self.port)], log)
        self.wait_until_listening(self.port)


async def _bare(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send_response(send, 204, [], b"")


async def _serve(port: int) -> None:
    clock = SystemClock()
    store = MeshStateStore(MemoryTables(clock), "statestore", clock)
    component = StateComponent(name="statestore", store=store, key_prefix="bench||")
    state = State(
        "bench",
        {"statestore": component},
        resiliency=Resiliency(clock=clock),
        pubsub=PubSub("bench", {}, clock),
        clock=clock,
        namespace="default",
    )
    await store.change(SetState(key=component.key_prefix + KEY, value=DATA))
    router = Router()
    StateApi(state, 0).add_to(router)
    router.add(("GET",), BARE, _bare, group="bench/bare")
    server = HttpServer(CatchErrors(router), port=port)
    await server.start()
    gc.freeze()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(1)
    await store.close()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
