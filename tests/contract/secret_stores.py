"""The secret stores that the contract suite runs over. A new store is one class and one line at the end.

Vault and Kubernetes are recorded: the exchanges are those of their documented APIs.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

from bindings.secretstores import hashicorp_vault, kubernetes, local_file
from bindings.secretstores.local_env import EnvironmentSecrets
from mesh.ports.stores import SecretStore
from tests.opened import opened
from tests.servers.recorded import RecordedServer, certificate

TOKEN = "hvs.open-sesame"
SINGLE: Mapping[str, Mapping[str, str]] = {
    "db-password": {"db-password": "open ☃ sesame"},
    "key": {"key": "-----BEGIN\nx\n"},
}
SEVERAL: Mapping[str, Mapping[str, str]] = {
    "db": {"user": "shop", "password": "open ☃ sesame"},
    "key": {"pem": "-----BEGIN\nx\n"},
}


class SecretBacking(Protocol):
    """A store with these secrets in it, and no others."""

    name: str
    secrets: Mapping[str, Mapping[str, str]]
    has_missing: bool
    """Whether a secret can be missing."""

    async def start(self, folder: Path, patch: pytest.MonkeyPatch) -> SecretStore:
        """The store, not started; whoever asks closes it."""
        ...

    async def stop(self) -> None:
        """Fails the test if a server behind the store was asked for what it was not meant to be."""
        ...


class LocalEnv:
    name = "local.env"
    secrets = SINGLE
    has_missing = False

    async def start(self, folder: Path, patch: pytest.MonkeyPatch) -> SecretStore:
        return EnvironmentSecrets({name: values[name] for name, values in SINGLE.items()} | {"APP_API_TOKEN": "x"})

    async def stop(self) -> None:
        pass


class LocalFile:
    name = "local.file"
    secrets = SINGLE
    has_missing = True

    async def start(self, folder: Path, patch: pytest.MonkeyPatch) -> SecretStore:
        file = folder / "secrets.json"
        file.write_text(json.dumps({name: values[name] for name, values in SINGLE.items()}))
        store: SecretStore = opened(local_file.SPEC, secretsFile=str(file))
        return store

    async def stop(self) -> None:
        pass


class LocalFileOfSeveral(LocalFile):
    name = "local.file-multivalued"
    secrets = SEVERAL

    async def start(self, folder: Path, patch: pytest.MonkeyPatch) -> SecretStore:
        file = folder / "secrets.json"
        file.write_text(json.dumps(SEVERAL))
        store: SecretStore = opened(local_file.SPEC, secretsFile=str(file), multiValued="true")
        return store


class Recorded:
    server: RecordedServer
    has_missing = True

    async def stop(self) -> None:
        await self.server.__aexit__()


def vault_secret(data: Any, version: int = 1) -> dict[str, Any]:
    """Vault's answer to "Read Secret Version" (KV version 2)."""
    times = {"created_time": "2018-03-22T02:24:06.945319214Z", "deletion_time": "" if data else "2018-04-01T00:00:00Z"}
    metadata = {**times, "custom_metadata": None, "destroyed": False, "version": version}
    return {"request_id": "1", "lease_id": "", "renewable": False, "data": {"data": data, "metadata": metadata}}


VAULT_HEALTH = {"initialized": True, "sealed": False, "standby": False, "version": "1.15.0"}
VAULT_NOTHING = {"errors": []}


class Vault(Recorded):
    name = "hashicorp.vault"
    secrets = SEVERAL

    async def start(self, folder: Path, patch: pytest.MonkeyPatch) -> SecretStore:
        exchanges: dict[str, tuple[int, object]] = {
            "/v1/sys/health?standbyok=true": (200, VAULT_HEALTH),
            "/v1/secret/metadata/dapr/?list=true": (200, {"data": {"keys": ["db", "key"]}}),
            "/v1/secret/data/dapr/nobody": (404, VAULT_NOTHING),
        }
        for name, values in SEVERAL.items():
            exchanges[f"/v1/secret/data/dapr/{name}"] = (200, vault_secret(values))
        authority, context = certificate(folder)
        self.server = RecordedServer(exchanges, {"x-vault-token": TOKEN, "x-vault-request": "true"}, context)
        await self.server.__aenter__()
        store: SecretStore = opened(
            hashicorp_vault.SPEC, vaultAddr=self.server.url, vaultToken=TOKEN, caCert=str(authority)
        )
        return store


def kubernetes_secret(name: str, values: Mapping[str, str | bytes]) -> dict[str, Any]:
    """A `Secret` of v1."""
    encoded = {
        key: base64.b64encode(value if isinstance(value, bytes) else value.encode()).decode()
        for key, value in values.items()
    }
    metadata = {"name": name, "namespace": "default", "resourceVersion": "164619", "uid": "1"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": encoded}


def kubernetes_status(code: int, reason: str, message: str) -> dict[str, Any]:
    """A `Status` of v1."""
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    return {**status, "message": message, "reason": reason, "code": code}


class Kubernetes(Recorded):
    name = "kubernetes"
    secrets = SEVERAL

    async def start(self, folder: Path, patch: pytest.MonkeyPatch) -> SecretStore:
        root = "/api/v1/namespaces/default/secrets"
        items = [kubernetes_secret(name, values) for name, values in SEVERAL.items()]
        missing = kubernetes_status(404, "NotFound", 'secrets "nobody" not found')
        exchanges: dict[str, tuple[int, object]] = {
            "/readyz": (200, "ok"),
            f"{root}/nobody": (404, missing),
            f"{root}?limit=500": (200, {"kind": "SecretList", "metadata": {"resourceVersion": "2"}, "items": items}),
        }
        for secret in items:
            exchanges[f"{root}/{secret['metadata']['name']}"] = (200, secret)
        account = folder / "serviceaccount"
        _, context = certificate(account)
        (account / "token").write_text(TOKEN + "\n")
        self.server = RecordedServer(exchanges, {"authorization": f"Bearer {TOKEN}"}, context)
        await self.server.__aenter__()
        patch.setattr(kubernetes, "ACCOUNT", account)
        patch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        patch.setenv("KUBERNETES_SERVICE_PORT", str(self.server.port))
        store: SecretStore = opened(kubernetes.SPEC)
        return store


SECRET_BACKINGS: list[Callable[[], SecretBacking]] = [LocalEnv, LocalFile, LocalFileOfSeveral, Vault, Kubernetes]
