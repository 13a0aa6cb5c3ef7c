"""What comes wrong from Apache Kafka, or goes wrong with it, as whoever uses a sidecar sees it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from mesh import addressing
from mesh.ports import Peer, Topic
from tests.e2e.mesh import JSON, LIMIT, Answer, App, Mesh, Sidecar, subscription, until
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ApacheKafka

pytestmark = [pytest.mark.servers, pytest.mark.timeout(240)]
NAMESPACE = addressing.DEFAULT_NAMESPACE


@pytest.fixture(scope="module")
def server() -> Iterator[ApacheKafka]:
    """Not started."""
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    server = ApacheKafka(auto_create_topics_enable="false", group_initial_rebalance_delay_ms=0)
    yield server
    server.remove()


@pytest.fixture
def running(server: ApacheKafka) -> ApacheKafka:
    if not server.pid:
        server.start()
    return server


@asynccontextmanager
async def admin_of(server: ApacheKafka) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=server.address)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def publish(sidecar: Sidecar, data: object, topic: str = "A") -> Answer:
    """Over the API that tells a client what it may try again."""
    event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": data}
    headers = [("content-type", "application/cloudevents+json")]
    return await sidecar.call("POST", f"/mesh/v1/events/pubsub/{topic}", headers, json.dumps(event).encode())


async def health(sidecar: Sidecar, status: int) -> str:
    """What the sidecar says of its health, once that has this status."""
    async with asyncio.timeout(LIMIT):
        while (answer := await sidecar.call("GET", "/v1.0/healthz/outbound")).status != status:
            await asyncio.sleep(0.05)
    return answer.body.decode()


def refused(answer: Answer, status: int, code: str) -> str:
    assert (answer.status, answer.json["errorCode"]) == (status, code)
    message: str = answer.json["message"]
    return message


async def test_a_broker_that_is_not_there_yet_and_one_that_goes_away(tmp_path: Path, server: ApacheKafka) -> None:
    """The API is up at once and tells why; what it accepted arrives, and what it refused was refused clearly."""
    if server.pid:
        await asyncio.to_thread(server.stop)
    accepted: set[int] = set()

    async def publish_all(first: int) -> None:
        for number in range(first, first + 20):
            answer = await publish(sidecar, {"n": number})
            if answer.status == 202:
                accepted.add(number)
            else:
                refused(answer, 503, "ERR_EVENT_NOT_STORED")
                assert answer.headers["retry-after"] == "1"

    async with App([subscription("A")]) as app, Mesh(tmp_path, server) as mesh:
        sidecar = mesh.add("app", app=app).start()
        await sidecar.says("HTTP server is running")
        await sidecar.says("no connection to Kafka: .*Connection refused")
        assert "Connection refused" in await health(sidecar, 500)
        await publish_all(0)
        assert not accepted
        plain = await sidecar.call("POST", "/v1.0/publish/pubsub/A", [JSON], b"1")
        assert "Kafka" in refused(plain, 500, "ERR_PUBSUB_PUBLISH_MESSAGE")

        await asyncio.to_thread(server.start)
        await sidecar.ready("A")
        await publish_all(100)
        assert accepted
        await asyncio.to_thread(server.kill)
        await publish_all(200)
        assert "Kafka" in await health(sidecar, 500)
        await asyncio.to_thread(server.start)
        await health(sidecar, 204)
        before = len(accepted)
        async with asyncio.timeout(LIMIT):
            while len(accepted) == before:
                await publish_all(300)

        def arrived() -> set[int]:
            return {request.event["data"]["n"] for request in app.events}

        await until(lambda: arrived() >= accepted, lambda: f"{accepted - arrived()} were lost:\n{sidecar.log}")
        assert not arrived() & set(range(20))


def password(word: str) -> dict[str, object]:
    module = "org.apache.kafka.common.security.plain.PlainLoginModule"
    return {
        "allow.everyone.if.no.acl.found": "true",
        "listener.name.clients.plain.sasl.jaas.config": f'{module} required user_app="{word}";',
    }


@pytest.fixture
def guarded() -> Iterator[ApacheKafka]:
    """Not started."""
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    server = ApacheKafka(users={"app": "S3CRET"}, **password("S3CRET"))
    yield server
    server.remove()


async def test_a_password_that_is_changed_while_a_sidecar_runs(tmp_path: Path, guarded: ApacheKafka) -> None:
    """It stays, tells why nothing works, and works again when it may."""

    async def restart(word: str) -> None:
        await asyncio.to_thread(guarded.stop)
        guarded.configure(**password(word))
        await asyncio.to_thread(guarded.start)

    secret = tmp_path / "password"
    secret.write_text("S3CRET")
    signs_in = {"MESHWIRE_KAFKA_USER": "app", "MESHWIRE_KAFKA_PASSWORD_FILE": str(secret)}
    await asyncio.to_thread(guarded.start)
    async with Mesh(tmp_path, guarded) as mesh:
        sidecar = await mesh.sidecar("app", **signs_in)
        assert (await publish(sidecar, 1)).status == 202
        await restart("another")
        await sidecar.says("no connection to Kafka: .*Authentication failed")
        assert "Authentication failed" in await health(sidecar, 500)
        why = refused(await publish(sidecar, 2), 503, "ERR_EVENT_NOT_STORED")
        assert re.search("no connection to Kafka|Authentication failed", why)
        await restart("S3CRET")
        await health(sidecar, 204)
        assert (await publish(sidecar, 3)).status == 202
        assert "S3CRET" not in sidecar.log


async def test_a_message_over_the_limit_harms_no_other(tmp_path: Path, running: ApacheKafka) -> None:
    """Neither over our limit, nor over a lower one of its topic."""
    async with Mesh(tmp_path, running) as mesh:
        sidecar = await mesh.sidecar("app")
        small = addressing.kafka_event_topic(
            sidecar.environment["MESHWIRE_PREFIX"], NAMESPACE, Topic("pubsub", "small")
        )
        async with admin_of(running) as admin:
            await admin.create_topics([NewTopic(small, 1, 1, topic_configs={"max.message.bytes": "5000"})])
        over = refused(await publish(sidecar, "x" * 1_200_000), 413, "ERR_EVENT_TOO_LARGE")
        assert "at most 1048576" in over
        others = [asyncio.create_task(publish(sidecar, number)) for number in range(20)]
        low = refused(await publish(sidecar, "x" * 20_000, "small"), 413, "ERR_EVENT_TOO_LARGE")
        assert "at most 5000" in low
        answers = [*await asyncio.gather(*others), await publish(sidecar, "x", "small"), await publish(sidecar, "x")]
        assert {answer.status for answer in answers} == {202}
        state = json.dumps([{"key": "a", "value": "x" * 1_200_000}]).encode()
        saved = refused(await sidecar.call("POST", "/v1.0/state/statestore", [JSON], state), 413, "ERR_STATE_SAVE")
        assert saved.endswith("send less")  # no setting of the servers helps


async def test_a_topic_that_cannot_be_made_is_told_and_others_go_on(tmp_path: Path, running: ApacheKafka) -> None:
    async with Mesh(tmp_path, running) as mesh:
        assert (await publish(await mesh.sidecar("app"), 1)).status == 202
        sidecar = await mesh.sidecar("other", MESHWIRE_REPLICAS="3")
        assert "InvalidReplicationFactor" in refused(await publish(sidecar, 1, "B"), 503, "ERR_EVENT_NOT_STORED")
        await sidecar.says("event.pubsub.B is not there yet: Kafka: .*InvalidReplicationFactor")
        assert (await publish(sidecar, 1)).status == 202


async def test_topics_of_calls_that_somebody_deletes(tmp_path: Path, running: ApacheKafka) -> None:
    """A call that is under way may fail, and says why; those that come later do not."""
    async with App() as app, Mesh(tmp_path, running) as mesh:
        await mesh.sidecar("callee", app=app)
        caller = await mesh.sidecar("caller")
        prefix = caller.environment["MESHWIRE_PREFIX"]
        target = "/v1.0/invoke/callee/method/x"
        async with asyncio.timeout(LIMIT):
            while (await caller.call("GET", target)).status != 200:  # until it has heard of the callee
                await asyncio.sleep(0.05)
        for topic in (
            addressing.kafka_replies_topic(prefix, Peer(NAMESPACE, "caller")),
            addressing.kafka_invoke_topic(prefix, Peer(NAMESPACE, "callee")),
            addressing.kafka_presence_topic(prefix, NAMESPACE),
        ):
            async with admin_of(running) as admin:
                await admin.delete_topics([topic])
            async with asyncio.timeout(LIMIT):
                while (answer := await caller.call("GET", target)).status != 200:
                    refused(answer, 500, "ERR_DIRECT_INVOKE")
            assert [(await caller.call("GET", target)).status for _ in range(5)] == [200] * 5


SKEWED = """
import time
clock = time.time
time.time = lambda: clock() + {seconds}
"""


@pytest.mark.parametrize("seconds", [-7200, 7200])
async def test_a_sidecar_whose_clock_is_wrong(tmp_path: Path, running: ApacheKafka, seconds: int) -> None:
    """Events, retries, calls, state and locks between it and one whose clock is right."""
    folder = tmp_path / "skewed"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SKEWED.format(seconds=seconds))
    failing = {"n": 1}

    def answer(request: object) -> int:
        failing["n"] -= 1
        return 503 if failing["n"] == 0 else 200

    wanted = subscription(metadata={"maxAttempts": "3", "backOffDuration": "200ms"})
    async with App([wanted], answer) as app, App() as other, Mesh(tmp_path, running) as mesh:
        wrong = await mesh.sidecar("wrong", app=app, topics=["A"], PYTHONPATH=str(folder))
        right = await mesh.sidecar("right", app=other)
        for sidecar in (right, wrong):
            assert (await publish(sidecar, sidecar.name)).status == 202
        await app.got(3)
        for caller, callee in ((wrong, "right"), (right, "wrong")):
            async with asyncio.timeout(LIMIT):
                while (await caller.call("GET", f"/v1.0/invoke/{callee}/method/x")).status != 200:
                    await asyncio.sleep(0.05)
        saved = await wrong.call("POST", "/v1.0/state/statestore", [JSON], b'[{"key":"a","value":1}]')
        assert saved.status == 204
        lock = json.dumps({"resourceId": "r", "lockOwner": "me", "expiryInSeconds": 30}).encode()
        taken = await wrong.call("POST", "/v1.0-alpha1/lock/lockstore", [JSON], lock)
        assert taken.json["success"] is True
        again = await wrong.call("POST", "/v1.0-alpha1/lock/lockstore", [JSON], lock.replace(b"me", b"you"))
        assert again.json["success"] is False
