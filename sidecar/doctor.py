"""`meshwire doctor`'s walk from the broker to the app's routes, one finding after the other.

Each step tells what it saw; one that fails tells why and what to do. Steps that need one that failed are left out.
Nothing that is found holds a credential.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any, Protocol

import msgspec

from mesh.errors import MeshError
from mesh.ids import random_id
from mesh.ports import Delivery, Group, Message, Mode, NoResponder, Peer, Request, Response, Topic
from sidecar.backbone import Backbone, open_backbone
from sidecar.cli.api import address_of, call
from sidecar.findings import Finding, Patient, Status, failed, ok, skipped
from sidecar.registry import Entry

NAME = "meshwire-doctor"
LOGIN_LIMIT = 5.0
API_LIMIT = 2.0
"""Seconds that a sidecar or an app may take for an answer."""
CANARY_LIMIT = 2.0
KAFKA_CANARY_LIMIT = 10.0
"""There, topics may have to be made first."""
CALL_LIMIT = 5.0
CANARY_TTL = 60.0
"""Seconds that the stream keeps a canary."""
LONGEST_ANSWER = 1 << 20
"""Bytes of an app's answer that are read."""


async def examine(patient: Patient) -> AsyncIterator[Finding]:
    """All findings, in the order of the walk: the first that failed is the culprit."""
    async with AsyncExitStack() as leaving:
        broker = _broker(patient)
        leaving.push_async_callback(broker.close)
        stored = False
        for step in (broker.reach, broker.log_in, broker.storage):
            finding = await step()
            yield finding
            stored = finding.status is Status.OK
            if not stored:
                break
        chosen = [entry for entry in patient.running if patient.app_id in (None, entry.app_id)]
        if not chosen:
            which = f"of app id '{patient.app_id}' " if patient.app_id else ""
            yield skipped("sidecars", f"none {which}runs here in this mesh; those elsewhere are not asked")
        for entry in chosen:
            yield await asyncio.to_thread(_sidecar, entry)
        if stored:
            for finding in await broker.subscriptions():
                yield finding
        for entry in chosen:
            if entry.app_port is not None:
                yield await asyncio.to_thread(_app, entry)
        if not stored:
            yield skipped("canaries", "they need the broker")
            return
        async for finding in _canaries(patient, chosen):
            yield finding


class _Broker(Protocol):
    """The steps that differ with the broker."""

    async def reach(self) -> Finding: ...

    async def log_in(self) -> Finding: ...

    async def storage(self) -> Finding: ...

    async def subscriptions(self) -> list[Finding]: ...

    async def close(self) -> None: ...


def _broker(patient: Patient) -> _Broker:
    if patient.broker.kind == "kafka":
        from sidecar.doctor_kafka import Kafka

        return Kafka(patient, NAME, LOGIN_LIMIT)
    from sidecar.doctor_nats import Nats

    return Nats(patient, NAME, LOGIN_LIMIT)


def _sidecar(entry: Entry) -> Finding:
    check = f"sidecar of {entry.app_id}"
    try:
        for path in ("/v1.0/healthz/outbound", "/v1.0/healthz"):
            answer = call(address_of(entry), "GET", path, timeout=API_LIMIT)
            if answer.status != 204:
                return failed(check, f"{path}: {answer.problem}", "read its log, which says what it waits for")
    except MeshError as error:
        return failed(check, error, f"restart it; its process is {entry.daprd_pid}")
    return ok(check, f"{address_of(entry)} is healthy")


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
        return skipped(check, f"it speaks {way.protocol}; its sidecar calls it, the doctor does not")
    where = f"{way.channel_address}:{entry.app_port}"
    connection = http.client.HTTPConnection(way.channel_address, entry.app_port, timeout=API_LIMIT)
    token = os.environ.get("APP_API_TOKEN")
    try:
        connection.request("GET", "/dapr/subscribe", headers={"dapr-api-token": token} if token else {})
        response = connection.getresponse()
        status, body = response.status, response.read(LONGEST_ANSWER)
    except ConnectionRefusedError:
        return failed(check, f"nothing listens at {where}", "start the app, or correct --app-port")
    except TimeoutError:
        return failed(check, f"{where} does not answer within {API_LIMIT:g} s", "look at what the app is doing")
    except (OSError, http.client.HTTPException) as error:
        return failed(check, f"{where} answers no HTTP: {error or type(error).__name__}", "correct --app-protocol")
    finally:
        connection.close()
    if status != 200:
        return ok(check, f"{where} answers; it subscribes to nothing by itself (GET /dapr/subscribe is {status})")
    try:
        topics = [each.topic for each in msgspec.json.decode(body or b"[]", type=list[_Subscribed] | None) or []]
    except msgspec.DecodeError as error:
        return failed(check, f"GET /dapr/subscribe: {error}", "answer a list of {pubsubname, topic, route}")
    return ok(check, f"{where} answers; it subscribes to {', '.join(topics) or 'nothing'}")


