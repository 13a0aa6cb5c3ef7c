"""`secretstores.kubernetes`: the secrets of a Kubernetes cluster, read as the service account of the pod."""

from __future__ import annotations

import base64
import logging
import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from bindings.json_api import Answer, JsonApi, encoded_path, read_token
from mesh.components import ComponentSpec, Field, Setup
from mesh.errors import ConfigurationError, clip
from mesh.ports.stores import StoreError, StoreUnavailable

T = TypeVar("T")

log = logging.getLogger("meshwire.secrets")

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""What the kubelet gives each pod: `token`, which it keeps fresh, and `ca.crt`."""
NAMESPACE = "namespace"
"""Request metadata."""
MAX_SECRETS = 10_000
PAGE = 500


class _Metadata(msgspec.Struct):
    name: str


class _Secret(msgspec.Struct):
    metadata: _Metadata
    data: dict[str, str] | None = None


class _ListMetadata(msgspec.Struct):
    following: str = msgspec.field(name="continue", default="")


class _List(msgspec.Struct):
    items: list[_Secret]
    metadata: _ListMetadata = msgspec.field(default_factory=_ListMetadata)


_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class KubernetesSecrets:
    """`mesh.ports.stores.SecretStore`. A secret has the values of its `data`; what is no text in UTF-8 is left out."""

    def __init__(self, api: JsonApi, account: Path, namespace: str) -> None:
        """`namespace` is that of requests that name none; may be empty."""
        self._api = api
        self._account = account
        self._namespace = namespace

    async def start(self) -> None:
        read_token(self._account / "token")

    async def ping(self) -> None:
        answer = await self._api.get("/readyz")
        if answer.status != 200:
            raise _failure("its readiness", answer)

    async def close(self) -> None:
        await self._api.close()

    async def get(self, name: str, metadata: Mapping[str, str] = {}) -> dict[str, str]:
        """Names are those of Kubernetes: lower-case letters, digits, `-` and `.`."""
        if not _NAME.fullmatch(name):
            raise StoreError(f"secret {clip(name)} not found: Kubernetes has no such names")
        answer = await self._api.get(encoded_path(*self._secrets(metadata), name))
        if answer.status == 404:
            raise StoreError(f"secret {clip(name)} not found")
        return _values(_read(f"secret {clip(name)}", answer, _Secret))

    async def get_all(self, metadata: Mapping[str, str] = {}) -> dict[str, dict[str, str]]:
        path = encoded_path(*self._secrets(metadata))
        secrets: dict[str, dict[str, str]] = {}
        query = {"limit": str(PAGE)}
        while True:
            page = _read("the list of secrets", await self._api.get(path, query), _List)
            secrets |= {secret.metadata.name: _values(secret) for secret in page.items}
            if len(secrets) > MAX_SECRETS:
                raise StoreError(f"there are more than {MAX_SECRETS} secrets: read those that you need by their names")
            if not page.metadata.following:
                return secrets
            query = {"limit": str(PAGE), "continue": page.metadata.following}

    def _secrets(self, metadata: Mapping[str, str]) -> tuple[str, ...]:
        namespace = metadata.get(NAMESPACE) or self._namespace
        if not namespace:
            raise StoreError("there is no namespace: set defaultNamespace in the component, or NAMESPACE")
        if not _LABEL.fullmatch(namespace):
            raise StoreError(f"'{clip(namespace)}' is no name of a namespace")
        return ("api", "v1", "namespaces", namespace, "secrets")


def _read(what: str, answer: Answer, type_: type[T]) -> T:
    if answer.status != 200:
        raise _failure(what, answer)
    try:
        return msgspec.convert(answer.content, type_)
    except msgspec.ValidationError:
        raise StoreError(f"Kubernetes answered for {what} with something else") from None


def _values(secret: _Secret) -> dict[str, str]:
    values: dict[str, str] = {}
    for key, encoded in (secret.data or {}).items():
        try:
            values[key] = base64.b64decode(encoded, validate=True).decode()
        except ValueError:  # a binascii.Error, too
            name = secret.metadata.name
            log.warning("secret %s of Kubernetes: %s is left out, since it is no text in UTF-8", name, clip(key))
    return values


def _failure(what: str, answer: Answer) -> StoreError:
    """A `Status` of Kubernetes says why."""
    reason = answer.content.get("message") if isinstance(answer.content, dict) else None
    message = f"Kubernetes answered {answer.status} for {what}{f': {clip(reason)}' if reason else ''}"
    return StoreUnavailable(message) if answer.status == 429 or answer.status >= 500 else StoreError(message)


def _open(setup: Setup) -> KubernetesSecrets:
    settings = setup.settings
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise ConfigurationError(f"{settings.origin}: this is no pod of Kubernetes: KUBERNETES_SERVICE_HOST is not set")
    try:
        tls = ssl.create_default_context(cafile=ACCOUNT / "ca.crt")
    except OSError as error:
        raise ConfigurationError(f"{settings.origin}: {ACCOUNT / 'ca.crt'} cannot be used: {error}") from None
    url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    account = ACCOUNT
    api = JsonApi("Kubernetes", url, lambda: {"authorization": f"Bearer {read_token(account / 'token')}"}, tls=tls)
    return KubernetesSecrets(api, account, setup.namespace or settings["defaultNamespace"])


SPEC = ComponentSpec(
    type="secretstores.kubernetes",
    title="Kubernetes",
    about=(
        "The secrets of the cluster in which the sidecar runs, as far as the service account of its pod may read them. "
        "The namespace is that of the request metadata `namespace`, else that of the variable `NAMESPACE`, else "
        "`defaultNamespace`. Tested against recorded answers of the documented API, not against a running cluster."
    ),
    open=_open,
    fields=(
        Field("defaultNamespace", "The namespace, where neither the request nor `NAMESPACE` says one.", default=""),
        Field(
            "kubeconfigPath",
            "A file that says where a cluster is.",
            refused="only the service account of the pod is supported: remove the setting",
        ),
    ),
    needs="http",
    features=("MULTIPLE_KEY_VALUES_PER_SECRET",),
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: kubernetes
spec:
  type: secretstores.kubernetes
  version: v1
""",
)
