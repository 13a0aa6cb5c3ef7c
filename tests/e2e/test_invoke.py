"""Service invocation from the outside: client, sidecar, a real nats-server, sidecar, app."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from pathlib import Path

import httpcore
import pytest

from brokers.nats.requests import BEAT, MISSED_BEATS
from tests.e2e.echo import PIECE
from tests.e2e.mesh import LIMIT, App, Mesh, Process, exchange
from tests.ports import free_port

ECHO = [sys.executable, "-P", str(Path(__file__).with_name("echo.py"))]
KIB, MIB = 1 << 10, 1 << 20
ADDED = ["dapr-caller-app-id", "dapr-callee-app-id", "dapr-caller-namespace"]


class Echo(Process):
    """The app of echo.py, in a process of its own."""

    def __init__(self, folder: Path, name: str = "echo") -> None:
        self.port = free_port()
        super().__init__(folder, name, [*ECHO, str(self.port)], {})

    async def up(self) -> Echo:
        self.start()
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                assert self.runs, self.log
                await asyncio.sleep(0.01)
            else:
                writer.close()
                return self


class Client:
    """Requests through one sidecar, or to the app itself."""

    def __init__(self, pool: httpcore.AsyncConnectionPool, port: int, prefix: str = "") -> None:
        self.pool = pool
        self.port = port
        self.prefix = prefix

    def url(self, path: str) -> httpcore.URL:
        return httpcore.URL(scheme=b"http", host=b"127.0.0.1", port=self.port, target=(self.prefix + path).encode())

    async def request(self, method, path, headers=(), body=None):
        response = await self.pool.request(method, self.url(path), headers=list(headers), content=body)
        return response.status, response.headers, response.content

    def stream(self, method, path, headers=(), body=None):
        return self.pool.stream(method, self.url(path), headers=list(headers), content=body)

    async def get(self, path, headers=()):
        status, _, content = await self.request("GET", path, headers)
        return status, content


@pytest.fixture
async def mesh(tmp_path):
    async with Mesh(tmp_path) as mesh:
        yield mesh


@pytest.fixture
async def pool():
    async with httpcore.AsyncConnectionPool(max_connections=64) as pool:
        yield pool


@pytest.fixture
async def echo(mesh):
    app = await Echo(mesh.folder).up()
    mesh.processes.append(app)
    return app


@pytest.fixture(scope="module")
def server():
    """The broker that these tests run on; `None` is a nats-server of the mesh's own."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory, server):
    """The sidecars of `a` and `b`, and the app of `b`. They stay up, since starting them takes longer than a test."""
    mesh = Mesh(tmp_path_factory.mktemp("shared"), server)

    async def start():
        await mesh.__aenter__()
        app = await Echo(mesh.folder).up()
        mesh.processes.append(app)
        callee = await mesh.sidecar("b", app=app.port)
        return await mesh.sidecar("a", "--max-body-size=2Gi"), callee, app

    try:
        yield asyncio.run(start())
    finally:
        asyncio.run(mesh.__aexit__(None, None, None))


@pytest.fixture
def pair(shared, pool):
    """A client of app `a`, whose calls go to `b`; and one that calls `b` directly."""
    caller, callee, app = shared
    through = Client(pool, caller.port, "/v1.0/invoke/b/method")
    through.sidecars = (caller, callee)
    return through, Client(pool, app.port)


def error_of(content):
    error = json.loads(content)
    assert error["errorCode"] == "ERR_DIRECT_INVOKE"
    return error["message"]


async def pieces(size):
    while size:
        piece = PIECE[:size]
        size -= len(piece)
        yield piece


