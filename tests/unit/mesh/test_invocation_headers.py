"""Which headers travel from app to app."""

import pytest

from mesh.invocation.headers import InvalidHeader, content_length, of_request, of_response

HOP_BY_HOP = [
    *(b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"http2-settings", b"te"),
    *(b"trailer", b"proxy-authorization", b"proxy-authenticate"),
]
KEPT = [(b"x-a", b"1"), (b"cookie", b"a"), (b"x-a", b"2"), (b"authorization", b"Basic eA=="), (b"grpc-timeout", b"1S")]


def test_everything_else_passes_in_its_order():
    assert of_request(KEPT) == KEPT
    assert of_response(KEPT) == KEPT


@pytest.mark.parametrize("name", HOP_BY_HOP)
def test_headers_of_the_connection_are_dropped_both_ways(name):
    headers = [*KEPT, (name, b"x"), (name.upper(), b"y")]
    assert of_request(headers) == KEPT
    assert of_response(headers) == KEPT


def test_headers_that_connection_names_are_dropped_both_ways():
    headers = [
        *KEPT,
        (b"connection", b"close, X-Secret"),
        (b"x-secret", b"s"),
        (b"connection", b" x-other"),
        (b"x-other", b""),
    ]
    assert of_request(headers) == KEPT
    assert of_response(headers) == KEPT


@pytest.mark.parametrize(
    "name",
    [
        *(b"dapr-app-id", b"destination-app-id", b"dapr-api-token", b"dapr-caller-app-id", b"dapr-callee-app-id"),
        *(
            b"dapr-caller-namespace",
            b"dapr_caller_app_id",
            b"DAPR-Caller-App-Id",
            b"host",
            b"expect",
            b"content-length",
        ),
        *(
            b"Meshwire-Fence",
            b"grpc-trace-bin",
            b"x-Bin",
            b"traceparent",
            b"tracestate",
            b"baggage",
            b"Content_Length",
            b"Transfer_Encoding",
        ),
    ],
)
def test_what_a_client_cannot_say(name):
    assert of_request([*KEPT, (name, b"forged")]) == KEPT


@pytest.mark.parametrize("name", [b"dapr-app-id", b"Dapr-Api-Token", b"x-bin"])
def test_what_an_app_cannot_say(name):
    assert of_response([*KEPT, (name, b"x")]) == KEPT


@pytest.mark.parametrize(
    "header", [(b"x", b"a\r\nb: c"), (b"x", b"a\0"), (b"x\r\ny", b"a"), (b"", b"a"), (b"x y", b"a")]
)
def test_a_response_header_that_would_break_its_line(header):
    with pytest.raises(InvalidHeader, match="the response has"):
        of_response([*KEPT, header])


@pytest.mark.parametrize(
    ("values", "length"),
    [
        ([], None),
        ([b"5"], 5),
        ([b"5", b"5"], 5),
        ([b"5", b"6"], None),
        ([b"-1"], None),
        ([b"+5"], None),
        ([b"9" * 30], None),
    ],
)
def test_content_length(values, length):
    assert content_length([(b"Content-Length", value) for value in values]) == length
