"""What the bindings of Kafka, NATS and MQTT do beyond the contract of bindings."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
import nats
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import GroupLoadInProgressError
from aiokafka.protocol.commit import OffsetFetchRequest, OffsetFetchResponse_v3

from bindings.bindings import kafka, mqtt3
from bindings.bindings import nats as nats_binding
from mesh.components import ComponentSpec
from mesh.errors import ConfigurationError
from mesh.ports.bindings import Accept, InvalidOperation, Invocation, Item
from mesh.ports.stores import StoreError, StoreUnavailable
from tests.contract import kafka_bindings, mqtt_bindings, nats_bindings
from tests.contract.nats_server import NatsServer
from tests.opened import opened
from tests.servers.kafka import BINARY, KafkaServer
from tests.servers.mqtt import MqttServer

LIMIT = 30.0


class Inbox(list[Item]):
    async def __call__(self, item: Item) -> None:
        await asyncio.sleep(0)
        self.append(item)

    async def holds(self, number: int) -> list[Item]:
        async with asyncio.timeout(LIMIT):
            while len(self) < number:
                await asyncio.sleep(0.01)
        return list(self)


@asynccontextmanager
async def running(binding: Any, accept: Accept) -> AsyncIterator[asyncio.Task[None]]:
    await binding.start()
    task = asyncio.create_task(binding.run(accept))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=LIMIT)
        await binding.close()


# Kafka


@pytest.fixture(scope="module")
def kafka_server() -> Iterator[KafkaServer]:
    if BINARY is None or not BINARY.exists():
        pytest.skip("no tansu for this machine")
    server = KafkaServer()
    server.start()
    yield server
    server.remove()


async def test_records_of_a_key_stay_in_order_and_bring_their_metadata(kafka_server: KafkaServer) -> None:
    topic = kafka_bindings.Topic(kafka_server)
    producer = AIOKafkaProducer(bootstrap_servers=kafka_server.address)
    await producer.start()
    try:
        for number in range(500):
            headers = [("Origin", "ä".encode())]
            await producer.send(topic.name, b"%d" % number, key=b"key %d" % (number % 9), headers=headers)
        await producer.flush()
    finally:
        await producer.stop()
    inbox = Inbox()
    async with running(topic.binding(escapeHeaders="true"), inbox):
        await inbox.holds(500)
    in_order: dict[str | None, list[int]] = defaultdict(list)
    for item in inbox:
        in_order[item.key].append(int(item.data))
    assert in_order == {f"key {key}": list(range(key, 500, 9)) for key in range(9)}
    metadata = inbox[0].metadata
    assert metadata["Origin"] == "%C3%A4"
    assert metadata["__topic"] == topic.name
    assert metadata["__key"] == inbox[0].key
    assert inbox[0].time == int(metadata["__timestamp"]) / 1000
    assert {name for name in metadata if name.startswith("__")} == {
        *("__topic", "__partition", "__offset", "__timestamp", "__key"),
    }


async def test_two_members_share_a_topic_and_one_takes_over(kafka_server: KafkaServer) -> None:
    topic = kafka_bindings.Topic(kafka_server)
    one, two = Inbox(), Inbox()
    await topic.offer(0)
    async with running(topic.binding(), one):
        await one.holds(1)
        async with running(topic.binding(), two):
            wanted = {await topic.offer(number) for number in range(1, 40)}
            async with asyncio.timeout(LIMIT):
                while not wanted <= {item.data for item in (*one, *two)}:
                    await asyncio.sleep(0.05)
        last = {await topic.offer(number) for number in range(40, 60)}
        async with asyncio.timeout(LIMIT):
            while not last <= {item.data for item in one}:
                await asyncio.sleep(0.05)


async def test_the_offsets_stay_behind_what_is_stored(kafka_server: KafkaServer) -> None:
    topic = kafka_bindings.Topic(kafka_server)
    producer = AIOKafkaProducer(bootstrap_servers=kafka_server.address)
    await producer.start()
    for number in range(20):
        await producer.send_and_wait(topic.name, b"%d" % number, partition=0)
    await producer.stop()
    stuck = asyncio.Event()

    async def accept(item: Item) -> None:
        if item.data == b"7":
            stuck.set()
            await asyncio.Event().wait()

    async with running(topic.binding(), accept):
        await asyncio.wait_for(stuck.wait(), LIMIT)
    inbox = Inbox()
    async with running(topic.binding(), inbox):
        async with asyncio.timeout(LIMIT):
            while not {b"7", b"19"} <= {item.data for item in inbox}:
                await asyncio.sleep(0.02)
    assert {item.data for item in inbox} >= {b"%d" % number for number in range(7, 20)}


async def test_a_coordinator_that_is_still_loading_does_not_make_the_group_begin_anew(
    kafka_server: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, first, second = kafka_bindings.Topic(kafka_server), Inbox(), Inbox()
    for number in range(3):
        await topic.offer(number)
    async with running(topic.binding(), first):
        await first.holds(3)
    loading = [OffsetFetchResponse_v3(0, [], GroupLoadInProgressError.errno)]
    ask = GroupCoordinator._send_req

    async def answer(coordinator: GroupCoordinator, request: object) -> object:
        return loading.pop() if loading and isinstance(request, OffsetFetchRequest) else await ask(coordinator, request)

    monkeypatch.setattr(GroupCoordinator, "_send_req", answer)
    async with running(topic.binding(), second):
        last = await topic.offer(3)
        await second.holds(1)
    assert (loading, [item.data for item in second]) == ([], [last])


async def test_a_server_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    if BINARY is None or not BINARY.exists():
        pytest.skip("no tansu for this machine")
    monkeypatch.setattr(kafka, "SILENCE", 0.2)
    server = KafkaServer()
    server.start()
    try:
        topic, inbox = kafka_bindings.Topic(server), Inbox()
        await topic.offer(1)
        async with running(topic.binding(readTimeout="5s"), inbox) as task:
            await inbox.holds(1)
            server.stop()
            with pytest.raises(StoreUnavailable):
                await asyncio.wait_for(asyncio.shield(task), LIMIT)
    finally:
        server.remove()


async def test_a_partition_is_chosen_and_headers_are_left_out(kafka_server: KafkaServer) -> None:
    topic = kafka_bindings.Topic(kafka_server)
    binding = topic.binding(publishTopic=topic.name, excludeHeaderMetaRegex="^secret")
    inbox = Inbox()
    metadata = {"partitionNumber": "2", "__key": "k", "Color": "red", "secretWord": "x"}
    async with running(binding, inbox):
        await binding.invoke(Invocation(operation="create", data=b"1", metadata=metadata))
        [item] = await inbox.holds(1)
    assert item.metadata["__partition"] == "2"
    assert item.key == "k"
    assert item.metadata["Color"] == "red"
    assert "secretWord" not in item.metadata


# NATS


@pytest.fixture(scope="module")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with nats_bindings.server(tmp_path_factory.mktemp("nats")) as server:
        yield server


async def test_members_of_a_queue_group_share_a_plain_subject(nats_server: NatsServer) -> None:
    def member() -> Any:
        return opened(nats_binding.SPEC, url=nats_bindings.url(nats_server), subject="plain.*", queueGroup="g")

    one, two = Inbox(), Inbox()
    client = await nats.connect(nats_bindings.url(nats_server))
    async with running(member(), one), running(member(), two):
        async with asyncio.timeout(LIMIT):
            while not (one and two):  # until both listen
                await client.publish("plain.a", b"{}", headers={"Origin": "test"})
                await asyncio.sleep(0.01)
        await client.publish("plain.last", b"1")
        async with asyncio.timeout(LIMIT):
            while not any(item.data == b"1" for item in (*one, *two)):
                await asyncio.sleep(0.01)
    await client.close()
    assert one[0].metadata == {"origin": "test", "subject": "plain.a"}
    assert sum(item.data == b"1" for item in (*one, *two)) == 1
    assert one[0].key == "plain.a"


async def test_a_stream_that_is_missing_or_does_not_take_the_subject_is_told(nats_server: NatsServer) -> None:
    binding = opened(nats_binding.SPEC, url=nats_bindings.url(nats_server), stream="MISSING", subject="missing")
    await binding.start()
    with pytest.raises(StoreError, match="stream not found"):
        await asyncio.wait_for(binding.run(Inbox()), LIMIT)
    with pytest.raises(StoreError, match="no stream takes"):
        await binding.invoke(Invocation(operation="create", data=b"1"))
    await binding.close()


async def test_a_consumer_that_is_removed_is_told_and_made_anew(nats_server: NatsServer) -> None:
    stream = await nats_bindings.Stream(nats_server).made()
    binding, inbox = stream.binding(), Inbox()
    client = await nats.connect(nats_bindings.url(nats_server))
    await stream.offer(1)
    async with running(binding, inbox) as task:
        await inbox.holds(1)
        await client.jetstream().delete_consumer(stream.name, "reader")
        with pytest.raises(StoreUnavailable, match="cannot be read: "):
            await asyncio.wait_for(asyncio.shield(task), LIMIT)
    async with running(stream.binding(), inbox):
        await stream.offer(2)
        assert (await inbox.holds(3))[-1].data == b'{"number": 2}'
    await client.close()


async def test_a_message_that_looks_like_a_word_of_the_server_is_one_all_the_same(nats_server: NatsServer) -> None:
    stream = await nats_bindings.Stream(nats_server).made()
    _, writer = await asyncio.open_connection("127.0.0.1", nats_server.port)
    account = f'"user":"{nats_bindings.USER}","pass":"{nats_bindings.PASSWORD}"'
    headers = b"NATS/1.0 503\r\n\r\n"
    writer.write(b'CONNECT {"headers":true,"verbose":false,%b}\r\n' % account.encode())
    writer.write(b"HPUB %b.a %d %d\r\n%b1\r\n" % (stream.name.encode(), len(headers), len(headers) + 1, headers))
    await writer.drain()
    inbox = Inbox()
    async with running(stream.binding(), inbox):
        await stream.offer(2)
        assert [item.data for item in await inbox.holds(2)] == [b"1", b'{"number": 2}']
    writer.close()


async def test_what_is_sent_to_a_stream_is_stored_once_it_returns(nats_server: NatsServer) -> None:
    stream = await nats_bindings.Stream(nats_server).made()
    binding = stream.binding(subject=f"{stream.name}.>")
    inbox = Inbox()
    async with running(binding, inbox):
        with pytest.raises(InvalidOperation, match="wildcards"):
            await binding.invoke(Invocation(operation="create", data=b"1"))
        await binding.invoke(Invocation(operation="create", data=b"1", metadata={"subject": f"{stream.name}.a"}))
        [item] = await inbox.holds(1)
    assert item.id is not None
    assert item.id.startswith(f"{stream.name}-1-")
    assert item.time is not None


async def test_nobody_answers_a_request(nats_server: NatsServer) -> None:
    binding = opened(nats_binding.SPEC, url=nats_bindings.url(nats_server), subject="nobody")
    await binding.start()
    with pytest.raises(StoreUnavailable, match="nobody answers at nobody"):
        await binding.invoke(Invocation(operation="request", data=b"1"))
    await binding.close()


async def test_credentials_that_are_wrong_are_told_without_them(nats_server: NatsServer) -> None:
    binding = opened(nats_binding.SPEC, url=f"nats://orders:wrong-word@127.0.0.1:{nats_server.port}")
    for _ in range(2):
        with pytest.raises(StoreError, match="refused the credentials") as caught:
            await asyncio.wait_for(binding.start(), LIMIT)
        assert "wrong-word" not in str(caught.value)
    await binding.close()


# MQTT


@pytest.fixture(scope="module")
def mqtt_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MqttServer]:
    with MqttServer(tmp_path_factory.mktemp("mqtt")) as server:
        yield server


async def test_messages_of_a_topic_stay_in_order(mqtt_server: MqttServer) -> None:
    topic = await mqtt_bindings.Topic(mqtt_server).subscribed()
    async with mqtt_bindings.client(mqtt_server, "writer") as client:
        for number in range(200):
            await client.publish(f"{topic.name}/{number % 9}", b"%d" % number, qos=1)
    inbox = Inbox()
    async with running(topic.binding(), inbox):
        await inbox.holds(200)
    in_order: dict[str, list[int]] = defaultdict(list)
    for item in inbox:
        in_order[item.metadata["topic"]].append(int(item.data))
    assert in_order == {f"{topic.name}/{last}": list(range(last, 200, 9)) for last in range(9)}


async def test_a_retained_message_comes_to_those_who_come_later(mqtt_server: MqttServer) -> None:
    binding = opened(mqtt3.SPEC, url=mqtt_server.mqtt_url, topic="retained", retain="true")
    await binding.start()
    await binding.invoke(Invocation(operation="create", data=b"21.5"))
    await binding.close()
    async with mqtt_bindings.client(mqtt_server, "late") as client:
        await client.subscribe("retained", qos=1)
        async with asyncio.timeout(LIMIT):
            message: aiomqtt.Message = await anext(client.messages)
    assert message.payload == b"21.5"


async def test_a_password_that_is_wrong_is_told_without_it(mqtt_server: MqttServer) -> None:
    url = f"tcp://machine:wrong-word@127.0.0.1:{mqtt_server.mqtt_port}"
    binding = opened(mqtt3.SPEC, url=url, topic="a")
    for attempt in (binding.start(), binding.run(Inbox())):
        with pytest.raises(StoreError) as caught:
            await asyncio.wait_for(attempt, LIMIT)
        assert not isinstance(caught.value, StoreUnavailable)
        assert "wrong-word" not in str(caught.value)
    await binding.close()


async def test_an_output_connects_again(tmp_path: Path) -> None:
    with MqttServer(tmp_path / "server") as server:
        binding = opened(mqtt3.SPEC, url=server.mqtt_url, topic="a")
        await binding.start()
        server.stop()
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(binding.invoke(Invocation(operation="create", data=b"1")), LIMIT)
        server.start()
        await asyncio.wait_for(binding.invoke(Invocation(operation="create", data=b"1")), LIMIT)
        await binding.close()


# Settings

KAFKA = {"brokers": "localhost:9092", "topics": "a"}
MQTT = {"url": "localhost", "topic": "a"}
NATS = {"url": "localhost"}


@pytest.mark.parametrize(
    ("spec", "settings", "complaint"),
    [
        (kafka.SPEC, KAFKA, "authType: a component of type bindings.kafka needs it"),
        (kafka.SPEC, KAFKA | {"authType": "oidc"}, "authType: must be one of none, password, mtls"),
        (kafka.SPEC, KAFKA | {"authType": "password", "saslUsername": "a"}, "saslPassword: "),
        (kafka.SPEC, KAFKA | {"authType": "mtls"}, "authType: mtls needs clientCert"),
        (kafka.SPEC, KAFKA | {"authType": "none", "caCert": "x"}, "caCert: there is no TLS"),
        (kafka.SPEC, KAFKA | {"authRequired": "true", "saslPassword": "x", "caCert": "x"}, "caCert: it holds no cert"),
        (kafka.SPEC, {"brokers": "a", "authType": "none"}, "topics: it is needed"),
        (kafka.SPEC, KAFKA | {"authType": "none", "consumeRetryEnabled": "true"}, "delivery plan"),
        (kafka.SPEC, KAFKA | {"authType": "none", "schemaRegistryURL": "http://a"}, "schema registries"),
        (kafka.SPEC, KAFKA | {"authType": "none", "sessionTimeout": "1s"}, "sessionTimeout: "),
        (kafka.SPEC, KAFKA | {"authType": "none", "excludeHeaderMetaRegex": "("}, "no regular expression"),
        (mqtt3.SPEC, MQTT | {"url": "ws://a"}, "url: it must be"),
        (mqtt3.SPEC, MQTT | {"url": "tcp://machine:open-sesame@a:x"}, "url: it is no address"),
        (mqtt3.SPEC, MQTT | {"caCert": "x"}, "caCert: it needs a url with mqtts"),
        (mqtt3.SPEC, MQTT | {"backOffMaxRetries": "3"}, "resiliency"),
        (nats_binding.SPEC, NATS | {"url": "http://a"}, "url: it must be"),
        (nats_binding.SPEC, NATS | {"durable": "a"}, "durable: it needs stream"),
        (nats_binding.SPEC, NATS | {"stream": "a.b"}, "stream: it has"),
        (nats_binding.SPEC, NATS | {"subject": "a..b"}, "subject: it is no subject"),
        (nats_binding.SPEC, NATS | {"stream": "a", "queueGroup": "g"}, "queueGroup: "),
    ],
)
async def test_settings_that_cannot_be_obeyed(spec: ComponentSpec, settings: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint) as caught:
        opened(spec, **settings)
    assert "open-sesame" not in str(caught.value)
