"""A whole mesh in one process: what the fixture `meshwire` gives to a test."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from starlette.types import ASGIApp

from brokers.memory import MemoryEventLog
from brokers.memory_alarms import MemoryAlarmClocks
from brokers.memory_requests import MemoryExchange, MemoryRequests
from brokers.memory_tables import MemoryTables
from mesh import ids, inbound
from mesh.codec import json as json_codec
from mesh.delivery import Verdict
from mesh.delivery.event_target import judge
from mesh.event import Attributes
from mesh.ports import OLDEST, AppResponse, Group, Message, Mode, Peer, Topic
from mesh.pubsub import DEFAULT_COMPONENT
from sidecar import flags
from sidecar.assembly import assemble
from sidecar.backbone import Backbone
from sidecar.channel.http import HttpAppChannel
from sidecar.runtime import Runtime
from sidecar.settings import Settings
from sidecar.testing.apps import AppServer, Event, Handler, Recorder, Seen, by_topic, subscribing
from sidecar.testing.background import LIMIT, Background
from sidecar.testing.clock import VirtualClock

SOURCE = "/test"
"""The source of events that a test publishes."""
PAGE = 1_000
SETTLE_PAUSE = 0.001
NAMESPACE = "default"


class Answer(NamedTuple):
    """What an API or an app answered."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Delivered(NamedTuple):
    """What became of one event that a test has delivered to an app."""

    status: str
    """`success`; `retry`: it failed, and comes again when time passes; `drop`: the app does not want it; `dead`: it
    failed, and will not come again; `skipped`: no route or filter of the app takes it."""
    attempts: Sequence[Seen]
    """The requests that brought it, the first first."""


class Published(list[Event]):
    """Events of a topic. Empty, it says in a failing assertion what there was instead."""

    def __init__(self, events: Sequence[Event], topic: str, others: Sequence[Event]) -> None:
        super().__init__(events)
        self._topic = topic
        self._others = others

    def __repr__(self) -> str:
        if self:
            return super().__repr__()
        there = "".join(f"\n  {event}" for event in self._others) or " nothing at all"
        return f"nothing like that was published to {self._topic}, but:{there}"


class AppUnderTest:
    """An app in the mesh, with a sidecar of its own."""

    def __init__(self, mesh: Mesh, app_id: str, recorder: Recorder, app_port: int, sidecar_port: int) -> None:
        self._mesh = mesh
        self._recorder = recorder
        self.app_id = app_id
        self.port = app_port
        """Where the app listens."""
        self.dapr_http_port = sidecar_port
        """Where its sidecar does."""

    @property
    def seen(self) -> Sequence[Seen]:
        """The requests that the app got, in the order of their ends."""
        return tuple(self._recorder.seen)

    @property
    def events(self) -> Sequence[Event]:
        """The events that the app got, attempt by attempt."""
        return [event for seen in self._recorder.seen if (event := seen.event) is not None]

    def deliver(self, topic: str, data: Any = None, *, pubsub: str = DEFAULT_COMPONENT, **attributes: Any) -> Delivered:
        """Publish one event as `Mesh.publish` does, and say what became of it at this app."""
        event_id = self._mesh.publish(topic, data, pubsub=pubsub, **attributes)
        attempts = [
            seen for seen in self._recorder.seen if (event := seen.event) is not None and event.get("id") == event_id
        ]
        return Delivered(self._mesh.fate(Group(self.app_id, Topic(pubsub, topic)), attempts), attempts)

    def call(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] = {}) -> Answer:
        """Call the sidecar's HTTP API, as the app would."""
        return self._mesh.background.run(_request(self.dapr_http_port, method, path, headers, body))

    def get_state(self, key: str, store: str = "statestore") -> Any:
        """The value of a key, decoded; `None` when there is none."""
        answer = self.call("GET", f"/v1.0/state/{quote(store, safe='')}/{quote(key, safe='')}")
        if answer.status not in (200, 204):
            raise AssertionError(f"the state of {key!r} cannot be had: {answer.status} {answer.body.decode()}")
        return None if answer.status == 204 else answer.json


