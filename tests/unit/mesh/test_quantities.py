import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.quantities import boolean, comma_list, duration, duration_text, integer, quantity, truthy


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("30s", 30),
        ("250ms", 0.25),
        ("1h2m3.5s", 3723.5),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("1.s", 1),
        ("-1m", -60),
        ("+2s", 2),
        ("100µs", 0.0001),
        ("100μs", 0.0001),
        ("5us", 0.000005),
        ("1s1s", 2),
        ("7", 7),
        ("-1", -1),
    ],
)
def test_duration(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


def test_bare_integers_take_the_unit_of_the_setting() -> None:
    assert duration("1500", bare_unit=0.001) == 1.5
    assert duration("0", bare_unit=None) == 0
    with pytest.raises(ValueError, match="must be a duration"):
        duration("5", bare_unit=None)


@pytest.mark.parametrize(
    "text", ["", " ", "s", "1", "5 s", "5S", "1d", "1.5", "--5s", "1e3s", "5s ", "٣s", "9" * 400, "300000000h"]
)
def test_bad_durations(text: str) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        duration(text, bare_unit=None)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4Mi", 4 << 20),
        ("4096", 4096),
        ("100k", 100_000),
        ("1.5Gi", 3 << 29),
        ("1e3", 1000),
        ("1E3", 1000),
        ("2E", 2 * 10**18),
        ("-1", -1),
        (".5Ki", 512),
        ("1m", 1),
        ("1500m", 2),
        ("-1500m", -2),
        ("7Ei", 7 << 60),
    ],
)
def test_quantity(text: str, size: int) -> None:
    assert quantity(text) == size


@pytest.mark.parametrize(
    "text", ["", "Mi", "4mi", "4 Mi", "4MB", "1e", "0x10", "1K", "1e99", "8Ei", "٤", "1_000", "1" * 101]
)
def test_bad_quantities(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        quantity(text)


@given(st.integers(-(2**63), 2**63 - 1))
def test_any_64_bit_number_is_a_quantity(number: int) -> None:
    assert quantity(str(number)) == number


@given(st.integers(0, 10**6), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_go_prints_what_we_read(hours: int, minutes: int, seconds: int, millis: int) -> None:
    text = f"{hours}h{minutes}m{seconds}.{millis:03}s"
    assert duration(text) == pytest.approx(hours * 3600 + minutes * 60 + seconds + millis / 1000)


@given(st.text(alphabet="0123456789.+-eEkKmMiGnuµsh_ \n", max_size=30) | st.text())
def test_nothing_but_value_errors(text: str) -> None:
    for parse in (duration, quantity, boolean):
        try:
            parse(text)
        except ValueError as error:
            assert str(error).startswith("must ")


def test_booleans_of_flags() -> None:
    assert [boolean(text) for text in ("1", "t", "T", "true", "TRUE", "True")] == [True] * 6
    assert [boolean(text) for text in ("0", "f", "F", "false", "FALSE", "False")] == [False] * 6
    for text in ("", "yes", "tRue", " true"):
        with pytest.raises(ValueError, match="must be true or false"):
            boolean(text)


def test_comma_lists_ignore_blanks() -> None:
    assert comma_list(" a, b ,,c,") == ("a", "b", "c")
    assert comma_list(" , ") == ()


@pytest.mark.parametrize("text", ["1", "true", "T", "Yes", "y", "ON", " true "])
def test_truthy(text: str) -> None:
    assert truthy(text)


@pytest.mark.parametrize("text", ["", "0", "false", "no", "off", "enabled", "truely"])
def test_not_truthy(text: str) -> None:
    assert not truthy(text)


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("-7", -7), ("+9223372036854775807", 2**63 - 1)])
def test_integer(text: str, value: int) -> None:
    assert integer(text) == value


@pytest.mark.parametrize("text", ["", "1.0", "0x10", "1_000", "9223372036854775808", " 1", "١"])
def test_no_integer(text: str) -> None:
    with pytest.raises(ValueError, match="must be an integer"):
        integer(text)


@pytest.mark.parametrize("text", ["2h", "90m", "1s", "1500ms", "8ms", "250us", "0s", "1e-09s"])
def test_durations_as_text(text: str) -> None:
    assert duration_text(1e-9 if text == "1e-09s" else duration(text)) == text
