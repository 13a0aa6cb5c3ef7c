from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import addressing
from mesh.addressing import InvalidTopic
from mesh.errors import MeshError
from mesh.ports import Group, NoResponder, Peer, Topic

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


def root(name: str, pubsub: str = "pubsub") -> str:
    return addressing.topic_root("mesh", "default", Topic(pubsub, name))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("orders", "mesh.default.event.pubsub.orders."),
        ("orders.eu.v1", "mesh.default.event.pubsub.orders.eu.v1."),
        ("a/b c", "mesh.default.event.pubsub.a%2Fb%20c."),
        ("a*b>c", "mesh.default.event.pubsub.a%2Ab%3Ec."),
        ("a..b.", "mesh.default.event.pubsub.a.%.b.%."),
        ("zoë~", "mesh.default.event.pubsub.zo%C3%AB%7E."),
        ("%41", "mesh.default.event.pubsub.%2541."),
        ("Nats-Rollup: all", "mesh.default.event.pubsub.Nats-Rollup%3A%20all."),
    ],
)
def test_topic_names_become_safe_subjects(name: str, expected: str) -> None:
    assert root(name) == expected


@pytest.mark.parametrize(
    "name", ["", "a\r\nb", "a\0", "a\x7fb", "\ud800", "a\u2028b", "*", ">", "orders.*", "a.>.b", "ü" * 129, "x" * 257]
)
def test_impossible_topics_are_refused(name: str) -> None:
    with pytest.raises(InvalidTopic):
        addressing.check_topic(name)


topics = st.text(max_size=40).filter(bool)


@given(topics, topics)
def test_two_topics_never_share_a_subject(one: str, other: str) -> None:
    try:
        roots = root(one), root(other)
    except InvalidTopic:
        return
    assert (roots[0] == roots[1]) == (one == other)
    assert all(text.isascii() and not set(text) & set(" *>\t\r\n") and ".." not in text for text in roots)


def test_a_component_name_cannot_reach_into_the_topic() -> None:
    assert root("c", pubsub="a.b") != root("b.c", pubsub="a")


@pytest.mark.parametrize(("key", "token"), [(None, "u"), ("", "5"), ("a", "12"), ("foobar", "8")])
def test_partition_is_fnv1a_modulo_16(key: str | None, token: str) -> None:
    # 32-bit FNV-1a: '' is 811c9dc5, 'a' e40c292c, 'foobar' bf9cf968 (the reference vectors).
    assert addressing.partition_token(key) == token


def test_keyed_and_unkeyed_filters_cover_every_partition_once() -> None:
    filters = addressing.unkeyed_filter("t.") + addressing.keyed_filter("t.")
    assert len(set(filters)) == len(filters) == addressing.PARTITIONS + 1
    assert "t." + addressing.partition_token("some key") in filters


def test_durable_names_are_valid_short_and_distinct() -> None:
    groups = [
        Group("app", Topic("pubsub", "a.b")),
        Group("app", Topic("pubsub", "a-b")),
        Group("app_pubsub", Topic("a", "b")),
        Group("app", Topic("pubsub_a", "b")),
        Group("a" * 64, Topic("p" * 200, "ü" * 128)),
    ]
    names = {addressing.durable(group, lane) for group in groups for lane in ("u", "k")}
    assert len(names) == 2 * len(groups)
    assert all(len(name) <= 160 and not set(name) & set(" .*>/\\") for name in names)


def test_identity_keeps_source_and_id_apart() -> None:
    assert addressing.identity("/a", "b") != addressing.identity("/", "ab")
    assert addressing.identity("1:", "x") != addressing.identity("1", ":x")


def test_the_same_event_in_two_topics_is_stored_twice() -> None:
    assert addressing.stored_once(root("a"), "id") != addressing.stored_once(root("b"), "id")


ME = Peer("home", "shop")


@pytest.mark.parametrize(
    ("caller", "expected"),
    [
        (ME, "shop"),
        (Peer("abroad", "shop"), "shop@abroad"),
        (Peer("home", "shop@abroad"), "shop%40abroad"),
        (Peer("home", "a.b >"), "a%2Eb%20%3E"),
    ],
)
def test_a_caller_is_one_token_that_tells_it_from_its_namesakes(caller: Peer, expected: str) -> None:
    assert addressing.caller_token(caller, "home") == expected
    assert addressing.parse_caller(expected, "home") == caller


@given(st.builds(Peer, names, names), names)
def test_every_caller_is_known_by_its_token(caller: Peer, namespace: str) -> None:
    token = addressing.caller_token(caller, namespace)
    assert addressing.parse_caller(token, namespace) == caller
    assert not set(token) & set(".*> \t\r\n")


@pytest.mark.parametrize("token", ["", "%61", "shop@home", "shop@", "@", "a%2eb", "%ff", "a@b@c", "%"])
def test_a_caller_has_no_second_token(token: str) -> None:
    with pytest.raises(MeshError):
        addressing.parse_caller(token, "home")


def test_the_address_of_a_call() -> None:
    assert addressing.invocation_root("mesh", Peer("home", "stock")) == "mesh.home.invoke.stock."
    assert addressing.invocation_root("mesh", Peer("a.*", ">")) == "mesh.a%2E%2A.invoke.%3E."


@pytest.mark.parametrize("name", ["", "x" * 129, "\ud800"])
def test_nobody_has_a_name_that_no_app_can_have(name: str) -> None:
    for target in (Peer("home", name), Peer(name, "stock")):
        with pytest.raises(NoResponder):
            addressing.invocation_root("mesh", target)
