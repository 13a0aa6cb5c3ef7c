"""Bad input from every side: a precise error, and no effect."""

import asyncio
import json
import os
import re
import signal
import subprocess
import time

import nats
import pytest

from mesh import addressing
from tests.e2e.mesh import (
    JSON,
    MESHWIRE,
    SIDECAR,
    App,
    Mesh,
    Process,
    Run,
    Sidecar,
    exchange,
    running,
    subscription,
    until,
)
from tests.ports import free_port

DAPR, INGRESS = "/v1.0/publish/pubsub/A", "/mesh/v1/events/pubsub/A"
STRUCTURED = ("content-type", "application/cloudevents+json")
BATCHED = ("content-type", "application/cloudevents-batch+json")
STREAM = addressing.event_stream("mesh", "default")
EVENT = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}


@pytest.fixture
async def mesh(tmp_path):
    async with Mesh(tmp_path) as mesh:
        yield mesh


async def stored(mesh):
    """What is in the stream: subject and headers of each message, in order."""
    client = await nats.connect(mesh.server.url)
    try:
        stream = client.jetstream()
        state = (await stream.stream_info(STREAM)).state
        messages = [await stream.get_msg(STREAM, seq) for seq in range(state.first_seq, state.last_seq + 1)]
        assert len(messages) == state.messages
        return [(message.subject, message.headers or {}) for message in messages]
    finally:
        await client.close()


def event(**changed):
    members = {name: value for name, value in (EVENT | changed).items() if value is not None}
    return json.dumps(members).encode()


def binary(**changed):
    return [(f"ce-{name}", value) for name, value in (EVENT | changed).items() if value is not None]


# Events


REFUSED_AT_THE_INGRESS = [
    # headers, body, status, what the message must name
    ([], b"{}", 400, "this is no CloudEvent"),
    ([STRUCTURED], b"", 400, ""),
    ([STRUCTURED], b"{", 400, ""),
    ([STRUCTURED], b"[]", 400, "object"),
    ([STRUCTURED], b"\xff", 400, ""),
    ([STRUCTURED], b"[" * 100_000, 400, ""),
    ([STRUCTURED], event(id=None), 400, "id"),
    ([STRUCTURED], event(id=""), 400, "id"),
    ([STRUCTURED], event(source="not a uri"), 400, "source"),
    ([STRUCTURED], event(type=1), 400, "type"),
    ([STRUCTURED], event(specversion="2.0"), 400, "specversion"),
    ([STRUCTURED], event(time="yesterday"), 400, "time"),
    ([STRUCTURED], event(Upper="x"), 400, "Upper"),
    ([STRUCTURED], event(ext={}), 400, "ext"),
    ([STRUCTURED], event(ext=2**31), 400, "ext"),
    ([STRUCTURED], event(ext="a\u0000b"), 400, "ext"),
    ([STRUCTURED], event(data_base64="!"), 400, "data_base64"),
    ([STRUCTURED], event(data=1, data_base64=""), 400, "data"),
    ([("content-type", "application/cloudevents+xml")], b"<a/>", 415, "application/cloudevents+xml"),
    ([("content-type", "application/cloudevents+json; charset=utf-16")], event(), 415, "charset"),
    ([BATCHED], event(), 400, "array"),
    ([BATCHED], b"[" + event() + b"," + event(id=None) + b"]", 400, "[1] id"),
    (binary(id=None), b"", 400, "id"),
    (binary(time="2020-13-01T00:00:00Z"), b"", 400, "time"),
    (binary(id="%ff"), b"", 400, "id"),
    ([*binary(), ("ce-id", "2")], b"", 400, "ce-id"),
    ([*binary(), ("ce-Bad_Name", "2")], b"", 400, "ce-bad_name"),
    ([*binary(), ("baggage", "=")], b"", 400, "invalid baggage header"),
    ([STRUCTURED], b" " * (4 << 20) + event(), 413, "4194304"),
    ([STRUCTURED], event(data="x" * (1 << 20)), 413, "1048576"),
]


