"""A configured state store: what all state components have in common, whatever keeps the items."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from mesh.components import ComponentSpec, Field, Kind, Setup
from mesh.ports.stores import StateFeature, StateStore
from mesh.state.encryption import Cipher

log = logging.getLogger("meshwire.state")

DEFAULT_COMPONENT = "statestore"
"""The component that is there without any file: the backbone's own, under the name that `dapr init` uses."""

SEPARATOR = "||"
"""Between the prefix and the key of an item, as it is stored."""

FIELDS: Sequence[Field] = (
    Field(
        "keyPrefix",
        "Whose items they are: `appid` (each app has its own), `name` (all apps that have a component of this name "
        "share them), `namespace` (as appid, apart for each namespace), `none`, or any other word, which apps share.",
        default="appid",
    ),
    Field(
        "primaryEncryptionKey",
        "Values are encrypted with this key: 32, 48 or 64 hexadecimal digits, by `secretKeyRef` only.",
        secret=True,
    ),
    Field(
        "secondaryEncryptionKey",
        "Values that were encrypted with this key can still be read: the primary key of before.",
        secret=True,
    ),
    Field("outboxPublishPubsub", "Transactions publish an event for each upsert, to this pub/sub component."),
    Field("outboxPublishTopic", "The topic of those events; needed with outboxPublishPubsub."),
    Field(
        "outboxPubsub",
        "The pub/sub component through which the events travel before the commit, where the store has no outbox of "
        "its own. The one of outboxPublishPubsub, if not given.",
    ),
    Field(
        "outboxDiscardWhenMissingState",
        "Drop an event whose transaction did not happen, instead of looking for it again and again.",
        kind=Kind.BOOL,
        default=False,
    ),
    Field("actorStateStore", "Whether actors keep their state here.", kind=Kind.BOOL, default=False),
)
"""The settings of every state component, beside its own."""


class OutboxSettings(msgspec.Struct, frozen=True, kw_only=True):
    pubsub: str
    topic: str
    internal_pubsub: str
    """Carries the events of a store without an outbox of its own until the transaction is seen to have happened."""
    discard_when_missing: bool = False


class StateComponent(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    store: StateStore
    type: str = "state.meshwire"
    version: str = "v1"
    key_prefix: str = ""
    """What stands before each key as it is stored, separator included; empty for `keyPrefix: none`."""
    cipher: Cipher | None = None
    outbox: OutboxSettings | None = None
    actor_state_store: bool = False

    @property
    def features(self) -> frozenset[StateFeature]:
        """Those that can be used: encrypted values cannot be searched."""
        features = self.store.features
        return features if self.cipher is None else features - {StateFeature.QUERY}

    def bare_key(self, stored: str) -> str:
        return stored[len(self.key_prefix) :]


def make(setup: Setup, spec: ComponentSpec, store: StateStore) -> StateComponent:
    """The component of `store`. Raises `ConfigurationError`, with the place in the file."""
    return StateComponent(
        name=setup.name,
        store=store,
        type=spec.type,
        version=setup.version,
        key_prefix=key_prefix(setup),
        cipher=_cipher(setup),
        outbox=_outbox(setup, store),
        actor_state_store=_hosts_actors(setup, store),
    )


def _hosts_actors(setup: Setup, store: StateStore) -> bool:
    settings = setup.settings
    hosts: bool = settings["actorStateStore"]
    if hosts and not store.features >= {StateFeature.FENCE, StateFeature.TRANSACTIONAL}:
        raise settings.fault(
            "actorStateStore",
            "this store cannot make a write depend on the lease of an actor, so two owners could both write: leave it "
            "out, and actors keep their state on the broker",
        )
    return hosts


def key_prefix(setup: Setup) -> str:
    """What stands before each key of the component. Raises `ConfigurationError`.

    Dapr: the word is lower-cased before it is used, also as a prefix.
    """
    match word := setup.settings["keyPrefix"].lower():
        case "appid":
            prefix = setup.app_id
        case "name":
            prefix = setup.name
        case "namespace":
            prefix = f"{setup.namespace}.{setup.app_id}" if setup.namespace else setup.app_id
        case "none":
            return ""
        case _:
            prefix = word
    if SEPARATOR in prefix:
        raise setup.settings.fault("keyPrefix", f"a prefix of keys cannot contain '{SEPARATOR}' (got '{prefix}')")
    return prefix + SEPARATOR


def _cipher(setup: Setup) -> Cipher | None:
    settings = setup.settings
    keys: list[tuple[str, str] | None] = []
    for name in ("primaryEncryptionKey", "secondaryEncryptionKey"):
        if not settings.present(name):
            keys.append(None)
            continue
        secret = settings.reference(name)
        if not secret:
            raise settings.fault(name, "a key must come from a secret store: use secretKeyRef and auth.secretStore")
        if not settings.given(name):  # else values would be written in the clear
            raise settings.fault(name, "the secret is empty")
        keys.append((secret, settings[name]))
    primary, secondary = keys
    if primary is None:
        if secondary is not None:
            raise settings.fault("secondaryEncryptionKey", "there is no primaryEncryptionKey to write with")
        return None
    faulty = "primaryEncryptionKey"
    try:
        Cipher(primary)
        faulty = "secondaryEncryptionKey"
        return Cipher(primary, secondary)
    except ValueError as error:
        raise settings.fault(faulty, str(error)) from None


def _outbox(setup: Setup, store: StateStore) -> OutboxSettings | None:
    settings = setup.settings
    pubsub, topic = settings["outboxPublishPubsub"], settings["outboxPublishTopic"]
    if not pubsub and not topic:
        for name in ("outboxPubsub", "outboxDiscardWhenMissingState"):
            if settings.given(name):
                raise settings.fault(name, "it has no effect without outboxPublishPubsub and outboxPublishTopic")
        return None
    for given, missing in (
        ("outboxPublishPubsub", "outboxPublishTopic"),
        ("outboxPublishTopic", "outboxPublishPubsub"),
    ):
        if not settings[missing]:
            raise settings.fault(given, f"an outbox needs {missing} too")
    if not store.features & {StateFeature.TRANSACTIONAL, StateFeature.OUTBOX}:
        raise settings.fault("outboxPublishTopic", "this store has no transactions, so it can have no outbox")
    if StateFeature.OUTBOX in store.features:
        for name in ("outboxPubsub", "outboxDiscardWhenMissingState"):
            if settings.given(name):
                log.warning(
                    "component %s: %s has no effect: this store keeps the events of a transaction with its items",
                    setup.name,
                    name,
                )
    return OutboxSettings(
        pubsub=pubsub,
        topic=topic,
        internal_pubsub=settings["outboxPubsub"] or pubsub,
        discard_when_missing=settings["outboxDiscardWhenMissingState"],
    )
