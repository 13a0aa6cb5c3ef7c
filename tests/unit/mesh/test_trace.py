import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import trace
from mesh.errors import MeshError
from mesh.trace import TraceContext

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
PARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"


def headers(*pairs: tuple[str, str]) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), *((name.encode(), value.encode("latin-1")) for name, value in pairs)]


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (PARENT, PARENT),
        (f"00-{TRACE_ID}-{PARENT_ID}-00", f"00-{TRACE_ID}-{PARENT_ID}-00"),
        (f"00-{TRACE_ID}-{PARENT_ID}-03", f"00-{TRACE_ID}-{PARENT_ID}-03"),
        (f"00-{TRACE_ID}-{PARENT_ID}-ff", f"00-{TRACE_ID}-{PARENT_ID}-03"),
        (f"00-{TRACE_ID}-{PARENT_ID}-08", f"00-{TRACE_ID}-{PARENT_ID}-00"),
        (f"01-{TRACE_ID}-{PARENT_ID}-01", PARENT),
        (f"cc-{TRACE_ID}-{PARENT_ID}-01-what-the-future-brings\n", PARENT),
        (f"fe-{TRACE_ID}-{PARENT_ID}-05-", PARENT),
    ],
)
def test_valid_traceparents(text: str, canonical: str) -> None:
    assert trace.parse_traceparent(text) == canonical
    assert trace.extract(headers(("traceparent", f" {text}\t"), ("tracestate", "a=1"))) == (canonical, "a=1")


INVALID_TRACEPARENTS = [
    "",
    "-",
    PARENT.upper(),
    PARENT + "-",
    PARENT + "-00",
    PARENT + "0",
    PARENT[:-1],
    "ff" + PARENT[2:],
    "cc" + PARENT[2:] + ".extra",
    "cc" + PARENT[2:] + "0-extra",
    f"00-{'0' * 32}-{PARENT_ID}-01",
    f"00-{TRACE_ID}-{'0' * 16}-01",
    f"00-{TRACE_ID[:-1]}-{PARENT_ID}-01",
    f"00-{TRACE_ID}0-{PARENT_ID}-01",
    f"00-{TRACE_ID[:-1]}g-{PARENT_ID}-01",
    f"0-{TRACE_ID}-{PARENT_ID}-01",
    f"0x-{TRACE_ID}-{PARENT_ID}-01",
    f"00_{TRACE_ID}_{PARENT_ID}_01",
    f"00-{TRACE_ID}-{PARENT_ID}-0x",
    f"00-{TRACE_ID}-{PARENT_ID}-٠١",
    PARENT + "\n",
    PARENT + "," + PARENT,
]


@pytest.mark.parametrize("text", INVALID_TRACEPARENTS)
def test_invalid_traceparents_start_a_new_trace(text: str) -> None:
    assert trace.parse_traceparent(text) is None
    if text.isascii() and not text.endswith("\n"):
        assert trace.extract(headers(("traceparent", text), ("tracestate", "a=1"))) is None


def test_extract() -> None:
    assert trace.extract([]) is None
    assert trace.extract(headers(("tracestate", "a=1"))) is None
    assert trace.extract(headers(("traceparent", PARENT), ("traceparent", PARENT))) is None
    assert trace.extract(headers(("traceparent", PARENT))) == TraceContext(PARENT, "")
    assert trace.extract(headers(("traceparent", PARENT), ("tracestate", "a"))) == TraceContext(PARENT, "")
    assert trace.extract(headers(("traceparent", PARENT), ("tracestate", "a=\xe9"))) == TraceContext(PARENT, "")
    two = headers(("tracestate", "b=2,a=1"), ("traceparent", PARENT), ("tracestate", "c=3"))
    assert trace.extract(two) == TraceContext(PARENT, "b=2,a=1,c=3")


def members(*sizes: int) -> list[str]:
    """Members of the given lengths, with keys in order."""
    return [f"k{n:02}=".ljust(size, "v") for n, size in enumerate(sizes)]


KEY_256 = "k" * 256