async def test_bad_events_are_refused_and_leave_nothing(mesh):
    sidecar = await mesh.sidecar("app")
    for headers, body, status, named in REFUSED_AT_THE_INGRESS:
        answer = await sidecar.call("POST", INGRESS, headers, body)
        case = (headers, body[:60], answer)
        assert answer.status == status, case
        assert named in answer.body.decode() and len(answer.body) < 2000, case

    for target, headers, body, status, code in [
        ("/v1.0/publish/nobody/A", [JSON], b"{}", 404, "ERR_PUBSUB_NOT_FOUND"),
        ("/mesh/v1/events/nobody/A", [STRUCTURED], event(), 404, "ERR_PUBSUB_NOT_FOUND"),
        ("/v1.0/publish/pubsub/", [], b"", 404, "ERR_TOPIC_NAME_EMPTY"),
        ("/v1.0/publish/pubsub/.", [], b"", 404, "ERR_TOPIC_NAME_EMPTY"),  # resolved away (Dapr)
        (DAPR, [STRUCTURED], b"[]", 500, "ERR_PUBSUB_CLOUD_EVENTS_SER"),
        (DAPR, [STRUCTURED], b"not json", 500, "ERR_PUBSUB_CLOUD_EVENTS_SER"),
        (DAPR, binary(time="x"), b"", 500, "ERR_PUBSUB_CLOUD_EVENTS_SER"),
        (DAPR, [BATCHED], b"[{}]", 500, "ERR_PUBSUB_CLOUD_EVENTS_SER"),
        (f"{DAPR}?metadata.rawPayload=maybe", [], b"", 400, "ERR_PUBSUB_REQUEST_METADATA"),
        (DAPR, [], b" " * ((4 << 20) + 1), 500, "ERR_PUBSUB_PUBLISH_MESSAGE"),
        (DAPR, [], b" " * (1 << 20), 500, "ERR_PUBSUB_PUBLISH_MESSAGE"),
        (DAPR, [("x", "y" * 9000)], b"", 431, None),
        (DAPR, [("baggage", "k=\x01")], b"", 400, None),
    ]:
        answer = await sidecar.call("POST", target, headers, body)
        assert answer.status == status, (target, headers, answer)
        assert code is None or answer.json["errorCode"] == code, answer
    await sidecar.publish(b'"the only good one"')
    assert len(await stored(mesh)) == 1


# Names and headers that could mean something to the broker

REFUSED_TOPICS = {
    "*": "wildcard",
    ">": "wildcard",
    "a.*.b": "wildcard",
    "a.%3E": "wildcard",
    "$JS.API.%3E": "wildcard",
    "a%0D%0ANats-Rollup:%20all": "control characters",
    "a%00": "control characters",
    "a%0Ab": "control characters",
    "x" * 257: "longer than 256 bytes",
    "%zz": "unescape",
    "%ff": "invalid UTF-8",
}
STRANGE_TOPICS = {
    "%2e%2e": "..",
    "%2e%2e%2f%2e%2e%2fetc": "../../etc",
    "%2F": "/",
    "a%2Fb": "a/b",
    "a/b": "a/b",
    "a/../b": "b",  # resolved before it is matched (Dapr)
    "a%20b": "a b",
    "a+b": "a b",
    "a%2Bb": "a+b",
    "a*b": "a*b",
    "a%3Eb": "a>b",
    "a..b": "a..b",
    "$SYS.REQ": "$SYS.REQ",
    "$JS.API.STREAM.DELETE.x": "$JS.API.STREAM.DELETE.x",
    "Nats-Rollup": "Nats-Rollup",
    "%25": "%",
    "%E2%98%83": "☃",
    "~a": "~a",
}


