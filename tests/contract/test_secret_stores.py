"""The contract of `SecretStore`, and what is special to some."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from bindings import json_api
from bindings.secretstores import hashicorp_vault, kubernetes
from mesh.errors import ConfigurationError
from mesh.ports.stores import SecretStore, StoreError, StoreUnavailable
from tests.contract.secret_stores import (
    SECRET_BACKINGS,
    SEVERAL,
    TOKEN,
    VAULT_HEALTH,
    VAULT_NOTHING,
    Kubernetes,
    SecretBacking,
    Vault,
    kubernetes_secret,
    kubernetes_status,
    vault_secret,
)
from tests.opened import opened
from tests.ports import free_port
from tests.servers.recorded import RecordedServer, certificate

VAULT_HEADERS = {"x-vault-token": TOKEN, "x-vault-request": "true"}


@pytest.fixture(params=SECRET_BACKINGS, ids=lambda backing: backing.name)
def backing(request: pytest.FixtureRequest) -> SecretBacking:
    made: SecretBacking = request.param()
    return made


@pytest.fixture
async def store(backing: SecretBacking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SecretStore]:
    store = await backing.start(tmp_path, monkeypatch)
    await store.start()
    yield store
    await store.close()
    await store.close()
    await backing.stop()


async def test_each_secret_can_be_read(backing: SecretBacking, store: SecretStore) -> None:
    for name, values in backing.secrets.items():
        assert await store.get(name) == values
    await store.ping()


async def test_all_secrets_can_be_read(backing: SecretBacking, store: SecretStore) -> None:
    assert await store.get_all() == backing.secrets


async def test_a_secret_that_is_not_there(backing: SecretBacking, store: SecretStore) -> None:
    if not backing.has_missing:
        assert await store.get("nobody") == {"nobody": ""}
        return
    with pytest.raises(StoreError, match="secret nobody not found") as raised:
        await store.get("nobody")
    assert not isinstance(raised.value, StoreUnavailable)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../db",
        "x/../db",
        "./db",
        "db/",
        "/db",
        "db//",
        "db\n",
        "db\r\nx: y",
        "db\0",
        "DB",
        "db?x",
        "db#",
    ],
)
async def test_no_other_name_leads_to_a_secret(backing: SecretBacking, store: SecretStore, name: str) -> None:
    """What the scopes are asked about is what is read: no name but its own names a secret. Where such a name could be
    one of its own, it is asked for as it is, and nothing else."""
    if isinstance(backing, Vault):
        backing.server.exchanges |= {
            f"/v1/secret/data/dapr/{path}": (404, VAULT_NOTHING) for path in ("DB", "db%3Fx", "db%23")
        }
    try:
        found = await store.get(name)
    except StoreError:
        return
    assert not any(found.values())


async def test_nothing_secret_is_logged_or_shown(
    backing: SecretBacking, store: SecretStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await store.get_all()
    for name in backing.secrets:
        await store.get(name)
    said = caplog.text + repr(store)
    for values in backing.secrets.values():
        assert not any(value in said for value in values.values())
    assert TOKEN not in said


# Vault


class VaultServer:
    """A recorded Vault without TLS."""

    def __init__(self, exchanges: dict[str, tuple[int, object]]) -> None:
        self.server = RecordedServer(exchanges, VAULT_HEADERS)
        self.stores: list[SecretStore] = []

    async def __aenter__(self) -> VaultServer:
        await self.server.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        for store in self.stores:
            await store.close()
        await self.server.__aexit__()

    def store(self, **settings: str) -> SecretStore:
        settings = {"vaultAddr": self.server.url, "vaultToken": TOKEN, **settings}
        store: SecretStore = opened(hashicorp_vault.SPEC, **settings)
        self.stores.append(store)
        return store


async def test_where_vault_is_asked() -> None:
    secret = (200, vault_secret({"a": "1"}))
    exchanges: dict[str, tuple[int, object]] = {
        "/v1/secret/data/dapr/x": secret,
        "/v1/secret/data/x": secret,
        "/v1/kv/shop/data/team%20one/x/y%2B%C3%A9%25": secret,
        "/below/v1/secret/data/dapr/x": secret,
    }
    async with VaultServer(exchanges) as vault:
        url = vault.server.url
        assert await vault.store().get("x") == {"a": "1"}
        assert await vault.store(vaultKVUsePrefix="false", vaultKVPrefix="unused").get("x") == {"a": "1"}
        assert await vault.store(enginePath="kv/shop", vaultKVPrefix="team one").get("x/y+é%") == {"a": "1"}
        assert await vault.store(vaultAddr=f"{url}/below/").get("x") == {"a": "1"}
        assert vault.server.requests == list(exchanges)


async def test_values_of_vault() -> None:
    data = {"text": "1", "number": 5, "more": {"a": [1, None]}}
    async with VaultServer({"/v1/secret/data/dapr/x": (200, vault_secret(data))}) as vault:
        assert await vault.store().get("x") == {"text": "1", "number": "5", "more": '{"a":[1,null]}'}
        text = await vault.store(vaultValueType="Text").get("x")
        assert text == {"x": '{"text":"1","number":5,"more":{"a":[1,null]}}'}


async def test_versions_of_vault() -> None:
    exchanges: dict[str, tuple[int, object]] = {
        "/v1/secret/data/dapr/x?version=2": (200, vault_secret({"a": "2"}, 2)),
        "/v1/secret/data/dapr/x?version=9": (404, VAULT_NOTHING),
        "/v1/secret/data/dapr/x?version=3": (404, vault_secret(None, 3)),
        "/v1/secret/data/dapr/x?version=4": (200, vault_secret(None, 4)),
        "/v1/secret/metadata/dapr/?list=true": (200, {"data": {"keys": ["x", "y"]}}),
        "/v1/secret/data/dapr/y?version=2": (404, VAULT_NOTHING),
    }
    async with VaultServer(exchanges) as vault:
        store = vault.store()
        assert await store.get("x", {"version_id": "2"}) == {"a": "2"}
        for version in "349":
            with pytest.raises(StoreError, match="secret x not found, or not in this version"):
                await store.get("x", {"version_id": version})
        for version in ("two", "-1", "1&list=true", "²"):
            with pytest.raises(StoreError, match="version_id must be a number"):
                await store.get("x", {"version_id": version})
        assert await store.get_all({"version_id": "2"}) == {"x": {"a": "2"}}


async def test_folders_of_vault() -> None:
    exchanges: dict[str, tuple[int, object]] = {
        "/v1/secret/metadata/dapr/?list=true": (200, {"data": {"keys": ["a", "team/"]}}),
        "/v1/secret/metadata/dapr/team/?list=true": (200, {"data": {"keys": ["b", "deep er/"]}}),
        "/v1/secret/metadata/dapr/team/deep%20er/?list=true": (200, {"data": {"keys": ["c"]}}),
        "/v1/secret/data/dapr/a": (200, vault_secret({"v": "1"})),
        "/v1/secret/data/dapr/team/b": (200, vault_secret({"v": "2"})),
        "/v1/secret/data/dapr/team/deep%20er/c": (200, vault_secret({"v": "3"})),
    }
    async with VaultServer(exchanges) as vault:
        assert await vault.store().get_all() == {
            "a": {"v": "1"},
            "team/b": {"v": "2"},
            "team/deep er/c": {"v": "3"},
        }


async def test_too_many_secrets_of_vault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashicorp_vault, "MAX_SECRETS", 2)
    exchanges: dict[str, tuple[int, object]] = {
        "/v1/secret/metadata/dapr/?list=true": (200, {"data": {"keys": ["a", "b", "c/"]}})
    }
    async with VaultServer(exchanges) as vault:
        with pytest.raises(StoreError, match="more than 2 secrets"):
            await vault.store().get_all()


async def test_refusals_of_vault() -> None:
    answers: dict[str, tuple[int, object]] = {
        "denied": (403, {"errors": ["1 error occurred:\n\t* permission denied\n\n"]}),
        "sealed": (503, {"errors": ["Vault is sealed"]}),
        "busy": (429, {"errors": []}),
        "odd": (200, "no JSON"),
        "odder": (200, [1]),
        "broken": (400, "<html>"),
    }
    async with VaultServer({f"/v1/secret/data/dapr/{name}": answer for name, answer in answers.items()}) as vault:
        store = vault.store()
        with pytest.raises(StoreError, match=r"Vault answered 403 for denied: .*permission denied") as denied:
            await store.get("denied")
        assert not isinstance(denied.value, StoreUnavailable)
        with pytest.raises(StoreUnavailable, match="Vault answered 503 for sealed: Vault is sealed"):
            await store.get("sealed")
        with pytest.raises(StoreUnavailable, match="Vault answered 429 for busy"):
            await store.get("busy")
        with pytest.raises(StoreError, match="Vault answered 400 for broken"):
            await store.get("broken")
        for name in ("odd", "odder"):
            with pytest.raises(StoreError, match="not found"):
                await store.get(name)
        vault.server.exchanges["/v1/secret/metadata/dapr/?list=true"] = (200, {"data": {"keys": ["sealed", "busy"]}})
        with pytest.raises(StoreUnavailable, match="Vault answered"):
            await store.get_all()
        vault.server.exchanges["/v1/secret/metadata/dapr/?list=true"] = (403, {"errors": ["permission denied"]})
        with pytest.raises(StoreError, match="Vault answered 403 for the list of secrets: permission denied"):
            await store.get_all()
        vault.server.exchanges["/v1/sys/health?standbyok=true"] = (503, {**VAULT_HEALTH, "sealed": True})
        with pytest.raises(StoreUnavailable, match="Vault answered 503 for its health"):
            await store.ping()


async def test_a_vault_that_is_down_and_comes_back() -> None:
    server = RecordedServer({"/v1/secret/data/dapr/x": (200, vault_secret({"a": "1"}))}, VAULT_HEADERS)
    server.port = free_port()
    store: SecretStore = opened(hashicorp_vault.SPEC, vaultAddr=server.url, vaultToken=TOKEN)
    await store.start()  # as Dapr: it need not be there yet
    with pytest.raises(StoreUnavailable, match="Vault cannot be reached") as raised:
        await store.get("x")
    assert TOKEN not in str(raised.value)
    async with server:
        assert await store.get("x") == {"a": "1"}
        await server.stop()
        with pytest.raises(StoreUnavailable, match="Vault cannot be reached"):
            await store.get("x")
        await server.__aenter__()
        assert await store.get("x") == {"a": "1"}
        await store.close()


async def test_answers_that_never_come_or_never_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_api, "TIME_LIMIT", 0.2)
    callers: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: callers.append(writer), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    store: SecretStore = opened(hashicorp_vault.SPEC, vaultAddr=f"http://127.0.0.1:{port}", vaultToken=TOKEN)
    with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.2 s"):
        await store.get("x")
    await store.close()
    silent.close()
    for caller in callers:
        caller.transport.abort()
        with suppress(ConnectionError):
            await caller.wait_closed()
    monkeypatch.setattr(json_api, "MAX_ANSWER", 1 << 20)
    async with VaultServer({"/v1/secret/data/dapr/x": (200, "x" * (2 << 20))}) as vault:
        with pytest.raises(StoreError, match="longer than 1 MiB"):
            await vault.store().get("x")


async def test_a_token_in_a_file_is_read_anew(tmp_path: Path) -> None:
    token = tmp_path / "token"
    async with VaultServer({"/v1/secret/data/dapr/x": (200, vault_secret({"a": "1"}))}) as vault:
        store = vault.store(vaultToken="", vaultTokenMountPath=str(token))
        with pytest.raises(StoreUnavailable, match="cannot be read: No such file"):
            await store.start()
        token.write_text(f"  {TOKEN}\n")
        await store.start()
        assert await store.get("x") == {"a": "1"}
        token.write_text("hvs.renewed")
        vault.server.headers["x-vault-token"] = "hvs.renewed"
        assert await store.get("x") == {"a": "1"}
        token.write_text("two words\r\nx: y")
        with pytest.raises(StoreError, match="characters that no token has") as raised:
            await store.get("x")
        assert "words" not in str(raised.value)


async def test_certificates_of_vault(tmp_path: Path) -> None:
    authority, context = certificate(tmp_path / "its")
    other, _ = certificate(tmp_path / "other")
    (tmp_path / "authorities" / "deep").mkdir(parents=True)
    (tmp_path / "authorities" / "deep" / "one.pem").write_text(authority.read_text())
    server = RecordedServer({"/v1/secret/data/dapr/x": (200, vault_secret({"a": "1"}))}, VAULT_HEADERS, context)
    async with server:

        async def works(**settings: str) -> bool:
            store: SecretStore = opened(hashicorp_vault.SPEC, vaultAddr=server.url, vaultToken=TOKEN, **settings)
            try:
                return await store.get("x") == {"a": "1"}
            except StoreUnavailable as error:
                assert "certificate" in str(error).lower()
                return False
            finally:
                await store.close()

        assert not await works()
        assert not await works(caCert=str(other))
        assert await works(caCert=str(authority))
        assert await works(caPath=str(tmp_path / "authorities"))
        assert await works(caPem=authority.read_text())
        assert await works(caPem=authority.read_text(), caPath="unused", caCert="unused")
        assert await works(skipVerify="true")
        assert not await works(caCert=str(authority), tlsServerName="vault.example")
    named, context = certificate(tmp_path / "named", "vault.example")
    async with RecordedServer(server.exchanges, VAULT_HEADERS, context) as server:
        assert not await works(caCert=str(named))
        assert await works(caCert=str(named), tlsServerName="vault.example")


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({}, "vaultToken: give either vaultToken or vaultTokenMountPath"),
        ({"vaultToken": "x", "vaultTokenMountPath": "/x"}, "vaultTokenMountPath: give either"),
        ({"vaultToken": "two words"}, "vaultToken: the token is empty, or has characters"),
        ({"vaultToken": "x", "vaultAddr": "vault:8200"}, "vaultAddr: must be http"),
        ({"vaultToken": "x", "vaultAddr": "https://me:pw@vault"}, "vaultAddr: must be http"),
        ({"vaultToken": "x", "enginePath": "secret/../sys"}, "enginePath: a name cannot have empty segments"),
        ({"vaultToken": "x", "enginePath": "/secret"}, "enginePath: a name cannot have empty segments"),
        ({"vaultToken": "x", "vaultKVPrefix": "a//b"}, "vaultKVPrefix: a name cannot have empty segments"),
        ({"vaultToken": "x", "vaultValueType": "json"}, "vaultValueType: must be one of map, text"),
        ({"vaultToken": "x", "caPem": "no PEM"}, "caPem: there are no certificates in it"),
        ({"vaultToken": "x", "caCert": "/nowhere"}, "caCert: there are no certificates in it"),
        ({"vaultToken": "x", "caPath": "/nowhere"}, "caPath: there are no certificates in it"),
        ({"vaultToken": "x", "vaultAddr": "http://vault", "caCert": "x"}, "caCert: it has no effect on a vaultAddr"),
        ({"vaultToken": "x", "vaultAdr": "http://vault"}, "vaultAdr"),
    ],
)
def test_bad_settings_of_vault(settings: dict[str, str], fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault) as raised:
        opened(hashicorp_vault.SPEC, **settings)
    assert "two words" not in str(raised.value) and "pw" not in str(raised.value)


# Kubernetes


class Cluster:
    """A recorded API server, and a pod in it."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.backing = Kubernetes()
        self._folder = folder
        self._patch = patch

    async def __aenter__(self) -> Cluster:
        self.store = await self.backing.start(self._folder, self._patch)
        self.exchanges = self.backing.server.exchanges
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.store.close()
        await self.backing.stop()


