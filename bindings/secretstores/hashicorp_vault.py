"""`secretstores.hashicorp.vault`: secrets in the key/value engine, version 2, of a Vault."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from bindings.json_api import Answer, JsonApi, checked_token, encoded_path, parse_url, read_token
from mesh.components import ComponentSpec, Field, Kind, Settings, Setup
from mesh.errors import clip
from mesh.ports.stores import StoreError, StoreUnavailable

MAX_SECRETS = 10_000
"""Secrets that are read at once."""
AT_ONCE = 8
VERSION = "version_id"
"""Request metadata."""

_SEALED_OR_BUSY = frozenset((429, 472, 473, 500, 502, 503, 504))


class VaultSecrets:
    """`mesh.ports.stores.SecretStore`. The token is read anew for each request: agents replace it in its file."""

    def __init__(self, api: JsonApi, token: Callable[[], str], *, engine: str, prefix: str, as_text: bool) -> None:
        """`token` may raise `StoreError`. With `as_text` a secret is the JSON text of all its values."""
        self._api = api
        self._token = token
        self._engine = engine
        self._below = (prefix,) if prefix else ()
        self._as_text = as_text

    async def start(self) -> None:
        self._token()

    async def ping(self) -> None:
        answer = await self._api.get("/v1/sys/health", {"standbyok": "true"})
        if answer.status != 200:
            raise _failure("its health", answer)

    async def close(self) -> None:
        await self._api.close()

    async def get(self, name: str, metadata: Mapping[str, str] = {}) -> dict[str, str]:
        secret = await self._read(name, _version(metadata))
        if secret is None:
            raise StoreError(f"secret {clip(name)} not found, or not in this version")
        return secret

    async def get_all(self, metadata: Mapping[str, str] = {}) -> dict[str, dict[str, str]]:
        """Secrets in folders are named by their path. What has no such version is left out (Dapr)."""
        query = _version(metadata)
        names = await self._list()
        room = asyncio.Semaphore(AT_ONCE)

        async def read(name: str) -> dict[str, str] | None:
            async with room:
                return await self._read(name, query)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = {name: group.create_task(read(name)) for name in names}
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return {name: secret for name, task in tasks.items() if (secret := task.result()) is not None}

    async def _read(self, name: str, query: Mapping[str, str]) -> dict[str, str] | None:
        answer = await self._api.get(encoded_path("v1", self._engine, "data", *self._below, name), query)
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise _failure(clip(name), answer)
        data = _member(answer.content, "data", "data")
        if not isinstance(data, dict):
            return None  # deleted
        if self._as_text:
            return {name: msgspec.json.encode(data).decode()}
        return {key: value if isinstance(value, str) else _json(value) for key, value in data.items()}

    async def _list(self) -> list[str]:
        names: list[str] = []
        folders = [""]
        while folders:
            folder = folders.pop()
            below = (folder.removesuffix("/"),) if folder else ()
            path = encoded_path("v1", self._engine, "metadata", *self._below, *below)
            answer = await self._api.get(f"{path}/", {"list": "true"})
            if answer.status != 200:
                raise _failure("the list of secrets", answer)
            keys = _member(answer.content, "data", "keys")
            for key in keys if isinstance(keys, list) else ():
                (folders if str(key).endswith("/") else names).append(f"{folder}{key}")
            if len(names) + len(folders) > MAX_SECRETS:
                raise StoreError(f"there are more than {MAX_SECRETS} secrets: read those that you need by their names")
        return names


def _version(metadata: Mapping[str, str]) -> dict[str, str]:
    version = metadata.get(VERSION, "")
    if not version:
        return {}
    if not (version.isascii() and version.isdigit()):
        raise StoreError(f"{VERSION} must be a number (got '{clip(version)}')")
    return {"version": version}


def _failure(what: str, answer: Answer) -> StoreError:
    errors = _member(answer.content, "errors")
    reasons = "; ".join(clip(error) for error in errors[:3]) if isinstance(errors, list) else ""
    message = f"Vault answered {answer.status} for {what}{f': {reasons}' if reasons else ''}"
    return StoreUnavailable(message) if answer.status in _SEALED_OR_BUSY else StoreError(message)


def _member(content: Any, *path: str) -> Any:
    for name in path:
        content = content.get(name) if isinstance(content, dict) else None
    return content


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _open(setup: Setup) -> VaultSecrets:
    settings = setup.settings
    try:
        url = parse_url(settings["vaultAddr"])
    except ValueError as error:
        raise settings.fault("vaultAddr", str(error)) from None
    for name in ("enginePath", "vaultKVPrefix"):
        try:
            encoded_path(settings[name])
        except StoreError as error:
            raise settings.fault(name, str(error)) from None
    token = _token(settings)
    tls = _tls(settings, url)
    api = JsonApi(
        "Vault",
        url,
        lambda: {"x-vault-request": "true", "x-vault-token": token()},
        tls=tls,
        server_name="" if settings["skipVerify"] else settings["tlsServerName"],
    )
    return VaultSecrets(
        api,
        token,
        engine=settings["enginePath"],
        prefix=settings["vaultKVPrefix"] if settings["vaultKVUsePrefix"] else "",
        as_text=settings["vaultValueType"] == "text",
    )


def _token(settings: Settings) -> Callable[[], str]:
    given, path = settings["vaultToken"], settings["vaultTokenMountPath"]
    if bool(given) == bool(path):
        rule = "give either vaultToken or vaultTokenMountPath, and not both"
        raise settings.fault("vaultTokenMountPath" if path else "vaultToken", rule)
    if path:
        return lambda: read_token(Path(path))
    try:
        token = checked_token(given)
    except ValueError as error:
        raise settings.fault("vaultToken", str(error)) from None
    return lambda: token


def _tls(settings: Settings, url: str) -> ssl.SSLContext | None:
    """Dapr: `caPem` before `caPath` before `caCert`, else the authorities of the system."""
    if url.startswith("http:"):
        for name in ("caPem", "caPath", "caCert", "tlsServerName"):
            if settings[name]:
                raise settings.fault(name, "it has no effect on a vaultAddr with http:")
        return None
    context = ssl.create_default_context()
    if settings["skipVerify"]:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    source = next((name for name in ("caPem", "caPath", "caCert") if settings[name]), None)
    if source is None:
        return context
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        match source:
            case "caPem":
                context.load_verify_locations(cadata=settings[source])
            case "caCert":
                context.load_verify_locations(cafile=settings[source])
            case _:
                for file in sorted(path for path in Path(settings[source]).rglob("*") if path.is_file()):
                    context.load_verify_locations(cafile=file)
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        raise settings.fault(source, f"there are no certificates in it: {error.__class__.__name__}") from None
    if not context.get_ca_certs():
        raise settings.fault(source, "there are no certificates in it")
    return context


SPEC = ComponentSpec(
    type="secretstores.hashicorp.vault",
    title="HashiCorp Vault",
    about=(
        "The key/value engine, version 2, of a Vault. A secret has several values, or with `vaultValueType: text` one: "
        "the JSON text of all. The request metadata `version_id` asks for an earlier version. Tested against recorded "
        "answers of the documented API, not against a running Vault."
    ),
    open=_open,
    fields=(
        Field("vaultAddr", "Where it is, as `https://host:port`.", default="https://127.0.0.1:8200"),
        Field("vaultToken", "The token; this or vaultTokenMountPath.", secret=True),
        Field("vaultTokenMountPath", "The file with the token, which is read for each request."),
        Field("vaultKVPrefix", "The folder of the secrets within the engine.", default="dapr"),
        Field("vaultKVUsePrefix", "Whether there is such a folder.", Kind.BOOL, True),
        Field("enginePath", "Where the engine is mounted.", default="secret"),
        Field(
            "vaultValueType",
            "`map`: each value has its name; `text`: the secret is one text, under its own name.",
            Kind.CHOICE,
            "map",
            choices=("map", "text"),
        ),
        Field("caPem", "Certificates that the server's is checked against, as PEM text."),
        Field("caPath", "A folder with files of such certificates, if there is no caPem."),
        Field("caCert", "A file with such certificates, if there is neither caPem nor caPath."),
        Field("skipVerify", "Take any certificate of the server: for tests only.", Kind.BOOL, False),
        Field("tlsServerName", "The name that the server's certificate must have, if not that in vaultAddr."),
    ),
    needs="http",
    features=("MULTIPLE_KEY_VALUES_PER_SECRET",),
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: vault
spec:
  type: secretstores.hashicorp.vault
  version: v1
  metadata:
    - name: vaultAddr
      value: https://vault.example.com:8200
    - name: vaultTokenMountPath
      value: /var/run/secrets/vault/token
""",
)