@pytest.mark.parametrize(
    ("values", "canonical"),
    [
        ([], ""),
        ([""], ""),
        (["a=1"], "a=1"),
        (["a=1,b=2", "c=3"], "a=1,b=2,c=3"),
        ([" a=1 ,\tb=2\t", ",,", " , c=3"], "a=1,b=2,c=3"),
        (["a=1,b=2,a=3"], "a=1,b=2"),
        (["0a_-*/@b=x y"], "0a_-*/@b=x y"),
        (["a@=1,b@c@d=2"], "a@=1,b@c@d=2"),
        ([f"{KEY_256}=1"], f"{KEY_256}=1"),
        (["a= !~"], "a= !~"),
        ([f"a={'v' * 256}"], f"a={'v' * 256}"),
        *[([f"ok=1,{bad}"], "") for bad in ("a", "=1", "a=", "A=1", "@a=1", "_a=1", "a b=1", "a =1", "a=b=c", "a.b=1")],
        *[
            ([f"ok=1,{bad}"], "")
            for bad in (f"{KEY_256}k=1", f"a={'v' * 257}", "a=\t1", "a=é", "a=\x7f", "a=\x1f", "é=1")
        ],
        ([",".join(f"k{n}=1" for n in range(32))], ",".join(f"k{n}=1" for n in range(32))),
        ([",".join(f"k{n}=1" for n in range(33))], ""),
        ([",".join(["a=1"] * 33)], ""),
        ([",".join(members(127, 127, 127, 128)), "z=12"], ",".join(members(127, 127, 127, 128))),  # 517, then 512
        ([",".join(members(127, 127, 127, 128))], ",".join(members(127, 127, 127, 128))),  # 512
        (
            [",".join(members(100, 129, 128, 150, 128))],
            ",".join(m for m in members(100, 129, 128, 150, 128) if len(m) != 150),
        ),
        (
            [",".join(members(129, 129, 100, 200, 5))],
            ",".join(m for m in members(129, 129, 100, 200, 5) if len(m) != 200),
        ),
        ([",".join(members(250, 128, 128, 128, 128, 128))], ",".join(members(250, 128, 128, 128, 128)[1:4])),
    ],
)
def test_tracestate(values: list[str], canonical: str) -> None:
    assert trace.parse_tracestate(values) == canonical


@given(st.lists(st.integers(5, 256), max_size=32))
def test_tracestate_is_cut_to_a_part_that_keeps_its_order(sizes: list[int]) -> None:
    given_members = members(*sizes)
    kept = trace.parse_tracestate([",".join(given_members)])
    assert len(kept) <= trace.CARRIED_LENGTH
    remaining = iter(given_members)
    assert all(member in remaining for member in kept.split(",") if member)
    if len(",".join(given_members)) <= trace.CARRIED_LENGTH:
        assert kept == ",".join(given_members)
    assert trace.parse_tracestate([kept]) == kept


@pytest.mark.parametrize(
    ("values", "joined"),
    [
        ([], None),
        ([""], None),
        (["a=1"], "a=1"),
        (["a=1", "b=2"], "a=1,b=2"),
        (["a = 1 ; p ; q=2 , b=%20"], "a = 1 ; p ; q=2 , b=%20"),
        (["a="], "a="),
        (["a=b=c"], "a=b=c"),
        (["a=!#$%&'()*+-./:<=>?@[]^_`{|}~"], "a=!#$%&'()*+-./:<=>?@[]^_`{|}~"),
        ([",".join(f"k{n}=1" for n in range(180))], ",".join(f"k{n}=1" for n in range(180))),
        (["a=" + "x" * 8190], "a=" + "x" * 8190),
    ],
)
def test_baggage(values: list[str], joined: str | None) -> None:
    assert trace.baggage(headers(*(("baggage", value) for value in values))) == joined


@pytest.mark.parametrize(
    "value",
    [
        "a",
        "=1",
        "a=1,",
        ",a=1",
        "a=1,,b=2",
        " ",
        "a=1 2",
        'a="1"',
        "a=1\\",
        "a=\xe9",
        "a=\x7f",
        "a b=1",
        "a(=1",
        "a=1;",
        "a=1;=2",
        "a=1;p q",
        "a=1;;p",
        ",".join(f"k{n}=1" for n in range(181)),
        "a=" + "x" * 8191,
        "a=1" + " ;p" * 2_000 + " !(",
    ],
)
def test_invalid_baggage(value: str) -> None:
    with pytest.raises(trace.InvalidBaggage, match="invalid baggage header") as caught:
        trace.baggage(headers(("baggage", "secret=1"), ("baggage", value)))
    assert isinstance(caught.value, MeshError)
    assert "secret" not in str(caught.value)
