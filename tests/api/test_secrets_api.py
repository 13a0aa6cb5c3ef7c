"""The secrets API, answer by answer, and that its scopes hold (Dapr: secrets)."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import pytest

from mesh import resources
from mesh.clock import SystemClock
from mesh.ports.stores import SecretStore, StoreError, StoreUnavailable, Unsupported
from mesh.resiliency.manifest import ResiliencyManifest
from mesh.resiliency.targets import Resiliency
from mesh.secret_access import SecretAccess
from mesh.secrets import SecretScope, SecretScopes
from sidecar.api.secrets import SecretsApi
from sidecar.http.responses import CatchErrors
from sidecar.http.routing import Router
from sidecar.http.server import HttpServer
from tests.e2e.mesh import Answer, call

S = "/v1.0/secrets"
SECRETS = {"db": {"user": "shop", "password": "0pen sesame <&>"}, "key": {"key": "☃ 1"}, "Key": {"Key": "2"}}


class Vault:
    """Has `SECRETS`, and notes what it is asked."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked: list[tuple[str | None, Mapping[str, str]]] = []
        self.secrets: dict[str, dict[str, str]] = {name: dict(values) for name, values in SECRETS.items()}

    async def start(self) -> None: ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...

    async def get(self, name: str, metadata: Mapping[str, str] = {}) -> dict[str, str]:
        self.asked.append((name, metadata))
        if self.error is not None:
            raise self.error
        if name not in self.secrets:
            raise StoreError(f"secret {name} not found")
        return self.secrets[name]

    async def get_all(self, metadata: Mapping[str, str] = {}) -> dict[str, dict[str, str]]:
        self.asked.append((None, metadata))
        if self.error is not None:
            raise self.error
        return self.secrets


class Server:
    def __init__(self, scopes: SecretScopes, resiliency: tuple[ResiliencyManifest, ...] = ()) -> None:
        self.vault = Vault()
        self.stores: dict[str, SecretStore] = {"vault": self.vault, "other": Vault()}
        policies = Resiliency(resiliency, clock=SystemClock())
        router = Router()
        SecretsApi(SecretAccess(self.stores, scopes, resiliency=policies)).add_to(router)
        self.server = HttpServer(CatchErrors(router))

    async def __aenter__(self) -> Self:
        await self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.wait_for(self.server.stop(5), 30)

    async def get(self, target: str) -> Answer:
        assert self.server.port
        return await call(self.server.port, "GET", S + target)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server(SecretScopes()) as server:
        yield server


def scoped(**scope: Any) -> Server:
    return Server(SecretScopes({"vault": SecretScope(**scope)}))


def failure(answer: Answer, status: int, code: str) -> str:
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    assert answer.json.keys() == {"errorCode", "message"}
    assert answer.json["errorCode"] == code
    return str(answer.json["message"])


async def test_get(server: Server) -> None:
    for name, values in SECRETS.items():
        answer = await server.get(f"/vault/{name}")
        assert (answer.status, answer.json) == (200, values)
        assert answer.headers["content-type"] == "application/json"
    await server.get("/vault/db?metadata.version_id=2&metadata.version_id=3&x=y&Metadata.a=b")
    assert server.vault.asked[-1] == ("db", {"version_id": "2"})


async def test_bulk(server: Server) -> None:
    answer = await server.get("/vault/bulk?metadata.namespace=team")
    assert (answer.status, answer.json) == (200, SECRETS)
    assert server.vault.asked == [(None, {"namespace": "team"})]


async def test_nothing(server: Server) -> None:
    server.vault.secrets = {"empty": {}}
    answer = await server.get("/vault/empty")
    assert (answer.status, answer.body) == (204, b"")
    server.vault.secrets = {}
    answer = await server.get("/vault/bulk")
    assert (answer.status, answer.body) == (204, b"")


async def test_what_is_not_there(server: Server) -> None:
    message = failure(await server.get("/vault/nobody"), 500, "ERR_SECRET_GET")
    assert message == "failed getting secret with key nobody from secret store vault: secret nobody not found"
    for target in ("/nobody/db", "/nobody/bulk", "/Vault/db"):
        name = target.split("/")[1]
        message = failure(await server.get(target), 401, "ERR_SECRET_STORE_NOT_FOUND")
        assert message == f"failed finding secret store with key {name}"
    server.stores.clear()
    for target in ("/vault/db", "/vault/bulk"):
        message = failure(await server.get(target), 500, "ERR_SECRET_STORES_NOT_CONFIGURED")
        assert message == "secret store is not configured"


