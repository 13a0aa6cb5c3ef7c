import json

import pytest

from benchmarks.events import DATA, HTTP_HEADERS, PROBE, SIZE, STORED_HEADERS, Template, moment, number, request


def test_the_data_is_one_kibibyte_of_json() -> None:
    data = Template(DATA).render(7, 1234)
    assert len(data) == SIZE == 1024
    assert json.loads(data)["order"] == "00000000000007"


def test_the_event_has_six_headers_over_nats_and_six_of_ce_over_http() -> None:
    assert len(STORED_HEADERS) == 6
    assert len([name for name in HTTP_HEADERS if name.startswith("ce-")]) == 6


@pytest.mark.parametrize("value", [0, 1, 99_999_999_999_999])
def test_every_rendering_of_a_request_has_the_length_that_it_states(value: int) -> None:
    head, _, body = Template(request("/a%20b", HTTP_HEADERS)).render(value, value).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /a%20b HTTP/1.1\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert f"ce-id: bench-{value:014}".encode() in head


def test_number_and_moment_are_found_wherever_the_data_stands() -> None:
    data = Template(DATA).render(42, 987_654_321)
    envelope = b'{"specversion":"1.0","id":"1","data":%b,"time":"2026-01-01T00:00:00Z"}' % data
    for body in (data, envelope):
        assert (number(body), moment(body)) == (b"00000000000042", 987_654_321)


def test_what_is_no_event_of_ours_has_no_number() -> None:
    assert number(b'{"status":"completed"}') is None
    with pytest.raises(ValueError, match="not found"):
        moment(b"{}")


def test_a_probe_has_the_number_zero() -> None:
    assert number(PROBE) == b"0" * 14
