"""Fencing tokens: the proof that a lock or lease is still held, which a write can be made to depend on.

A token names the record of the lock and the revision that it has as long as it is held. Whoever writes with it makes
that a precondition of the write, so that a holder whose lock has passed on can write no more, however late it wakes.
"""

from __future__ import annotations

import base64
import binascii
from typing import NamedTuple

import msgspec

from mesh.errors import MeshError, clip
from mesh.ports.tables import ABSENT, Check, Key

METADATA = "fencingToken"
"""The metadata of a state item or transaction that names a token."""

MAX_TOKEN = 4096
"""Characters of the longest text that is read as a token: the longest key fits."""

_VERSION = "f1."


class InvalidFence(MeshError):
    """A text that is no fencing token."""


class FenceToken(NamedTuple):
    """The lock or lease under `key` in the table of `scope` is held since `revision`."""

    scope: str
    key: Key
    revision: int

    def encode(self) -> str:
        """An opaque text of letters, digits, `.`, `-` and `_`; the same for the same token."""
        packed = msgspec.msgpack.encode((self.scope, self.key, self.revision))
        return _VERSION + base64.urlsafe_b64encode(packed).rstrip(b"=").decode()

    @classmethod
    def decode(cls, text: str) -> FenceToken:
        """Raises `InvalidFence` for a text that `encode` does not make."""
        try:
            if not text.startswith(_VERSION) or len(text) > MAX_TOKEN:
                raise ValueError
            body = text[len(_VERSION) :].encode("ascii")
            packed = base64.b64decode(body + b"=" * (-len(body) % 4), altchars=b"-_", validate=True)
            token = cls(*_decode(packed))
        except (ValueError, binascii.Error, msgspec.DecodeError):
            raise InvalidFence(f"'{clip(text)}' is no fencing token: give it as the lock's answer has it") from None
        if token.revision <= ABSENT or not token.key or not all(token.key) or token.encode() != text:
            raise InvalidFence(f"'{clip(text)}' is no fencing token: give it as the lock's answer has it")
        return token

    def check(self) -> Check:
        """The precondition. It can stand only in a commit to the table of `scope`."""
        return Check(self.key, self.revision)


_decode = msgspec.msgpack.Decoder(tuple[str, tuple[str, ...], int]).decode