@pytest.mark.parametrize("error", [StoreUnavailable("it is down"), Unsupported("it is down")])
async def test_a_store_that_fails(server: Server, error: StoreError) -> None:
    server.vault.error = error
    message = failure(await server.get("/vault/db"), 500, "ERR_SECRET_GET")
    assert message == "failed getting secret with key db from secret store vault: it is down"
    message = failure(await server.get("/vault/bulk"), 500, "ERR_SECRET_GET")
    assert message == "failed getting secrets from secret store vault: it is down"


@pytest.mark.parametrize("key", ["a/b", "a b", "é☃", "k" * 3000, "'\"\\", "line\nbreak", "%2e"])
async def test_keys_of_any_kind(server: Server, key: str) -> None:
    server.vault.secrets[key] = {key: "1"}
    assert (await server.get(f"/vault/{quote(key, safe='')}")).json == {key: "1"}


# Scopes


async def test_denied(server: Server) -> None:
    async with scoped(denied=frozenset({"db"})) as server:
        message = failure(await server.get("/vault/db"), 403, "ERR_PERMISSION_DENIED")
        assert message == 'access denied by policy to get "db" from "vault"'
        assert server.vault.asked == []
        assert (await server.get("/vault/key")).json == SECRETS["key"]
        assert (await server.get("/vault/bulk")).json.keys() == {"key", "Key"}
        assert (await server.get("/other/db")).json == SECRETS["db"]
        failure(await server.get("/vault/nobody"), 500, "ERR_SECRET_GET")


async def test_only_what_is_allowed() -> None:
    async with scoped(allowed=frozenset({"key"})) as server:
        assert (await server.get("/vault/key")).status == 200
        assert (await server.get("/vault/bulk")).json == {"key": SECRETS["key"]}
        for name in ("db", "nobody"):
            failure(await server.get(f"/vault/{name}"), 403, "ERR_PERMISSION_DENIED")
    async with scoped(allows_others=False) as server:
        failure(await server.get("/vault/key"), 403, "ERR_PERMISSION_DENIED")
        assert (await server.get("/vault/bulk")).status == 204


@pytest.mark.parametrize(
    "target",
    [
        *("/vault/KEY", "/vault/key%20", "/vault/%20key", "/vault/key%00", "/vault/%6bey%2f", "/vault/./x%2f..%2fkey"),
        *("/vault/%2e%2e%2fkey", "/vault/%EF%BD%8Bey", "/vault/ke%CC%81y", "/vault/k%E2%80%8Bey", "/vault/key%0A"),
        *("/vault/key%3F", "/vault/dapr%2Fkey", "/vault/bulk%00", "/vault/%62ulk"),
    ],
)
async def test_no_trick_leads_past_a_scope(target: str) -> None:
    """The name that is checked is, letter by letter, the one that the store is asked for."""
    allowed = frozenset({"key"})
    async with scoped(allowed=allowed) as server:
        answer = await server.get(target)
        assert answer.status == 403
        assert server.vault.asked == []
    async with scoped(denied=allowed) as server:
        failure(await server.get(target), 500, "ERR_SECRET_GET")
        [(asked, _)] = server.vault.asked
        assert asked not in SECRETS


@pytest.mark.parametrize("target", ["/vault/%6bey", "/vault//key", "/x/../vault/./key/", "/%76ault/key"])
async def test_one_name_written_otherwise(target: str) -> None:
    async with scoped(denied=frozenset({"key"})) as server:
        failure(await server.get(target), 403, "ERR_PERMISSION_DENIED")


# Policies, logs


async def test_an_outbound_policy_tries_again(tmp_path: Path) -> None:
    (tmp_path / "resiliency.yaml").write_text("""\
apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: {name: r}
spec:
  policies: {retries: {thrice: {policy: constant, duration: 10ms, maxRetries: 2}}}
  targets: {components: {vault: {outbound: {retry: thrice}}}}
""")
    manifests = resources.load([tmp_path], app_id="app1", namespace="", environ={}).resiliency
    async with Server(SecretScopes(), tuple(manifests)) as server:
        server.vault.error = StoreUnavailable("it is down")
        failure(await server.get("/vault/db"), 500, "ERR_SECRET_GET")
        assert len(server.vault.asked) == 3
        server.vault.error = Unsupported("no list")
        failure(await server.get("/vault/bulk"), 500, "ERR_SECRET_GET")
        assert len(server.vault.asked) == 4


async def test_no_value_is_logged(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for target in ("/vault/db", "/vault/bulk", "/vault/nobody"):
        await server.get(target)
    assert "0pen sesame" not in caplog.text
    assert json.dumps("☃ 1") not in caplog.text and "☃" not in caplog.text