async def test_no_topic_is_more_than_a_name(mesh):
    topics = sorted(set(STRANGE_TOPICS.values()))
    async with App([subscription(topic) | {"route": f"/{index}"} for index, topic in enumerate(topics)]) as app:
        sidecar = await mesh.sidecar("app", app=app, topics=topics)
        for target, named in REFUSED_TOPICS.items():
            for route in ("/v1.0/publish", "/mesh/v1/events"):
                answer = await sidecar.call("POST", f"{route}/pubsub/{target}", [STRUCTURED], event())
                assert (answer.status, named in answer.body.decode()) == (400, True), (target, answer)
        expected = []
        for number, (target, topic) in enumerate(STRANGE_TOPICS.items()):
            answer = await sidecar.call("POST", f"/v1.0/publish/pubsub/{target}", [JSON], b"%d" % number)
            assert answer.status == 204, (target, answer)
            expected.append((f"/{topics.index(topic)}", topic, number))
        requests = await app.got(len(expected))
        found = [(request.path, request.event["topic"], request.event["data"]) for request in requests]
        assert sorted(found) == sorted(expected)
        messages = await stored(mesh)
        assert len(messages) == len(STRANGE_TOPICS)
        for subject, _ in messages:
            assert re.fullmatch(r"mesh\.default\.event\.pubsub\.([A-Za-z0-9_%-]+\.)+u", subject), subject


ROLLUP = "x%0D%0ANats-Rollup:%20all"
KNOWN_HEADERS = re.compile(
    r"Nats-Msg-Id|Nats-TTL|Content-Type|Meshwire-No-Data|Meshwire-Key|traceparent|tracestate|baggage|ce-[a-z0-9]+"
)


async def test_nothing_becomes_a_header_of_the_broker(mesh):
    sidecar = await mesh.sidecar("app")
    raw = "?metadata.rawPayload=true"
    accepted = 1
    await sidecar.publish(b'"the first, that a rollup would delete"')
    for target, headers, body in [
        (DAPR, [("Nats-Rollup", "all"), ("Nats-Expected-Stream", "x"), ("nats-msg-id", "1")], b"{}"),
        (
            DAPR + raw,
            [("Nats-Rollup", "all"), ("content-type", "x; Nats-Rollup: all")],
            b"NATS/1.0\r\nNats-Rollup: all",
        ),
        (f"{DAPR}?metadata.Nats-Rollup=all&metadata.natsrollup=all", [JSON], b"{}"),
        (f"{DAPR}?metadata.{ROLLUP}={ROLLUP}", [JSON], b"{}"),
        (f"{DAPR}?metadata.partitionKey={ROLLUP}", [JSON], b"{}"),
        (f"{DAPR}?metadata.ttlInSeconds=5{ROLLUP}", [JSON], b"{}"),
        (f"{DAPR}?metadata.cloudevent.id={ROLLUP}&metadata.cloudevent.source={ROLLUP}", [JSON], b"{}"),
        (DAPR + raw + f"&metadata.cloudevent.id={ROLLUP}", [], b""),
        (DAPR, [STRUCTURED], event(natsrollup="all", id="x\r\nNats-Rollup: all")),
        (INGRESS, binary(natsrollup="all", id="2"), b""),
        (INGRESS, [*binary(id="3"), ("content-type", "text/plain; Nats-Rollup=all")], b"x"),
        (INGRESS, [*binary(id="4"), ("baggage", "Nats-Rollup=all"), ("Nats-Rollup", "all")], b""),
        (
            INGRESS,
            [*binary(id="5"), ("traceparent", "00-" + "a" * 32 + "-" + "b" * 16 + "-01"), ("tracestate", "n=a")],
            b"",
        ),
        (INGRESS, binary(id="6", subject="%0D%0ANats-Rollup:%20all"), b""),  # refused: a control character
    ]:
        answer = await sidecar.call("POST", target, headers, body)
        refused = "%0D%0A" in dict(headers).get("ce-subject", "")
        assert answer.status == (400 if refused else 202 if target is INGRESS else 204), (target, headers, answer)
        accepted += not refused
    messages = await stored(mesh)
    assert len(messages) == accepted
    for _, headers in messages:
        assert all(KNOWN_HEADERS.fullmatch(name) for name in headers), headers
        assert not any("\r" in value or "\n" in value for value in headers.values())
        assert re.fullmatch(r"[0-9a-f]{32}", headers["Nats-Msg-Id"])


