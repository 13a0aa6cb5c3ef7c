"""Connections to real Redis servers: alone, in a cluster, behind a sentinel; and the locks that Dapr keeps there."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bindings.lock import redis as lock
from bindings.redis import Server, fields, translated
from bindings.state import redis as state
from mesh.components import read_settings
from mesh.ports.stores import LockStore, SetState, StoreError, StoreUnavailable, UnlockStatus
from mesh.resources import Component, Metadata
from tests.opened import opened
from tests.servers.redis import PASSWORD, RedisServer, redis_server

numbers = count(1)

# Dapr's own script, by which its sidecars unlock.
DAPR_UNLOCK = (
    'local v = redis.call("get",KEYS[1]); if v==false then return -1 end; '
    'if v~=ARGV[1] then return -2 else return redis.call("del",KEYS[1]) end'
)


@asynccontextmanager
async def connected(**metadata: str) -> AsyncIterator[Server]:
    component = Component(name="test", type="lock.redis", metadata=Metadata(metadata), origin="test.yaml:1")
    server = Server(read_settings(component, fields()))
    try:
        async with asyncio.timeout(30):
            await server.start()
            yield server
    finally:
        await server.close()


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """One that a test may harm."""
    server = RedisServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture
async def store() -> AsyncIterator[LockStore]:
    store: LockStore = opened(lock.SPEC, **redis_server().settings)
    await store.start()
    yield store
    await store.close()


async def test_databases() -> None:
    key = f"key {next(numbers)}"
    async with connected(**redis_server().settings, redisDB="3") as server:
        await server.client.set(key, b"value")
    async with connected(**redis_server().settings) as server:
        assert await server.client.get(key) is None


async def test_a_user_of_the_acl() -> None:
    name = f"user{next(numbers)}"
    redis_server().run("ACL", "SETUSER", name, "on", ">secret", "~*", "+ping", "+client")
    settings = redis_server().settings | {"redisUsername": name, "redisPassword": "secret"}
    async with connected(**settings) as server:
        with pytest.raises(StoreError, match="permission"):
            async with translated():
                await server.client.set("k", "v")


async def test_a_wrong_password_is_said_at_once() -> None:
    with pytest.raises(StoreError, match=r"WRONGPASS|invalid") as raised:
        async with connected(**redis_server().settings | {"redisPassword": "wrong secret"}):
            pass
    assert not isinstance(raised.value, StoreUnavailable)
    assert "secret" not in str(raised.value)


async def test_a_server_that_is_not_there(own_server: RedisServer) -> None:
    own_server.kill()
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        async with connected(**own_server.settings):
            pass


async def test_a_server_that_does_not_answer(own_server: RedisServer) -> None:
    settings = own_server.settings | {"readTimeout": "100ms", "redisMaxRetries": "-1"}
    async with connected(**settings) as server:
        own_server.freeze()
        with pytest.raises(StoreUnavailable):
            async with translated():
                await server.client.get("k")
        own_server.thaw()
        assert await server.client.get("k") is None


async def test_a_server_that_was_restarted(own_server: RedisServer) -> None:
    async with connected(**own_server.settings) as server:
        own_server.kill()
        own_server.start()
        async with translated():
            assert await server.client.get("k") is None


async def test_a_cluster() -> None:
    node = RedisServer(cluster_enabled="yes")
    node.start()
    try:
        node.run("CLUSTER", "ADDSLOTS", *map(str, range(16384)))
        for _ in range(500):
            if "cluster_state:ok" in str(node.run("CLUSTER", "INFO")):
                break
            await asyncio.sleep(0.01)
        async with connected(**node.settings, redisType="cluster") as server:
            assert server.is_cluster
            await server.client.set("{a}1", b"value")
            assert await server.client.get("{a}1") == b"value"
    finally:
        node.remove()


@pytest.fixture
def guarded() -> Iterator[tuple[RedisServer, RedisServer]]:
    """A master and a sentinel that watches it."""
    master = RedisServer()
    master.start()
    sentinel = RedisServer(
        **{
            "sentinel monitor shop": f"127.0.0.1 {master.port} 1",
            "sentinel auth-pass shop": f'"{PASSWORD}"',
        },
        password="of the sentinel",
        is_sentinel=True,
    )
    sentinel.start()
    yield master, sentinel
    sentinel.remove()
    master.remove()


async def test_the_master_behind_a_sentinel(guarded: tuple[RedisServer, RedisServer]) -> None:
    master, sentinel = guarded
    settings: dict[str, str] = master.settings | {
        "redisHost": f"127.0.0.1:{sentinel.port}",
        "failover": "true",
        "sentinelMasterName": "shop",
        "sentinelPassword": "of the sentinel",
    }
    async with connected(**settings) as server:
        await server.client.set("k", b"value")
        assert master.run("GET", "k") == b"value"
    store = opened(lock.SPEC, **settings)
    await store.start()
    assert await store.try_lock("lock||app1||x", "a", 5) == ""
    await store.close()
    assert master.run("GET", "lock||app1||x") == b"a"


# TLS: the server of the wheel speaks none, so what listens in front of it does.


class TlsFront:
    def __init__(self, folder: Path, behind: RedisServer) -> None:
        self.authority, key = _certificate("authority", None)
        self.certificate, self.key = _certificate("client", (self.authority, key))
        certificate, own_key = _certificate("localhost", (self.authority, key))
        (folder / "authority.pem").write_text(_pem(self.authority))
        (folder / "server.pem").write_text(_pem(certificate) + _pem_key(own_key))
        self.authority_file = folder / "authority.pem"
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.authority_file))
        self._context.load_cert_chain(folder / "server.pem")
        self._behind = behind
        self._pipes: set[asyncio.Task[None]] = set()

    async def start(self, *, ask_client: bool) -> None:
        self._context.verify_mode = ssl.CERT_REQUIRED if ask_client else ssl.CERT_NONE
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        port = self._server.sockets[0].getsockname()[1]
        self.settings = self._behind.settings | {"redisHost": f"localhost:{port}", "enableTLS": "true"}

    async def close(self) -> None:
        self._server.close()
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._behind.port)
        for source, target in ((reader, far_writer), (far_reader, writer)):
            self._pipes.add(asyncio.create_task(self._pipe(source, target)))

    @staticmethod
    async def _pipe(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                target.write(data)
        finally:
            target.close()


def _certificate(
    name: str, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    )
    return builder.sign(key if issuer is None else issuer[1], hashes.SHA256()), key


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _pem_key(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[TlsFront]:
    front = TlsFront(tmp_path, redis_server())
    yield front
    await front.close()


async def test_tls_checks_the_server(front: TlsFront, monkeypatch: pytest.MonkeyPatch) -> None:
    await front.start(ask_client=False)
    quick = front.settings | {"redisMaxRetries": "-1"}
    with pytest.raises(StoreUnavailable, match=r"CERTIFICATE_VERIFY_FAILED|certificate verify failed"):
        async with connected(**quick):
            pass
    async with connected(**quick, insecureSkipTLSVerify="true") as server:
        assert await server.client.ping()
    monkeypatch.setenv("SSL_CERT_FILE", str(front.authority_file))
    async with connected(**quick) as server:
        assert await server.client.ping()
    other_name = quick | {"redisHost": quick["redisHost"].replace("localhost", "127.0.0.1")}
    with pytest.raises(StoreUnavailable, match="IP address mismatch"):
        async with connected(**other_name):
            pass


async def test_tls_with_a_certificate_of_the_client(front: TlsFront, monkeypatch: pytest.MonkeyPatch) -> None:
    await front.start(ask_client=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(front.authority_file))
    with pytest.raises(StoreUnavailable):
        async with connected(**front.settings, redisMaxRetries="-1"):
            pass
    mine = {"clientCert": _pem(front.certificate), "clientKey": _pem_key(front.key)}
    async with connected(**front.settings, **mine) as server:
        assert await server.client.ping()


# Locks


async def test_daprs_keys(store: LockStore) -> None:
    server, key = redis_server(), f"lock||app1||dapr {next(numbers)}"
    assert await store.try_lock(key, "a", 30) == ""
    assert server.run("GET", key) == b"a"
    ttl: Any = server.run("TTL", key)
    assert 28 <= ttl <= 30
    assert server.run("SET", key, "b", "EX", "30", "NX") is None, "Dapr cannot have it now"
    assert server.run("EVAL", DAPR_UNLOCK, "1", key, "b") == -2
    assert server.run("EVAL", DAPR_UNLOCK, "1", key, "a") == 1
    assert server.run("SET", key, "b", "EX", "30", "NX") in (True, b"OK")
    assert await store.try_lock(key, "a", 30) is None
    assert await store.unlock(key, "a") is UnlockStatus.BELONGS_TO_OTHERS
    assert await store.unlock(key, "b") is UnlockStatus.SUCCESS
    assert server.run("EVAL", DAPR_UNLOCK, "1", key, "b") == -1


async def test_locks_of_a_server_with_replicas(own_server: RedisServer) -> None:
    replica = RedisServer(replicaof=f"127.0.0.1 {own_server.port}", masterauth=f'"{PASSWORD}"')
    replica.start()
    try:
        for _ in range(1000):
            if "'connected_slaves': 1" in str(own_server.run("INFO", "replication")):
                break
            await asyncio.sleep(0.01)
        store: LockStore = opened(lock.SPEC, **own_server.settings)
        with pytest.raises(StoreError, match="has replicas"):
            await store.start()
        await store.close()
    finally:
        replica.remove()


async def test_a_lock_store_whose_server_goes(own_server: RedisServer) -> None:
    settings = own_server.settings | {"redisMaxRetries": "1", "redisMaxRetryInterval": "10ms"}
    store: LockStore = opened(lock.SPEC, **settings, redisMinRetryInterval="1ms")
    await store.start()
    own_server.kill()
    with pytest.raises(StoreUnavailable):
        await store.try_lock("lock||app1||x", "a", 5)
    with pytest.raises(StoreUnavailable):
        await store.unlock("lock||app1||x", "a")
    with pytest.raises(StoreUnavailable):
        await store.ping()
    own_server.start()
    assert await store.try_lock("lock||app1||x", "a", 5) == ""
    await store.close()


async def test_no_answer_is_left_behind_by_a_call_that_is_cancelled(own_server: RedisServer) -> None:
    """On one connection: the next call must not read the answer to the one before."""
    settings = own_server.settings | {"poolSize": "1"}
    locks, items = opened(lock.SPEC, **settings), opened(state.SPEC, **settings)
    try:
        for store in (locks, items):
            await store.start()
        for key in ("a", "b", "c"):
            await items.change(SetState(key=key, value=key.encode()))
        for call in (
            items.get("a"),
            items.get_many(["a", "b"]),
            items.change(SetState(key="other", value=b"other")),
            locks.try_lock("lock", "a", 60),
            locks.unlock("lock", "b"),
        ):
            own_server.run("CLIENT", "PAUSE", "100")  # milliseconds
            task = asyncio.ensure_future(call)
            await asyncio.sleep(0.05)
            assert not task.done()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            async with asyncio.timeout(30):
                item = await items.get("c")
                assert item is not None
                assert item.value == b"c"
                assert await locks.unlock("none", "a") == UnlockStatus.LOCK_DOES_NOT_EXIST
    finally:
        await locks.close()
        await items.close()
