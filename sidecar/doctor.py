"""`meshwire doctor`'s walk from the broker to the app's routes, one finding after the other.

Each step tells what it saw; one that fails tells why and what to do. Steps that need one that failed are left out.
Nothing that is found holds a credential.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from enum import Enum
from typing import Any, NamedTuple

import msgspec

from brokers.nats import embedded, inspection
from brokers.nats.connection import Connection
from mesh.errors import ConfigurationError, MeshError
from mesh.ids import random_id
from mesh.ports import Delivery, Group, Message, Mode, NoResponder, Peer, Request, Response, Topic
from sidecar.backbone import Backbone, nats_connection, open_backbone
from sidecar.cli.api import address_of, call
from sidecar.registry import Entry
from sidecar.settings import BrokerAddress, redacted

NAME = "meshwire-doctor"
LOGIN_LIMIT = 5.0
API_LIMIT = 2.0
"""Seconds that a sidecar or an app may take for an answer."""
CANARY_LIMIT = 2.0
CALL_LIMIT = 5.0
CANARY_TTL = 60.0
"""Seconds that the stream keeps a canary."""
LONGEST_ANSWER = 1 << 20
"""Bytes of an app's answer that are read."""
STUCK = 60.0
"""Seconds of age from which an event that is not handled is a symptom."""
NEARLY_FULL = 0.95
LEAST_FREE = 256 << 20
"""Bytes that a disk should have left."""


class Status(Enum):
    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"


class Finding(msgspec.Struct, frozen=True):
    check: str
    status: Status
    told: str
    advice: str = ""
    """Of a failure: what to do."""


class Patient(NamedTuple):
    """What to examine."""

    broker: BrokerAddress
    namespace: str
    prefix: str
    app_id: str | None
    """Only this app; `None`: all that run here."""
    running: Sequence[Entry]
    """The sidecars of this user in this mesh."""


def _ok(check: str, told: str) -> Finding:
    return Finding(check, Status.OK, told)


def _failed(check: str, told: object, advice: str) -> Finding:
    return Finding(check, Status.FAILED, str(told), advice)


def _skipped(check: str, told: str) -> Finding:
    return Finding(check, Status.SKIPPED, told)


async def examine(patient: Patient) -> AsyncIterator[Finding]:
    """All findings, in the order of the walk: the first that failed is the culprit."""
    async with AsyncExitStack() as leaving:
        connection: Connection | None = None
        reachable = await _reach(patient)
        yield reachable
        if reachable.status is Status.OK:
            connection = nats_connection(patient.broker, NAME)
            leaving.push_async_callback(connection.close)
            login = await _log_in(connection)
            yield login
            if login.status is not Status.OK:
                connection = None
        stored = False
        if connection is not None:
            storage = await _storage(patient, connection)
            yield storage
            stored = storage.status is Status.OK
        chosen = [entry for entry in patient.running if patient.app_id in (None, entry.app_id)]
        if not chosen:
            which = f"of app id '{patient.app_id}' " if patient.app_id else ""
            yield _skipped("sidecars", f"none {which}runs here in this mesh; those elsewhere are not asked")
        for entry in chosen:
            yield await asyncio.to_thread(_sidecar, entry)
        if connection is not None and stored:
            for finding in await _subscriptions(patient, connection):
                yield finding
        for entry in chosen:
            if entry.app_port is not None:
                yield await asyncio.to_thread(_app, entry)
        if connection is None or not stored:
            yield _skipped("canaries", "they need the broker")
            return
        async for finding in _canaries(patient, chosen):
            yield finding


async def _reach(patient: Patient) -> Finding:
    check, broker = "broker", patient.broker
    if broker.kind == "memory":
        return _skipped(check, "a broker in memory lives inside one sidecar: there is nothing to examine from here")
    urls: Sequence[str] = broker.servers
    if broker.folder is not None:
        endpoint = embedded.endpoint(broker.folder)
        if endpoint is None:
            reason = embedded.failure(broker.folder)
            told = f"the embedded broker in {broker.folder} does not run" + (f": {reason}" if reason else "")
            log = broker.folder / "keeper.log"
            advice = f"read {log}" if reason else "start an app (meshwire run), or say which broker with --broker"
            return _failed(check, told, advice)
        urls = [endpoint.url]
    problems = []
    for url in urls:
        try:
            return _ok(check, f"{redacted(url)} answers: NATS {await inspection.knock(url)}")
        except (OSError, MeshError) as error:
            number = getattr(error, "errno", None)
            why = os.strerror(number) if number else str(error) or "no greeting in time"
            problems.append(f"{redacted(url)}: {why}")
    return _failed(check, "; ".join(problems), "start the broker, or correct host and port of MESHWIRE_BROKER")


