"""What is written to the log of a table, as records of Kafka: CloudEvents in binary mode (docs/protocol.md).

Reading one is on the path of every change that anybody makes, so headers are looked up, not parsed. Guarded by
`benchmarks/state.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import msgspec

from brokers.kafka.connection import Headers
from brokers.table_arguments import MAX_COMMIT
from mesh import addressing
from mesh.ids import random_id
from mesh.ports.tables import Change, Check, Key, Put

MESSAGEPACK = b"application/msgpack"
MAX_HISTORY = 64
_VERSION = ("ce_specversion", b"1.0")
_SET, _DELETED, _CHANGED, _CHECKED, _HISTORY = (
    kind.encode()
    for kind in (
        addressing.STATE_SET,
        addressing.STATE_DELETED,
        addressing.STATE_CHANGED,
        addressing.STATE_CHECKED,
        addressing.STATE_HISTORY,
    )
)


class Write(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One change of a commit; in a record that has several, an array of these five."""

    path: str
    value: bytes | None
    """`None` deletes the key."""
    content_type: str = ""
    ttl: float | None = None
    expected: int | None = None


class History(msgspec.Struct, frozen=True, gc=False):
    """Keep so many values of each key whose path is `path` or begins with it and a dot; of every key when empty."""

    path: str
    revisions: int


class Operation(msgspec.Struct, frozen=True, gc=False):
    """What a record of the log asks for. All of it, or nothing."""

    id: str = ""
    """Of its writer; one that comes again does nothing."""
    writes: Sequence[Write] = ()
    checks: Sequence[tuple[str, int]] = ()
    history: History | None = None


class _Batch(msgspec.Struct, frozen=True, omit_defaults=True):
    changes: list[Write]
    checks: list[tuple[str, int]] = []


class Message(msgspec.Struct, frozen=True, gc=False):
    """A record to be sent, and what it will do."""

    operation: Operation
    key: bytes | None
    value: bytes | None
    headers: Headers


NOTHING = Operation()
"""Of records that only tell the time."""
_read_batch = msgspec.msgpack.Decoder(_Batch).decode
_read_history = msgspec.msgpack.Decoder(History).decode
_encode = msgspec.msgpack.Encoder().encode


@lru_cache(maxsize=2048)
def path_of(key: Key) -> str:
    """Raises `InvalidKey` for a key that is kept for others."""
    return addressing.key_path(key)


def source(prefix: str, namespace: str, scope: str) -> bytes:
    """The `ce_source` of a scope's events."""
    return f"/{prefix}/{namespace}/state/{addressing.token(scope)}".encode()


def commit(source: bytes, changes: Sequence[Change], checks: Iterable[Check] = ()) -> Message:
    writes = [
        Write(path_of(change.key), change.value, change.content_type, change.ttl, change.expected)
        if isinstance(change, Put)
        else Write(path_of(change.key), None, expected=change.expected)
        for change in changes
    ]
    return message(source, writes, [(path_of(check.key), check.revision) for check in checks])


def message(source: bytes, writes: list[Write], checks: list[tuple[str, int]]) -> Message:
    operation = Operation(random_id(), writes, checks)
    if checks or len(writes) > 1:
        headers = [*_attributes(operation.id, source, _CHANGED), ("content-type", MESSAGEPACK)]
        return Message(operation, None, _encode(_Batch(writes, checks)), headers)
    write = writes[0]
    headers = _attributes(operation.id, source, _DELETED if write.value is None else _SET)
    headers.append(("ce_subject", write.path.encode()))
    if write.content_type:
        headers.append(("content-type", write.content_type.encode()))
    if write.ttl is not None:
        headers.append(("ttl", repr(write.ttl).encode()))
    if write.expected is not None:
        headers.append(("expected", b"%d" % write.expected))
    return Message(operation, write.path.encode(), write.value, headers)


def keep_history(source: bytes, path: str, revisions: int) -> Message:
    history = History(path, revisions)
    operation = Operation(random_id(), history=history)
    headers = [*_attributes(operation.id, source, _HISTORY), ("content-type", MESSAGEPACK)]
    return Message(operation, None, _encode(history), headers)


def tick(source: bytes) -> Message:
    """It says nothing, but tells the time."""
    operation = Operation(random_id())
    return Message(operation, None, b"", _attributes(operation.id, source, _CHECKED))


def read(key: bytes | None, value: bytes | None, headers: Headers) -> Operation | None:
    """What a record of the log asks for; `None` when it is nothing that we know."""
    told = dict(headers)
    kind = told.get("ce_type")
    try:
        id = told["ce_id"].decode()
        if kind in (_SET, _DELETED):
            return Operation(id, (_write(key, value or b"" if kind == _SET else None, told),))
        if kind == _CHANGED:
            batch = _read_batch(value or b"")
            if not 1 <= len(batch.changes) <= MAX_COMMIT or not all(map(_is_sound, batch.changes)):
                return None
            return Operation(id, batch.changes, batch.checks)
        if kind == _CHECKED:
            return Operation(id)
        if kind == _HISTORY:
            history = _read_history(value or b"")
            return Operation(id, history=history) if 1 <= history.revisions <= MAX_HISTORY else None
    except (KeyError, ValueError, msgspec.DecodeError):
        pass
    return None


def _write(key: bytes | None, value: bytes | None, told: dict[str, bytes]) -> Write:
    """Raises `ValueError`."""
    ttl, expected = told.get("ttl"), told.get("expected")
    write = Write(
        (key or b"").decode(),
        value,
        told.get("content-type", b"").decode(),
        None if ttl is None else float(ttl),
        None if expected is None else int(expected),
    )
    if not _is_sound(write):
        raise ValueError(write)
    return write


def _is_sound(write: Write) -> bool:
    return bool(write.path) and (write.ttl is None or (write.ttl > 0 and math.isfinite(write.ttl)))


def _attributes(id: str, source: bytes, kind: bytes) -> list[tuple[str, bytes]]:
    return [_VERSION, ("ce_id", id.encode()), ("ce_source", source), ("ce_type", kind)]
