"""Every name that Meshwire gives to something on a broker: one module, one wire protocol.

The names are public and are stored with the data; `docs/protocol.md` explains them to outsiders and
`docs/adr/0001-events-on-nats.md` says why they are as they are. Change them only with a new ADR.

An event's address is `<prefix>.<namespace>.event.<pubsub>.<topic…>.<partition>`. Dots of a topic separate
tokens; every other character outside `A-Z a-z 0-9 _ -` is percent-encoded, so that any topic name is safe in
a subject and no two names share one.

A keyed record's address is `<prefix>.<namespace>.state.<scope>.<kind>.<further parts of the key…>`, each part one token
(docs/adr/0006-state-on-nats.md).

A call's address is `<prefix>.<namespace>.invoke.<target>.<caller>`, where `caller` is `<app>`, or `<app>@<namespace>`
for an app of another namespace (docs/adr/0004-invocation-on-nats.md); `.at.<instance>` follows in a call to one
instance of the target.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import blake2b
from urllib.parse import quote, unquote
from zlib import crc32

from mesh.errors import MeshError, clip
from mesh.ports import Group, NoResponder, Peer, Topic
from mesh.ports.tables import InvalidKey, Key

DEFAULT_PREFIX = "mesh"
DEFAULT_NAMESPACE = "default"

PARTITIONS = 16
"""Number of partitions that keyed events are spread over. Part of the stored addresses: it never changes."""

UNKEYED = "u"
"""The partition token of an event without a key."""

MAX_TOPIC_BYTES = 256
"""Longest topic name, in UTF-8 bytes: percent-encoded it still fits a NATS control line (4,096 bytes)."""

_UNSAFE_IN_TOPIC = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")

_is_plain = re.compile(r"[A-Za-z0-9_-]+").fullmatch
_is_plain_path = re.compile(r"[A-Za-z0-9_.-]+").fullmatch
"""Most names are tokens as they are, and quoting them costs nine times as much as finding that out."""


class InvalidTopic(MeshError):
    """A topic name that can never be published or subscribed to."""


def check_topic(name: str) -> None:
    """Raise `InvalidTopic` unless `name` can name one topic."""
    if not name:
        raise InvalidTopic("the topic name is empty")
    if len(name) > MAX_TOPIC_BYTES or len(name.encode("utf-8", "surrogatepass")) > MAX_TOPIC_BYTES:
        raise InvalidTopic(f"the topic name '{clip(name)}' is longer than {MAX_TOPIC_BYTES} bytes of UTF-8")
    if _UNSAFE_IN_TOPIC.search(name):
        raise InvalidTopic(f"the topic name '{clip(name)}' has control characters or is no valid Unicode text")
    if is_pattern(name):
        raise InvalidTopic(
            f"the topic name '{clip(name)}' has a wildcard ('*' or '>' between dots); name one topic, without wildcards"
        )


def is_pattern(name: str) -> bool:
    """Whether a topic name has a wildcard: `*` or `>` alone between dots."""
    return ("*" in name or ">" in name) and not {"*", ">"}.isdisjoint(name.split("."))


def check_pattern(name: str) -> None:
    """Raise `InvalidTopic` unless `name` can name many topics: `*` is one part between dots, `>` at the end one or
    more."""
    *parts, last = name.split(".")
    if ">" in parts:
        raise InvalidTopic(f"the topic name '{clip(name)}' has a '>' that is not at its end")
    check_topic(".".join("-" if part in ("*", ">") else part for part in (*parts, last)))


def covers(pattern: str, name: str) -> bool:
    """Whether a topic name is among those that `pattern` names."""
    wanted, parts = pattern.split("."), name.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        parts = parts[: len(wanted)] if len(parts) > len(wanted) else []
    return len(wanted) == len(parts) and all(one in ("*", part) for one, part in zip(wanted, parts, strict=True))


def token(text: str) -> str:
    """`text` as one subject token. Injective; an empty text is `%`."""
    if _is_plain(text):
        return text
    return quote(text, safe="").replace(".", "%2E").replace("~", "%7E") or "%"


def _fnv1a(text: str) -> int:
    """FNV-1a, 32 bits: what NATS' own `partition()` subject mapping computes."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