async def _log_in(connection: Connection) -> Finding:
    try:
        async with asyncio.timeout(LOGIN_LIMIT):
            await connection.start()
    except ConfigurationError as error:
        return _failed("credentials", error, "take user, password or token from the broker's operator")
    except TimeoutError:
        told = f"no login within {LOGIN_LIMIT:g} s: {connection.problem}"
        return _failed("credentials", told, "look at the broker's log; with TLS, say tls:// and check the certificates")
    return _ok("credentials", "accepted")


async def _storage(patient: Patient, connection: Connection) -> Finding:
    check = "streams"
    try:
        room = await inspection.room(connection)
        stream = await inspection.stream(connection, patient.prefix, patient.namespace)
    except MeshError as error:
        return _failed(check, error, "start nats-server with -js, and let this user call $JS.API.>")
    if 0 < room.limit < room.used / NEARLY_FULL:
        told = f"the account's storage is full: {_bytes(room.used)} of {_bytes(room.limit)}"
        return _failed(check, told, "raise its max_file_store, or let streams keep less (max_age, max_bytes)")
    left = "no limit" if room.limit < 0 else f"{_bytes(room.limit - room.used)} left"
    folder = patient.broker.folder
    if folder is not None:
        free = shutil.disk_usage(folder).free
        if free < LEAST_FREE:
            return _failed(check, f"the disk of {folder} has {_bytes(free)} left", "make room there")
        left = f"{_bytes(free)} left on disk"
    name = f"events of namespace '{patient.namespace}'"
    if stream is None:
        return _ok(check, f"JetStream answers; no stream for {name} yet (the first sidecar makes it); {left}")
    if 0 < stream.max_size < stream.size / NEARLY_FULL:
        told = f"the stream for {name} is full ({_bytes(stream.max_size)}): its oldest events are dropped"
        return _failed(check, told, "raise max_bytes of the stream")
    age = f"kept {_age(stream.max_age)}" if stream.max_age else "kept for ever"
    return _ok(check, f"{name}: {stream.messages} stored, {_bytes(stream.size)}, {age}; {left}")


def _sidecar(entry: Entry) -> Finding:
    check = f"sidecar of {entry.app_id}"
    try:
        for path in ("/v1.0/healthz/outbound", "/v1.0/healthz"):
            answer = call(address_of(entry), "GET", path, timeout=API_LIMIT)
            if answer.status != 204:
                return _failed(check, f"{path}: {answer.problem}", "read its log, which says what it waits for")
    except MeshError as error:
        return _failed(check, error, f"restart it; its process is {entry.daprd_pid}")
    return _ok(check, f"{address_of(entry)} is healthy")


async def _subscriptions(patient: Patient, connection: Connection) -> list[Finding]:
    try:
        if await inspection.stream(connection, patient.prefix, patient.namespace) is None:
            return []
        lanes = await inspection.lanes(connection, patient.prefix, patient.namespace)
    except MeshError as error:
        return [_failed("subscriptions", error, "let this user call $JS.API.>")]
    groups: dict[tuple[str, str, str], list[inspection.Lane]] = {}
    for lane in lanes:
        if patient.app_id in (None, lane.app_id) and lane.app_id != NAME:
            groups.setdefault((lane.app_id, lane.pubsub, lane.topic), []).append(lane)
    if not groups:
        return [_skipped("subscriptions", "the broker keeps none")]
    return [_subscription(*key, lanes) for key, lanes in sorted(groups.items())]


