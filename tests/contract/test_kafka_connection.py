"""The connection to Kafka on a real server: sizes, losses, who is let in, and how it ends."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.protocol.admin import AlterConfigsRequest, CreateAclsRequest, DeleteAclsRequest

from brokers.kafka import connection as tuning
from brokers.kafka import ending
from brokers.kafka.connection import MAX_REQUEST, Access, Connection, record_size
from brokers.kafka.security import Security, options
from mesh.errors import BrokerError, BrokerUnavailable, ConfigurationError, MessageTooLarge
from tests.ports import free_port
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ADMIN, ApacheKafka, cluster
from tests.servers.certificates import Authority

pytestmark = pytest.mark.servers

LIMIT = 60.0
"""Seconds for anything that should happen."""
USERS = {ADMIN: "open sesame", "orders": "open barley"}
_topics = (f"topic{number}" for number in itertools.count(1))


@pytest.fixture(scope="module")
def server() -> Iterator[ApacheKafka]:
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    server = ApacheKafka(auto_create_topics_enable="false")
    server.start()
    yield server
    server.remove()


@asynccontextmanager
async def connected(address: str, security: Security | None = None) -> AsyncIterator[Connection]:
    access = Access(servers=(address,), options=options(security or Security()))
    connection = Connection(access, name="test")
    try:
        async with asyncio.timeout(LIMIT):
            await connection.start()
        yield connection
    finally:
        await asyncio.wait_for(connection.close(), LIMIT)


async def until(condition: object) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.05)


async def topic_of(connection: Connection, **configuration: str) -> str:
    name = next(_topics)
    await connection.topics.ensure(name, 1, {option.replace("_", "."): text for option, text in configuration.items()})
    return name


async def takes_at_most(server: ApacheKafka, topic: str, limit: int) -> None:
    """Somebody changes the topic."""
    admin = AIOKafkaAdminClient(bootstrap_servers=server.address)
    await admin.start()
    try:
        request = AlterConfigsRequest([(2, topic, [("max.message.bytes", str(limit))])], False)
        answer = await admin._send_request(request)
        assert [resource[0] for resource in answer.resources] == [0], answer
    finally:
        await admin.close()


def of_size(size: int) -> bytes:
    """A value whose record counts so many bytes."""
    return b"x" * (size - record_size(b"", None, ()))


# sizes


@pytest.mark.parametrize("limit", [2000, MAX_REQUEST])
async def test_a_record_of_the_limit_is_taken_and_one_byte_more_is_refused_before_it_is_sent(
    server: ApacheKafka, limit: int
) -> None:
    async with connected(server.address) as connection:
        topic = await topic_of(connection, max_message_bytes=str(limit))
        first = await connection.publish(topic, of_size(limit))
        with pytest.raises(MessageTooLarge) as refused:
            await connection.publish(topic, of_size(limit + 1))
        assert (refused.value.size, refused.value.limit) == (limit + 1, limit)
        assert ("raise max.message.bytes of the topic" in str(refused.value)) == (limit < MAX_REQUEST)
        assert (await connection.publish(topic, b"after")).offset == first.offset + 1


async def test_many_small_ones_are_not_too_large_together(server: ApacheKafka) -> None:
    async with connected(server.address) as connection:
        topic = await topic_of(connection, max_message_bytes="1000")
        stored = await asyncio.gather(*(connection.publish(topic, b"x" * 200) for _ in range(100)))
        assert sorted(place.offset for place in stored) == list(range(100))


async def test_a_topic_that_takes_less_than_before_refuses_what_is_too_large_alone(server: ApacheKafka) -> None:
    async with connected(server.address) as connection:
        topic, other = await topic_of(connection), await topic_of(connection)
        await connection.publish(topic, b"before")
        await takes_at_most(server, topic, 5000)
        small = [connection.publish(topic, b"x" * 300) for _ in range(50)]
        elsewhere = [connection.publish(other, b"x" * 300) for _ in range(50)]
        outcome, *stored = await asyncio.gather(
            connection.publish(topic, b"x" * 6000), *small, *elsewhere, return_exceptions=True
        )
        assert isinstance(outcome, MessageTooLarge), outcome
        assert outcome.limit == 5000
        assert [place for place in stored if isinstance(place, BaseException)] == []
        assert sorted(place.offset for place in stored[:50]) == list(range(1, 51))
        assert connection.problem is None


# losses


async def test_a_server_that_comes_late_is_waited_for() -> None:
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    server = ApacheKafka(auto_create_topics_enable="false")
    connection = Connection(Access(servers=(server.address,)), name="test")
    starting = asyncio.create_task(connection.start())
    try:
        await until(lambda: connection.problem and server.address in connection.problem)
        assert not starting.done()
        with pytest.raises(BrokerUnavailable, match=f"no connection to Kafka: {server.address}: .*"):
            await connection.publish("topic", b"")
        await asyncio.to_thread(server.start)
        await asyncio.wait_for(starting, LIMIT)
        assert connection.problem is None
        topic = await topic_of(connection)
        # killed, and publishes meanwhile
        await asyncio.to_thread(server.kill)
        waiting = asyncio.create_task(connection.publish(topic, b"x", timeout=LIMIT))
        await until(lambda: connection.problem)
        await asyncio.to_thread(server.start)
        await asyncio.wait_for(waiting, LIMIT)
        await until(lambda: connection.problem is None)
        await asyncio.wait_for(connection.publish(topic, b"y"), LIMIT)
    finally:
        await connection.close()
        await asyncio.gather(starting, return_exceptions=True)
        server.remove()


async def test_a_server_that_hangs(server: ApacheKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "MAX_WAITING", 10)
    async with connected(server.address) as connection:
        topic = await topic_of(connection)
        await connection.publish(topic, b"x")
        server.freeze()
        try:
            begun = time.monotonic()
            waiting = [asyncio.create_task(connection.publish(topic, b"x", timeout=1.0)) for _ in range(10)]
            await asyncio.sleep(0)
            with pytest.raises(BrokerUnavailable, match="too many messages wait"):
                await connection.publish(topic, b"x")
            told = await asyncio.gather(*waiting, return_exceptions=True)
            assert {type(error) for error in told} == {BrokerUnavailable}, told
            assert 1.0 <= time.monotonic() - begun < LIMIT
            await until(lambda: connection.problem)
            with pytest.raises(BrokerUnavailable, match="in time: "):
                await connection.publish(topic, b"x", timeout=0.1)
        finally:
            server.thaw()
        await until(lambda: connection.problem is None)
        assert (await asyncio.wait_for(connection.publish(topic, b"x"), LIMIT)).offset > 0


async def test_what_waits_when_it_is_closed_is_told(server: ApacheKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "END_LIMIT", 0.5)
    async with connected(server.address) as connection:
        topic = await topic_of(connection)
        server.freeze()
        try:
            waiting = asyncio.create_task(connection.publish(topic, b"x", timeout=10 * LIMIT))
            await asyncio.sleep(0.1)
            await asyncio.wait_for(connection.close(), LIMIT)
            with pytest.raises(BrokerUnavailable, match="is closed"):
                await asyncio.wait_for(waiting, LIMIT)
        finally:
            server.thaw()
        with pytest.raises(BrokerUnavailable):
            await connection.publish(topic, b"x")
        with pytest.raises(BrokerUnavailable, match="closed"):
            await connection.admin()


@pytest.mark.parametrize("kind", ["producer", "member"])
async def test_nothing_goes_on_of_a_client_that_ends_while_the_server_hangs(
    server: ApacheKafka, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(ending, "END_LIMIT", 0.5)
    before = asyncio.all_tasks()
    async with connected(server.address) as connection:
        topic = await topic_of(connection)
        await connection.publish(topic, b"x")
        if kind == "producer":
            client = connection.producer()
            await connection.within(client.start(), LIMIT)
            await client.send_and_wait(topic, b"x")
        else:
            client = connection.consumer(group_id=f"group of {topic}", auto_offset_reset="earliest")
            await connection.within(client.start(), LIMIT)
            client.subscribe([topic])
            await asyncio.wait_for(client.getone(), LIMIT)
    server.freeze()
    try:
        if kind == "producer":
            unsent = await client.send(topic, b"x")
            await asyncio.sleep(0.1)  # it is on its way
        await asyncio.wait_for(ending.stop(client), LIMIT)
        await until(lambda: asyncio.all_tasks() <= before)
        if kind == "producer":
            assert isinstance(unsent.exception(), KafkaError)
    finally:
        server.thaw()


async def test_one_of_three_that_is_gone_is_no_problem() -> None:
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    servers = cluster(3)
    try:
        for server in servers:
            server.start(wait=False)
        for server in servers:
            await asyncio.to_thread(server.wait_until_ready)
        async with connected(servers[0].address) as connection:
            problems: set[str | None] = set()
            # all of them are known, each with a connection of its own
            client = (await connection.admin())._client
            await until(lambda: len(client.cluster.brokers()) == 3)
            await until(lambda: len(client._conns) >= 3)
            await asyncio.to_thread(servers[0].kill)
            servers[1].freeze()
            servers[1].thaw()
            for _ in range(100):
                problems.add(connection.problem)
                await asyncio.sleep(0.1)
            assert problems == {None}
    finally:
        for server in servers:
            server.remove()


async def test_an_address_that_a_server_names_where_nobody_is_is_told() -> None:
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    server, nowhere = ApacheKafka(), f"127.0.0.1:{free_port()}"
    server.configure(**{"advertised.listeners": f"CLIENTS://{nowhere},INSIDE://{server._inside}"})
    try:
        await asyncio.to_thread(server.start)
        connection = Connection(Access(servers=(server.address,)), name="test")
        starting = asyncio.create_task(connection.start())
        await until(lambda: f"(advertised.listeners): {nowhere}" in (connection.problem or ""))
        await connection.close()
        with pytest.raises(BrokerUnavailable, match="closed"):
            await starting
    finally:
        server.remove()


# who is let in


def token(user: str, *, life: float = 3600) -> str:
    """One without a signature, as a server takes it that was told of no authority."""
    now = time.time()
    parts = [{"alg": "none"}, {"sub": user, "iat": now - 1, "exp": now + life}]
    return ".".join([*(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts), ""])


class Guarded:
    """A server with TLS for all: one door for those who sign in, one for those who show a certificate."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        certificate, key = self.authority.issue("server")
        self.certificate, self.key = self.authority.issue("orders")
        self.encrypted = self.authority.issue("encrypted", password=b"secret")
        self.stranger = Authority(folder, "stranger")
        both = folder / "both.pem"
        both.write_text(key.read_text() + certificate.read_text())
        self.server = ApacheKafka(users=USERS)
        self.mutual = f"127.0.0.1:{free_port()}"
        own: dict[str, object] = {
            "listeners": (
                f"CLIENTS://{self.server.address},MUTUAL://{self.mutual},"
                f"INSIDE://{self.server._inside},CONTROLLER://{self.server.controller}"
            ),
            "listener.security.protocol.map": ("CLIENTS:SASL_SSL,MUTUAL:SSL,INSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT"),
            "listener.name.clients.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
            "listener.name.clients.oauthbearer.sasl.jaas.config": (
                "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required "
                'unsecuredLoginStringClaim_sub="server";'
            ),
            "listener.name.mutual.ssl.client.auth": "required",
            "super.users": f"User:{ADMIN};User:ANONYMOUS;User:CN=orders",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": both,
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self.authority.path,
        }
        self.server.configure(**own)
        self.server.start()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    guarded = Guarded(tmp_path_factory.mktemp("guarded"))
    yield guarded
    guarded.server.remove()


