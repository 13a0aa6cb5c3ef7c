"""Bindings of servers of HTTP and mail, for the contract suites."""

from __future__ import annotations

import threading
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default as default_policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec
from aiosmtpd.controller import Controller

from bindings.bindings import http, smtp
from mesh.ports.bindings import Invocation, OutputBinding, Result
from tests.opened import opened
from tests.ports import free_port

if TYPE_CHECKING:
    from tests.contract.bindings import Invoke


class Http:
    name = "http"
    refused = (
        Invocation(operation="get", metadata={"path": "/a/../../b"}),
        Invocation(operation="get", metadata={"path": "a/%2E%2e/b"}),
        Invocation(operation="get", metadata={"path": "a%2f..%2fb"}),
        Invocation(operation="get", metadata={"path": "a b"}),
        Invocation(operation="get", metadata={"path": "a#b"}),
        Invocation(operation="get", metadata={"pfad": "a"}),
        Invocation(operation="get", metadata={"X-A": "1\r\nX-B: 2"}),
        Invocation(operation="get", metadata={"X A": "1"}),
        Invocation(operation="post", metadata={"Host": "elsewhere"}),
        Invocation(operation="post", metadata={"Content-Length": "0"}),
        Invocation(operation="post", metadata={"Transfer-Encoding": "chunked"}),
        Invocation(operation="get", metadata={"X-Long": "x" * 70_000}),
    )

    def start(self, folder: Path) -> None:
        self._server = EchoServer()

    def stop(self) -> None:
        self._server.stop()

    async def binding(self) -> OutputBinding:
        binding: OutputBinding = opened(http.SPEC, url=f"{self._server.url}/base?k=v")
        return binding

    async def use(self, invoke: Invoke) -> None:
        for operation in ("create", "get", "head", "post", "put", "patch", "delete", "options", "trace"):
            answer = await invoke(operation, b'{"n": 1}', path="/orders?x=1", **{"X-Customer": "7"})
            assert answer.metadata["statusCode"] == "200"
            assert answer.metadata["status"] == "200 OK"
            assert answer.metadata["X-Twice"] == "a, b"
            if operation == "head":
                assert answer.data == b""
                continue
            seen = msgspec.json.decode(answer.data or b"")
            assert seen["method"] == ("POST" if operation == "create" else operation.upper())
            assert seen["path"] == "/base/orders?k=v&x=1"
            assert seen["headers"]["x-customer"] == "7"
            assert seen["headers"]["accept"] == "application/json; charset=utf-8"
            assert seen["body"] == ('{"n": 1}' if operation in ("create", "post", "put", "patch") else "")

    def unreachable(self) -> OutputBinding:
        binding: OutputBinding = opened(http.SPEC, url=f"http://127.0.0.1:{free_port()}")
        return binding


class EchoServer:
    """An HTTP server that shows what it was asked. `/to/<status>[/<location>]` answers with it, `/loop` for ever."""

    def __init__(self) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except ConnectionError:
                    self.close_connection = True

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                shown = msgspec.json.encode(
                    {
                        "method": self.command,
                        "path": self.path,
                        "headers": {name.lower(): value for name, value in self.headers.items()},
                        "body": body.decode(),
                    }
                )
                path = "/to/302/%2Floop" if self.path == "/loop" else self.path
                status, _, location = path.partition("/to/")[2].partition("/")
                self.send_response(int(status or 200))
                if location:
                    self.send_header("Location", unquote(location))
                self.send_header("X-Twice", "a")
                self.send_header("X-Twice", "b")
                self.send_header("Content-Length", str(len(shown)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(shown)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = answer

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", free_port()), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(30)


class Smtp:
    name = "smtp"
    refused = (
        Invocation(operation="create", data=b'"x"', metadata={"emailTo": ""}),
        Invocation(operation="create", data=b'"x"', metadata={"emailTo": "nobody"}),
        Invocation(operation="create", data=b'"x"', metadata={"emailTo": "a@example.com\r\nBcc: b@example.com"}),
        Invocation(operation="create", data=b'"x"', metadata={"emailTo": "a@example.com, b@example.com"}),
        *(
            Invocation(operation="create", data=b'"x"', metadata={"emailTo": "a@example.com"} | wrong)
            for wrong in (
                {"subject": "x\r\nBcc: b@example.com"},
                {"subject": "x\u2028Bcc: b@example.com"},
                {"subject": "x\x85y"},
                {"subject": "\ud800"},
                {"emailFrom": "a@example.com;b@example.com"},
                {"emailCC": "Ann\nBcc: <b@example.com>"},
                {"priority": "6"},
                {"priority": "high"},
                {"mailTo": "a@example.com"},
            )
        ),
        Invocation(operation="create", data=b"\xff", metadata={"emailTo": "a@example.com"}),
        Invocation(operation="create", data=bytes(smtp.MAX_BODY + 1), metadata={"emailTo": "a@example.com"}),
    )

    def start(self, folder: Path) -> None:
        self._inbox = MailInbox()
        self._server = Controller(self._inbox, hostname="127.0.0.1", port=free_port())
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def _settings(self, port: int) -> dict[str, str]:
        return {"host": "127.0.0.1", "port": str(port), "emailFrom": "Orders <orders@example.com>", "subject": "Hello"}

    async def binding(self) -> OutputBinding:
        binding: OutputBinding = opened(smtp.SPEC, **self._settings(self._server.port))
        return binding

    async def use(self, invoke: Invoke) -> None:
        self._inbox.mails.clear()
        answer = await invoke(
            "create",
            '"<b>Grüße</b>"'.encode(),
            emailTo="Ann <a@example.com>; b@example.com",
            emailCC="c@example.com",
            emailBCC="d@example.com",
            subject="Ihre Bestellung für heute",
            priority="1",
        )
        assert answer == Result()
        [(sender, recipients, mail)] = self._inbox.mails
        assert (sender, sorted(recipients)) == ("orders@example.com", [f"{name}@example.com" for name in "abcd"])
        assert mail["Subject"] == "Ihre Bestellung für heute"
        assert mail["From"] == "Orders <orders@example.com>"
        assert mail["To"] == "Ann <a@example.com>, b@example.com"
        assert (mail["Cc"], mail["Bcc"], mail["X-Priority"]) == ("c@example.com", None, "1")
        assert mail.get_content_type() == "text/html"
        assert mail.get_content().strip() == "<b>Grüße</b>"

    def unreachable(self) -> OutputBinding:
        binding: OutputBinding = opened(smtp.SPEC, **self._settings(free_port()), user="orders", password="open-sesame")
        return binding


class MailInbox:
    """What `aiosmtpd` calls."""

    def __init__(self) -> None:
        self.mails: list[tuple[str, list[str], EmailMessage]] = []

    async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:
        mail = message_from_bytes(envelope.content, policy=default_policy, _class=EmailMessage)
        self.mails.append((envelope.mail_from, envelope.rcpt_tos, mail))
        return "250 OK"