@pytest.mark.parametrize("app_id", ["..", "a.b", "a*", ">", "a b", "a\r\nNats-Rollup: all", "é", "a/b", "", "x" * 65])
@pytest.mark.parametrize("command", [SIDECAR, [*MESHWIRE, "run"]], ids=["sidecar", "run"])
def test_bad_app_id_starts_nothing(tmp_path, command, app_id):
    code, output = start(tmp_path, [*command, f"--app-id={app_id}"], MESHWIRE_BROKER="nats://127.0.0.1:1")
    assert code in (1, 2)
    assert "--app-id" in output
    assert len(output) < 600
    assert "\nNats-Rollup" not in output


def start(folder, command, **environment):
    """Exit code and output of a command that must end by itself."""
    process = Process(folder, "command", command, {"MESHWIRE_HOME": str(folder / "home"), **environment}).start()
    try:
        deadline = time.monotonic() + 20
        while process.runs:
            assert time.monotonic() < deadline, process.log
            time.sleep(0.005)
        assert "Traceback" not in process.log, process.log
        return process.code, process.log
    finally:
        process.kill()


# Files and answers of the user's own

COMPONENT = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: orders}
spec: {type: pubsub.meshwire, version: v1, metadata: []}
"""


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"a.yaml": COMPONENT.replace("version: v1", "verion: v1")}, [r"a\.yaml:5", "verion", "version"]),
        ({"a.yaml": COMPONENT, "b.yaml": COMPONENT}, [r"b\.yaml:4", "orders", r"a\.yaml"]),
        ({"a.yaml": COMPONENT.replace("metadata: []", "metadata: [{name: alowedTopics, value: A}]")}, ["alowedTopics"]),
        ({"a.yaml": COMPONENT.replace("pubsub.meshwire", "pubsub.kafka")}, ["pubsub.kafka", r"a\.yaml"]),
        (
            {"a.yaml": COMPONENT.replace("metadata: []", "metadata: [{name: publishingScopes, value: app}]")},
            ["publishingScopes", "app1=topic1"],
        ),
        (None, ["--resources-path", "cannot be read"]),
    ],
    ids=["unknown field", "duplicate", "unknown setting", "unknown type", "bad scope", "no folder"],
)
def test_bad_manifest_ends_the_start(tmp_path, files, named):
    folder = tmp_path / "resources"
    if files is not None:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    flags = ["--app-id=app", f"--dapr-http-port={free_port()}", f"--resources-path={folder}"]
    code, output = start(tmp_path, [*SIDECAR, *flags], MESHWIRE_BROKER="memory")
    assert code == 1
    assert all(re.search(text, output) for text in named), output
    assert "HTTP server is running" not in output


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (b"{", "the answer is no JSON"),
        (b'{"topic":"A"}', "must be an array, not an object"),
        (b"[1]", "entry 0 must be an object, not a number"),
        (b'[{"pubsubname":"pubsub","topic":7}]', "entry 0: topic must be a string, not a number"),
        (
            b'[{"pubsubname":"pubsub","topic":"A","route":"/a","metadata":{"rawPayload":true}}]',
            "metadata.rawPayload must be a string, not a boolean",
        ),
        (b"[" * 5000, "nested too deeply"),
        (b'[{"pubsubname":"nobody","topic":"A","route":"/a"}]', "there is no pub/sub component named nobody"),
        (b'[{"pubsubname":"pubsub","topic":"a.>.b","route":"/a"}]', "has a '>' that is not at its end"),
        (b'[{"pubsubname":"pubsub","topic":"a\\r\\nb","route":"/a"}]', "control characters"),
        (b'[{"pubsubname":"pubsub","topic":"A","route":"/a\\r\\nx: y"}]', "a path has no blanks, control characters"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_bad_answer_to_dapr_subscribe_is_named_and_the_rest_starts(tmp_path, answer, named):
    folder = tmp_path / "resources"
    folder.mkdir()
    (folder / "declared.yaml").write_text("""