def _subscription(app_id: str, pubsub: str, topic: str, lanes: Sequence[inspection.Lane]) -> Finding:
    check = f"subscription of {app_id} to {topic} ({pubsub})"
    waiting, unacked = sum(lane.waiting for lane in lanes), sum(lane.unacked for lane in lanes)
    redelivered = sum(lane.redelivered for lane in lanes)
    oldest = max((lane.oldest for lane in lanes if lane.oldest is not None), default=None)
    told = f"{waiting} waiting, {unacked} in hand, {redelivered} delivered again"
    if oldest is not None:
        told += f", the oldest is {_age(oldest)} old"
    if waiting and not any(lane.pulls for lane in lanes if lane.waiting):
        if not unacked:
            forget = f"meshwire unsubscribe -a {app_id} -t {topic} -p {pubsub}"
            return _failed(check, f"{told}; nobody takes them", f"start {app_id}, or forget the subscription: {forget}")
        if redelivered and (oldest or 0) > STUCK:
            return _failed(check, f"{told}; the app fails on them", f"read the logs of {app_id} and of its sidecar")
    elif redelivered and (oldest or 0) > STUCK:
        advice = f"read the logs of {app_id} and of its sidecar; a dead letter topic would set them aside"
        return _failed(check, f"{told}; the app fails on them", advice)
    return _ok(check, told)


class _Connection(msgspec.Struct, rename="camel"):
    protocol: str = "http"
    channel_address: str = "127.0.0.1"


class _Metadata(msgspec.Struct, rename="camel"):
    app_connection_properties: _Connection = msgspec.field(default_factory=_Connection)


class _Subscribed(msgspec.Struct):
    topic: str


def _app(entry: Entry) -> Finding:
    check = f"app {entry.app_id}"
    try:
        answer = call(address_of(entry), "GET", "/v1.0/metadata", timeout=API_LIMIT)
        way = msgspec.json.decode(answer.body, type=_Metadata).app_connection_properties
    except (MeshError, msgspec.DecodeError):
        way = _Connection()
    if way.protocol != "http":
        return _skipped(check, f"it speaks {way.protocol}; its sidecar calls it, the doctor does not")
    where = f"{way.channel_address}:{entry.app_port}"
    connection = http.client.HTTPConnection(way.channel_address, entry.app_port, timeout=API_LIMIT)
    token = os.environ.get("APP_API_TOKEN")
    try:
        connection.request("GET", "/dapr/subscribe", headers={"dapr-api-token": token} if token else {})
        response = connection.getresponse()
        status, body = response.status, response.read(LONGEST_ANSWER)
    except ConnectionRefusedError:
        return _failed(check, f"nothing listens at {where}", "start the app, or correct --app-port")
    except TimeoutError:
        return _failed(check, f"{where} does not answer within {API_LIMIT:g} s", "look at what the app is doing")
    except (OSError, http.client.HTTPException) as error:
        return _failed(check, f"{where} answers no HTTP: {error or type(error).__name__}", "correct --app-protocol")
    finally:
        connection.close()
    if status != 200:
        return _ok(check, f"{where} answers; it subscribes to nothing by itself (GET /dapr/subscribe is {status})")
    try:
        topics = [each.topic for each in msgspec.json.decode(body or b"[]", type=list[_Subscribed] | None) or []]
    except msgspec.DecodeError as error:
        return _failed(check, f"GET /dapr/subscribe: {error}", "answer a list of {pubsubname, topic, route}")
    return _ok(check, f"{where} answers; it subscribes to {', '.join(topics) or 'nothing'}")


async def _canaries(patient: Patient, chosen: Iterable[Entry]) -> AsyncIterator[Finding]:
    me = Peer(patient.namespace, f"{NAME}-{random_id()[:8]}")
    backbone = open_backbone(patient.broker, me, prefix=patient.prefix)
    try:
        started = await _within("canary event", LOGIN_LIMIT, lambda: backbone.log.start(), "look at the broker's log")
        if started is not None:
            yield started
            return
        yield await _event(backbone, me.app_id)
        async for finding in _calls(patient, backbone, me, chosen):
            yield finding
    finally:
        await backbone.requests.close()
        await backbone.log.close()


async def _within(check: str, limit: float, work: Callable[[], Awaitable[Any]], advice: str) -> Finding | None:
    """`None` when the work got done."""
    try:
        async with asyncio.timeout(limit):
            await work()
    except TimeoutError:
        return _failed(check, f"not done within {limit:g} s", advice)
    except MeshError as error:
        return _failed(check, error, advice)
    return None


