"""TLS from settings that hold PEM texts."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bindings.bindings.mqtt3 import SPEC
from mesh.errors import ConfigurationError
from tests.opened import opened

ENCRYPTED = serialization.BestAvailableEncryption(b"word")
PLAIN = serialization.NoEncryption()


def pair(encryption: serialization.KeySerializationEncryption) -> tuple[str, str]:
    """A certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    certificate = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    formats = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    return (
        certificate.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode(),
        key.private_bytes(*formats).decode(),
    )


def open_with(certificate: str, key: str) -> None:
    opened(SPEC, url="mqtts://localhost", topic="t", clientCert=certificate, clientKey=key)


async def test_a_certificate_and_its_key() -> None:
    open_with(*pair(PLAIN))


async def test_a_key_that_nobody_can_decrypt_is_told_and_not_asked_about() -> None:
    certificate, key = pair(ENCRYPTED)
    with pytest.raises(ConfigurationError, match="no pair in PEM, without a password") as caught:
        open_with(certificate, key)
    assert "PRIVATE" not in str(caught.value)


async def test_a_key_of_another_certificate() -> None:
    (certificate, _), (_, key) = pair(PLAIN), pair(PLAIN)
    with pytest.raises(ConfigurationError, match="no pair in PEM, without a password"):
        open_with(certificate, key)