def digest(size):
    whole = PIECE * (size // len(PIECE)) + PIECE[: size % len(PIECE)]
    return hashlib.sha256(whole).hexdigest()


# The same through the mesh as directly


async def test_requests_arrive_as_they_were_sent(pair):
    through, direct = pair
    headers = [
        *((b"X-A", b"1"), (b"x-b", b""), (b"X-A", b"2"), (b"Cookie", b"c=d"), (b"Authorization", b"Bearer t")),
        *(
            (b"Content-Type", b"Text/Plain; charset=x"),
            (b"Accept", b"*/*"),
            (b"User-Agent", "ü".encode()),
            (b"x_y", b"z"),
        ),
        (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ]
    for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"):
        for size in (0, KIB, MIB):
            for streamed in (False, True):
                shown = []
                for client in (direct, through):
                    body = pieces(size) if streamed else (PIECE * 16)[:size] or None
                    status, _, content = await client.request(method, "/echo/%C3%A9/a+b?c=%20&c=/..", headers, body)
                    assert status == 200
                    shown.append(json.loads(content))
                expected, found = shown
                own = [pair for pair in found["headers"] if pair[0] in ADDED]
                assert own == [
                    ["dapr-caller-app-id", "a"],
                    ["dapr-callee-app-id", "b"],
                    ["dapr-caller-namespace", "default"],
                ]
                for request in shown:
                    hidden = (*ADDED, "host", "content-length", "transfer-encoding")
                    request["headers"] = [header for header in request["headers"] if header[0] not in hidden]
                    if method == "POST" and streamed is False and size == 0:
                        request["headers"].sort()
                assert found == expected, (method, size, streamed)


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
async def test_answers_come_back_as_they_were_sent(pair, method):
    through, direct = pair
    for status in (
        200,
        201,
        202,
        204,
        206,
        301,
        302,
        304,
        307,
        400,
        401,
        403,
        404,
        405,
        409,
        418,
        429,
        451,
        500,
        502,
        503,
        504,
        599,
    ):
        expected = await direct.request(method, f"/status/{status}")
        found = await through.request(method, f"/status/{status}")
        assert found[0] == expected[0] == status
        assert found[2] == expected[2]
        hop = ((b"connection", b"x-hop"), (b"x-hop", b"h"))
        assert sorted(found[1]) == sorted(header for header in expected[1] if header not in hop), status


@pytest.mark.parametrize("size", [0, KIB, 128 * KIB, 128 * KIB + 1, 5 * MIB])
@pytest.mark.parametrize("known", ["", "/known"])
async def test_bodies_of_any_length_come_back(pair, size, known):
    through, direct = pair
    expected = await direct.request("GET", f"/bytes/{size}{known}")
    found = await through.request("GET", f"/bytes/{size}{known}")
    assert hashlib.sha256(found[2]).hexdigest() == digest(size)
    assert (found[0], found[2]) == (expected[0], expected[2])
    if known:
        assert (b"content-length", b"%d" % size) in found[1]


async def test_uploads_of_any_length_arrive(pair):
    through, _ = pair
    for size in (1, 128 * KIB, 128 * KIB + 1, 20 * MIB):
        for headers in ([], [(b"Content-Length", b"%d" % size)]):
            _, _, content = await through.request("POST", "/sink", headers, pieces(size))
            shown = json.loads(content)
            assert (shown["size"], shown["digest"]) == (size, digest(size))


async def test_other_ways_to_name_the_target(pair, pool):
    through, _ = pair
    plain = Client(pool, through.port)
    for path, headers, called in (
        ("/echo/x?y", [(b"dapr-app-id", b"b")], "/echo/x"),
        ("/echo/x?y", [(b"Authorization", b"Basic ZGFwci1hcHAtaWQ6Yg==")], "/echo/x"),
        ("/v1.0/invoke/b.default/method//echo//x/?y", [], "/echo/x"),
        ("//v1.0//invoke/b/method/echo%2Fx?y", [], "/echo/x"),
        ("/v1.0/invoke/nobody/method/echo", [(b"dapr-app-id", b"b")], "/v1.0/invoke/nobody/method/echo"),
    ):
        status, _, content = await plain.request("PATCH", path, headers)
        assert (status, json.loads(content)["path"]) == (200, called)
    status, content = await plain.get("/v1.0/metadata", [(b"dapr-app-id", b"b")])
    assert json.loads(content)["id"] == "a"  # other routes win
    for path in ("/", "/v1.0/invoke/b", "/v1.0/actors/x"):
        status, content = await plain.get(path)
        assert status == 404
        assert error_of(content) == "failed getting app id either from the URL path or the header dapr-app-id"


async def test_an_app_calls_itself(mesh, pool, echo):
    sidecar = await mesh.sidecar("a", app=echo.port)
    _, content = await Client(pool, sidecar.port).get("/v1.0/invoke/a/method/echo", [(b"dapr-caller-app-id", b"evil")])
    assert ["dapr-caller-app-id", "a"] in json.loads(content)["headers"]
    assert b"evil" not in content


# Streams


async def test_server_sent_events_come_one_by_one_and_hanging_up_reaches_the_app(pair):
    through, direct = pair
    before = await broken_off(direct)
    async with through.stream("GET", "/events", [(b"accept", b"text/event-stream")]) as response:
        assert (b"content-type", b"text/event-stream") in response.headers
        lines, times = [], []
        async for piece in response.aiter_stream():
            lines.append(piece)
            times.append(time.monotonic())
            if len(lines) == 3:
                break
    assert lines == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"]
    assert times[2] - times[0] > 0.3
    await one_more(direct, before)


async def broken_off(direct):
    """How many clients have broken off their call of the app."""
    return int((await direct.get("/gone"))[1])


async def one_more(direct, before):
    """The app notices soon."""
    deadline = time.monotonic() + LIMIT
    while (count := await broken_off(direct)) == before:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert count == before + 1


async def test_a_client_that_hangs_up_cancels_the_call(pair):
    through, direct = pair
    for line, rest in (("GET", "\r\n"), ("POST", "content-length: 5\r\n\r\nhello")):
        before = await broken_off(direct)
        _, writer = await asyncio.open_connection("127.0.0.1", through.port)
        writer.write(f"{line} {through.prefix}/hang HTTP/1.1\r\nhost: localhost\r\n{rest}".encode())
        await asyncio.sleep(0.2)
        writer.transport.abort()
        await one_more(direct, before)


@pytest.mark.parametrize(
    "framing",
    ["content-length: 1000000\r\n\r\nhello", "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"],
)
async def test_a_client_that_hangs_up_in_the_middle_of_its_body(pair, framing):
    through, direct = pair
    before = await broken_off(direct)
    _, writer = await asyncio.open_connection("127.0.0.1", through.port)
    writer.write(f"POST {through.prefix}/sink HTTP/1.1\r\nhost: localhost\r\n{framing}".encode())
    await asyncio.sleep(0.2)
    writer.transport.abort()
    await one_more(direct, before)


async def test_an_answer_that_breaks_off_never_looks_whole(pair):
    through, _ = pair
    request = f"GET {through.prefix}/cut HTTP/1.1\r\nhost: localhost\r\n\r\n"
    raw = await exchange(through.port, request.encode())
    assert raw.startswith(b"HTTP/1.1 200")
    assert not raw.endswith(b"0\r\n\r\n")


async def test_100_continue(pair):
    through, _ = pair
    reader, writer = await asyncio.open_connection("127.0.0.1", through.port)
    writer.write(f"POST {through.prefix}/echo HTTP/1.1\r\nhost: localhost\r\n".encode())
    writer.write(b"expect: 100-continue\r\ncontent-length: 5\r\n\r\n")
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"hello")
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n"), 30)).startswith(b"HTTP/1.1 200")
    writer.close()


def memory_peak(process):
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * KIB
    raise AssertionError("no VmHWM")


@pytest.mark.quiet
async def test_large_bodies_take_little_memory_and_small_calls_go_on(pair):
    through, _ = pair
    size = 192 * MIB
    slowest = 0.0

    async def small_calls():
        nonlocal slowest
        while True:
            begun = time.monotonic()
            assert (await through.get("/gone"))[0] == 200
            slowest = max(slowest, time.monotonic() - begun)
            await asyncio.sleep(0.02)

    calls = asyncio.create_task(small_calls())
    _, _, content = await through.request("POST", "/sink", (), pieces(size))
    assert json.loads(content)["size"] == size
    received = 0
    async with through.stream("GET", f"/bytes/{size}") as response:
        async for piece in response.aiter_stream():
            received += len(piece)
    assert received == size
    calls.cancel()
    await asyncio.gather(calls, return_exceptions=True)
    assert slowest < 1.0
    for sidecar in through.sidecars:
        assert memory_peak(sidecar) < 150 * MIB


async def test_bodies_beyond_the_limit(mesh, pool, echo):
    await mesh.sidecar("b", app=echo.port)
    sidecar = await mesh.sidecar("a", "--max-body-size=200Ki")
    client = Client(pool, sidecar.port, "/v1.0/invoke/b/method")
    assert (await client.request("POST", "/sink", (), pieces(200 * KIB)))[0] == 200
    for headers in ([(b"Content-Length", b"%d" % (200 * KIB + 1))], []):
        # ours closes the connection with the answer, whatever is still to come
        status, _, content = await client.request("POST", "/sink", headers, pieces(200 * KIB + 1))
        assert status == 500
        assert "stream too large" in error_of(content)


# Errors


@pytest.mark.quiet
async def test_an_app_that_nobody_knows(pair):
    through, _ = pair
    client = Client(through.pool, through.port, "/v1.0/invoke/nobody/method")
    await client.get("/x")
    begun = time.monotonic()
    status, content = await client.get("/x")
    assert time.monotonic() - begun < 0.05
    assert status == 500
    assert error_of(content).startswith("failed to invoke, id: nobody, err: failed to resolve address for 'nobody'")


@pytest.mark.parametrize("path", ["/a%23b", "/a%3Fb", "/a%00b", "/a%0D%0Ab", "/a%zz"])
async def test_paths_that_could_mean_something_else(pair, path):
    through, _ = pair
    status, content = await through.get(path)
    assert status == 500
    assert error_of(content).startswith("failed to invoke, id: b, err: invalid method")


async def test_callees_that_cannot_answer(mesh, pool):
    caller = Client(pool, (await mesh.sidecar("a")).port)
    await mesh.sidecar("portless")
    async with App() as app:
        await mesh.sidecar("down", app=app)
    for app_id, cause in (
        ("portless", "app channel is not initialized"),
        ("down", "error invoking app channel:"),
        ("a", "cannot invoke local endpoint: app channel not initialized"),
        ("a.b.c", "invalid app id"),
    ):
        status, content = await caller.get(f"/v1.0/invoke/{app_id}/method/x")
        assert status == 500
        message = error_of(content)
        assert message.startswith(f"failed to invoke, id: {app_id}, err: ")
        assert cause in message


async def test_a_callee_that_is_killed_in_the_middle(mesh, pool, echo):
    first = await mesh.sidecar("b", app=echo.port)
    caller = Client(pool, (await mesh.sidecar("a")).port, "/v1.0/invoke/b/method")
    hanging = asyncio.create_task(caller.get("/hang"))
    await asyncio.sleep(0.3)
    await mesh.sidecar("b", app=echo.port, name="b2")
    first.kill()
    begun = time.monotonic()
    assert (await caller.get("/gone"))[0] == 200  # the other replica, at once
    assert time.monotonic() - begun < BEAT * MISSED_BEATS  # when those notice who wait for the one that is dead
    status, content = await asyncio.wait_for(hanging, 30)
    assert time.monotonic() - begun < 15
    assert status == 500
    assert error_of(content).startswith("failed to invoke, id: b, err: ")


async def test_a_broker_that_is_lost_in_the_middle_of_a_body(mesh, pool, echo):
    await mesh.sidecar("b", app=echo.port)
    through = Client(pool, (await mesh.sidecar("a")).port, "/v1.0/invoke/b/method")
    with pytest.raises((httpcore.RemoteProtocolError, httpcore.ReadError)):
        async with through.stream("GET", f"/bytes/{1 << 30}") as response:
            async for _ in response.aiter_stream():
                mesh.server.kill()


# Who is who


async def test_nobody_speaks_in_anothers_name(pair):
    through, _ = pair
    forged = [
        *((b"dapr-caller-app-id", b"evil"), (b"Dapr-Caller-App-Id", b"evil"), (b"dapr_caller_app_id", b"evil")),
        *((b"DAPR-CALLER-NAMESPACE", b"evil"), (b"dapr-callee-app-id", b"evil"), (b"dapr-api-token", b"evil")),
        *((b"destination-app-id", b"evil"), (b"x-bin", b"evil"), (b"Nats-Rollup", b"all")),
        *((b"Connection", b"x-secret, keep-alive"), (b"X-Secret", b"evil"), (b"Upgrade", b"evil"), (b"TE", b"evil")),
    ]
    _, _, content = await through.request("POST", "/echo", forged, b"x")
    assert b"evil" not in content
    assert ["nats-rollup", "all"] in json.loads(content)["headers"]  # an ordinary header of the app's


async def test_each_app_gets_its_own_token(mesh, pool, echo):
    await mesh.sidecar("b", app=echo.port, APP_API_TOKEN="of-b")
    sidecar = await mesh.sidecar("a", APP_API_TOKEN="of-a", DAPR_API_TOKEN="of-the-api")
    client = Client(pool, sidecar.port, "/v1.0/invoke/b/method")
    assert (await client.get("/echo"))[0] == 401
    _, content = await client.get("/echo", [(b"dapr-api-token", b"of-the-api")])
    tokens = [value for name, value in json.loads(content)["headers"] if name == "dapr-api-token"]
    assert tokens == ["of-b"]


@pytest.mark.parametrize(
    "sent",
    [
        "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        "POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\nhello",
        "POST {path} HTTP/1.1\r\nhost: a\r\nx: y\nContent-Length : 5\r\n\r\nhello",
        "GET {path}\r\nx: y HTTP/1.1\r\nhost: a\r\n\r\n",
        "CONNECT b:80 HTTP/1.1\r\nhost: a\r\n\r\n",
    ],
)
async def test_smuggled_requests_do_not_reach_the_app(pair, sent):
    through, _ = pair
    raw = await exchange(through.port, sent.format(path=through.prefix + "/echo").encode())
    assert raw.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501", b"HTTP/1.1 505"))
    assert (await through.get("/gone"))[0] == 200


async def test_access_is_judged_by_the_callee(mesh, pool, echo):
    config = mesh.folder / "config.yaml"
    config.write_text(
        "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: c}\nspec:\n  accessControl:\n"
        "    defaultAction: deny\n    policies:\n    - appId: a\n      defaultAction: deny\n      trustDomain: public\n"
        "      namespace: default\n      operations:\n      - {name: /echo, httpVerb: [GET], action: allow}\n"
    )
    await mesh.sidecar("b", f"--config={config}", app=echo.port, MESHWIRE_CALLERS_VERIFIED="true")
    caller = Client(pool, (await mesh.sidecar("a")).port, "/v1.0/invoke/b/method")
    other = Client(pool, (await mesh.sidecar("c")).port, "/v1.0/invoke/b/method")
    assert (await caller.get("/echo"))[0] == 200
    for client, method, path in ((caller, "POST", "/echo"), (caller, "GET", "/sink"), (other, "GET", "/echo")):
        status, _, content = await client.request(method, path)
        assert status == 403
        assert "access control policy has denied access" in error_of(content)


async def test_retries_by_a_policy(mesh, pool):
    answers = iter([(503, b"no"), (503, b"no"), (200, b"yes")])
    (mesh.folder / "resources").mkdir()
    (mesh.folder / "resources" / "r.yaml").write_text(
        "apiVersion: dapr.io/v1alpha1\nkind: Resiliency\nmetadata: {name: r}\nspec:\n  policies:\n    retries:\n"
        "      again: {policy: constant, duration: 10ms, maxRetries: 5}\n"
        "  targets:\n    apps:\n      b: {retry: again}\n"
    )
    async with App(answer=lambda _: next(answers)) as app:
        await mesh.sidecar("b", app=app)
        sidecar = await mesh.sidecar("a", f"--resources-path={mesh.folder / 'resources'}")
        assert (await sidecar.call("POST", "/v1.0/invoke/b/method/x", body=b"x")).body == b"yes"
        assert [request.body for request in app.events] == [b"x"] * 3


@pytest.mark.quiet
async def test_a_restarting_callee_is_waited_for(mesh, pool, echo):
    callee = await mesh.sidecar("b", app=echo.port)
    caller = Client(pool, (await mesh.sidecar("a")).port, "/v1.0/invoke/b/method")
    assert (await caller.get("/echo"))[0] == 200
    await callee.end()
    call = asyncio.create_task(caller.get("/echo"))
    callee.start()
    assert (await asyncio.wait_for(call, 30))[0] == 200


async def test_a_plain_nats_program_calls_and_is_called(mesh, pool, echo):
    """The example, and a sidecar app that answers the same call."""
    folder = Path(__file__).parents[2] / "examples" / "nats"
    port = free_port()
    shop = Process(mesh.folder, "shop.py", [sys.executable, str(folder / "shop.py")], {"APP_PORT": str(port)}).start()
    mesh.processes.append(shop)
    caller = Client(pool, (await mesh.sidecar("shop", app=port)).port)
    prices = Process(mesh.folder, "prices.py", [sys.executable, str(folder / "prices.py"), mesh.server.url], {}).start()
    mesh.processes.append(prices)
    await prices.says("the shop was told by prices: prices are served\n")
    status, headers, content = await caller.request("GET", "/v1.0/invoke/prices/method/prices/lamp")
    assert (status, content) == (200, b'{"item": "lamp", "price": 40}')
    assert (b"cache-control", b"max-age=60") in headers
    await prices.says("shop asked for /prices/lamp: 200\n")
    for method, path, expected in (("GET", "piano", 404), ("DELETE", "lamp", 405)):
        assert (await caller.request(method, f"/v1.0/invoke/prices/method/prices/{path}"))[0] == expected
    prices.kill()
    await mesh.sidecar("prices", app=echo.port)  # takes its place
    assert (await caller.get("/v1.0/invoke/prices/method/prices/lamp"))[0] == 200
