"""What every `Table` checks before it asks its broker: the rules of keys and commits, each in one place."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.errors import clip
from mesh.ports.tables import MAX_KEY_BYTES, Change, Check, InvalidKey, Key, Put

MAX_COMMIT = 500
"""Changes and checks of one commit together, at most."""

MIN_TTL = 1.0
"""Seconds."""


def check_key(key: Key) -> None:
    """Raises `InvalidKey` for what cannot name an entry."""
    if not key:
        raise InvalidKey("a key has at least one part")
    check_prefix(key)


def check_prefix(prefix: Key) -> None:
    """Raises `InvalidKey` for what no key can begin with. Every key begins with `()`."""
    size = 0
    for part in prefix:
        if not part:
            raise InvalidKey(f"a part of the key '{clip('/'.join(prefix))}' is empty")
        try:
            size += len(part) if part.isascii() else len(part.encode())
        except UnicodeEncodeError:
            raise InvalidKey(f"the key '{clip('/'.join(prefix))}' is no valid Unicode text") from None
    if size > MAX_KEY_BYTES:
        raise InvalidKey(f"the key '{clip('/'.join(prefix))}' has {size} bytes, of at most {MAX_KEY_BYTES}")


def check_commit(changes: Sequence[Change], checks: Sequence[Check]) -> None:
    """Raises `InvalidKey`, and `ValueError` for a commit that breaks a rule of `Table.commit` or `Put`."""
    if not changes:
        raise ValueError("a commit has at least one change")
    if len(changes) + len(checks) > MAX_COMMIT:
        raise ValueError(f"{len(changes) + len(checks)} changes and checks in one commit, of at most {MAX_COMMIT}")
    for change in changes:
        check_key(change.key)
        # Written so that NaN fails too.
        if isinstance(change, Put) and change.ttl is not None and not MIN_TTL <= change.ttl < float("inf"):
            raise ValueError(f"a ttl of {change.ttl} s; it is at least {MIN_TTL:g} s")
    for check in checks:
        check_key(check.key)
    if len(changes) + len(checks) > 1:
        keys = {change.key for change in changes}
        if len(keys) < len(changes):
            raise ValueError("a key occurs twice among the changes of a commit")
        if any(check.key in keys for check in checks):
            raise ValueError("a check is for a key that is not changed; a change has its own, `expected`")
