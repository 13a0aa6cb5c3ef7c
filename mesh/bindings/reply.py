"""What an app's answer to an item asks for: state to save, and output bindings to call (Dapr's documentation; its HTTP
apps are not obeyed since 1.4).

It is done before the item is: an answer that cannot be obeyed is a delivery that failed, and comes again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from mesh.bindings.output import Outputs
from mesh.errors import AppError, MeshError, clip
from mesh.ports import AppResponse, AppRoute, HeaderLines
from mesh.ports.bindings import Invocation
from mesh.state.block import State
from mesh.state.requests import Write

LIMIT = 60.0
"""Seconds in which everything that an answer asks for must be done."""
MOST = 100
"""Items of state, and bindings, that one answer may have."""
_NULL = msgspec.Raw(b"null")


class _Item(msgspec.Struct):
    key: str
    value: msgspec.Raw = _NULL


class Reply(msgspec.Struct):
    """A body that asks for something."""

    storeName: str = ""
    state: list[_Item] | None = None
    to: list[str] | None = None
    concurrency: str = ""
    data: msgspec.Raw = _NULL


Follow = Callable[[Reply], Awaitable[None]]
"""Does what a reply asks for. Raises `MeshError` when something of it could not be done."""


def read(body: bytes) -> Reply | None:
    """What an answer asks for; `None` when it asks for nothing.

    Only a JSON object with a list of texts as `to`, or a `storeName` and a list of items as `state`, does: apps answer
    with all kinds of things.
    """
    if b'"to"' not in body and b'"state"' not in body:
        return None
    try:
        reply = msgspec.json.decode(body, type=Reply)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return reply if reply.to or (reply.state and reply.storeName) else None


class Replies:
    """Obeys the replies of one app."""

    def __init__(self, outputs: Outputs, state: State) -> None:
        self._outputs = outputs
        self._state = state

    async def follow(self, reply: Reply) -> None:
        """First the state, as it is without the prefix of any app, then the bindings: `sequential` in their order, up
        to the first that fails, otherwise side by side."""
        if max(len(reply.state or ()), len(reply.to or ())) > MOST:
            raise MeshError(f"an answer may have at most {MOST} items of state, and bindings")
        if reply.state and reply.storeName:
            component = self._state.component(reply.storeName)
            bare = msgspec.structs.replace(component, key_prefix="")
            await self._state.save(bare, [Write(key=one.key, value=bytes(one.value)) for one in reply.state])
        if reply.concurrency.lower() == "sequential":
            for name in reply.to or ():
                await self._outputs.invoke(name, _create(reply))
        else:
            calls = [self._outputs.invoke(name, _create(reply)) for name in reply.to or ()]
            for outcome in await asyncio.gather(*calls, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome


def _create(reply: Reply) -> Invocation:
    return Invocation(operation="create", data=msgspec.json.format(bytes(reply.data), indent=-1))


class ObeyedRoute:
    """An `AppRoute`: a call of it has ended when what the answer asks for is done, and fails with `AppError` when that
    cannot be."""

    def __init__(self, route: AppRoute, follow: Follow) -> None:
        self._route = route
        self._follow = follow
        self._tasks: set[asyncio.Task[None]] = set()

    def send(
        self, body: bytes = b"", extra_headers: HeaderLines | None = None, *, timeout: float
    ) -> asyncio.Future[AppResponse]:
        call = self._route.send(body, extra_headers, timeout=timeout)
        done: asyncio.Future[AppResponse] = asyncio.get_running_loop().create_future()

        def answered(call: asyncio.Future[AppResponse]) -> None:
            if done.cancelled():
                return
            if call.cancelled():
                done.cancel()
            elif error := call.exception():
                done.set_exception(error)
            else:
                response = call.result()
                reply = read(response.body) if 200 <= response.status < 300 else None
                if reply is None:
                    done.set_result(response)
                else:
                    self._obey(reply, response, done)

        call.add_done_callback(answered)
        done.add_done_callback(lambda done: call.cancel() if done.cancelled() else None)
        return done

    def _obey(self, reply: Reply, response: AppResponse, done: asyncio.Future[AppResponse]) -> None:
        async def obey() -> None:
            try:
                async with asyncio.timeout(LIMIT):
                    await self._follow(reply)
            except TimeoutError:
                _fail(done, AppError(f"what the app's answer asks for took longer than {LIMIT:g} s"))
            except MeshError as error:
                _fail(done, AppError(f"what the app's answer asks for was not done: {clip(str(error))}"))
            except asyncio.CancelledError:
                done.cancel()
                raise
            except Exception as error:  # the deliverer logs it
                _fail(done, error)
            else:
                if not done.done():
                    done.set_result(response)

        task = asyncio.get_running_loop().create_task(obey(), name="obey an answer")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _fail(done: asyncio.Future[AppResponse], error: Exception) -> None:
    if not done.done():
        done.set_exception(error)
