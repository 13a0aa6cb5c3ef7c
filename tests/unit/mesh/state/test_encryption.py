import base64

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mesh.state.encryption import Cipher, Undecipherable

HEX = "00112233445566778899aabbccddeeff"
FIRST = ("first", HEX)
SECOND = ("second", HEX[::-1])


@pytest.mark.parametrize("size", [32, 48, 64])
@pytest.mark.parametrize("value", [b"", b'{"a":1}', b"\x00\xff||\x00", b"x" * 100_000])
def test_a_value_comes_back_as_it_was(size: int, value: bytes) -> None:
    cipher = Cipher(("k", "A" * size))
    stored = cipher.encrypt(value)
    assert cipher.decrypt(stored) == value
    assert stored != cipher.encrypt(value)
    assert len(value) < 4 or value not in stored


def test_what_dapr_wrote_over_grpc_is_read() -> None:
    nonce = b"0123456789ab"
    sealed = nonce + AESGCM(bytes.fromhex(HEX)).encrypt(nonce, b"value", None)
    assert Cipher(FIRST).decrypt(base64.b64encode(sealed) + b"||first") == b"value"


def test_what_we_write_has_its_layout() -> None:
    text, _, name = Cipher(FIRST).encrypt(b"value").partition(b"||")
    sealed = base64.b64decode(text, validate=True)
    assert name == b"first"
    assert AESGCM(bytes.fromhex(HEX)).decrypt(sealed[:12], sealed[12:], None) == b"value"


def test_keys_are_exchanged() -> None:
    old = Cipher(FIRST).encrypt(b"old")
    cipher = Cipher(SECOND, FIRST)
    assert cipher.decrypt(old) == b"old"
    assert cipher.encrypt(b"new").endswith(b"||second")
    with pytest.raises(Undecipherable, match="of the secret 'first', which is neither"):
        Cipher(SECOND).decrypt(old)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (b"", "is not encrypted"),
        (b'{"a":1}', "is not encrypted"),
        (b"||first", "is not what was encrypted"),
        (b"AAAA||first", "is not what was encrypted"),
        (b"no base64!||first", "is not what was encrypted"),
        (b"x" * 100 + b"||first", "is not what was encrypted"),
    ],
)
def test_what_cannot_be_decrypted(stored: bytes, message: str) -> None:
    with pytest.raises(Undecipherable, match=message):
        Cipher(FIRST).decrypt(stored)


def test_a_value_that_was_changed_is_found_out() -> None:
    text, separator, name = Cipher(FIRST).encrypt(b"value").partition(b"||")
    sealed = bytearray(base64.b64decode(text))
    sealed[-1] ^= 1
    with pytest.raises(Undecipherable, match="it was changed"):
        Cipher(FIRST).decrypt(base64.b64encode(sealed) + separator + name)


@pytest.mark.parametrize(
    ("text", "rule"), [("zz" * 16, "hexadecimal"), ("", "16, 24 or 32"), ("ab" * 17, "16, 24 or 32")]
)
def test_a_key_that_is_none_is_not_shown(text: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule) as caught:
        Cipher(("k", text))
    assert not text or text not in str(caught.value)


def test_two_keys_of_one_secret() -> None:
    with pytest.raises(ValueError, match="another secret"):
        Cipher(FIRST, ("first", SECOND[1]))