@pytest.fixture
async def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path, monkeypatch) as cluster:
        yield cluster


async def test_namespaces(cluster: Cluster) -> None:
    cluster.exchanges["/api/v1/namespaces/team-b/secrets/x"] = (200, kubernetes_secret("x", {"a": "1"}))
    cluster.exchanges["/api/v1/namespaces/team-b/secrets?limit=500"] = (200, {"metadata": {}, "items": []})
    assert await cluster.store.get("x", {"namespace": "team-b"}) == {"a": "1"}
    assert await cluster.store.get_all({"namespace": "team-b"}) == {}
    assert await cluster.store.get("db", {"namespace": ""}) == SEVERAL["db"]
    for namespace in ("..", "a/b", "A", "a.b", "-a", "é", "a" * 64, "default/secrets/db?x="):
        with pytest.raises(StoreError, match="is no name of a namespace"):
            await cluster.store.get("x", {"namespace": namespace})


async def test_the_namespace_of_the_component(cluster: Cluster, tmp_path: Path) -> None:
    """The suite has it from the environment; without that, from the component."""
    store = kubernetes.KubernetesSecrets(cluster.store._api, kubernetes.ACCOUNT, "")  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match="there is no namespace: set defaultNamespace"):
        await store.get("db")


async def test_pages_of_kubernetes(cluster: Cluster) -> None:
    root = "/api/v1/namespaces/default/secrets?limit=500"
    first = {"metadata": {"continue": "a+b/c="}, "items": [kubernetes_secret("a", {"v": "1"})]}
    cluster.exchanges[root] = (200, first)
    second = {"metadata": {}, "items": [kubernetes_secret("b", {}), {"metadata": {"name": "empty"}}]}
    cluster.exchanges[f"{root}&continue=a%2Bb%2Fc%3D"] = (200, second)
    assert await cluster.store.get_all() == {"a": {"v": "1"}, "b": {}, "empty": {}}


