"""Apps that speak https or h2c, and servers outside the mesh: called by the library."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest
import uvicorn

from mesh.errors import AppError, AppUnreachable, MeshError
from mesh.guarded_addresses import Forbidden, check_address
from mesh.http_endpoint import ClientTls, HttpEndpoint
from mesh.ports import Request
from sidecar.channel import OutsideWorld, UnsafeRequest, open_app_channel

CERTIFICATE = Path(__file__).with_name("self_signed.pem")
"""Of `localhost` and 127.0.0.1; nobody trusts it."""


async def echo(scope, receive, send):
    """Shows the request; `/bytes/<n>` sends so many, `/to?<status>+<url>` redirects, `/loop` for ever."""
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message.get("more_body"):
            break
    path, headers = scope["path"], [(b"x-a", b"1"), (b"x-a", b"2")]
    if path == "/hang":
        await receive()
        return
    if path in ("/to", "/loop"):
        status, _, location = (scope["query_string"].decode() or "302+/loop").partition("+")
        await send(
            {"type": "http.response.start", "status": int(status), "headers": [(b"location", location.encode())]}
        )
        await send({"type": "http.response.body", "body": b""})
        return
    if path.startswith("/bytes/"):
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(int(path[7:]) // 65536):
            await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
        if path.endswith("1"):
            raise RuntimeError("cut")
        await send({"type": "http.response.body", "body": b""})
        return
    shown = json.dumps(
        {
            "method": scope["method"],
            "path": scope["raw_path"].decode(),
            "headers": [[name.decode(), value.decode()] for name, value in scope["headers"]],
            "body": body.decode(),
        }
    ).encode()
    await send(
        {"type": "http.response.start", "status": 201, "headers": [*headers, (b"content-length", b"%d" % len(shown))]}
    )
    await send({"type": "http.response.body", "body": shown})


@contextlib.asynccontextmanager
async def serving(**options) -> AsyncIterator[int]:
    """A stock uvicorn with `echo`; gives its port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(echo, log_level="critical", lifespan="off", timeout_graceful_shutdown=0, **options)
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext
        task = asyncio.create_task(server.serve([listener]))
        while not server.started:
            await asyncio.sleep(0.005)
        yield listener.getsockname()[1]
        server.should_exit = True
        await asyncio.wait_for(task, 10)


class H2cApp(asyncio.Protocol):
    """HTTP/2 in the clear, with prior knowledge; answers with what it was asked."""

    def connection_made(self, transport):
        self.transport = transport
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.http.initiate_connection()
        self.asked = {}
        self.transport.write(self.http.data_to_send())

    def data_received(self, data):
        for event in self.http.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                self.asked[event.stream_id] = (event.headers, bytearray())
            elif isinstance(event, h2.events.DataReceived):
                self.asked[event.stream_id][1].extend(event.data)
                self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                headers, body = self.asked.pop(event.stream_id)
                shown = json.dumps({"headers": [list(pair) for pair in headers], "size": len(body)}).encode()
                self.http.send_headers(event.stream_id, [(":status", "202"), ("content-length", str(len(shown)))])
                self.http.send_data(event.stream_id, shown, end_stream=True)
        self.transport.write(self.http.data_to_send())


