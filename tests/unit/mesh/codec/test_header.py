import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.codec import header
from mesh.errors import InvalidEvent
from tests.unit.mesh.codec.events import texts

EURO = "Euro € 😀"


def test_check_value_of_the_specification() -> None:
    assert header.encode(EURO) == "Euro%20%E2%82%AC%20%F0%9F%98%80"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, "true"),
        (False, "false"),
        (-7, "-7"),
        ("", ""),
        ("a=b;c,d", "a=b;c,d"),
        ('"', "%22"),
        ("%41", "%2541"),
        (" ", "%20"),
    ],
)
def test_encode(value: str | int | bool, expected: str) -> None:
    assert header.encode(value) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"plain", "plain"),
        (b"", ""),
        (b"Euro%20%E2%82%AC%20%F0%9F%98%80", EURO),
        (b"Euro %e2%82%ac%20%F0%9f%98%80", EURO),
        (b"%41%2525", "A%25"),
        (b'"quoted \\"x\\" \\\\ %20"', 'quoted "x" \\  '),
        (b'""', ""),
        (b'a"b', 'a"b'),
        (b"%22a%22", '"a"'),
        (b'"(no comment)"', "(no comment)"),
    ],
)
def test_decode(raw: bytes, expected: str) -> None:
    assert header.decode(raw, "x") == expected
    assert header.decode_all({"x": raw, "y": b"z"}) == {"x": expected, "y": "z"}


@pytest.mark.parametrize(
    "raw",
    [
        "é".encode(),
        b"\xe9",
        b'"open',
        b'"',
        b'"escaped end\\"',
        b'"a"b',
        b"%",
        b"%4",
        b"%4g",
        b"100%",
        b"% 41",
        b"%C0%AF",  # overlong
        b"%ED%A0%80",  # a surrogate
        b"%E2%82",  # truncated
        b"%FF",
    ],
)
def test_decode_refuses(raw: bytes) -> None:
    with pytest.raises(InvalidEvent) as caught:
        header.decode(raw, "subject")
    assert caught.value.attribute == "subject"
    with pytest.raises(InvalidEvent):
        header.decode_all({"id": b"1", "subject": raw})


@given(texts)
def test_what_is_written_can_be_read(text: str) -> None:
    written = header.encode(text).encode("ascii")
    assert all(0x21 <= byte <= 0x7E for byte in written)
    assert header.decode(written, "x") == text


@given(st.dictionaries(st.text(), st.binary(max_size=5).filter(bytes.isascii)))
def test_all_together_is_each_alone(values: dict[str, bytes]) -> None:
    try:
        expected = {name: header.decode(value, name) for name, value in values.items()}
    except InvalidEvent:
        with pytest.raises(InvalidEvent):
            header.decode_all(values)
    else:
        assert header.decode_all(values) == expected