class Mesh:
    """Apps with their sidecars, one broker in memory, and a clock that stands still until `advance`.

    All methods wait until everything has come to rest: what was published is delivered, and what the apps published
    while they handled it too. They may be called from tests with and without an event loop.
    """

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.background = Background("meshwire")
        self._apps = Background("apps")  # apps may call their sidecar, and wait for the answer, in the way they like
        self._exchange = MemoryExchange()
        self._runtimes: list[tuple[Runtime, asyncio.Task[object]]] = []
        self._servers: list[AppServer] = []
        self._environ: dict[str, str | None] | None = None
        self.log, self._tables, self._alarms = self.background.run(self._open())

    async def _open(self) -> tuple[MemoryEventLog, MemoryTables, MemoryAlarmClocks]:
        log = MemoryEventLog(self.clock)
        await log.start()
        return log, MemoryTables(self.clock), MemoryAlarmClocks(self.clock)

    def app(
        self,
        app_id: str,
        app: ASGIApp | Mapping[str, Handler],
        *,
        subscriptions: Sequence[Mapping[str, Any]] | None = None,
        resources_path: str | None = None,
        pubsub: str = DEFAULT_COMPONENT,
        arguments: Sequence[str] = (),
    ) -> AppUnderTest:
        """Start `app` and a sidecar beside it; returns when its subscriptions stand.

        `app` is an ASGI app, which says itself what it subscribes to unless `subscriptions` does, or a handler for each
        topic of `pubsub`. `resources_path` is a folder of manifests, `arguments` are further flags of the sidecar.
        """
        asgi = by_topic(app, pubsub) if isinstance(app, Mapping) else app
        if subscriptions is not None:
            asgi = subscribing(asgi, subscriptions)
        recorder = Recorder(asgi)
        server = AppServer(recorder)
        self._servers.append(server)
        self._apps.run(server.start())
        words = [f"--app-id={app_id}", f"--app-port={server.port}", f"--dapr-http-port={_free_port()}", *arguments]
        words += ["--enable-metrics=false", "--dapr-graceful-shutdown-seconds=1"]
        words += [f"--resources-path={resources_path}"] if resources_path is not None else []
        settings = Settings.from_environment(flags.parse(words), {"MESHWIRE_BROKER": "memory", "NAMESPACE": NAMESPACE})
        if self._environ is None:
            self._set_environment(settings.flags.http_port, server.port)
        self.background.run(self._start(settings))
        return AppUnderTest(self, app_id, recorder, server.port, settings.flags.http_port)

    def _set_environment(self, sidecar_port: int, app_port: int) -> None:
        """What an app finds beside a sidecar, until `close`."""
        found = {
            "DAPR_HTTP_PORT": str(sidecar_port),
            "DAPR_HTTP_ENDPOINT": f"http://127.0.0.1:{sidecar_port}",
            "APP_PORT": str(app_port),
        }
        self._environ = {name: os.environ.get(name) for name in found}
        os.environ.update(found)

    async def _start(self, settings: Settings) -> None:
        me = Peer(settings.namespace, settings.flags.app_id)
        backbone = Backbone(self.log, MemoryRequests(self._exchange, me), self._tables, self._alarms)
        runtime = assemble(settings, {}, lambda: None, clock=self.clock, backbone=backbone)
        running = asyncio.get_running_loop().create_task(runtime.run())
        self._runtimes.append((runtime, running))
        await _until(lambda: running.done() or runtime.subscribed, "the sidecar does not start")
        if running.done():
            await running

    def publish(
        self,
        topic: str,
        data: Any = None,
        *,
        pubsub: str = DEFAULT_COMPONENT,
        id: str | None = None,
        type: str = "test",
        source: str = SOURCE,
        **attributes: str,
    ) -> str:
        """Publish one event, as somebody else in the mesh; returns its id. `data` is a JSON value; `attributes` are
        further ones of the event, `partitionkey` among them."""
        event_id = id or ids.uuid4()
        message = _event({"id": event_id, "source": source, "type": type, **attributes}, data)
        self.background.run(self._publish(Topic(pubsub, topic), [message]))
        return event_id

    def publish_all(
        self,
        topic: str,
        data: Iterable[Any],
        *,
        pubsub: str = DEFAULT_COMPONENT,
        type: str = "test",
        source: str = SOURCE,
        **attributes: str,
    ) -> list[str]:
        """As `publish`, an event for each of `data`: all are published before the first is waited for."""
        event_ids: list[str] = []
        messages = []
        for each in data:
            event_ids.append(ids.uuid4())
            messages.append(_event({"id": event_ids[-1], "source": source, "type": type, **attributes}, each))
        self.background.run(self._publish(Topic(pubsub, topic), messages))
        return event_ids

    async def _publish(self, topic: Topic, messages: Iterable[Message]) -> None:
        for message in messages:
            await self.log.publish(topic, message)
        await self._settled()

    def published(self, topic: str, *, pubsub: str = DEFAULT_COMPONENT, **expected: Any) -> Published:
        """What was published to `topic`, the oldest first: all, or what has these attributes (`data` among them)."""
        self.settle()
        events = self.background.run(self._read(Topic(pubsub, topic)))
        fitting = [event for event in events if all(event.get(name) == value for name, value in expected.items())]
        return Published(fitting, topic, events)

    async def _read(self, topic: Topic) -> list[Event]:
        events: list[Event] = []
        start = OLDEST
        while True:
            page = await self.log.read(topic, start, limit=PAGE)
            events += (json.loads(inbound.read(record, _raw(record.mode, topic)).body) for record in page.records)
            if page.next is None:
                return events
            start = start._replace(position=page.next, time=None)

    def advance(self, seconds: float) -> None:
        """Let time pass: retries, expiries, schedules and delays happen at their moments, and no wall time goes by."""
        self.background.run(self.clock.advance(seconds, self._settled))

    def settle(self) -> None:
        """Wait until nothing is under way any more that does not wait for time to pass."""
        self.background.run(self._settled())

    async def _settled(self) -> None:
        await self.clock.settle()
        while self._calls():
            await _until(lambda: not self._calls(), f"a handler has not answered for {LIMIT / 2:g} s")
            await self.clock.settle()

    def _calls(self) -> int:
        """Of the apps, not answered yet."""
        channels = (runtime.channel for runtime, _ in self._runtimes)
        return sum(channel.under_way for channel in channels if isinstance(channel, HttpAppChannel))

    def fate(self, group: Group, attempts: Sequence[Seen]) -> str:
        """See `Delivered.status`."""
        if not attempts:
            return "skipped"
        backlog = self.background.run(self.log.backlog(group))
        if backlog is not None and backlog.unsettled:
            return "retry"
        last = attempts[-1]
        verdict = judge(AppResponse(last.status, (), last.answer), self.clock.now()).verdict
        return "dead" if verdict is Verdict.RETRY else verdict.value

    def close(self) -> None:
        """Stop everything."""
        try:
            self.background.run(self._stop())
            for server in self._servers:
                self._apps.run(server.stop())
        finally:
            for name, value in (self._environ or {}).items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
            self._apps.close()
            self.background.close()

    async def _stop(self) -> None:
        for runtime, _ in self._runtimes:
            runtime.stop()
        for _, running in self._runtimes:
            await asyncio.wait([running], timeout=LIMIT)
        await self.log.close()