MECHANISMS = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_who_signs_in_is_let_in(guarded: Guarded, tmp_path: Path, mechanism: str) -> None:
    secret = tmp_path / "password"
    secret.write_text(f"{USERS[ADMIN]}\n")
    security = Security(tls=True, ca=guarded.authority.path, mechanism=mechanism, user=ADMIN, password_file=secret)
    async with connected(guarded.server.address, security) as connection:
        await connection.publish(await topic_of(connection), b"x")


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_a_wrong_password_ends_the_start(guarded: Guarded, mechanism: str) -> None:
    security = Security(tls=True, ca=guarded.authority.path, mechanism=mechanism, user=ADMIN, password="S3CRET")
    with pytest.raises(ConfigurationError, match="Kafka refused: ") as refused:
        async with connected(guarded.server.address, security):
            pass
    assert "S3CRET" not in str(refused.value)


async def test_tokens_are_read_again(guarded: Guarded, tmp_path: Path) -> None:
    path = tmp_path / "token"
    security = Security(tls=True, ca=guarded.authority.path, mechanism="OAUTHBEARER", token_file=path)
    access = Access(servers=(guarded.server.address,), options=options(security))
    connection = Connection(access, name="test")
    starting = asyncio.create_task(connection.start())
    try:
        await until(lambda: connection.problem and f"{path}: No such file" in connection.problem)
        path.write_text(token(ADMIN))
        await asyncio.wait_for(starting, LIMIT)
        await connection.publish(await topic_of(connection), b"x")
    finally:
        await connection.close()


