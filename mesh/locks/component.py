"""A configured lock store: what all lock components have in common, whatever keeps the locks."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from mesh.components import ComponentSpec, Field, Setup
from mesh.ports.stores import LockStore

DEFAULT_COMPONENT = "lockstore"
"""The component that is there without any file."""
SEPARATOR = "||"
LOCK = "lock" + SEPARATOR
"""What every resource begins with (Dapr), so that locks and state can be kept in one Redis."""

FIELDS: Sequence[Field] = (
    Field(
        "keyPrefix",
        "Among whom a lock is exclusive: `appid` (the replicas of one app), `name` (all apps that have a component of "
        "this name), `none` (all that use the store), or any other word, for apps that have the same one.",
        default="appid",
    ),
)
"""The settings of every lock component, beside its own."""


class LockComponent(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    store: LockStore
    prefix: str
    """What stands before the id of a resource, `lock||` and separators included."""


def make(setup: Setup, spec: ComponentSpec, store: LockStore) -> LockComponent:
    """The component of `store`. Raises `ConfigurationError`, with the place in the file."""
    return LockComponent(name=setup.name, store=store, prefix=prefix(setup))


def prefix(setup: Setup) -> str:
    """What stands before the id of each resource. Raises `ConfigurationError`.

    Dapr: the word is lower-cased before it is used, also as a prefix.
    """
    match word := setup.settings["keyPrefix"].lower():
        case "appid":
            owner = setup.app_id
        case "name":
            owner = setup.name
        case "none":
            return LOCK
        case _:
            owner = word
    if SEPARATOR in owner:
        raise setup.settings.fault("keyPrefix", f"a prefix of keys cannot contain '{SEPARATOR}' (got '{owner}')")
    return f"{LOCK}{owner}{SEPARATOR}"
