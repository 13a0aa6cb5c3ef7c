"""What the contract suites do not ask: `bindings.http` and `bindings.smtp`."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

from bindings.bindings import http, smtp
from mesh.errors import ConfigurationError
from mesh.ports.bindings import BindingError, InvalidOperation, Invocation, OutputBinding
from mesh.ports.stores import StoreUnavailable
from tests.contract.web_bindings import EchoServer, MailInbox
from tests.opened import opened
from tests.ports import free_port

CERTIFICATE = Path(__file__).parent / "app_channel/self_signed.pem"
"""Of `localhost` and 127.0.0.1; nobody trusts it."""


@pytest.fixture(scope="module")
def server() -> Iterator[EchoServer]:
    server = EchoServer()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[EchoServer]:
    server = EchoServer()
    yield server
    server.stop()


@asynccontextmanager
async def binding(url: str, **settings: str) -> AsyncIterator[OutputBinding]:
    made: OutputBinding = opened(http.SPEC, url=url, **settings)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


def asked(path: str = "", operation: str = "get", data: bytes = b"", **metadata: str) -> Invocation:
    return Invocation(operation=operation, data=data, metadata={"path": path} | metadata)


async def test_a_status_that_is_an_error_and_what_came_with_it(server: EchoServer) -> None:
    async with binding(server.url) as calls:
        with pytest.raises(BindingError, match="received status code 404") as caught:
            await calls.invoke(asked("to/404"))
        assert caught.value.metadata["statusCode"] == "404"
        assert (await calls.invoke(asked("to/404", errorIfNot2XX="false"))).metadata["status"] == "404 Not Found"
    async with binding(server.url, errorIfNot2XX="false") as calls:
        assert (await calls.invoke(asked("to/500"))).metadata["statusCode"] == "500"


async def test_a_redirect_does_not_take_secrets_elsewhere(server: EchoServer, elsewhere: EchoServer) -> None:
    token = {"securityToken": "open-sesame", "securityTokenHeader": "X-Api-Key"}
    async with binding(server.url, **token) as calls:
        to = f"to/307/{elsewhere.url.replace('/', '%2F')}%2Fx"
        answer = await calls.invoke(asked(to, "post", b'"body"', Cookie="a=b"))
        seen = msgspec.json.decode(answer.data or b"")
        assert (seen["method"], seen["path"], seen["body"]) == ("POST", "/x", '"body"')
        assert not {"x-api-key", "cookie"} & set(seen["headers"])
        answer = await calls.invoke(asked("to/302/%2Fhome", "post", b'"body"', Cookie="a=b"))
        seen = msgspec.json.decode(answer.data or b"")
        assert (seen["method"], seen["path"], seen["body"]) == ("GET", "/home", "")
        assert seen["headers"]["x-api-key"] == "open-sesame"
        with pytest.raises(BindingError, match="stopped after 10 redirects"):
            await calls.invoke(asked("loop"))


METADATA = (
    *("169.254.169.254", "0xa9fea9fe", "2852039166", "100.100.100.200", "0.0.0.0", "[::ffff:169.254.169.254]"),
    *("[::a9fe:a9fe]", "[2002:a9fe:a9fe::1]", "[::ffff:0:a9fe:a9fe]", "[64:ff9b:1::a9fe:a9fe]", "[fd00:ec2::23]"),
)


@pytest.mark.parametrize("host", METADATA)
async def test_addresses_that_may_not_be_called(server: EchoServer, host: str) -> None:
    with pytest.raises((ConfigurationError, BindingError, StoreUnavailable), match=r"may not be called|resolved"):
        async with binding(f"http://{host}/latest", responseTimeout="5s") as calls:
            await calls.invoke(asked())
    async with binding(server.url, responseTimeout="5s") as calls:
        with pytest.raises((BindingError, StoreUnavailable), match=r"may not be called|resolved"):
            await calls.invoke(asked(f"to/302/http:%2F%2F{host}%2Flatest"))


@pytest.mark.parametrize("location", ["file:%2F%2F%2Fetc%2Fpasswd", "ftp:%2F%2Flocalhost", "http:%2F%2Fa@localhost"])
async def test_a_redirect_to_what_is_no_server(server: EchoServer, location: str) -> None:
    async with binding(server.url) as calls:
        with pytest.raises(BindingError, match="no http"):
            await calls.invoke(asked(f"to/302/{location}"))


async def test_an_answer_that_is_too_long(server: EchoServer) -> None:
    async with binding(server.url, maxResponseBodySize="100") as calls:
        with pytest.raises(BindingError, match="longer than maxResponseBodySize"):
            await calls.invoke(asked())
        assert (await calls.invoke(asked(operation="head"))).data == b"", "the pool is as good as before"


async def test_a_server_that_does_not_answer_in_time() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(silent, "127.0.0.1", free_port())
    port = listener.sockets[0].getsockname()[1]
    async with binding(f"http://127.0.0.1:{port}", responseTimeout="200ms") as calls:
        with pytest.raises(StoreUnavailable, match=r"within 0.2 s"):
            await asyncio.wait_for(calls.invoke(asked()), 30)
    listener.close()
    await listener.wait_closed()


async def test_metadata_that_begins_with_a_capital_is_a_header_whatever_its_name(server: EchoServer) -> None:
    async with binding(server.url) as calls:
        answer = await calls.invoke(
            Invocation(operation="get", metadata={"Path": "to/404", "ErrorIfNot2XX": "false", "PATH": "/x"})
        )
        seen = msgspec.json.decode(answer.data or b"")
        assert (seen["path"], seen["headers"]["errorifnot2xx"]) == ("/", "false")


async def test_many_requests_at_once_and_an_end_meanwhile() -> None:
    connections, gate = 0, asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await gate.wait()
                writer.write(b"HTTP/1.1 200 OK\r\nx-1st-id: 1\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", free_port())
    gate.set()
    async with binding(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}") as calls:
        for _ in range(3):
            answers = await asyncio.gather(*(calls.invoke(asked()) for _ in range(3 * http.CONNECTIONS)))
            assert {answer.metadata["X-1st-Id"] for answer in answers} == {"1"}
        assert connections == http.CONNECTIONS, "each is used again"
        gate.clear()
        waiting = [asyncio.create_task(calls.invoke(asked())) for _ in range(2 * http.CONNECTIONS)]
        await asyncio.sleep(0.1)
        await asyncio.wait_for(calls.close(), 10)
        outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 30)
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
    gate.set()
    listener.close()
    await listener.wait_closed()


async def test_certificates() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()

    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(CERTIFICATE))
    tls.load_cert_chain(CERTIFICATE)
    tls.verify_mode = ssl.CERT_REQUIRED
    listener = await asyncio.start_server(answer, "127.0.0.1", free_port(), ssl=tls)
    url = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    own = {"MTLSClientCert": str(CERTIFICATE), "MTLSClientKey": CERTIFICATE.read_text()}
    async with binding(url, MTLSRootCA=CERTIFICATE.read_text(), **own) as calls:
        assert (await calls.invoke(asked())).metadata["status"] == "204 No Content"
    async with binding(url, **own) as calls:
        with pytest.raises(StoreUnavailable, match="certificate"):
            await calls.invoke(asked())
    async with binding(url, MTLSRootCA=CERTIFICATE.read_text()) as calls:
        with pytest.raises(StoreUnavailable):
            await calls.invoke(asked())
    listener.close()
    await listener.wait_closed()


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "ftp://example.com"},
        {"url": "http://user:open-sesame@example.com"},
        {"url": "http://example.com/#a"},
        {"securityToken": "open-sesame"},
        {"securityTokenHeader": "Host", "securityToken": "open-sesame"},
        {"securityTokenHeader": "X-A", "securityToken": "open-sesame\r\nX-B: 1"},
        {"MTLSClientCert": str(CERTIFICATE)},
        {"MTLSClientCert": "nowhere.pem", "MTLSClientKey": "open-sesame"},
        {"MTLSRootCA": "nowhere.pem"},
        {"MTLSRootCA": "/dev/null"},
        {"MTLSRenegotiation": "Sometimes"},
    ],
)
async def test_settings_that_cannot_be_obeyed(settings: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        async with binding(**{"url": "http://localhost"} | settings):
            pass
    assert "open-sesame" not in str(caught.value)


MAIL = {"emailFrom": "orders@example.com", "emailTo": "a@example.com", "subject": "Hello"}


class Choosy(MailInbox):
    async def handle_RCPT(
        self, server: object, session: object, envelope: object, address: str, options: list[str]
    ) -> str:
        if address.startswith("nobody"):
            return "550 no such mailbox"
        if address.startswith("later"):
            return "451 come again"
        envelope.rcpt_tos.append(address)  # type: ignore[attr-defined]
        return "250 OK"


@asynccontextmanager
async def mail_server(**options: object) -> AsyncIterator[tuple[Choosy, int]]:
    inbox = Choosy()
    controller = Controller(inbox, hostname="127.0.0.1", port=free_port(), **options)
    await asyncio.to_thread(controller.start)
    try:
        yield inbox, controller.port
    finally:
        await asyncio.to_thread(controller.stop)


async def sent(port: int, settings: dict[str, str], **metadata: str) -> None:
    made: OutputBinding = opened(smtp.SPEC, host="127.0.0.1", port=str(port), **MAIL | settings)
    await made.start()
    try:
        await made.invoke(Invocation(operation="create", data=b'"<p>Hi</p>"', metadata=metadata))
    finally:
        await made.close()


async def test_recipients_that_the_server_refuses() -> None:
    async with mail_server() as (inbox, port):
        with pytest.raises(BindingError, match="refused"):
            await sent(port, {}, emailTo="nobody@example.com")
        with pytest.raises(StoreUnavailable, match="refused"):
            await sent(port, {}, emailTo="later@example.com")
        assert not inbox.mails
        with pytest.raises(BindingError, match=r"not to these recipients.*nobody@example\.com"):
            await sent(port, {}, emailTo="a@example.com; nobody@example.com")
        assert [recipients for _, recipients, _ in inbox.mails] == [["a@example.com"]]


def login(server: object, session: object, envelope: object, mechanism: str, data: object) -> AuthResult:
    return AuthResult(success=getattr(data, "password", b"") == b"open-sesame", handled=False)


async def test_user_and_password() -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(CERTIFICATE)
    async with mail_server(tls_context=tls, authenticator=login, auth_required=True) as (inbox, port):
        user = {"user": "orders", "skipTLSVerify": "true"}
        await sent(port, user | {"password": "open-sesame"})
        with pytest.raises(BindingError, match="refused user and password") as caught:
            await sent(port, user | {"password": "wrong-sesame"})
        assert "wrong-sesame" not in str(caught.value)
        with pytest.raises(StoreUnavailable, match="certificate"):
            await sent(port, {"user": "orders", "password": "open-sesame"})
    assert len(inbox.mails) == 1


async def test_a_password_is_not_sent_without_tls_beyond_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smtp, "_is_local", lambda host: False)
    async with mail_server(authenticator=login, auth_require_tls=False) as (inbox, port):
        with pytest.raises(BindingError, match=r"cannot do|TLS"):
            await sent(port, {"user": "orders", "password": "open-sesame"})
    assert not inbox.mails


@asynccontextmanager
async def silent_at(word: bytes) -> AsyncIterator[int]:
    """A mail server that takes one mail, and answers nothing any more from `word` on."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        while line := await reader.readline():
            if line.upper().startswith(word):
                await reader.read()
                break
            if line == b"DATA\r\n":
                writer.write(b"354 go on\r\n")
                await reader.readuntil(b"\r\n.\r\n")
            writer.write(b"250 OK\r\n")
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", free_port())
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


async def test_a_mail_server_that_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smtp, "GOODBYE", 0.2)
    async with silent_at(b"QUIT") as port:
        await asyncio.wait_for(sent(port, {}), 30)  # it has the mail: no reason to send it twice
    monkeypatch.setattr(smtp, "GOODBYE", 30.0)
    monkeypatch.setattr(smtp, "TIME_LIMIT", 0.5)
    async with silent_at(b"MAIL") as port:
        with pytest.raises(StoreUnavailable, match=r"within 0\.5 s"):
            await asyncio.wait_for(sent(port, {}), 10)  # and no goodbye


async def test_missing_metadata_is_named() -> None:
    for name in MAIL:
        with pytest.raises(InvalidOperation, match=name):
            await sent(1, {name: ""})