async def test_a_token_that_is_over_ends_the_start(guarded: Guarded, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(over := token(ADMIN, life=-100))
    security = Security(tls=True, ca=guarded.authority.path, mechanism="OAUTHBEARER", token_file=path)
    with pytest.raises(ConfigurationError, match="Kafka refused") as refused:
        async with connected(guarded.server.address, security):
            pass
    assert over not in str(refused.value)


async def test_who_shows_a_certificate_is_let_in(guarded: Guarded) -> None:
    security = Security(tls=True, ca=guarded.authority.path, certificate=guarded.certificate, key=guarded.key)
    async with connected(guarded.mutual, security) as connection:
        await connection.publish(await topic_of(connection), b"x")


@pytest.mark.parametrize("trust", [True, False])
async def test_who_is_not_trusted_is_told(guarded: Guarded, trust: bool) -> None:
    """A server that we do not know, and one that does not know us. Certificates are renewed: it goes on trying."""
    authority = guarded.authority if trust else guarded.stranger
    access = Access(servers=(guarded.mutual,), options=options(Security(tls=True, ca=authority.path)))
    connection = Connection(access, name="test")
    starting = asyncio.create_task(connection.start())
    expected = "" if trust else "certificate verify failed"
    try:
        await until(lambda: connection.problem != "not connected yet")
        assert connection.problem is not None
        assert guarded.mutual in connection.problem
        assert expected in connection.problem
        assert not starting.done()
    finally:
        await connection.close()
        with pytest.raises(BrokerUnavailable, match="closed"):
            await starting


async def test_a_key_that_is_encrypted_is_refused(guarded: Guarded) -> None:
    certificate, key = guarded.encrypted
    with pytest.raises(ConfigurationError, match=f"^{key}: the private key is encrypted"):
        options(Security(tls=True, certificate=certificate, key=key))


async def test_what_may_not_be_asked_is_found_out(guarded: Guarded) -> None:
    """Who may write to a topic, and not see how it is configured, nor make it."""
    topic, absent = next(_topics), next(_topics)
    security = Security(tls=True, ca=guarded.authority.path, mechanism="PLAIN", user=ADMIN, password=USERS[ADMIN])
    async with connected(guarded.server.address, security) as connection:
        await connection.topics.ensure(topic, 1, {"max.message.bytes": "2000"})
        await _allow(connection, topic, "orders")
        await _allow(connection, absent, "orders")
    lesser = Security(tls=True, ca=guarded.authority.path, mechanism="PLAIN", user="orders", password=USERS["orders"])
    async with connected(guarded.server.address, lesser) as connection:
        assert await connection.topics.partitions(topic) == 1
        stored = await asyncio.gather(*(connection.publish(topic, b"x" * 200) for _ in range(50)))
        assert sorted(place.offset for place in stored) == list(range(50))
        with pytest.raises(MessageTooLarge, match=r"max\.message\.bytes"):
            await connection.publish(topic, b"x" * 3000)
        assert (await connection.publish(topic, b"after")).offset == 50
        with pytest.raises(BrokerError, match=f"there is no topic {absent}, and this user may not make it"):
            await connection.topics.ensure(absent, 1)
        with pytest.raises(BrokerError, match="lacks a right to the topic forbidden;") as refused:
            await connection.topics.ensure("forbidden", 1)
        assert not isinstance(refused.value, BrokerUnavailable)
        assert (await connection.publish(topic, b"after")).offset == 51


async def test_a_topic_that_is_forbidden_disturbs_no_other(guarded: Guarded) -> None:
    admin = Security(tls=True, ca=guarded.authority.path, mechanism="PLAIN", user=ADMIN, password=USERS[ADMIN])
    orders = Security(tls=True, ca=guarded.authority.path, mechanism="PLAIN", user="orders", password=USERS["orders"])
    async with connected(guarded.server.address, admin) as master, connected(guarded.server.address, orders) as mine:
        allowed, forbidden = await topic_of(master), await topic_of(master)
        await _allow(master, allowed, "orders")
        await _allow(master, forbidden, "orders")
        producer = mine._producer

        async def publish(topic: str) -> int | str:
            try:
                return (await mine.publish(topic, b"x")).offset
            except BrokerError as error:
                assert not isinstance(error, BrokerUnavailable), error
                return str(error)

        async def comes_to(outcome: type) -> None:
            while not isinstance(await publish(forbidden), outcome):
                await asyncio.sleep(0.05)

        async with asyncio.timeout(LIMIT):
            await comes_to(int)
            await _allow(master, forbidden, "orders", but=True)
            await comes_to(str)
            outcomes = await asyncio.gather(*(publish(topic) for _ in range(100) for topic in (allowed, forbidden)))
            assert sorted(outcomes[0::2]) == list(range(100))
            assert {type(each) for each in outcomes[1::2]} == {str}
            assert forbidden in str(outcomes[1])
            assert (mine._producer, mine._succession) == (producer, None)
            await _allow(master, forbidden, "orders", but=False)
            await comes_to(int)
            [first, *later] = [await publish(forbidden) for _ in range(3)]
            assert isinstance(first, int)
            assert later == [first + 1, first + 2]


async def _allow(connection: Connection, topic: str, user: str, *, but: bool | None = None) -> None:
    """Let `user` write. With `but` forbid it all the same, or take that back."""
    of_topics, literal, to_write, deny, allow = 2, 3, 4, 2, 3
    rule = (of_topics, topic, literal, f"User:{user}", "*", to_write, allow if but is None else deny)
    request = DeleteAclsRequest(*rule) if but is False else CreateAclsRequest(*rule)
    admin = await connection.admin()
    await connection.within(admin._send_to_controller(request))


# who is no Kafka


async def test_something_else_listens() -> None:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00\x00\x00\x10" + b"HTTP/1.1 400 Bad Request")
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    address = f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    connection = Connection(Access(servers=(address,)), name="test")
    starting = asyncio.create_task(connection.start())
    try:
        await until(lambda: connection.problem and address in connection.problem)
        await asyncio.sleep(0.5)  # some more attempts
        assert not starting.done()
    finally:
        await connection.close()
        listening.close()
        with pytest.raises(BrokerUnavailable, match="closed"):
            await starting
