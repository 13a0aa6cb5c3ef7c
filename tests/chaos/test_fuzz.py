"""100,000 random and mutated requests against one real sidecar: it neither falls over, nor leaks, nor says
anything that it may not say."""

import asyncio
import os
import random
import re
import string
from collections import Counter
from pathlib import Path

import pytest

from mesh.errors import Code
from tests.e2e.mesh import Mesh

SEED = int(os.environ.get("FUZZ_SEED", "2"))
REQUESTS = 100_000
WARM = 10_000
GROWTH = 5 * 1024
"""How much more memory, in KiB, the last request may find in use than the one after `WARM` did."""
CONNECTIONS = 24
BURST = 8
"""Requests of one connection: all but the last one in one piece, without a fault in the HTTP."""
QUIET = 0.1
"""Seconds without news after which a connection that has its answers is given up."""
ANSWER_LIMIT = 20.0
"""Seconds in which the sidecar answers or hangs up."""
LAST = b"GET /v1.0/healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
"""What makes it hang up, unless the request before has swallowed it."""

pytestmark = pytest.mark.timeout(300)

MAY_BE_500 = {code.error_code for code in Code if code.status == 500 or code is Code.DIRECT_INVOKE} - {
    Code.INTERNAL.error_code
}
"""`ERR_DIRECT_INVOKE` is 404, 403 or 500 (Dapr: an app that cannot be found). `ERROR` is what the sidecar answers when
it did not foresee a request, which is what we are after."""

PATHS = [
    *["/v1.0/publish/pubsub/A"] * 6,
    *["/mesh/v1/events/pubsub/A"] * 8,
    "/v1.0/publish/pubsub/a/b.c",
    "/v1.0/publish/A",
    "/v1.0/publish/nobody/A",
    "/v1.0/healthz",
    "/v1.0/healthz/outbound",
    "/v1.0/metadata",
    "/v1.0/metadata/key",
    "/v1.0/invoke/app/method/x",
    "/v1.0/state/store",
    "/",
]
QUERIES = [
    "metadata.rawPayload=true",
    "metadata.rawPayload=maybe",
    "metadata.ttlInSeconds=10",
    "metadata.ttl=-1h",
    "metadata.ttl=99999999999999999h",
    "metadata.partitionKey=k%20%0d%0a",
    "metadata.cloudevent.id=x",
    "metadata.cloudevent.source=%00%ff",
    "appid=other",
]
TYPES = [
    "application/json",
    "application/cloudevents+json",
    "application/cloudevents-batch+json",
    "application/cloudevents+xml",
    "application/octet-stream",
    "application/cloudevents+json; charset=utf-16",
    "text/plain",
    "",
]
EVENT = '{"specversion":"1.0","id":"1","source":"/s","type":"t","datacontenttype":"application/json","data":{"n":1.0}}'
BODIES = [
    b"",
    b'{"n":1}',
    EVENT.encode(),
    f"[{EVENT},{EVENT}]".encode(),
    b"[]",
    b"null",
    b"[" * 2000,
    b'{"specversion":"1.0","id":"","source":" ","type":"t","time":"yesterday"}',
    b'{"specversion":"1.0","id":"1","source":"s","type":"t","data_base64":"!"}',
    b'{"specversion":"1.0","id":"1","source":"s","type":"t","expirytime":"9999-12-31T23:59:60Z"}',
    b'{"id":1e999,"traceparent":[],"partitionkey":{}}',
    b"\xff\xfe\x00",
    '{"id":"\\ud800","source":"☃"}'.encode(),
]
HEADERS = [
    "ce-specversion: 1.0",
    "ce-id: 1",
    "ce-source: /s",
    "ce-type: t",
    "ce-id: %ZZ%00%0d%0a",
    "ce-time: 2020-01-01T00:00:00Z",
    "ce-expirytime: 2020-01-01T00:00:00Z",
    "ce-partitionkey: k",
    "ce-Bad_Name: x",
    "ce-data: x",
    "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "tracestate: a=1,b=2",
    "baggage: k=v",
    "baggage: =",
    "Nats-Rollup: all",
    "Nats-Expected-Stream: x",
    "origin: http://evil.example",
    "dapr-api-token: x",
    "dapr-app-id: x",
    "expect: 100-continue",
    "x-long: " + "x" * 3000,
    "content-encoding: gzip",
]
METHODS = ["POST"] * 16 + ["PUT", "GET", "OPTIONS", "DELETE", "HEAD", "PATCH"]
PIECES = [
    b"\r\n",
    b"\r\nconnection: close",
    b"\r\nconnection: upgrade\r\nupgrade: h2c",
    b"\r\ncontent-length: 5",
    b"\n",
    b"\0",
    b"%",
    b"%2F",
    b"%00",
    b"..",
    b"//",
    b"*",
    b">",
    b":",
    b" ",
    b"\xff",
    b"{",
    b'"',
    b"\r",
]
ALPHABET = string.printable.encode()