def partition_token(key: str | None) -> str:
    return UNKEYED if key is None else str(_fnv1a(key) % PARTITIONS)


def event_stream(prefix: str, namespace: str) -> str:
    """Name of the NATS stream that holds all events of a namespace."""
    return f"{prefix}-{namespace}-events"


def event_subjects(prefix: str, namespace: str) -> str:
    """The subjects of that stream."""
    return f"{prefix}.{namespace}.event.>"


@lru_cache(maxsize=4096)
def topic_root(prefix: str, namespace: str, topic: Topic) -> str:
    """An event's address without its last token, dot included. Raises `InvalidTopic`."""
    check_topic(topic.name)
    name = ".".join(map(token, topic.name.split(".")))
    return f"{prefix}.{namespace}.event.{token(topic.pubsub)}.{name}."


def pattern_root(prefix: str, namespace: str, topic: Topic) -> str:
    """As `topic_root`, of a topic that may have wildcards: `*` stays, and `>` at the end is left out.

    Raises `InvalidTopic`.
    """
    check_pattern(topic.name)
    parts = topic.name.split(".")
    if parts[-1] == ">":
        parts.pop()
    name = "".join(f"{part if part == '*' else token(part)}." for part in parts)
    return f"{prefix}.{namespace}.event.{token(topic.pubsub)}.{name}"


def topic_name(prefix: str, namespace: str, subject: str) -> str:
    """The name of the topic that an event with this subject is published to."""
    tokens = subject.split(".")[(f"{prefix}.{namespace}.event.").count(".") + 1 : -1]
    return ".".join("" if part == "%" else unquote(part) for part in tokens)


def deep_filter(root: str) -> str:
    """All events of a pattern that ends in `>`, with this root. The `*` is the part that must follow: without it, what
    precedes the `>` would be a topic of its own, whose partitions look like parts."""
    return f"{root}*.>"


def unkeyed_filter(root: str) -> list[str]:
    return [root + UNKEYED]


def keyed_filter(root: str) -> list[str]:
    return [f"{root}{partition}" for partition in range(PARTITIONS)]


def durable(group: Group, lane: str) -> str:
    """Name of the durable consumer for one lane of a group, within its namespace's stream.

    Readable at the front for whoever lists consumers; the digest at the end tells apart what the readable part
    cuts or cannot show.
    """
    identity = "\0".join((group.app_id, group.topic.pubsub, group.topic.name, *filter(None, (group.name,))))
    digest = blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", f"{group.app_id}_{group.topic.pubsub}_{group.topic.name}")
    return f"{readable[:120]}_{digest}_{lane}"


def identity(source: str, event_id: str) -> str:
    """What identifies an event that its producer named: the pair, unambiguously (CloudEvents 1.0.2, `id`)."""
    return f"{len(source)}:{source}{event_id}"


