"""The steps of `meshwire doctor` that look at NATS."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence

from brokers.nats import embedded, inspection
from brokers.nats.connection import Connection
from mesh.errors import ConfigurationError, MeshError
from sidecar.backbone import nats_connection
from sidecar.findings import Finding, Patient, failed, ok, skipped
from sidecar.settings import redacted

STUCK = 60.0
"""Seconds of age from which an event that is not handled is a symptom."""
NEARLY_FULL = 0.95
LEAST_FREE = 256 << 20
"""Bytes that a disk should have left."""


class Nats:
    def __init__(self, patient: Patient, name: str, limit: float) -> None:
        """`name` is what the server shows for us, `limit` how many seconds signing in may take."""
        self._patient = patient
        self._name = name
        self._limit = limit
        self._connection: Connection | None = None

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def reach(self) -> Finding:
        check, broker = "broker", self._patient.broker
        if broker.kind == "memory":
            return skipped(check, "a broker in memory lives inside one sidecar: there is nothing to examine from here")
        urls: Sequence[str] = broker.servers
        if broker.folder is not None:
            endpoint = embedded.endpoint(broker.folder)
            if endpoint is None:
                reason = embedded.failure(broker.folder)
                told = f"the embedded broker in {broker.folder} does not run" + (f": {reason}" if reason else "")
                log = broker.folder / "keeper.log"
                advice = f"read {log}" if reason else "start an app (meshwire run), or say which broker with --broker"
                return failed(check, told, advice)
            urls = [endpoint.url]
        problems = []
        for url in urls:
            try:
                return ok(check, f"{redacted(url)} answers: NATS {await inspection.knock(url)}")
            except (OSError, MeshError) as error:
                number = getattr(error, "errno", None)
                why = os.strerror(number) if number else str(error) or "no greeting in time"
                problems.append(f"{redacted(url)}: {why}")
        return failed(check, "; ".join(problems), "start the broker, or correct host and port of MESHWIRE_BROKER")

    async def log_in(self) -> Finding:
        self._connection = nats_connection(self._patient.broker, self._name)
        try:
            async with asyncio.timeout(self._limit):
                await self._connection.start()
        except ConfigurationError as error:
            return failed("credentials", error, "take user, password or token from the broker's operator")
        except TimeoutError:
            told = f"no login within {self._limit:g} s: {self._connection.problem}"
            return failed(
                "credentials", told, "look at the broker's log; with TLS, say tls:// and check the certificates"
            )
        return ok("credentials", "accepted")

    async def storage(self) -> Finding:
        check, patient, connection = "streams", self._patient, self._connection
        assert connection is not None  # noqa: S101 - logged in
        try:
            room = await inspection.room(connection)
            stream = await inspection.stream(connection, patient.prefix, patient.namespace)
        except MeshError as error:
            return failed(check, error, "start nats-server with -js, and let this user call $JS.API.>")
        if 0 < room.limit < room.used / NEARLY_FULL:
            told = f"the account's storage is full: {_bytes(room.used)} of {_bytes(room.limit)}"
            return failed(check, told, "raise its max_file_store, or let streams keep less (max_age, max_bytes)")
        left = "no limit" if room.limit < 0 else f"{_bytes(room.limit - room.used)} left"
        folder = patient.broker.folder
        if folder is not None:
            free = shutil.disk_usage(folder).free
            if free < LEAST_FREE:
                return failed(check, f"the disk of {folder} has {_bytes(free)} left", "make room there")
            left = f"{_bytes(free)} left on disk"
        name = f"events of namespace '{patient.namespace}'"
        if stream is None:
            return ok(check, f"JetStream answers; no stream for {name} yet (the first sidecar makes it); {left}")
        if 0 < stream.max_size < stream.size / NEARLY_FULL:
            told = f"the stream for {name} is full ({_bytes(stream.max_size)}): its oldest events are dropped"
            return failed(check, told, "raise max_bytes of the stream")
        age = f"kept {_age(stream.max_age)}" if stream.max_age else "kept for ever"
        return ok(check, f"{name}: {stream.messages} stored, {_bytes(stream.size)}, {age}; {left}")

    async def subscriptions(self) -> list[Finding]:
        patient, connection = self._patient, self._connection
        assert connection is not None  # noqa: S101 - logged in
        try:
            if await inspection.stream(connection, patient.prefix, patient.namespace) is None:
                return []
            lanes = await inspection.lanes(connection, patient.prefix, patient.namespace)
        except MeshError as error:
            return [failed("subscriptions", error, "let this user call $JS.API.>")]
        groups: dict[tuple[str, str, str], list[inspection.Lane]] = {}
        for lane in lanes:
            if patient.app_id in (None, lane.app_id) and lane.app_id != self._name:
                groups.setdefault((lane.app_id, lane.pubsub, lane.topic), []).append(lane)
        if not groups:
            return [skipped("subscriptions", "the broker keeps none")]
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
            return failed(check, f"{told}; nobody takes them", f"start {app_id}, or forget the subscription: {forget}")
        if redelivered and (oldest or 0) > STUCK:
            return failed(check, f"{told}; the app fails on them", f"read the logs of {app_id} and of its sidecar")
    elif redelivered and (oldest or 0) > STUCK:
        advice = f"read the logs of {app_id} and of its sidecar; a dead letter topic would set them aside"
        return failed(check, f"{told}; the app fails on them", advice)
    return ok(check, told)


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