def _event(attributes: Attributes, data: Any) -> Message:
    given: Attributes = {"specversion": "1.0", **attributes}
    if data is not None:
        given["datacontenttype"] = "application/json"
    event = inbound.in_json_form(given, None if data is None else json.dumps(data).encode())
    key = attributes.get("partitionkey")
    return Message(mode=Mode.STRUCTURED, payload=json_codec.encode_event(event), key=None if key is None else str(key))


def _raw(mode: Mode, topic: Topic) -> Topic | None:
    return topic if mode is Mode.RAW else None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


async def _until(condition: Callable[[], bool], complaint: str) -> None:
    try:
        async with asyncio.timeout(LIMIT / 2):
            while not condition():
                await asyncio.sleep(SETTLE_PAUSE)
    except TimeoutError:
        raise AssertionError(complaint) from None


async def _request(port: int, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        lines = [f"{method} {path} HTTP/1.1", f"host: 127.0.0.1:{port}", "connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"content-length: {len(body)}", "", ""]
        writer.write("\r\n".join(lines).encode() + body)
        head, _, answered = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    status, *fields = head.decode("latin-1").split("\r\n")
    named = (field.partition(":") for field in fields)
    return Answer(int(status.split(" ")[1]), {name.lower(): value.strip() for name, _, value in named}, answered)