apiVersion: dapr.io/v1alpha1
kind: Subscription
metadata: {name: declared}
spec: {pubsubname: pubsub, topic: declared, route: /declared}
""")
    async with App(answer) as app:
        sidecar = Sidecar(tmp_path, "app", "--resources-path", str(folder), app=app.port, broker="memory").start()
        try:
            await sidecar.ready("declared")
            await sidecar.says(re.escape(named))
            assert sidecar.log.count("app is subscribed") == 1
            await sidecar.publish(b"1", topic="declared")
            await app.got(1, "/declared")
        finally:
            sidecar.kill()
        assert "Traceback" not in sidecar.log


# Clients


async def test_clients_that_are_slow_or_hang_up_disturb_nobody(mesh):
    sidecar = await mesh.sidecar("app")
    head = f"POST {DAPR} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n".encode()

    for sent in (head[:30], head, head + b"x" * 50):
        for _ in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
            writer.write(sent)
            await writer.drain()
            writer.transport.abort()

    async def trickle():
        """A header that never ends, a byte at a time; returns what the sidecar says and after how long."""
        started = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
        answer = asyncio.create_task(reader.read())
        writer.write(head[:-2] + b"x: ")
        while not answer.done():
            writer.write(b"y")
            await asyncio.wait({answer}, timeout=0.2)
        writer.transport.abort()
        return await answer, time.monotonic() - started

    slow = asyncio.create_task(trickle())
    await sidecar.publish(b"1")
    answer, seconds = await slow
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert 8 < seconds < 40
    assert len(await stored(mesh)) == 1


# The machine


async def test_taken_port_is_named_and_its_owner_is_not_disturbed(tmp_path):
    home = tmp_path / "home"
    async with App(answer=lambda _: (200, b"mine")) as owner:
        port = f"--dapr-http-port={owner.port}"
        block = ["--dapr-block-shutdown-duration=60s", f"--app-port={free_port()}"]
        code, output = await asyncio.to_thread(
            start, tmp_path, [*SIDECAR, "--app-id=app", port, *block], MESHWIRE_BROKER="memory"
        )
        assert code == 1
        assert "shut" not in output  # what has not started has nothing to block, and only says what is wrong
        assert f"port {owner.port}: it is in use by another program; choose another port" in output
        code, output = await asyncio.to_thread(start, tmp_path, [*MESHWIRE, "run", "--app-id=app", port])
        assert code == 1
        assert f"port {owner.port} is taken by another program; choose another --dapr-http-port" in output
        assert not running(home)
        assert not list(home.glob("mesh/*/*"))
        assert b"mine" in await exchange(owner.port, b"GET /x HTTP/1.1\r\n\r\n", half_close=True)


async def test_two_homes_are_two_meshes(tmp_path):
    runs = []
    async with App([subscription("A")]) as app1, App([subscription("A")]) as app2:
        try:
            for name, app in (("one", app1), ("two", app2)):
                home = tmp_path / name / "home"
                flags = {"app_port": app.port}
                runs.append(Run(home, "sub", "sleep", "60", **flags).start())
            for run in runs:
                await run.says("app is subscribed")
            await runs[0].publish(b"1")
            await runs[1].publish(b"2")
            assert [request.event["data"] for request in await app1.got(1)] == [1]
            assert [request.event["data"] for request in await app2.got(1)] == [2]
            tokens = {
                json.loads(file.read_text())["token"] for file in tmp_path.glob("*/home/mesh/default/server.json")
            }
            assert len(tokens) == 2
            for folder in tmp_path.glob("*/home/mesh/default"):
                assert folder.stat().st_mode & 0o077 == 0
                assert all(file.stat().st_mode & 0o077 == 0 for file in folder.iterdir() if file.is_file())
        finally:
            for run in runs:
                run.send(signal.SIGTERM)
            await until(lambda: not running(tmp_path), lambda: f"left behind: {running(tmp_path)}")
            for run in runs:
                run.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_folder_of_another_user_is_not_used(tmp_path):
    folder = tmp_path / "home" / "mesh" / "default"
    folder.mkdir(parents=True)
    os.chown(folder, 12345, 12345)
    code, output = start(tmp_path, [*MESHWIRE, "run", "--app-id=app"])
    assert code == 1
    assert f"{folder} belongs to another user; set MESHWIRE_HOME" in output
    assert not list(folder.iterdir())


def test_folder_that_others_may_write_to_is_not_used(tmp_path):
    folder = tmp_path / "home" / "mesh" / "default"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    code, output = start(tmp_path, [*MESHWIRE, "run", "--app-id=app"])
    assert code == 1
    assert f"others may write to {folder}; first: chmod go-w" in output
    assert not list(folder.iterdir())


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


async def test_full_disk_is_named_and_room_on_it_is_noticed(small_disk):
    home, ballast = small_disk / "home", small_disk / "ballast"
    accepted = 0
    async with App([subscription("A")]) as app:
        run = Run(home, "sub", "sleep", "60", app_port=app.port).start()
        try:
            await run.says("app is subscribed")
            ballast.write_bytes(bytes(20 << 20))
            body = json.dumps("x" * 500_000).encode()
            while (answer := await run.publish(body)).status == 204:
                accepted += 1
                assert accepted < 100
            assert answer.status == 500
            assert answer.json["errorCode"] == "ERR_PUBSUB_PUBLISH_MESSAGE"
            assert "a nats-server whose disk is full is silent too" in answer.json["message"]
            assert run.runs

            ballast.unlink()
            async with asyncio.timeout(30):
                while (await run.publish(b"1")).status != 204:
                    await asyncio.sleep(0.1)
            events = await app.got(accepted + 1)
            assert len({request.event["id"] for request in events}) == accepted + 1
        finally:
            run.send(signal.SIGTERM)
            await until(lambda: not running(home), lambda: f"left behind: {running(home)}")
            run.kill()


async def test_server_out_of_storage_is_named(mesh):
    mesh.server.configure(jetstream={"store_dir": str(mesh.folder / "nats" / "jetstream"), "max_file_store": 3 << 20})
    mesh.server.stop()
    mesh.server.start()
    sidecar = await mesh.sidecar("app")
    data = "x" * 500_000
    plain = [sidecar.call("POST", DAPR, [JSON], json.dumps(data).encode()) for _ in range(10)]
    strict = [sidecar.call("POST", INGRESS, [STRUCTURED], event(id=f"{n}", data=data)) for n in range(10)]
    answers = await asyncio.gather(*plain, *strict)
    accepted = [answer for answer in answers if answer.status in (202, 204)]
    assert 0 < len(accepted) < 10
    assert len(await stored(mesh)) == len(accepted)
    refused = [answer for answer in answers if answer not in accepted]
    assert {answer.status for answer in refused} == {500, 503}
    for answer in refused:
        assert "insufficient resources (error 10023); make room on its disk" in answer.json["message"]
        assert (answer.status == 503) == (answer.headers.get("retry-after") == "1")
        assert answer.json["errorCode"] == (
            "ERR_EVENT_NOT_STORED" if answer.status == 503 else "ERR_PUBSUB_PUBLISH_MESSAGE"
        )
