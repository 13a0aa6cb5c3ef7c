"""Values encrypted at rest: AES-GCM, the bytes as they are.

The stored text is that of Dapr: base64 of nonce and ciphertext, `||`, the name of the secret that holds the key. So a
value that an app wrote to Dapr over gRPC is read here, and the other way round. (Over HTTP Dapr encrypts how Go prints
a value, which nothing can read back as JSON.)
"""

from __future__ import annotations

import base64
import binascii
import os
from typing import TYPE_CHECKING

from mesh.errors import ConfigurationError, clip
from mesh.ports.stores import StoreError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SEPARATOR = b"||"
NONCE = 12
"""Bytes of the nonce, which is random for each value."""
KEY_SIZES = (16, 24, 32)


class Undecipherable(StoreError):
    """A stored value cannot be decrypted with the keys at hand."""


class Cipher:
    """Encrypts with the primary key; decrypts with the key that a value names."""

    def __init__(self, primary: tuple[str, str], secondary: tuple[str, str] | None = None) -> None:
        """Each key is the name of its secret and its text: hexadecimal digits of 16, 24 or 32 bytes.

        Raises `ValueError` with the rule that is broken; the text of a key is in no message.
        """
        self._name = primary[0].encode()
        self._keys = {name.encode(): _key(text) for name, text in (primary, secondary or primary)}
        if secondary is not None and secondary[0] == primary[0]:
            raise ValueError("the secondary key must be another secret than the primary one")

    def encrypt(self, value: bytes) -> bytes:
        nonce = os.urandom(NONCE)
        sealed = nonce + self._keys[self._name].encrypt(nonce, value, None)
        return base64.b64encode(sealed) + SEPARATOR + self._name

    def decrypt(self, stored: bytes) -> bytes:
        """Raises `Undecipherable`."""
        text, separator, name = stored.rpartition(SEPARATOR)
        if not separator:
            raise Undecipherable(
                "the stored value is not encrypted: it names no key. It was written without primaryEncryptionKey"
            )
        key = self._keys.get(name)
        if key is None:
            raise Undecipherable(
                f"the stored value is encrypted with the key of the secret '{clip(name.decode(errors='replace'))}', "
                "which is neither the primary nor the secondary one"
            )
        from cryptography.exceptions import InvalidTag

        try:
            sealed = base64.b64decode(text, validate=True)
            return key.decrypt(sealed[:NONCE], sealed[NONCE:], None)
        except (binascii.Error, ValueError, InvalidTag):
            raise Undecipherable(
                "the stored value is not what was encrypted: it was changed, or the secret holds another key now"
            ) from None


def _key(text: str) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise ConfigurationError('encryption at rest needs a library: pip install "meshwire[crypto]"') from error
    try:
        key = bytes.fromhex(text)
    except ValueError:
        raise ValueError("the secret must be hexadecimal digits") from None
    if len(key) not in KEY_SIZES:
        raise ValueError(
            f"the secret must be of 16, 24 or 32 bytes, so of 32, 48 or 64 hexadecimal digits (got {len(text)})"
        )
    return AESGCM(key)
