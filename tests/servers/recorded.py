"""A real HTTP server that replays recorded exchanges. A request that was not recorded, exactly, fails the test."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Recorded = Mapping[str, tuple[int, object]]
"""Target of a `GET`, and what is answered: status, and a body as text or as what becomes JSON."""


class RecordedServer:
    """On a port of its own, with TLS where there is a `context`. `headers` must be in every request, and no others
    but `host` and `accept`."""

    def __init__(self, exchanges: Recorded, headers: Mapping[str, str], context: ssl.SSLContext | None = None) -> None:
        self.exchanges = dict(exchanges)
        self.headers = dict(headers)
        self.requests: list[str] = []
        self.unexpected: list[str] = []
        self._context = context
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}
        self.port = 0

    @property
    def url(self) -> str:
        return f"http{'s' if self._context else ''}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        assert self.unexpected == []

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in self._connections:
                writer.transport.abort()
            serving = [task for task in self._connections.values() if task is not None]
            await asyncio.wait_for(asyncio.gather(*serving), 10)
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections[writer] = asyncio.current_task()
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                status, body = self._answer(*head.strip().split("\r\n"))
                content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                length = f"content-length: {len(content)}"
                writer.write(f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{length}\r\n\r\n".encode())
                writer.write(content)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            del self._connections[writer]
            writer.close()

    def _answer(self, line: str, *fields: str) -> tuple[int, object]:
        given = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        expected = {"host": f"127.0.0.1:{self.port}", "accept": "application/json", **self.headers}
        method, target, _ = line.split(" ")
        self.requests.append(target)
        if method == "GET" and given == expected and target in self.exchanges:
            return self.exchanges[target]
        self.unexpected.append(f"{line} {given}")
        return 599, "not recorded"


def certificate(folder: Path, name: str = "127.0.0.1") -> tuple[Path, ssl.SSLContext]:
    """A self-signed certificate for `name`: its file, and the context of a server that has it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "recorded")])
    now = datetime.datetime.now(datetime.UTC)
    try:
        alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        alternative = x509.DNSName(name)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(parents=True, exist_ok=True)
    public, private = folder / "ca.crt", folder / "key.pem"
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return public, context