async def _event(backbone: Backbone, name: str) -> Finding:
    check = "canary event"
    group = Group(NAME, Topic(NAME, name))
    arrived = asyncio.Event()

    def take(delivery: Delivery) -> None:
        delivery.ack()
        arrived.set()

    async def send() -> None:
        await backbone.log.publish(group.topic, Message(mode=Mode.RAW, payload=b"canary", ttl=CANARY_TTL))
        await arrived.wait()

    try:
        async with asyncio.timeout(CALL_LIMIT):
            subscription = await backbone.log.subscribe(group, take, concurrency=1)
    except (TimeoutError, MeshError) as error:
        return _failed(check, str(error) or "no subscription in time", "let this user make consumers in the stream")
    begun = time.monotonic()
    try:
        advice = "look at the broker's load and log, and at the permissions of this user"
        failure = await _within(check, CANARY_LIMIT, send, advice)
    finally:
        await _within(check, CALL_LIMIT, subscription.close, "")
        await _within(check, CALL_LIMIT, lambda: backbone.log.unsubscribe(group), "")
    return failure or _ok(check, f"published, stored and received in {_milliseconds(begun)}")


async def _calls(patient: Patient, backbone: Backbone, me: Peer, chosen: Iterable[Entry]) -> AsyncIterator[Finding]:
    async def answer(_request: Request) -> Response:
        return Response(status=200, body=b"canary")

    check = "canary call"
    try:
        async with asyncio.timeout(CALL_LIMIT):
            server = await backbone.requests.serve(me.app_id, answer, concurrency=4)
            begun = time.monotonic()
            await backbone.requests.request(me, Request(method="GET", path="/canary"))
    except (TimeoutError, MeshError) as error:
        advice = "let this user subscribe and publish below the prefix of the mesh (docs/invocation.md)"
        yield _failed(check, str(error) or f"no answer within {CALL_LIMIT:g} s", advice)
        return
    yield _ok(check, f"called and answered in {_milliseconds(begun)}")
    entries = list(chosen)
    for entry in entries:
        yield await asyncio.to_thread(_call_out, entry, me.app_id)
    targets = [entry.app_id for entry in entries if entry.app_port]
    if patient.app_id and not entries:
        targets = [patient.app_id]
    for app_id in dict.fromkeys(targets):
        yield await _call_in(patient, backbone, app_id)
    await _within(check, CALL_LIMIT, server.close, "")


def _call_out(entry: Entry, target: str) -> Finding:
    """A call through the sidecar to the doctor."""
    check = f"canary call through the sidecar of {entry.app_id}"
    begun = time.monotonic()
    path = f"/v1.0/invoke/{target}/method/canary"
    try:
        answer = call(address_of(entry), "GET", path, timeout=CALL_LIMIT)
    except MeshError as error:
        return _failed(check, error, "read the sidecar's log")
    if answer.status != 200:
        return _failed(check, answer.problem, "is it on the same broker, namespace and prefix? read the sidecar's log")
    return _ok(check, f"answered in {_milliseconds(begun)}")


async def _call_in(patient: Patient, backbone: Backbone, app_id: str) -> Finding:
    """A call of the app, of a method that does nothing."""
    check = f"canary call to {app_id}"
    begun = time.monotonic()
    try:
        async with asyncio.timeout(CALL_LIMIT):
            target = Peer(patient.namespace, app_id)
            response = await backbone.requests.request(target, Request(method="GET", path="/dapr/subscribe"))
            if not isinstance(response.body, bytes):
                await response.body.aclose()
    except NoResponder:
        return _failed(check, "no sidecar of this app takes calls", f"start it: meshwire run --app-id {app_id} …")
    except (TimeoutError, MeshError) as error:
        told = str(error) or f"no answer within {CALL_LIMIT:g} s"
        return _failed(check, told, f"read the logs of {app_id} and of its sidecar")
    if response.status == 403:
        return _ok(check, "its access policy keeps the doctor out, as it may")
    if response.status >= 500:
        return _failed(check, f"it answered {response.status}", f"read the logs of {app_id} and of its sidecar")
    return _ok(check, f"answered {response.status} in {_milliseconds(begun)}")


def _milliseconds(begun: float) -> str:
    return f"{1000 * (time.monotonic() - begun):.0f} ms"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
