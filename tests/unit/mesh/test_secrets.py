from collections.abc import Mapping

import pytest

from mesh.errors import ConfigurationError
from mesh.ports.stores import StoreError, Unsupported
from mesh.resources import Component, Metadata, SecretReference, Templates
from mesh.secrets import fetch, resolve

TEMPLATES = Templates("app", "prod", None)


class Vault:
    """A secret store that counts what it is asked."""

    def __init__(self, **secrets: dict[str, str]) -> None:
        self.secrets = secrets
        self.asked: list[str] = []

    async def start(self) -> None: ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...

    async def get(self, name: str, metadata: Mapping[str, str] = {}) -> dict[str, str]:
        self.asked.append(name)
        if name not in self.secrets:
            raise StoreError(f"there is no secret {name}")
        return self.secrets[name]

    async def get_all(self, metadata: Mapping[str, str] = {}) -> dict[str, dict[str, str]]:
        raise Unsupported("not here")


def reference(name: str, key: str | None = None, store: str = "vault") -> SecretReference:
    return SecretReference(store, name, key or name, "f.yaml:7")


def component(type_: str = "state.redis", **references: SecretReference) -> Component:
    return Component(
        name="c",
        type=type_,
        metadata=Metadata({"host": "h", **dict.fromkeys(references, "")}),
        references={key.lower(): value for key, value in references.items()},
    )


async def test_settings_get_their_secrets() -> None:
    vault = Vault(db={"user": "u", "password": "p"}, token={"token": "t"})
    bare = component(User=reference("db", "user"), Pass=reference("db", "password"), token=reference("token"))
    resolved = await resolve(bare, {"vault": vault}, TEMPLATES)
    assert dict(resolved.metadata) == {"host": "h", "User": "u", "Pass": "p", "token": "t"}
    assert vault.asked == ["db", "token"]
    assert "p" not in repr(resolved.metadata).replace("Pass", "")


async def test_templates_in_secrets_are_filled() -> None:
    vault = Vault(a={"a": "x-{appID}"}, b={"b": "{namespace}"}, c={"c": "{podName}"})
    resolved = await resolve(component(k=reference("a")), {"vault": vault}, TEMPLATES)
    assert (resolved.metadata["k"], resolved.namespace_scoped) == ("x-app", False)
    bus = await resolve(component("pubsub.redis", k=reference("b")), {"vault": vault}, TEMPLATES)
    assert (bus.metadata["k"], bus.namespace_scoped) == ("prod.app", True)
    with pytest.raises(ConfigurationError, match="needs the environment variable POD_NAME"):
        await resolve(component(k=reference("c")), {"vault": vault}, TEMPLATES)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            reference("a", store="safe"),
            r"f\.yaml:7: secretKeyRef: there is no secret store 'safe', .*\(there is: vault\)",
        ),
        (reference("b"), r"f\.yaml:7: secretKeyRef: the secret 'b' of 'vault' cannot be read: there is no secret b"),
        (
            reference("a", "empty"),
            r"f\.yaml:7: secretKeyRef: the secret 'a' of 'vault' is empty \(key 'empty'\): set it",
        ),
        (reference("a", "c"), r"the secret 'a' of 'vault' has no key 'c' \(it has: empty, x, y\)"),
    ],
)
async def test_a_secret_that_is_not_there_is_no_empty_text(wanted: SecretReference, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as raised:
        await fetch([wanted], {"vault": Vault(a={"y": "secret", "x": "secret", "empty": ""})})
    assert "secret'" not in str(raised.value)