def stored_once(root: str, dedupe_id: str) -> str:
    """The id under which a broker knows an event within a topic, for its own dropping of repeats.

    The topic is part of it: NATS drops a repeated id for the whole stream, whatever the subject.
    """
    return blake2b(f"{root}\0{dedupe_id}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


ONLY_FOR = "meshwire-for"
"""The header of an event that is for one app alone: its `token`. The sidecars of all others let it pass."""
REPLAYED = "meshwire-replay"
"""The header that tells an app which replay hands it an event."""
REDRIVEN = "meshwireredrive"
"""The extension attribute, and the header, that name the run which sent a dead letter again."""


def dead_letters_scope(app_id: str) -> str:
    """The scope of the dead letters of an app: `("dead", <pub/sub component>, <topic>, <position>)`, and the further
    parts of large ones."""
    return f"dead-letters@{app_id}"


def runs_scope(app_id: str) -> str:
    """The scope of what the sidecars of an app do together: `("run", <kind>, <id>)`."""
    return f"runs@{app_id}"


JOURNAL_SCOPE = "@journal"
"""The scope in which the sidecars of a namespace ask each other for what they remember of an event. No app and no
component has such a name."""


STATE_SET = "io.meshwire.state.set.v1"
STATE_DELETED = "io.meshwire.state.deleted.v1"
STATE_CHECKED = "io.meshwire.state.checked.v1"
STATE_CHANGED = "io.meshwire.state.changed.v1"
STATE_HISTORY = "io.meshwire.state.history.v1"
STATE_SNAPSHOT = "io.meshwire.state.snapshot.v1"
"""The types of the CloudEvents that the records of a table are."""

ALARM, DUE, CHECK = "alarm", "due", "check"
"""Kinds of record that are no entries of a table: alarms that are set, those that have become due, and the one that
carries a precondition for which a commit has no other message. No key may begin with them."""

MAX_STATE_SUBJECT = 3600
"""Longest address of a record, in bytes: behind that of a direct get, it still fits a NATS control line (4,096)."""

_MAX_READABLE = 80
"""Characters of a name within a stream's that are kept as they are; NATS takes 255 in all, and there may be two."""


def _stream_part(text: str) -> str:
    """`text` as part of a stream's name. Injective but for hash collisions: a long one is cut, and ends in a digest."""
    name = token(text)
    if len(name) <= _MAX_READABLE:
        return name
    return f"{name[:_MAX_READABLE]}~{blake2b(text.encode(), digest_size=8).hexdigest()}"


def state_stream(prefix: str, namespace: str, scope: str) -> str:
    """Name of the NATS stream that holds all records of a scope. Raises `InvalidKey`."""
    try:
        return f"{prefix}-{namespace}-state-{_stream_part(scope)}"
    except UnicodeEncodeError:
        raise InvalidKey(f"the scope '{clip(scope)}' is no valid Unicode text") from None


def history_stream(prefix: str, namespace: str, scope: str, key_prefix: Key) -> str:
    """Name of the NATS stream that holds the earlier values of all keys that begin with `key_prefix`."""
    within = _stream_part("/".join(map(token, key_prefix)))
    return f"{prefix}-{namespace}-history-{_stream_part(scope)}-{within}"


def state_root(prefix: str, namespace: str, scope: str) -> str:
    """The address of all records of a scope, dot included. Raises `InvalidKey`."""
    try:
        return f"{prefix}.{namespace}.state.{token(scope)}."
    except UnicodeEncodeError:
        raise InvalidKey(f"the scope '{clip(scope)}' is no valid Unicode text") from None


def key_path(key: Key) -> str:
    """`key` as the end of an address: one token for each part. Raises `InvalidKey` for one that is kept for others."""
    if key and key[0] in (ALARM, DUE, CHECK):
        raise InvalidKey(f"no key may begin with '{key[0]}'")
    return ".".join(map(token, key))


def parse_key_path(path: str) -> Key | None:
    """The key that `key_path` shows as `path`; `None` when it shows none so: the address is that of something else than
    an entry, or is written in another way than ours (`%78` for `x`)."""
    plain = _is_plain_path(path)
    key = tuple(path.split(".")) if plain else tuple(map(unquote, path.split(".")))
    if key[0] in (ALARM, DUE, CHECK):
        return None
    return key if plain or key_path(key) == path else None


SCHEDULE_FIRED = "io.meshwire.schedule.fired.v1"
SCHEDULE_CANCELLED = "io.meshwire.schedule.cancelled.v1"
"""The types of the CloudEvents that an alarm is, and the record that one was cancelled."""

_SET = "set"


def alarm_path(key: Key) -> str:
    """`key` as the end of the addresses of its alarm. Any key of valid Unicode will do."""
    return ".".join(map(token, key))


def alarm_subject(root: str, path: str) -> str:
    """The address of the alarm with this `alarm_path` in the scope with this `state_root`. Raises `InvalidKey`."""
    subject = f"{root}{ALARM}.{_SET}.{path}"
    if len(subject) > MAX_STATE_SUBJECT:
        raise InvalidKey(f"the key '{clip(unquote(path))}' makes an address longer than {MAX_STATE_SUBJECT} bytes")
    return subject


def due_subject(root: str, path: str) -> str:
    """The address to which the broker moves the alarm when it has become due."""
    return f"{root}{ALARM}.{DUE}.{path}"


def alarm_filter(root: str, path: str) -> str:
    """The addresses of the alarm, set or due."""
    return f"{root}{ALARM}.*.{path}"


def parse_alarm(root: str, subject: str) -> tuple[Key, bool] | None:
    """The key of an alarm and whether it has become due; `None` for the address of anything else."""
    if subject.startswith(f"{root}{ALARM}."):
        step, *path = subject[len(root) + len(ALARM) + 1 :].split(".")
        if step in (_SET, DUE) and len(path) > 1:
            return tuple(map(unquote, path)), step == DUE
    return None


def alarm_durable(kind: str) -> str:
    """Name of the durable consumer of the alarms of a kind that are due, within the stream of their scope."""
    return f"{ALARM}_{_stream_part(kind)}"


def alarms_scope(scope: str) -> str:
    """The scope of the entries that the alarms of `scope` are, on a broker that holds no messages until they are due:
    `("at", <kind>, <name…>)`."""
    return f"alarms@{scope}"


def alarm_group(kind: str) -> str:
    """The group, in that scope, of the members that serve the alarms of a kind."""
    return alarm_durable(kind)


INVOCATION_REQUEST = "io.meshwire.invocation.request.v1"
INVOCATION_RESPONSE = "io.meshwire.invocation.response.v1"
"""The types of the CloudEvents that a call and its answer are."""

MAX_NAME = 128
"""Longest name of an app or a namespace, in characters: percent-encoded, three of them fit a NATS control line."""

CANCEL = "cancel"
"""The token after a call's address under which every instance of the target hears that the caller has gone."""

INSTANCE = "at"
"""The token after the caller's in the address of a call to one instance, whose name follows."""


def invocation_root(prefix: str, target: Peer) -> str:
    """The address of all calls to `target`, without its last token, dot included.

    Raises `NoResponder` for a name that no app can have.
    """
    if not (target.app_id and target.namespace) or max(map(len, target)) > MAX_NAME:
        raise NoResponder(f"no app can be called '{clip(target.app_id)}' in a namespace '{clip(target.namespace)}'")
    try:
        return f"{prefix}.{token(target.namespace)}.invoke.{token(target.app_id)}."
    except UnicodeEncodeError:
        raise NoResponder(f"the name '{clip(target.app_id)}' is no valid Unicode text") from None


def inbox(app_id: str) -> str:
    """What the addresses begin with under which an app takes answers."""
    return f"_INBOX.{token(app_id)}"


def caller_token(caller: Peer, namespace: str) -> str:
    """How `caller` is shown in the address of a call to an app of `namespace`.

    `@` is in no other token, so that a broker's permissions can tell an app from its namesake elsewhere.
    """
    name = token(caller.app_id)
    return name if caller.namespace == namespace else f"{name}@{token(caller.namespace)}"


def instance_token(instance: str) -> str:
    """What follows the caller in the address of a call to one instance of its target, dot included; nothing for a call
    to any. Raises `NoResponder` for a name that no instance can have."""
    if not instance:
        return ""
    if len(instance) > MAX_NAME:
        raise NoResponder(f"no instance can be called '{clip(instance)}'")
    try:
        return f".{INSTANCE}.{token(instance)}"
    except UnicodeEncodeError:
        raise NoResponder(f"the name '{clip(instance)}' is no valid Unicode text") from None


@lru_cache(maxsize=4096)
def parse_caller(text: str, namespace: str) -> Peer:
    """The caller that `caller_token` shows as `text` to an app of `namespace`. Raises `MeshError` for any text that
    it does not write, so that each caller has one token and one permission."""
    name, _, home = text.partition("@")
    caller = Peer(unquote(home) if home else namespace, unquote(name))
    if caller_token(caller, namespace) != text:
        raise MeshError(f"'{clip(text)}' names no caller")
    return caller


BINDING_TRIGGERED = "io.meshwire.binding.triggered.v1"
"""The type of the CloudEvent that an item of an input binding becomes."""

BINDINGS = "$bindings"
"""Stands in the place of a pub/sub component in the addresses of items. No component can have this name."""


def bindings_prefix(app_id: str) -> str:
    """What stands before the name of each input binding of an app in its topic."""
    return f"{token(app_id)}."  # a token has no dots, so no two pairs share a topic


def binding_topic(app_id: str, binding: str) -> Topic:
    """Where the items of an input binding of an app are stored. Raises `InvalidTopic`."""
    topic = Topic(BINDINGS, bindings_prefix(app_id) + binding)
    check_topic(topic.name)
    return topic


BINDING_REQUEST = "io.meshwire.binding.request.v1"
BINDING_RESPONSE = "io.meshwire.binding.response.v1"
"""The types of the CloudEvents that a call of an output binding which another app hosts, and its answer, are."""

_HOST = f"{BINDINGS}."


def bindings_host(host: Peer) -> Peer:
    """The name under which the sidecars of an app answer calls of the output bindings that it hosts. No app can have
    it, so no invocation gets there."""
    return Peer(host.namespace, _HOST + host.app_id)


ACTOR_REQUEST = "io.meshwire.actor.request.v1"
ACTOR_RESPONSE = "io.meshwire.actor.response.v1"
"""The types of the CloudEvents that a call of an actor, and its answer, are."""

ACTOR_PARTITIONS = 64
"""Number of partitions that the actors of a type are spread over. Part of the stored leases: it never changes."""

_ACTORS_HOST = "$actors."

ACTORS_SCOPE = "@actors"
"""The scope in which the sidecars of a namespace tell each other which actors they own: `("host", <type>,
<instance>)`. No app and no component has such a name."""


def actors_host(host: Peer) -> Peer:
    """The name under which the sidecars of an app answer calls of the actors that they own. No app can have it."""
    return Peer(host.namespace, _ACTORS_HOST + host.app_id)


def actors_scope(actor_type: str) -> str:
    """The scope of all that there is of a type of actors: leases, state, reminders; whichever apps host it."""
    return f"actors@{token(actor_type)}"


def actor_partition(actor_id: str) -> int:
    """CRC-32 (as of zip files) of the id's UTF-8, modulo the number of partitions."""
    return crc32(actor_id.encode()) % ACTOR_PARTITIONS


def call_types(target: str) -> tuple[str, str]:
    """The types of the CloudEvents that a call of this name, and its answer, are."""
    if target.startswith(_HOST):
        return BINDING_REQUEST, BINDING_RESPONSE
    if target.startswith(_ACTORS_HOST):
        return ACTOR_REQUEST, ACTOR_RESPONSE
    return INVOCATION_REQUEST, INVOCATION_RESPONSE


def bindings_scope(app_id: str) -> str:
    """The scope of what the input bindings of an app keep: the leases of their sources, the schedules of cron."""
    return f"bindings@{app_id}"


JOBS = "$jobs"
"""Stands in the place of a pub/sub component where ticks of jobs are told of. No component can have this name."""


# Kafka: docs/adr/0012-kafka.md says why these names are as they are

MAX_KAFKA_NAME = 249
"""Longest name of a topic on Kafka, in characters."""
_kafka_escape = re.compile("_(_|[0-9A-F]{2})")


@lru_cache(maxsize=4096)
def kafka_token(text: str) -> str:
    """`text` as a part of a Kafka topic's name, without dots. Injective.

    Kafka knows letters, digits, `.`, `_` and `-`, and refuses a name that differs from another by a dot for an
    underscore only. So an underscore is written twice, any other character as `_` and two hexadecimal digits for each
    byte.
    """
    plain = "__".join(quote(part, safe="").replace(".", "%2E").replace("~", "%7E") for part in text.split("_"))
    return plain.replace("%", "_") or "_"


def _kafka_name(*parts: str) -> str:
    name = ".".join(map(kafka_token, parts))
    if len(name) <= MAX_KAFKA_NAME:
        return name
    # no character is written as `_z`
    return f"{name[: MAX_KAFKA_NAME - 34]}_z{blake2b(name.encode(), digest_size=16).hexdigest()}"


@lru_cache(maxsize=4096)
def kafka_event_topic(prefix: str, namespace: str, topic: Topic) -> str:
    """The Kafka topic of the events of `topic`. Raises `InvalidTopic`."""
    check_topic(topic.name)
    return _kafka_name(prefix, namespace, "event", topic.pubsub, *topic.name.split("."))


@lru_cache(maxsize=4096)
def kafka_topic_of_events(prefix: str, namespace: str, name: str) -> Topic | None:
    """The reverse of `kafka_event_topic`; `None` for a name that it does not give, and for one that it shortened."""
    root = f"{kafka_token(prefix)}.{kafka_token(namespace)}.event."
    if not name.startswith(root):
        return None
    try:
        pubsub, *parts = map(_plain, name[len(root) :].split("."))
    except ValueError:
        return None
    return Topic(pubsub, ".".join(parts))


def _plain(token: str) -> str:
    """The text of a `kafka_token`. Raises `ValueError`."""
    if token == "_":  # noqa: S105 - no password
        return ""
    pieces = _kafka_escape.split(token)
    if any("_" in plain for plain in pieces[::2]):
        raise ValueError(token)
    pieces[1::2] = ("_" if code == "_" else f"%{code}" for code in pieces[1::2])
    return unquote("".join(pieces), errors="strict")


def kafka_group(prefix: str, namespace: str, group: Group) -> str:
    """The id of the consumer group."""
    topic = ".".join(map(token, (group.topic.pubsub, *group.topic.name.split("."))))
    return kafka_groups(prefix, namespace, group.app_id) + topic + (f"#{token(group.name)}" if group.name else "")


def kafka_groups(prefix: str, namespace: str, app_id: str) -> str:
    """What the ids of all groups of an app begin with."""
    return f"{token(prefix)}.{token(namespace)}.{token(app_id)}."


def kafka_state_topic(prefix: str, namespace: str, scope: str) -> str:
    """The log of all changes to the table of a scope; one partition."""
    return _kafka_name(prefix, namespace, "state", scope)


def kafka_snapshot_topic(prefix: str, namespace: str, scope: str) -> str:
    """What the table of a scope had at some offset of its log; one partition."""
    return _kafka_name(prefix, namespace, "snapshot", scope)


def kafka_invoke_topic(prefix: str, target: Peer, caller: Peer | None = None) -> str:
    """Calls to an app: of anybody, or those that `caller` alone may send (the broker sees to that).

    Raises `NoResponder` for a name that no app can have.
    """
    invocation_root(prefix, target)
    by = () if caller is None else (caller_token(caller, target.namespace),)
    return _kafka_name(prefix, target.namespace, "invoke", target.app_id, *by)


def kafka_replies_topic(prefix: str, caller: Peer) -> str:
    """Answers to the calls of an app; each instance has a partition of its own."""
    return _kafka_name(prefix, caller.namespace, "replies", caller.app_id)


def kafka_presence_topic(prefix: str, namespace: str) -> str:
    """Which instances of which apps are there; one partition."""
    return _kafka_name(prefix, namespace, "presence")
