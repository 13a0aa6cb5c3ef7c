"""The steps of `meshwire doctor` that look at Kafka."""

from __future__ import annotations

import asyncio
import os

from brokers.kafka import inspection
from brokers.kafka.connection import Connection
from brokers.kafka.event_log import KafkaEventLog
from mesh.errors import ConfigurationError, MeshError
from sidecar.backbone import kafka_connection
from sidecar.findings import Finding, Patient, failed, ok, skipped


class Kafka:
    def __init__(self, patient: Patient, name: str, limit: float) -> None:
        """`name` is what the servers show for us, `limit` how many seconds signing in may take."""
        self._patient = patient
        self._name = name
        self._limit = limit
        self._connection: Connection | None = None
        self._log: KafkaEventLog | None = None

    async def close(self) -> None:
        if self._log is not None:
            await self._log.close()  # with the connection

    async def reach(self) -> Finding:
        problems = []
        for server in self._patient.broker.servers:
            try:
                await inspection.knock(server)
                return ok("broker", f"{server} answers")
            except (OSError, ValueError) as error:
                number = getattr(error, "errno", None)
                why = os.strerror(number) if number and number > 0 else str(error) or "no answer in time"
                problems.append(f"{server}: {why}")
        advice = "start the broker, or correct host and port of MESHWIRE_BROKER"
        return failed("broker", "; ".join(problems), advice)

    async def log_in(self) -> Finding:
        check = "credentials"
        try:
            patient = self._patient
            connection = self._connection = kafka_connection(patient.broker, self._name)
            self._log = KafkaEventLog(connection, namespace=patient.namespace, prefix=patient.prefix)
            async with asyncio.timeout(self._limit):
                await connection.start()
        except ConfigurationError as error:
            return failed(check, error, "take user, password, token or certificate from the broker's operator")
        except TimeoutError:
            problem = self._connection.problem if self._connection is not None else None
            told = f"no login within {self._limit:g} s: {problem}"
            return failed(
                check, told, "look at the broker's log; with TLS, say kafka+tls:// and check the certificates"
            )
        return ok(check, "accepted")

    async def storage(self) -> Finding:
        check, patient = "topics", self._patient
        try:
            found = await inspection.cluster(self._logged_in, patient.prefix, patient.namespace)
        except MeshError as error:
            return failed(check, error, "let this user describe the topics of the mesh")
        if found.leaderless:
            told = f"nobody leads {', '.join(found.leaderless[:3])}"
            return failed(check, told, "look after the servers of the cluster: some that keep these topics are down")
        servers = f"{found.servers} server{'s' * (found.servers != 1)}"
        return ok(check, f"events of namespace '{patient.namespace}': {found.event_topics} topics; {servers}")

    async def subscriptions(self) -> list[Finding]:
        patient, connection = self._patient, self._logged_in
        assert self._log is not None  # noqa: S101
        try:
            found = await inspection.groups(self._log, connection, patient.prefix, patient.namespace)
        except MeshError as error:
            return [failed("subscriptions", error, "let this user describe the consumer groups of the mesh")]
        mine = [one for one in found if patient.app_id in (None, one.group.app_id) and one.group.app_id != self._name]
        return [_subscription(one) for one in mine] or [skipped("subscriptions", "the broker keeps none")]

    @property
    def _logged_in(self) -> Connection:
        assert self._connection is not None  # noqa: S101
        return self._connection


def _subscription(found: inspection.Member) -> Finding:
    group, (waiting, unsettled) = found.group, found.backlog
    named = f", group {group.name}" if group.name else ""
    check = f"subscription of {group.app_id} to {group.topic.name} ({group.topic.pubsub}{named})"
    told = f"{waiting} waiting, {unsettled} tried and not done"
    if waiting and not found.members:
        flags = f" -g {group.name}" if group.name else ""
        forget = f"meshwire unsubscribe -a {group.app_id} -t {group.topic.name} -p {group.topic.pubsub}{flags}"
        advice = f"start {group.app_id}, or forget the subscription: {forget}"
        return failed(check, f"{told}; nobody takes them", advice)
    if unsettled:
        advice = f"read the logs of {group.app_id} and of its sidecar; a dead letter topic would set them aside"
        return ok(check, f"{told}; {advice}")
    return ok(check, told)
