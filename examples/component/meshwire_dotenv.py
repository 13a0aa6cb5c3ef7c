"""`secretstores.dotenv`: secrets from a `.env` file. A component of your own need not be longer."""

from collections.abc import Mapping
from pathlib import Path

from mesh.components import ComponentSpec, Field, Setup
from mesh.ports.stores import StoreError


class DotenvSecrets:
    """A `mesh.ports.stores.SecretStore`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._secrets: dict[str, str] = {}

    async def start(self) -> None:
        """Raises `StoreError` when the file cannot be used: it ends the start of the sidecar, with this text."""
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"{self._path} cannot be read: {error}") from error
        for line in lines:
            name, equals, value = line.strip().partition("=")
            if equals and not name.startswith("#"):
                self._secrets[name.strip()] = value.strip().strip("\"'")

    async def ping(self) -> None:
        """There is no server that could be away."""

    async def close(self) -> None:
        """There is nothing to let go of."""

    async def get(self, name: str, metadata: Mapping[str, str] = {}) -> dict[str, str]:
        if name not in self._secrets:
            raise StoreError(f"{self._path} has no {name}")
        return {name: self._secrets[name]}

    async def get_all(self, metadata: Mapping[str, str] = {}) -> dict[str, dict[str, str]]:
        return {name: {name: value} for name, value in self._secrets.items()}


def open_secrets(setup: Setup) -> DotenvSecrets:
    return DotenvSecrets(Path(setup.settings["path"]))


SPEC = ComponentSpec(
    type="secretstores.dotenv",
    title="A .env file",
    about="Lines of `NAME=value`, read at start.",
    open=open_secrets,
    fields=(
        Field("path", "The file; a relative path starts at the working directory of the sidecar.", default=".env"),
    ),
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: dotenv
spec:
  type: secretstores.dotenv
  version: v1
  metadata:
    - name: path
      value: shop.env
""",
)