def request(rnd: random.Random) -> bytes:
    """A request that is HTTP, whatever else it is."""
    target = rnd.choice(PATHS)
    if rnd.random() < 0.2:
        place = rnd.randrange(1, len(target) + 1)
        target = (
            target[:place]
            + rnd.choice(["%2F", "..", "//", "%20", "+", "*", ">", "%", "%00", "%C3%A9"])
            + target[place:]
        )
    if rnd.random() < 0.3:
        target += "?" + "&".join(rnd.sample(QUERIES, rnd.randrange(1, 4)))
    body = rnd.choice(BODIES)
    lines = [f"{rnd.choice(METHODS)} {target} HTTP/1.1", "host: localhost"]
    if kind := rnd.choice(TYPES):
        lines.append(f"content-type: {kind}")
    lines += HEADERS[:4] if rnd.random() < 0.2 else []
    lines += rnd.sample(HEADERS, rnd.randrange(4)) if rnd.random() < 0.4 else []
    if rnd.random() < 0.1:
        lines.append("transfer-encoding: chunked")
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    else:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def mutated(whole: bytes, rnd: random.Random) -> bytes:
    """With some bytes put in, taken out or changed."""
    for _ in range(rnd.randrange(1, 4)):
        place = rnd.randrange(len(whole)) if whole else 0
        match rnd.randrange(5):
            case 0:
                whole = whole[:place] + rnd.choice(PIECES) + whole[place:]
            case 1:
                whole = whole[:place] + whole[place + rnd.randrange(1, 20) :]
            case 2:
                whole = whole[:place] + bytes([rnd.randrange(256)]) + whole[place + 1 :]
            case 3:
                whole = whole[:place] + bytes(rnd.choices(ALPHABET, k=rnd.randrange(1, 50)))
            case 4:
                other = rnd.randrange(len(whole)) if whole else 0
                whole = whole[:place] + whole[other:]
    return whole


class Client(asyncio.Protocol):
    """Collects what comes on one connection."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.received = b""
        self.news = asyncio.Event()
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.news.set()

    def connection_lost(self, _: Exception | None) -> None:
        self.lost = True
        self.news.set()


status_line = re.compile(rb"HTTP/1\.1 (?!100)(\d{3}) ")
failure = re.compile(
    rb"HTTP/1\.1 500 (?:[^\r]*\r\n)*?content-type: application/json\r\n(?:[^\r]+\r\n)*\r\n(?=(.{0,100}))", re.DOTALL
)


def is_catalogued(body: bytes) -> bool:
    """Whether a 500 with `body` may be; the answer to a HEAD has none."""
    code = re.match(rb'\{"errorCode":"(\w+)"', body)
    return code[1].decode() in MAY_BE_500 if code else not body or body.startswith(b"HTTP/1.1 ")


class Fuzz:
    """Sends requests, pipelined on many connections, and judges the answers."""

    def __init__(self, port: int) -> None:
        self.sent = 0
        self.statuses: Counter[int] = Counter()
        self.bad: list[tuple[bytes, bytes]] = []
        self._port = port
        self._left = 0

    async def send(self, count: int) -> None:
        self._left = count
        seed = SEED + self.sent
        await asyncio.gather(*(self._worker(random.Random(seed + number)) for number in range(CONNECTIONS)))

    async def _worker(self, rnd: random.Random) -> None:
        loop = asyncio.get_running_loop()
        while self._left > 0:
            self._left -= BURST
            self.sent += BURST
            _, client = await loop.create_connection(Client, "127.0.0.1", self._port)
            sent = [request(rnd) for _ in range(BURST - 1)]
            client.transport.write(b"".join(sent))
            if rnd.random() < 0.02:
                client.transport.abort()
                continue
            await self._answers(client, len(sent))
            sent += [mutated(request(rnd), rnd), LAST]
            client.transport.write(b"".join(sent[-2:]))
            await self._answers(client, len(sent))
            client.transport.abort()
            self._judge(b"".join(sent), client.received)

    async def _answers(self, client: Client, count: int) -> None:
        """Returns when there are `count` answers, or the sidecar has hung up, or waits for more of a request."""
        deadline = asyncio.get_running_loop().time() + ANSWER_LIMIT
        while not client.lost and len(status_line.findall(client.received)) < count:
            client.news.clear()
            try:
                await asyncio.wait_for(client.news.wait(), QUIET)
            except TimeoutError:
                if count > BURST:
                    return
                assert asyncio.get_running_loop().time() < deadline, f"no answer after {client.received!r}"

    def _judge(self, sent: bytes, received: bytes) -> None:
        statuses = [int(status) for status in status_line.findall(received)]
        self.statuses.update(statuses)
        failures = failure.findall(received)
        if (
            any(status > 500 and status not in (501, 505) for status in statuses)
            or statuses.count(500) > len(failures)
            or not all(map(is_catalogued, failures))
        ):
            self.bad.append((sent, received))


def memory(pid: int) -> int:
    """Resident memory in KiB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1])


async def test_no_request_brings_the_sidecar_down(tmp_path):
    async with Mesh(tmp_path) as mesh:
        sidecar = await mesh.sidecar("app")
        fuzz = Fuzz(sidecar.port)
        await fuzz.send(WARM)
        before = memory(sidecar.pid)
        await fuzz.send(REQUESTS - WARM)
        after = memory(sidecar.pid)
        print(f"{fuzz.sent} sent, answers: {sorted(fuzz.statuses.items())}; {before} KiB, then {after} KiB")
        assert not fuzz.bad, f"{len(fuzz.bad)} bursts, the first: {fuzz.bad[0]}"
        assert sidecar.runs
        assert " failed" not in sidecar.log
        assert after <= before + GROWTH
        # Nearly all were really answered, and in more than one way.
        assert fuzz.statuses.total() > 0.85 * REQUESTS
        assert {202, 204, 400, 404, 405, 415} <= fuzz.statuses.keys()
        assert (await sidecar.call("GET", "/v1.0/healthz")).status == 204
        assert await sidecar.end() == 0