async def _canaries(patient: Patient, chosen: Iterable[Entry]) -> AsyncIterator[Finding]:
    # on Kafka a name costs topics, which stay
    name = NAME if patient.broker.kind == "kafka" else f"{NAME}-{random_id()[:8]}"
    me = Peer(patient.namespace, name)
    backbone = open_backbone(patient.broker, me, prefix=patient.prefix, requests=patient.requests)
    try:
        started = await _within("canary event", LOGIN_LIMIT, backbone.start, "look at the broker's log")
        if started is not None:
            yield started
            return
        yield await _event(backbone, KAFKA_CANARY_LIMIT if patient.broker.kind == "kafka" else CANARY_LIMIT)
        async for finding in _calls(patient, backbone, me, chosen):
            yield finding
    finally:
        await backbone.close()


async def _within(check: str, limit: float, work: Callable[[], Awaitable[Any]], advice: str) -> Finding | None:
    """`None` when the work got done."""
    try:
        async with asyncio.timeout(limit):
            await work()
    except TimeoutError:
        return failed(check, f"not done within {limit:g} s", advice)
    except MeshError as error:
        return failed(check, error, advice)
    return None


async def _event(backbone: Backbone, limit: float) -> Finding:
    check = "canary event"
    topic, canary = Topic(NAME, "canary"), random_id().encode()
    arrived = asyncio.Event()

    def take(delivery: Delivery) -> None:
        delivery.ack()
        if delivery.payload == canary:  # not another doctor's
            arrived.set()

    async def send() -> None:
        await backbone.log.publish(topic, Message(mode=Mode.RAW, payload=canary, ttl=CANARY_TTL))
        await arrived.wait()

    try:
        async with asyncio.timeout(max(CALL_LIMIT, limit)):
            group = Group(NAME, topic, random_id())
            subscription = await backbone.log.subscribe(group, take, concurrency=1, lasting=False)
    except (TimeoutError, MeshError) as error:
        return failed(check, str(error) or "no subscription in time", "let this user read what it publishes")
    begun = time.monotonic()
    try:
        advice = "look at the broker's load and log, and at the permissions of this user"
        failure = await _within(check, limit, send, advice)
    finally:
        await _within(check, CALL_LIMIT, subscription.close, "")
    return failure or ok(check, f"published, stored and received in {_milliseconds(begun)}")


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
        yield failed(check, str(error) or f"no answer within {CALL_LIMIT:g} s", advice)
        return
    yield ok(check, f"called and answered in {_milliseconds(begun)}")
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
        return failed(check, error, "read the sidecar's log")
    if answer.status != 200:
        return failed(check, answer.problem, "is it on the same broker, namespace and prefix? read the sidecar's log")
    return ok(check, f"answered in {_milliseconds(begun)}")


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
        return failed(check, "no sidecar of this app takes calls", f"start it: meshwire run --app-id {app_id} …")
    except (TimeoutError, MeshError) as error:
        told = str(error) or f"no answer within {CALL_LIMIT:g} s"
        return failed(check, told, f"read the logs of {app_id} and of its sidecar")
    if response.status == 403:
        return ok(check, "its access policy keeps the doctor out, as it may")
    if response.status >= 500:
        return failed(check, f"it answered {response.status}", f"read the logs of {app_id} and of its sidecar")
    return ok(check, f"answered {response.status} in {_milliseconds(begun)}")


def _milliseconds(begun: float) -> str:
    return f"{1000 * (time.monotonic() - begun):.0f} ms"
