"""Tokens from an endpoint, which is a small server here."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs

import pytest
from aiokafka.errors import AuthenticationFailedError, KafkaConnectionError

from brokers.kafka import tokens
from brokers.kafka.tokens import FromEndpoint


class Endpoint:
    def __init__(self) -> None:
        self.answer: tuple[int, bytes] = (200, b"")
        self.asked: list[tuple[str, dict[str, list[str]]]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                endpoint.asked.append((self.headers["authorization"], parse_qs(body)))
                status, content = endpoint.answer
                self.send_response(status)
                self.send_header("location", "/elsewhere")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/token"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    thread = threading.Thread(target=endpoint.server.serve_forever, args=(0.01,))
    thread.start()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()
    thread.join()


async def test_a_token_is_asked_for_and_kept(endpoint: Endpoint) -> None:
    endpoint.answer = (200, b'{"access_token": "one", "expires_in": 3600}')
    provider = FromEndpoint(endpoint.url, "a:b", "S3CRET", scope="kafka")
    assert [await provider.token() for _ in range(3)] == ["one"] * 3
    [(authorization, form)] = endpoint.asked
    assert authorization == "Basic " + base64.b64encode(b"a%3Ab:S3CRET").decode()
    assert form == {"grant_type": ["client_credentials"], "scope": ["kafka"]}


async def test_one_that_is_about_to_end_is_replaced(endpoint: Endpoint) -> None:
    provider = FromEndpoint(endpoint.url, "id", "secret")
    for text in ("one", "two"):  # without a life, it is good for one connection
        endpoint.answer = (200, b'{"access_token": "%b"}' % text.encode())
        assert await provider.token() == text


@pytest.mark.parametrize(
    ("status", "body", "error", "message"),
    [
        (401, b'{"error": "invalid_client"}', AuthenticationFailedError, "answers 401: invalid_client"),
        (400, b"S3CRET", AuthenticationFailedError, "answers 400: the client is refused"),
        (500, b"", KafkaConnectionError, "answers 500"),
        (302, b"", KafkaConnectionError, "answers 302"),
        (200, b"S3CRET", KafkaConnectionError, "gives no access_token"),
        (200, b'{"access_token": "a\\u0001b"}', KafkaConnectionError, "gives no access_token"),
        (200, b'{"access_token": 7}', KafkaConnectionError, "gives no access_token"),
        (200, b"[]", KafkaConnectionError, "gives no access_token"),
    ],
)
async def test_what_an_endpoint_says_against_it(
    endpoint: Endpoint, status: int, body: bytes, error: type[Exception], message: str
) -> None:
    endpoint.answer = (status, body)
    with pytest.raises(error, match=message) as refused:
        await FromEndpoint(endpoint.url, "id", "S3CRET").token()
    assert "S3CRET" not in str(refused.value)
    assert len(endpoint.asked) == 1


async def test_an_endpoint_that_is_not_there() -> None:
    with pytest.raises(KafkaConnectionError, match=r"the token endpoint at 127\.0\.0\.1:1: .*refused"):
        await FromEndpoint("http://127.0.0.1:1/", "id", "S3CRET").token()


def test_its_limit_is_shorter_than_what_a_client_waits() -> None:
    from brokers.kafka.connection import REQUEST_TIMEOUT

    assert tokens.ENDPOINT_LIMIT < REQUEST_TIMEOUT
