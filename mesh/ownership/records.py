"""The records of ownership in a table, and the two commits that give something to a member and take it from one.

All records of a group are below `("lease", <group>)`: `(…, "member", <id>)` and `(…, "owner", <name of the thing>)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from mesh.errors import BrokerError
from mesh.ports.tables import ABSENT, Check, Conflict, Delete, Entry, Key, Put, Table

KIND = "lease"
MEMBER = "member"
OWNER = "owner"
JSON = "application/json"

T = TypeVar("T")


class Sign(msgspec.Struct, frozen=True):
    """The value of a member record. Stored data: fields are only ever added."""

    ttl: float
    """Seconds after which it expires."""


class Title(msgspec.Struct, frozen=True):
    """The value of an owner record. Stored data, as `Sign`."""

    member: str
    """The id of the member that owns it."""


def group_key(group: str) -> Key:
    return (KIND, group)


def member_key(group: str, member: str) -> Key:
    return (KIND, group, MEMBER, member)


def owner_key(group: str, name: str) -> Key:
    return (KIND, group, OWNER, name)


def sign(group: str, member: str, ttl: float, expected: int) -> Put:
    return Put(
        key=member_key(group, member),
        value=msgspec.json.encode(Sign(ttl)),
        content_type=JSON,
        ttl=ttl,
        expected=expected,
    )


def read_sign(entry: Entry) -> Sign:
    """Raises `BrokerError` for what no version before this one wrote."""
    return _read(entry, _decode_sign)


def read_title(entry: Entry) -> Title:
    """Raises `BrokerError` for what no version before this one wrote."""
    return _read(entry, _decode_title)


_decode_sign = msgspec.json.Decoder(Sign).decode
_decode_title = msgspec.json.Decoder(Title).decode


def _read(entry: Entry, decode: Callable[[bytes], T]) -> T:
    try:
        return decode(entry.value)
    except msgspec.DecodeError as error:
        raise BrokerError(f"{'/'.join(entry.key)} cannot be read: {error}") from None


async def claim(table: Table, group: str, name: str, member: str, *, owner: str = "", revision: int = ABSENT) -> int:
    """Make `member` the owner of what `owner` has owned since `revision`, or nobody. Returns the fencing token.

    Raises `Conflict`, with the key at fault, when `owner` is alive or does not own it any more; errors of `Table`.
    """
    key = owner_key(group, name)
    # What names `member` itself is from a claim of its own whose answer was lost. It begins anew, with a token of its
    # own: nobody may have noticed the other one.
    checks = [Check(member_key(group, owner), ABSENT)] if owner and owner != member else []
    title = Put(key=key, value=msgspec.json.encode(Title(member)), content_type=JSON, expected=revision)
    [token] = await table.commit([title], checks)
    return token


async def give_up(table: Table, group: str, name: str, token: int) -> int | None:
    """End the tenure that began with `token`; anybody may claim it at once. Returns the revision of the deletion,
    or `None` when it had ended before. Raises errors of `Table`."""
    try:
        [revision] = await table.commit([Delete(key=owner_key(group, name), expected=token)])
    except Conflict:
        return None
    return revision
