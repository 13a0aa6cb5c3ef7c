from __future__ import annotations

from typing import Any

import pytest

from bindings.state.in_memory import SPEC
from brokers.memory_tables import MemoryTables
from mesh.clock import SystemClock
from mesh.components import Setup, read_settings
from mesh.errors import ConfigurationError
from mesh.ports.stores import StateFeature
from mesh.resources import Component, Metadata, SecretReference
from mesh.state.component import FIELDS, OutboxSettings, StateComponent, make
from tests.api.state_server import BrokenStore

KEY = "0" * 32
BOTH = ("primaryEncryptionKey", "secondaryEncryptionKey")


def made(
    *features: StateFeature, namespace: str = "", secrets: tuple[str, ...] = (), **metadata: str
) -> StateComponent:
    references = {name.lower(): SecretReference("vault", f"of-{name}", "", "s.yaml:7") for name in secrets}
    manifest = Component(
        name="store",
        type="state.in-memory",
        metadata=Metadata(metadata, dict.fromkeys(metadata, 7)),
        references=references,
        origin="s.yaml:1",
    )
    setup = Setup(
        name="store",
        version="v1",
        settings=read_settings(manifest, FIELDS),
        app_id="app1",
        namespace=namespace,
        clock=SystemClock(),
        tables=MemoryTables(),
    )
    return make(setup, SPEC, BrokenStore(*features or (StateFeature.TRANSACTIONAL, StateFeature.QUERY)))


@pytest.mark.parametrize(
    ("word", "namespace", "prefix"),
    [
        ("", "", "app1||"),
        ("appid", "ns", "app1||"),
        ("appID", "", "app1||"),
        ("name", "", "store||"),
        ("namespace", "ns", "ns.app1||"),
        ("namespace", "", "app1||"),
        ("none", "", ""),
        ("Shared", "", "shared||"),
    ],
)
def test_key_prefixes(word: str, namespace: str, prefix: str) -> None:
    component = made(namespace=namespace, keyPrefix=word)
    assert component.key_prefix == prefix
    assert component.bare_key(f"{prefix}a") == "a"


def test_settings_that_all_stores_have() -> None:
    plain = made()
    assert (plain.cipher, plain.outbox, plain.actor_state_store) == (None, None, False)
    component = made(outboxPublishPubsub="p", outboxPublishTopic="t")
    assert component.outbox == OutboxSettings(pubsub="p", topic="t", internal_pubsub="p")
    component = made(
        outboxPublishPubsub="p", outboxPublishTopic="t", outboxPubsub="q", outboxDiscardWhenMissingState="true"
    )
    assert component.outbox == OutboxSettings(pubsub="p", topic="t", internal_pubsub="q", discard_when_missing=True)


def test_encrypted_values_cannot_be_searched() -> None:
    assert StateFeature.QUERY in made().features
    component = made(secrets=BOTH, primaryEncryptionKey=KEY, secondaryEncryptionKey="1" * 32)
    assert component.features == {StateFeature.TRANSACTIONAL}
    assert component.cipher is not None
    assert component.cipher.encrypt(b"").endswith(b"||of-primaryEncryptionKey")


@pytest.mark.parametrize(
    ("metadata", "secrets", "message"),
    [
        ({"keyPrefix": "a||b"}, (), r"s\.yaml:7: metadata\.keyPrefix: .* cannot contain '\|\|'"),
        ({"primaryEncryptionKey": KEY}, (), "must come from a secret store"),
        ({"primaryEncryptionKey": ""}, (), "must come from a secret store"),
        ({"primaryEncryptionKey": ""}, ("primaryEncryptionKey",), "primaryEncryptionKey: the secret is empty"),
        ({"primaryEncryptionKey": KEY, "secondaryEncryptionKey": ""}, BOTH,
         "secondaryEncryptionKey: the secret is empty"),
        ({"primaryEncryptionKey": "short"}, ("primaryEncryptionKey",), "primaryEncryptionKey: the secret"),
        ({"secondaryEncryptionKey": KEY}, ("secondaryEncryptionKey",), "there is no primaryEncryptionKey"),
        ({"primaryEncryptionKey": KEY, "secondaryEncryptionKey": "x"}, BOTH,
         "secondaryEncryptionKey: the secret"),
        ({"outboxPublishPubsub": "p"}, (), "an outbox needs outboxPublishTopic too"),
        ({"outboxPublishTopic": "t"}, (), "an outbox needs outboxPublishPubsub too"),
        ({"outboxPubsub": "p"}, (), "no effect without"),
        ({"keyPrefx": "p"}, (), "did you mean 'keyPrefix'"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_obeyed(metadata: dict[str, Any], secrets: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        made(secrets=secrets, **metadata)
    assert KEY not in str(caught.value)


def test_only_a_store_that_can_check_a_lease_keeps_the_state_of_actors() -> None:
    able = {StateFeature.FENCE, StateFeature.TRANSACTIONAL}
    assert made(*able, actorStateStore="true").actor_state_store
    for missing in able:
        with pytest.raises(ConfigurationError, match=r"s\.yaml:.*actorStateStore.*the lease of an actor"):
            made(*{*able, StateFeature.QUERY} - {missing}, actorStateStore="true")


def test_an_outbox_needs_transactions() -> None:
    with pytest.raises(ConfigurationError, match="no transactions"):
        made(StateFeature.ETAG, outboxPublishPubsub="p", outboxPublishTopic="t")
