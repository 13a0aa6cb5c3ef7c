"""Apps with credentials of their own, on servers that were told what `meshwire acl` prints."""

import asyncio
import json
import os
import re
import secrets
import shlex
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Protocol

import nats
import pytest
from aiokafka.errors import GroupAuthorizationFailedError, TopicAuthorizationFailedError
from aiokafka.protocol.admin import CreateAclsRequest
from aiokafka.protocol.fetch import FetchRequest

from brokers.kafka.connection import Access, Connection, stop
from mesh import addressing
from mesh.errors import BrokerError
from mesh.ports import Group, Topic
from tests.contract.nats_server import NatsServer
from tests.e2e.mesh import JSON, LIMIT, MESHWIRE, Answer, App, Mesh, Request, Sidecar, subscription, until
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ADMIN, ApacheKafka

pytestmark = pytest.mark.timeout(240)
PASSWORDS = {name: secrets.token_hex(8) for name in ("shop", "stock", "mallory", ADMIN)}
FILE = """\
users:
- appId: shop
  publishes: [pubsub/orders]
  subscribes: [pubsub/paid]
  calls: [stock]
  callsActorsOf: [stock]
- appId: stock
  publishes: [pubsub/paid]
  subscribes: [pubsub/orders]
  bindings: [nightly]
  actors: [Cart]
- appId: mallory
  publishes: [pubsub/spam]
  subscribes: [pubsub/spam]
"""
POLICY = """\
apiVersion: dapr.io/v1alpha1
kind: Configuration
metadata: {name: stock}
spec:
  accessControl:
    defaultAction: deny
    policies:
    - {appId: shop, namespace: default, trustDomain: public, defaultAction: allow}
"""
CRON = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: nightly}
spec:
  type: bindings.cron
  version: v1
  metadata:
  - {name: schedule, value: "@every 1s"}
