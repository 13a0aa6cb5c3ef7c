import base64

import pytest

from mesh.fencing import FenceToken, InvalidFence
from mesh.ports.tables import Check

TOKEN = FenceToken("app1", ("lock", "store", "a||b ☃"), 7)


def packed(content: bytes) -> str:
    return "f1." + base64.urlsafe_b64encode(content).rstrip(b"=").decode()


@pytest.mark.parametrize("token", [TOKEN, FenceToken("", ("x",), 2**63), FenceToken("s", ("k" * 1024,), 1)])
def test_a_token_is_read_as_it_was_written(token: FenceToken) -> None:
    assert FenceToken.decode(token.encode()) == token
    assert token.encode().replace(".", "").replace("-", "").replace("_", "").isalnum()


def test_its_check_is_on_the_record_of_the_lock() -> None:
    assert TOKEN.check() == Check(("lock", "store", "a||b ☃"), 7)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "f1.",
        "f1.☃",
        "f1." + "A" * 5000,
        TOKEN.encode() + "=",
        TOKEN.encode()[:-1],
        TOKEN.encode().replace("f1", "f2"),
        FenceToken("a", (), 1).encode(),
        FenceToken("a", ("x", ""), 1).encode(),
        FenceToken("a", ("x",), 0).encode(),
        packed(b"\x93\xa1a\x91\xa1x\xcd\x00\x07"),  # 7, not in its shortest form
        packed(b"\x93\xa1a\x91\xa1x\x07\x07"),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidFence, match="is no fencing token"):
        FenceToken.decode(text)
