"""What the servers of Kafka are told so that each app can do what it needs, and nothing in another's name."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator

import msgspec

from mesh import addressing
from mesh.needs import AppNeeds, Needs
from mesh.ports import Peer

READ = ("Read", "Create", "DescribeConfigs")
WRITE = ("Write", "Create", "DescribeConfigs")
"""Topics are made by whoever comes first, and asked how large a record they take. `Describe` comes with each."""
READ_WRITE = ("Read", *WRITE)
OWN = (*READ_WRITE, "Delete")
"""`Delete` is also what forgetting old records needs, once there is a snapshot."""


class Right(msgspec.Struct, frozen=True, rename="camel"):
    """The rights of one user to one resource, in the words of Kafka's ACLs."""

    principal: str
    resource_type: str
    resource_name: str
    pattern_type: str
    operations: tuple[str, ...]


def rights(needs: Needs) -> list[Right]:
    """All that the sidecars of all apps need, and no more. Raises `InvalidTopic`, `NoResponder`."""
    return [right for app in needs.users for right in _of(app, needs)]


def commands(found: Iterable[Right], servers: str) -> Iterator[str]:
    """A line for `kafka-acls.sh` each."""
    for right in found:
        words = ["kafka-acls.sh", "--bootstrap-server", servers, "--add", "--allow-principal", right.principal]
        words += [word for operation in right.operations for word in ("--operation", operation)]
        words += [f"--{right.resource_type.lower()}", right.resource_name]
        words += ["--resource-pattern-type", right.pattern_type]
        yield shlex.join(words)


def _of(app: AppNeeds, needs: Needs) -> Iterator[Right]:
    principal = f"User:{app.signs_in_as}"
    granted: dict[str, set[str]] = defaultdict(set)
    for topic, operations in _topics(app, needs):
        granted[topic].update(operations)
    order = ("Read", "Write", "Create", "Delete", "DescribeConfigs")
    for topic, wanted in granted.items():
        yield Right(principal, "Topic", topic, "literal", tuple(one for one in order if one in wanted))
    groups = addressing.kafka_groups(needs.prefix, needs.namespace, app.app_id)
    yield Right(principal, "Group", groups, "prefixed", ("Read", "Delete"))


def _topics(app: AppNeeds, needs: Needs) -> Iterator[tuple[str, tuple[str, ...]]]:
    prefix, namespace, me = needs.prefix, needs.namespace, Peer(needs.namespace, app.app_id)
    for topic in app.published:
        yield addressing.kafka_event_topic(prefix, namespace, topic), WRITE
    for topic in app.subscribed:
        yield addressing.kafka_event_topic(prefix, namespace, topic), READ
    for scopes, operations in (
        (app.own_scopes, OWN),
        (app.shared_scopes, READ_WRITE),
        (map(addressing.alarms_scope, app.alarmed_scopes), OWN),
    ):
        for scope in scopes:
            yield addressing.kafka_state_topic(prefix, namespace, scope), operations
            yield addressing.kafka_snapshot_topic(prefix, namespace, scope), operations
    yield addressing.kafka_presence_topic(prefix, namespace), READ_WRITE
    yield addressing.kafka_replies_topic(prefix, me), READ
    for address, caller in needs.callers(app):
        yield addressing.kafka_invoke_topic(prefix, address, caller), ("Read",)
        yield addressing.kafka_replies_topic(prefix, caller), ("Write",)
    for address, target in needs.called(app):
        yield addressing.kafka_invoke_topic(prefix, address, me), WRITE
        if target.namespace != namespace:
            yield addressing.kafka_presence_topic(prefix, target.namespace), ("Read",)
