"""`secretstores.local.file`: secrets in a JSON file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mesh.components import ComponentSpec, Field, Kind, Setup
from mesh.errors import ConfigurationError, clip
from mesh.ports.stores import StoreError

MAX_FILE = 16 << 20
"""Longest file, in bytes."""


class FileSecrets:
    """`mesh.ports.stores.SecretStore`. The file is read when it starts (Dapr)."""

    def __init__(self, path: Path, separator: str, multi_valued: bool, where: str) -> None:
        """`where` is the place of the setting, for errors."""
        self._path = path
        self._separator = separator
        self._multi_valued = multi_valued
        self._where = where
        self._secrets: dict[str, dict[str, str]] = {}

    async def start(self) -> None:
        """Raises `ConfigurationError`, never with a piece of the file."""
        try:
            if self._path.stat().st_size > MAX_FILE:
                raise self._fault(f"is longer than {MAX_FILE >> 20} MiB")
            content = json.loads(self._path.read_bytes())
        except OSError as error:
            raise self._fault(f"cannot be read: {error.strerror}") from None
        except json.JSONDecodeError as error:
            raise self._fault(f"is no JSON: {error.msg} in line {error.lineno}") from None
        except (ValueError, RecursionError):
            raise self._fault("is no JSON in UTF-8") from None
        if not isinstance(content, dict):
            raise self._fault("must be a JSON object")
        try:
            self._secrets = dict(self._several(content) if self._multi_valued else self._single(content))
        except RecursionError:
            raise self._fault("is nested too deep") from None

    async def ping(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def get(self, name: str, metadata: Mapping[str, str] = {}) -> dict[str, str]:
        if name not in self._secrets:
            raise StoreError(f"secret {clip(name)} not found")
        return dict(self._secrets[name])

    async def get_all(self, metadata: Mapping[str, str] = {}) -> dict[str, dict[str, str]]:
        return {name: dict(values) for name, values in self._secrets.items()}

    def _single(self, content: dict[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
        for name, value in _leaves(content, "", self._separator):
            yield name, {name: value}

    def _several(self, content: dict[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
        """The first level names the secrets. Neither text nor object there is no secret (Dapr)."""
        for name, value in content.items():
            name = _legible(name)
            if isinstance(value, dict):
                yield name, dict(_leaves(value, "", self._separator))
            elif isinstance(value, str):
                yield name, {name: _legible(value)}

    def _fault(self, rule: str) -> ConfigurationError:
        return ConfigurationError(f"{self._where}: metadata.secretsFile: {self._path} {rule}")


def _leaves(value: Any, path: str, separator: str) -> Iterator[tuple[str, str]]:
    """Nested names joined, members of an array by their index (Dapr); what is no text as its JSON."""
    members: Any = ()
    if isinstance(value, dict):
        members = value.items()
    elif isinstance(value, list):
        members = enumerate(value)
    else:
        yield path, _legible(value) if isinstance(value, str) else json.dumps(value)
    for name, member in members:
        name = _legible(str(name))
        yield from _leaves(member, f"{path}{separator}{name}" if path else name, separator)


def _legible(text: str) -> str:
    """With U+FFFD for halves of surrogate pairs (Dapr), which are no text."""
    return text if text.isascii() else re.sub("[\ud800-\udfff]", "\ufffd", text)


def _open(setup: Setup) -> FileSecrets:
    settings = setup.settings
    return FileSecrets(
        Path(settings["secretsFile"]), settings["nestedSeparator"], settings["multiValued"], settings.origin
    )


SPEC = ComponentSpec(
    type="secretstores.local.file",
    title="JSON file",
    about=(
        'A JSON file, read at start. Nested names are joined: with `{"db": {"password": "…"}}` there is a secret '
        "`db:password`. With `multiValued` there is a secret `db` that has a value named `password`."
    ),
    open=_open,
    fields=(
        Field(
            "secretsFile", "The file; a relative path starts at the working directory of the sidecar.", required=True
        ),
        Field("nestedSeparator", "Stands between nested names.", default=":"),
        Field("multiValued", "Whether each name of the first level is one secret of several values.", Kind.BOOL, False),
    ),
    features=("MULTIPLE_KEY_VALUES_PER_SECRET",),
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: secrets
spec:
  type: secretstores.local.file
  version: v1
  metadata:
    - name: secretsFile
      value: /etc/shop/secrets.json
""",
)
