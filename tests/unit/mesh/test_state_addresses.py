"""Names of what is kept in tables: each key has one address, and no two share one."""

from __future__ import annotations

import pytest

from mesh import addressing
from mesh.ports.tables import InvalidKey

KEYS = [
    ("state", "statestore", "order-1"),
    ("state", "statestore", "a.b"),
    ("state", "statestore", "a", "b"),
    ("state", "statestore", "*"),
    ("state", "statestore", ">"),
    ("state", "statestore", " "),
    ("state", "statestore", "%"),
    ("state", "statestore", "%2E"),
    ("state", "statestore", "~"),
    ("state", "statestore", "šťáva 🍎"),
    ("lease", "a||b/c"),
]


def test_a_key_is_read_back_from_its_address() -> None:
    assert [addressing.parse_key_path(addressing.key_path(key)) for key in KEYS] == KEYS


@pytest.mark.parametrize("path", ["state.s.%78", "state.s.%2e", "state.s.a~", "state.s.é", "state.s.%", "state.s.%FF"])
def test_an_address_that_we_would_write_otherwise_is_of_no_key(path: str) -> None:
    """Else a key would have two records: a stranger's beside its own."""
    assert addressing.parse_key_path(path) is None


def test_no_two_keys_share_an_address() -> None:
    assert len({addressing.key_path(key) for key in KEYS}) == len(KEYS)


def test_an_address_is_safe_in_a_subject() -> None:
    for key in KEYS:
        path = addressing.key_path(key)
        assert path.isascii()
        assert path.isprintable()
        assert not set(path) & set(" *>")


@pytest.mark.parametrize("kind", [addressing.ALARM, addressing.DUE, addressing.CHECK])
def test_kinds_of_other_records_are_no_keys(kind: str) -> None:
    with pytest.raises(InvalidKey, match=kind):
        addressing.key_path((kind, "x"))
    assert addressing.parse_key_path(f"{kind}.x") is None


def test_the_longest_names_of_streams_fit() -> None:
    """NATS takes 255 characters."""
    name = "n" * 200
    assert len(addressing.history_stream("mesh", "n" * 40, name, ("state", name))) <= 255
    assert len({addressing.history_stream("mesh", "default", name, ("state", name + last)) for last in "ab"}) == 2


def test_names_of_streams_are_safe_and_short() -> None:
    scopes = ["", "shop", "a.b", "a*", "x" * 300, "x" * 301, "ž" * 128]
    names = {addressing.state_stream("mesh", "default", scope) for scope in scopes}
    assert "mesh-default-state-shop" in names
    assert len(names) == len(scopes)
    for name in names:
        assert len(name) <= 255
        assert not set(name) & set(" .*>/\\")


def test_a_scope_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidKey):
        addressing.state_stream("mesh", "default", "\ud800")
    with pytest.raises(InvalidKey):
        addressing.state_root("mesh", "default", "\ud800")
