"""Secrets in the settings of components and endpoints, and which secrets the app may read itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from mesh.errors import ConfigurationError, clip
from mesh.ports.stores import SecretStore, StoreError
from mesh.resources import Component, SecretReference, Templates

if TYPE_CHECKING:
    from mesh.documents import Fields


async def fetch(references: Iterable[SecretReference], stores: Mapping[str, SecretStore]) -> dict[SecretReference, str]:
    """The values that the references name. Each secret is asked for once.

    Raises `ConfigurationError` for a store that there is not, a secret that it does not give, a key that the secret
    does not have, and one that is empty there (Dapr: logged, and the setting stays empty).
    """
    secrets: dict[tuple[str, str], Mapping[str, str]] = {}
    values: dict[SecretReference, str] = {}
    for reference in references:
        source = (reference.store, reference.name)
        if source not in secrets:
            secrets[source] = await _secret(reference, stores)
        secret = secrets[source]
        if reference.key not in secret:
            has = ", ".join(map(clip, sorted(secret))) or "nothing"
            raise _fault(reference, f"has no key '{clip(reference.key)}' (it has: {has})")
        if not secret[reference.key]:
            rule = f"is empty (key '{clip(reference.key)}'): set it, or take the reference out of the file"
            raise _fault(reference, rule)
        values[reference] = secret[reference.key]
    return values


async def resolve(component: Component, stores: Mapping[str, SecretStore], templates: Templates) -> Component:
    """The component with the secrets that it refers to, templates in them filled (Dapr). Raises as `fetch`."""
    if not component.references:
        return component
    secrets = await fetch(component.references.values(), stores)
    values: dict[str, str] = {}
    for key, reference in component.references.items():
        try:
            values[key] = templates.fill(secrets[reference])
        except ValueError as error:
            raise _fault(reference, str(error)) from None
    scoped = component.type.startswith("pubsub.") and any("{namespace}" in secret for secret in secrets.values())
    return replace(
        component,
        metadata=component.metadata.filled(values),
        namespace_scoped=component.namespace_scoped or scoped,
    )


async def _secret(reference: SecretReference, stores: Mapping[str, SecretStore]) -> Mapping[str, str]:
    store = stores.get(reference.store)
    if store is None:
        known = ", ".join(sorted(stores)) or "none"
        raise ConfigurationError(
            f"{reference.where}: secretKeyRef: there is no secret store '{clip(reference.store)}', which "
            f"auth.secretStore names (there is: {known})"
        )
    try:
        return await store.get(reference.name)
    except StoreError as error:
        raise _fault(reference, f"cannot be read: {error}") from error


def _fault(reference: SecretReference, rule: str) -> ConfigurationError:
    return ConfigurationError(
        f"{reference.where}: secretKeyRef: the secret '{clip(reference.name)}' of '{clip(reference.store)}' {rule}"
    )


class SecretScope(NamedTuple):
    """What the app may read of one store."""

    allowed: frozenset[str] = frozenset()
    denied: frozenset[str] = frozenset()
    allows_others: bool = True

    def permits(self, key: str) -> bool:
        """Dapr, but for a secret that is both allowed and denied, which Dapr gives."""
        return key not in self.denied and (key in self.allowed if self.allowed else self.allows_others)


_OPEN = SecretScope()


class SecretScopes:
    """Which secrets the app may read through the API, by store. Without any, all of them.

    They do not bind the sidecar itself, when it fills in `secretKeyRef` (Dapr).
    """

    __slots__ = ("_scopes",)

    def __init__(self, scopes: Mapping[str, SecretScope] = {}) -> None:
        self._scopes = scopes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretScopes) and self._scopes == other._scopes

    __hash__ = None  # type: ignore[assignment]

    def permits(self, store: str, key: str) -> bool:
        return self._scopes.get(store, _OPEN).permits(key)


def read_scopes(section: Fields) -> SecretScopes:
    """`secrets` of the Configuration. Raises `ConfigurationError`."""
    scopes: dict[str, SecretScope] = {}
    for entry in section.closed("scopes").entries("scopes"):
        fields = entry.closed("storeName", "defaultAccess", "allowedSecrets", "deniedSecrets")
        store, access = fields.text("storeName"), fields.text("defaultAccess").lower() or "allow"
        if not store:
            raise fields.fault("storeName", "a scope needs the name of its secret store")
        if store in scopes:
            raise fields.fault("storeName", f"'{clip(store)}' has a scope already")
        if access not in ("allow", "deny"):
            raise fields.fault("defaultAccess", f"must be allow or deny (got '{clip(access)}')")
        scopes[store] = SecretScope(
            frozenset(fields.texts("allowedSecrets")), frozenset(fields.texts("deniedSecrets")), access == "allow"
        )
    return SecretScopes(scopes)