"""
KINDS, ALLOW = {"--topic": 2, "--group": 3}, 3
OPERATIONS = {"Read": 3, "Write": 4, "Create": 5, "Delete": 6, "DescribeConfigs": 10}
LOCK = b'{"resourceId": "door", "lockOwner": "me", "expiryInSeconds": 60}'
STATE = "/v1.0/state/statestore"


class Host(App):
    """It hosts actors."""

    async def _reply(self, request: Request) -> tuple[int, bytes]:
        status, body = await super()._reply(request)
        return (200, b'{"entities": ["Cart"]}') if request.path == "/dapr/config" else (status, body)


class Guarded(Protocol):
    """A server that was told what each may do."""

    def url(self, user: str) -> str: ...

    async def begin(self, file: Path) -> None: ...

    complaint: str
    """In the log of a sidecar that signs in as somebody else."""

    async def forge(self) -> None:
        """Try, as mallory, what is not hers. Asserts that the server refuses it."""

    def remove(self) -> None: ...


def acl(broker: str, file: Path, *flags: str, **environment: str) -> str:
    command = [*MESHWIRE, "acl", broker, str(file), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


class OnNats:
    complaint = r"not ready yet: NATS refused: permissions violation for subscription to \\*\"_inbox\.shop\."

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = NatsServer(folder)

    def url(self, user: str) -> str:
        return self._server.url.replace("://", f"://{user}:{PASSWORDS[user]}@")

    async def begin(self, file: Path) -> None:
        text = acl("nats", file).replace(
            "users: [", f"users: [\n    {{ user: {ADMIN}, password: $NATS_PASSWORD_ADMIN }}"
        )
        (self._folder / "authorization.conf").write_text(text)
        configuration = self._folder / "server.conf"
        own = json.loads(configuration.read_text())
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in own.items()]
        configuration.write_text("\n".join([*lines, "include ./authorization.conf", ""]))
        with pytest.MonkeyPatch.context() as environment:
            for name, password in PASSWORDS.items():
                environment.setenv(f"NATS_PASSWORD_{name.upper()}", password)
            self._server.start()
        acl("nats", file, "--prepare", MESHWIRE_BROKER=self.url(ADMIN))

    async def forge(self) -> None:
        refused: list[str] = []

        async def on_error(error: Exception) -> None:
            refused.append(str(error).lower())

        events, state = "mesh-default-events", "mesh-default-state-stock"
        durable = addressing.durable(Group("stock", Topic("pubsub", "orders")), "u")
        forged = [
            "mesh.default.invoke.stock.shop",
            "mesh.default.invoke.stock.shop.cancel",
            "mesh.default.invoke.%24actors%2Estock.stock",
            "mesh.default.event.pubsub.orders.u",
            "mesh.default.state.stock.state.statestore.a",
            f"$JS.API.STREAM.MSG.GET.{state}",
            f"$JS.API.DIRECT.GET.{state}",
            f"$JS.API.CONSUMER.CREATE.{state}.mine",
            f"$JS.API.CONSUMER.CREATE.{events}.mine",
            f"$JS.API.CONSUMER.DELETE.{events}.{durable}",
            f"$JS.API.CONSUMER.MSG.NEXT.{events}.{durable}",
            f"$JS.ACK.{events}.{durable}.1.1.1.1.0",
            *(f"$JS.API.STREAM.{verb}.{state}" for verb in ("CREATE", "UPDATE", "DELETE", "PURGE", "MSG.DELETE")),
            "$JS.API.STREAM.CREATE.mirror",
        ]
        heard = ["_INBOX.shop.>", "_INBOX.>", "mesh.default.invoke.stock.*", "mesh.default.event.>", ">"]
        mallory = await nats.connect(self.url("mallory"), error_cb=on_error, inbox_prefix="_INBOX.mallory")
        try:
            for subject in forged:
                await mallory.publish(subject, b"{}", reply="_INBOX.mallory.x")
            for subject in heard:
                await mallory.subscribe(subject)
            await mallory.flush()
            await until(lambda: len(refused) == len(forged) + len(heard), lambda: f"{refused}")
            for subject in (*forged, *heard):
                assert any(f'to "{subject.lower()}"' in error for error in refused), subject
            # the server answers wherever it is told to, but with no address for answers; so no call comes of it
            await mallory.publish("mesh.default.event.pubsub.spam.u", b"x", reply="mesh.default.invoke.stock.shop")
            await mallory.flush()
        finally:
            await mallory.close()

    def remove(self) -> None:
        self._server.kill()


class OnKafka:
    complaint = r"cannot subscribe to topic paid .* lacks a right to the topic mesh\.default\.event\.pubsub\.paid"

    def __init__(self, _folder: Path) -> None:
        if reason := kafka_jars.missing():
            pytest.skip(reason)
        self._server = ApacheKafka(
            users=PASSWORDS, auto_create_topics_enable="false", group_initial_rebalance_delay_ms=0
        )

    def url(self, user: str) -> str:
        return self._server.url.replace("://", f"://{user}:{PASSWORDS[user]}@")

    async def begin(self, file: Path) -> None:
        self._server.start()
        connection = self.connection(ADMIN)
        await connection.start()
        try:
            admin = await connection.admin()
            for line in acl("kafka", file).splitlines():
                for request in requests(line):
                    answer = await admin._send_to_controller(request)
                    assert [code for code, *_ in answer.creation_responses] == [0], line
        finally:
            await connection.close()

    def connection(self, user: str) -> Connection:
        options = {
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": user,
            "sasl_plain_password": PASSWORDS[user],
        }
        return Connection(Access(servers=(self._server.address,), options=options), name=user)

    async def forge(self) -> None:
        mallory = self.connection("mallory")
        await mallory.start()
        call, replies, state = "mesh.default.invoke.stock.shop", "mesh.default.replies.shop", "mesh.default.state.stock"
        admin = await mallory.admin()
        try:
            for topic in (call, replies, state, "mesh.default.event.pubsub.orders", "mesh.default.invoke.stock"):
                with pytest.raises(BrokerError, match=f"lacks a right to the topic {re.escape(topic)}"):
                    await mallory.publish(topic, b"forged", timeout=LIMIT)
                # aiokafka would ask for the leader first, which the server does not tell her; who knows it, asks it
                read = await admin._send_request(FetchRequest(100, 1, 1024, 0, [(topic, [(0, 0, 1024)])]))
                assert [partitions[0][1] for _, partitions in read.topics] == [TopicAuthorizationFailedError.errno]
            other = mallory.consumer(group_id="mesh.default.stock.pubsub.orders")
            await other.start()
            with pytest.raises(GroupAuthorizationFailedError):
                other.subscribe(["mesh.default.event.pubsub.spam"])
                await asyncio.wait_for(other.getone(), LIMIT)
            await stop(other)
            answer = await admin.delete_topics([state])
            assert [code for _, code, *_ in answer.topic_error_codes] == [TopicAuthorizationFailedError.errno]
        finally:
            await mallory.close()

    def remove(self) -> None:
        self._server.remove()


def requests(line: str) -> Iterator[CreateAclsRequest]:
    """What `kafka-acls.sh` sends, for one of the printed commands."""
    program, *words = shlex.split(line)
    given = words[words.index("--add") + 1 :]
    pairs = list(zip(given[::2], given[1::2], strict=True))
    flags = dict(pairs)
    kind = "--topic" if "--topic" in flags else "--group"
    assert (program, words[:2]) == ("kafka-acls.sh", ["--bootstrap-server", "localhost:9092"])
    for flag, operation in pairs:
        if flag == "--operation":
            pattern = {"literal": 3, "prefixed": 4}[flags["--resource-pattern-type"]]
            principal, number = flags["--allow-principal"], OPERATIONS[operation]
            yield CreateAclsRequest(KINDS[kind], flags[kind], pattern, principal, "*", number, ALLOW)


@pytest.fixture(params=[OnNats, pytest.param(OnKafka, marks=pytest.mark.servers)])
async def guarded(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    guarded: Guarded = request.param(tmp_path / "broker")
    file = tmp_path / "mesh.yaml"
    file.write_text(FILE)
    try:
        await guarded.begin(file)
        yield guarded
    finally:
        guarded.remove()


async def sidecar(mesh: Mesh, guarded: Guarded, app_id: str, *flags: str, user: str = "", **options: Any) -> Sidecar:
    return mesh.add(
        app_id, *flags, broker=guarded.url(user or app_id), MESHWIRE_CALLERS_VERIFIED="true", **options
    ).start()


async def done(answer: Answer, *statuses: int) -> Answer:
    assert answer.status in statuses, answer
    return answer


async def test_apps_with_no_rights_but_their_own_do_all_there_is(guarded: Guarded, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "resources").mkdir()
    (tmp_path / "resources" / "cron.yaml").write_text(CRON)
    flags = ("--config", str(tmp_path / "policy.yaml"), "--resources-path", str(tmp_path / "resources"))
    async with (
        App([subscription("paid")]) as shop_app,
        Host([subscription("orders")], lambda request: (200, b"said")) as stock_app,
        Mesh(tmp_path) as mesh,
    ):
        mesh_options = {"MESHWIRE_JOURNAL": "full"}
        shop = await sidecar(mesh, guarded, "shop", app=shop_app, **mesh_options)
        stock = await sidecar(mesh, guarded, "stock", *flags, app=stock_app, **mesh_options)
        await asyncio.gather(shop.ready("paid"), stock.ready("orders"))
        for each, other, topic in ((shop, stock_app, "orders"), (stock, shop_app, "paid")):
            await each.publish(b'{"n": 1}', topic=topic)
            await each.publish(b'{"n": 2}', topic=topic, query="?metadata.partitionKey=k")
            await other.got(2, f"/{topic}")
            await done(await each.call("POST", STATE, [JSON], b'[{"key": "a", "value": 1}]'), 204)
            assert (await each.call("GET", f"{STATE}/a")).json == 1
            assert (await each.call("POST", "/v1.0-alpha1/lock/lockstore", [JSON], LOCK)).json["success"] is True
            await done(await each.call("POST", "/v1.0/jobs/soon", [JSON], b'{"dueTime": "1s", "data": 1}'), 204)
            await done(await each.call("GET", "/mesh/v1/dead-letters"), 200)
            await done(await each.call("GET", "/mesh/v1/redrives"), 200)
        for app in (shop_app, stock_app):
            await app.got(1, "/job/soon")
        answer = await done(await shop.call("POST", "/v1.0/invoke/stock/method/reserve", body=bytes(300_000)), 200)
        assert answer.body == b"said"
        await done(await shop.call("PUT", "/v1.0/actors/Cart/7/method/add", [JSON], b"1"), 200)
        await done(await stock.call("POST", "/v1.0/actors/Cart/7/reminders/soon", [JSON], b'{"dueTime": "1s"}'), 204)
        await stock_app.got(1, "/nightly")
        await until(
            lambda: any(request.path.endswith("/remind/soon") for request in stock_app.requests),
            lambda: f"no reminder: {stock_app.requests}",
        )
        for each in (shop, stock):
            assert not re.findall(r"(?i)refused|denied|not authorized|Authorization", each.log), each.log


async def test_a_sidecar_with_the_wrong_credentials_says_what_it_lacks(guarded: Guarded, tmp_path: Path) -> None:
    async with App([subscription("paid")]) as app, Mesh(tmp_path) as mesh:
        posing = await sidecar(mesh, guarded, "shop", user="mallory", app=app)
        await posing.says("HTTP server is running")
        await posing.says(guarded.complaint)
        for path, body, lacks in (
            ("/v1.0/publish/pubsub/orders", b"1", r"mesh\.default\.event\.pubsub\.orders|_inbox"),
            ("/v1.0/invoke/stock/method/reserve", b"1", r"mesh\.default\.(invoke\.stock\.shop|replies\.shop)"),
            ("/v1.0/jobs/soon", b'{"dueTime": "1s"}', "refused"),
        ):
            answer = await posing.call("POST", path, [JSON], body)
            assert answer.status in {500, 503}
            assert re.search(lacks, answer.json["message"]), answer
            assert re.search("refused", answer.json["message"]), answer
        assert not app.events


async def test_a_sidecar_that_may_not_use_a_stream_waits_until_it_may(tmp_path: Path) -> None:
    guarded = OnNats(tmp_path / "broker")
    (tmp_path / "mesh.yaml").write_text(FILE)
    try:
        await guarded.begin(tmp_path / "mesh.yaml")
        async with Mesh(tmp_path) as mesh:
            elsewhere = await sidecar(mesh, guarded, "shop", NAMESPACE="other")
            await elsewhere.says(r"not ready yet: NATS refused: .*stream\.info\.mesh-other-events.*grant", times=2)
            answer = await elsewhere.call("POST", "/v1.0/publish/pubsub/orders", [JSON], b"1")
            assert (answer.status, "mesh.other.event.pubsub.orders" in answer.json["message"]) == (500, True)
    finally:
        guarded.remove()


async def test_the_server_refuses_what_is_forged(guarded: Guarded, tmp_path: Path) -> None:
    async with App() as app, Mesh(tmp_path) as mesh:
        shop = await (await sidecar(mesh, guarded, "shop")).ready()
        stock = await (await sidecar(mesh, guarded, "stock", app=app)).ready()
        await done(await stock.call("POST", STATE, [JSON], b'[{"key": "a", "value": 1}]'), 204)
        await done(await shop.call("POST", "/v1.0/invoke/stock/method/first"), 200)
        await guarded.forge()
        await done(await shop.call("POST", "/v1.0/invoke/stock/method/last"), 200)
        assert [request.path for request in app.events] == ["/first", "/last"]
        assert (await stock.call("GET", f"{STATE}/a", [("metadata.consistency", "strong")])).json == 1