async def test_too_many_secrets_of_kubernetes(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "MAX_SECRETS", 1)
    with pytest.raises(StoreError, match="more than 1 secrets"):
        await cluster.store.get_all()


async def test_what_is_no_text_is_left_out(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    secret = kubernetes_secret("store", {"keystore": b"\xfe\xed", "alias": "shop"})
    secret["data"]["broken"] = "???"
    cluster.exchanges["/api/v1/namespaces/default/secrets/store"] = (200, secret)
    assert await cluster.store.get("store") == {"alias": "shop"}
    assert "keystore is left out" in caplog.text and "broken is left out" in caplog.text


async def test_refusals_of_kubernetes(cluster: Cluster) -> None:
    root = "/api/v1/namespaces/default/secrets"
    denial = 'secrets "x" is forbidden: User "system:serviceaccount:default:shop" cannot get resource "secrets"'
    cluster.exchanges[f"{root}/x"] = (403, kubernetes_status(403, "Forbidden", denial))
    with pytest.raises(StoreError, match=r'Kubernetes answered 403 for secret x: secrets "x" is forbidden'):
        await cluster.store.get("x")
    cluster.exchanges[f"{root}/x"] = (500, "boom")
    with pytest.raises(StoreUnavailable, match="Kubernetes answered 500 for secret x"):
        await cluster.store.get("x")
    for odd in ("no JSON", [1], {"metadata": {}}, {"metadata": {"name": "x"}, "data": {"a": 5}}):
        cluster.exchanges[f"{root}/x"] = (200, odd)
        with pytest.raises(StoreError, match="with something else"):
            await cluster.store.get("x")
    cluster.exchanges[f"{root}?limit=500"] = (403, kubernetes_status(403, "Forbidden", "no list"))
    with pytest.raises(StoreError, match="Kubernetes answered 403 for the list of secrets: no list"):
        await cluster.store.get_all()
    cluster.exchanges["/readyz"] = (500, "etcd failed")
    with pytest.raises(StoreUnavailable, match="Kubernetes answered 500 for its readiness"):
        await cluster.store.ping()


async def test_the_token_of_the_pod_is_renewed(cluster: Cluster) -> None:
    (kubernetes.ACCOUNT / "token").write_text("renewed")
    cluster.backing.server.headers["authorization"] = "Bearer renewed"
    assert await cluster.store.get("db") == SEVERAL["db"]
    (kubernetes.ACCOUNT / "token").unlink()
    with pytest.raises(StoreUnavailable, match="token cannot be read"):
        await cluster.store.start()
    (kubernetes.ACCOUNT / "token").write_text("renewed")
    await cluster.store.start()


def test_outside_of_a_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigurationError, match=r"test.yaml:1: this is no pod of Kubernetes"):
        opened(kubernetes.SPEC)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr(kubernetes, "ACCOUNT", tmp_path)
    with pytest.raises(ConfigurationError, match=r"ca\.crt cannot be used"):
        opened(kubernetes.SPEC)
    with pytest.raises(ConfigurationError, match="kubeconfigPath: only the service account"):
        opened(kubernetes.SPEC, kubeconfigPath="/x")
