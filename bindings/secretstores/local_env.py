"""`secretstores.local.env`: environment variables of the sidecar as secrets."""

from __future__ import annotations

import os
from collections.abc import Mapping

from mesh.components import ComponentSpec, Field


class EnvironmentSecrets:
    """`mesh.ports.stores.SecretStore` over a mapping. `prefix` is put before each name.

    The sidecar's own variables are hidden (Dapr); its broker's address, which may hold a password, is one of them.
    """

    def __init__(self, environ: Mapping[str, str], prefix: str = "") -> None:
        self._environ = environ
        self._prefix = prefix

    async def start(self) -> None:
        pass

    async def ping(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def get(self, name: str, metadata: Mapping[str, str] = {}) -> dict[str, str]:
        """A variable that is not set is an empty secret (Dapr)."""
        variable = self._prefix + name
        return {name: "" if _hidden(variable) else _legible(self._environ.get(variable, ""))}

    async def get_all(self, metadata: Mapping[str, str] = {}) -> dict[str, dict[str, str]]:
        secrets: dict[str, dict[str, str]] = {}
        for variable, value in self._environ.items():
            name = _legible(variable.removeprefix(self._prefix))
            if name and variable.startswith(self._prefix) and not _hidden(variable):
                secrets[name] = {name: _legible(value)}
        return secrets


def _legible(text: str) -> str:
    """With U+FFFD for bytes that are no UTF-8 (Dapr): one such variable must not spoil the answer with all of them."""
    return text if text.isascii() else text.encode(errors="surrogateescape").decode(errors="replace")


def _hidden(variable: str) -> bool:
    upper = variable.upper()
    return upper == "APP_API_TOKEN" or upper.startswith(("DAPR_", "MESHWIRE_"))


SPEC = ComponentSpec(
    type="secretstores.local.env",
    title="Environment variables",
    about=(
        "The environment variables of the sidecar. Those of the sidecar itself (`DAPR_…`, `MESHWIRE_…` and "
        "`APP_API_TOKEN`) are hidden. A variable that is not set is an empty secret."
    ),
    open=lambda setup: EnvironmentSecrets(os.environ, setup.settings["prefix"]),
    fields=(Field("prefix", "Put before the name of each secret, to make the name of its variable.", default=""),),
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: environment
spec:
  type: secretstores.local.env
  version: v1
  metadata:
    - name: prefix
      value: SHOP_
""",
)