@pytest.fixture
async def h2c_port():
    server = await asyncio.get_running_loop().create_server(H2cApp, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@contextlib.asynccontextmanager
async def channel_to(protocol, port, **settings):
    channel = open_app_channel(protocol, "127.0.0.1", port, **{"token": "t", "max_concurrency": None, **settings})
    try:
        yield channel
    finally:
        await asyncio.wait_for(channel.close(), 5)


async def pieces(*given):
    for piece in given:
        yield piece


async def whole(body):
    return body if isinstance(body, bytes) else b"".join([piece async for piece in body])


async def test_h2c(h2c_port):
    async with channel_to("h2c", h2c_port) as channel:
        await asyncio.wait_for(channel.wait_until_listening(), 5)
        assert await channel.probe("/healthz", timeout=5)
        request = Request(method="POST", path="/a?b", headers=[(b"X-A", b"1")], body=pieces(b"he", b"llo"))
        response = await channel.call(request, [("dapr-caller-app-id", "a")])
        assert response.status == 202
        shown = json.loads(response.body)
        assert shown["size"] == 5
        headers = dict(shown["headers"])
        assert headers[":path"] == "/a?b"
        assert (headers["dapr-api-token"], headers["dapr-caller-app-id"], headers["x-a"]) == ("t", "a", "1")
        delivered = await channel.prepare("POST", "/e", [("x", "y")]).send(b"event", timeout=5)
        assert json.loads(delivered.body)["size"] == 5
        assert delivered.status == 202


async def test_https_with_any_certificate():
    async with (
        serving(ssl_certfile=str(CERTIFICATE)) as port,
        channel_to("https", port, max_concurrency=1) as channel,
    ):
        assert await channel.probe("/healthz", timeout=5)
        response = await channel.request("POST", "/a?b", [("x", "1"), ("dapr-x", "2")], b"hello", timeout=5)
        shown = json.loads(response.body)
        assert (response.status, shown["method"], shown["path"], shown["body"]) == (201, "POST", "/a", "hello")
        assert [value for name, value in response.headers if name == b"x-a"] == [b"1", b"2"]
        assert ["dapr-x", "2"] not in shown["headers"]
        for _ in range(3):  # each frees its slot
            response = await channel.call(Request(method="GET", path="/bytes/1048576"))
            assert len(await whole(response.body)) == 1 << 20
        response = await channel.call(Request(method="GET", path="/bytes/1048576"))
        await response.body.aclose()
        with pytest.raises(AppError, match="broke off"):
            await whole((await channel.call(Request(method="GET", path="/bytes/1048571"))).body)
        with pytest.raises(AppError, match="in time"):
            await channel.request("GET", "/hang", timeout=0.2)
        hanging = channel.call(Request(method="GET", path="/hang"))
        await asyncio.sleep(0.05)
        hanging.cancel()
        assert (await channel.request("HEAD", "/x", timeout=5)).status == 201
        with pytest.raises(UnsafeRequest):
            channel.call(Request(method="GET", path="/a b"))


@pytest.mark.parametrize("protocol", ["https", "h2c"])
async def test_an_app_that_is_not_there_or_speaks_otherwise(protocol):
    async with channel_to(protocol, 1) as channel:
        assert not await channel.probe("/", timeout=5)
        with pytest.raises(AppUnreachable, match="cannot connect"):
            await channel.call(Request(method="GET", path="/"))
    async with serving() as port, channel_to(protocol, port) as channel:
        with pytest.raises(AppError):
            await channel.call(Request(method="GET", path="/"))


# Outside of the mesh


@pytest.fixture
async def outside():
    worlds = []

    def make(*endpoints):
        worlds.append(OutsideWorld(endpoints))
        return worlds[-1]

    yield make
    for world in worlds:
        await world.close()


ASKED = Request(
    method="POST",
    path="/x?q",
    headers=[(b"authorization", b"a"), (b"x-own", b"client"), (b"content-type", b"t")],
    body=b"b",
)


async def test_urls(outside):
    async with serving() as port:
        world = outside()
        response = await world.call(f"http://127.0.0.1:{port}", ASKED)
        shown = json.loads(response.body)
        assert (response.status, shown["method"], shown["path"], shown["body"]) == (201, "POST", "/x", "b")
        assert dict(shown["headers"])["host"] == f"127.0.0.1:{port}"
        redirect = Request(method="GET", path="/to?302+/x")
        response = await world.call(f"http://127.0.0.1:{port}", redirect)
        assert response.status == 302  # passed back, not followed
        with pytest.raises(AppError):
            await world.call(f"https://127.0.0.1:{port}", ASKED)


async def test_endpoints_have_headers_of_their_own_and_their_redirects_are_followed(outside):
    async with serving() as port, serving() as other:
        base = f"http://127.0.0.1:{port}"
        world = outside(HttpEndpoint(name="shop", base_url=f"{base}/base", headers=(("X-Own", "endpoint"),)))
        assert world.has("shop")
        assert not world.has("other")
        shown = json.loads((await world.call("shop", ASKED)).body)
        headers = dict(shown["headers"])
        assert (shown["path"], headers["x-own"], headers["authorization"]) == ("/base/x", "endpoint", "a")
        world = outside(HttpEndpoint(name="shop", base_url=base, headers=(("X-Own", "endpoint"),)))
        for status, method, body in ((302, "GET", ""), (303, "GET", ""), (307, "POST", "b"), (308, "POST", "b")):
            for target, kept in (("/y", True), (f"http://127.0.0.1:{other}/y", False)):
                asked = Request(method="POST", path=f"/to?{status}+{target}", headers=ASKED.headers, body=b"b")
                shown = json.loads((await world.call("shop", asked)).body)
                names = dict(shown["headers"])
                assert (shown["method"], shown["path"], shown["body"]) == (method, "/y", body)
                assert ("x-own" in names, "authorization" in names) == (kept, kept)
                assert ("content-type" in names) == (method == "POST")
        streamed = Request(method="POST", path="/to?307+/y", body=pieces(b"b"))
        assert (await world.call("shop", streamed)).status == 307  # cannot be sent again
        with pytest.raises(MeshError, match="stopped after 10 redirects"):
            await world.call("shop", Request(method="GET", path="/loop"))


async def test_an_endpoint_trusts_its_own_authority(outside):
    async with serving(ssl_certfile=str(CERTIFICATE)) as port:
        base = f"https://localhost:{port}"
        with pytest.raises(AppError, match="certificate"):
            await outside(HttpEndpoint(name="shop", base_url=base)).call("shop", ASKED)
        tls = ClientTls(root_ca=CERTIFICATE.read_text())
        response = await outside(HttpEndpoint(name="shop", base_url=base, tls=tls)).call("shop", ASKED)
        assert response.status == 201


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"),
        *("100.100.100.200", "168.63.129.16", "fd00:ec2::254", "0.0.0.0", "::", "224.0.0.1", "ff02::1"),
    ],
)
async def test_addresses_that_may_not_be_called(outside, address):
    with pytest.raises(Forbidden):
        check_address(address)


@pytest.mark.parametrize("host", ["169.254.169.254", "0xa9fea9fe", "2852039166", "[::ffff:169.254.169.254]"])
async def test_they_are_refused_however_they_are_written(outside, host):
    world = outside(HttpEndpoint(name="shop", base_url=f"http://{host}"))
    for target in (f"http://{host}", "shop"):
        with pytest.raises(MeshError, match=r"may not be called|cannot be resolved"):
            await asyncio.wait_for(world.call(target, ASKED), 5)


async def test_a_redirect_does_not_lead_there_either(outside):
    async with serving() as port:
        world = outside(HttpEndpoint(name="shop", base_url=f"http://127.0.0.1:{port}"))
        with pytest.raises(Forbidden):
            await world.call("shop", Request(method="GET", path="/to?302+http://169.254.169.254/latest"))


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "192.168.1.1", "8.8.8.8", "::1", "2001:db8::1"])
def test_addresses_that_may_be_called(address):
    check_address(address)
