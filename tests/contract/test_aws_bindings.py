"""What the contract suites do not ask: `bindings.aws.sqs`, a bucket's notifications, `bindings.aws.s3`."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest

from bindings.bindings import aws_dynamodb, aws_s3, aws_sqs
from mesh.errors import BrokerUnavailable, ConfigurationError, MessageTooLarge
from mesh.ports.bindings import BindingError, InputBinding, InvalidOperation, Invocation, Item, OutputBinding
from mesh.ports.stores import StoreError, StoreUnavailable
from tests.opened import opened
from tests.ports import free_port
from tests.servers.moto import REGION, MotoServer


@pytest.fixture(scope="module")
def server() -> Iterator[MotoServer]:
    server = MotoServer(threaded=True)
    server.start()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server goes on waiting for one that has gone, and gives it messages."""
    monkeypatch.setattr(aws_sqs, "POLL", 1)


@pytest.fixture
def hidden_for_2_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws_sqs, "HIDDEN", 2)
    monkeypatch.setattr(aws_sqs, "PROLONG_AFTER", 0.5)


def new_queue(server: MotoServer, suffix: str = "", **attributes: str) -> tuple[str, str]:
    name = f"queue-{secrets.token_hex(4)}{suffix}"
    return name, server.client("sqs").create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]


@asynccontextmanager
async def running(
    server: MotoServer, queue: str, accept: Callable[[Item], Awaitable[None]]
) -> AsyncIterator[InputBinding]:
    binding: InputBinding = opened(aws_sqs.SPEC, queueName=queue, **server.settings)
    await binding.start()
    run = asyncio.create_task(binding.run(accept))
    try:
        yield binding
    finally:
        assert not run.done(), run.exception()
        run.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait_for(run, 30)
        await binding.close()


async def until(satisfied: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not satisfied():
            await asyncio.sleep(0.02)


def left(server: MotoServer, url: str) -> int:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    found = server.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
    return sum(int(found[name]) for name in names)


@pytest.mark.usefixtures("hidden_for_2_s")
async def test_a_message_in_hand_is_nobody_elses_however_long_it_takes(server: MotoServer) -> None:
    queue, url = new_queue(server)
    server.client("sqs").send_message(QueueUrl=url, MessageBody="slow")
    seen: list[str] = []

    async def slow(item: Item) -> None:
        seen.append("slow")
        await asyncio.sleep(3)

    async def other(item: Item) -> None:
        seen.append("other")

    async with running(server, queue, slow):
        await until(lambda: bool(seen))
        async with running(server, queue, other):
            await until(lambda: left(server, url) == 0)
    assert seen == ["slow"]


@pytest.mark.usefixtures("hidden_for_2_s")
async def test_while_the_broker_is_away_the_count_of_receives_does_not_grow(server: MotoServer) -> None:
    """Else the queue would move the message to its own dead letters."""
    _, dead = new_queue(server)
    names = {"QueueUrl": dead, "AttributeNames": ["QueueArn"]}
    arn = server.client("sqs").get_queue_attributes(**names)["Attributes"]["QueueArn"]
    queue, url = new_queue(server, RedrivePolicy=json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": "1"}))
    server.client("sqs").send_message(QueueUrl=url, MessageBody="x")
    tries: Counter[str | None] = Counter()

    async def accept(item: Item) -> None:
        tries[item.id] += 1
        if tries[item.id] < 4:
            raise BrokerUnavailable("away")

    async with running(server, queue, accept):
        await until(lambda: left(server, url) == 0)
    assert list(tries.values()) == [4]
    assert left(server, dead) == 0


@pytest.mark.usefixtures("hidden_for_2_s")
async def test_what_the_broker_never_takes_is_left_to_the_queue(
    server: MotoServer, caplog: pytest.LogCaptureFixture
) -> None:
    queue, url = new_queue(server)
    for body in ("large", "good"):
        server.client("sqs").send_message(QueueUrl=url, MessageBody=body)
    taken: list[bytes] = []

    async def accept(item: Item) -> None:
        if item.data == b"large":
            raise MessageTooLarge(10, 5)
        taken.append(item.data)

    async with running(server, queue, accept):
        await until(lambda: left(server, url) == 1 and taken == [b"good"])
    assert "is left there" in caplog.text


async def test_groups_keep_their_order(server: MotoServer) -> None:
    queue, url = new_queue(server, ".fifo", FifoQueue="true", ContentBasedDeduplication="true")
    sending: OutputBinding = opened(aws_sqs.SPEC, queueName=queue, **server.settings)
    await sending.start()
    for number in range(12):
        metadata = {"messageGroupId": "ab"[number % 2], "messageDeduplicationId": str(number)}
        await sending.invoke(Invocation(operation="create", data=b"%d" % number, metadata=metadata))
    with pytest.raises(InvalidOperation, match="messageGroupId"):
        await sending.invoke(Invocation(operation="create", data=b"x"))
    await sending.close()
    taken: list[tuple[str | None, bytes]] = []
    failed: set[bytes] = set()

    async def accept(item: Item) -> None:
        if item.data in (b"2", b"5") and item.data not in failed:
            failed.add(item.data)
            raise BrokerUnavailable("away")
        taken.append((item.key, item.data))

    async with running(server, queue, accept):
        await until(lambda: left(server, url) == 0)
    for parity, group in enumerate("ab"):
        assert [data for key, data in taken if key == group] == [b"%d" % number for number in range(parity, 12, 2)]


async def test_a_buckets_notifications_fire_the_app(server: MotoServer) -> None:
    queue, url = new_queue(server)
    own = server.client("s3")
    bucket = f"bucket-{secrets.token_hex(4)}"
    own.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    arn = server.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    own.put_bucket_notification_configuration(
        Bucket=bucket,
        NotificationConfiguration={"QueueConfigurations": [{"QueueArn": arn, "Events": ["s3:ObjectCreated:*"]}]},
    )
    taken: list[Item] = []

    async def accept(item: Item) -> None:
        taken.append(item)

    writing: OutputBinding = opened(aws_s3.SPEC, bucket=bucket, forcePathStyle="true", **server.settings)
    await writing.start()

    def named() -> set[str]:
        records = [msgspec.json.decode(item.data).get("Records", []) for item in taken]
        return {record["s3"]["object"]["key"] for found in records for record in found}

    async with running(server, queue, accept):
        for key in ("a.txt", "b.txt"):
            await writing.invoke(Invocation(operation="create", data=b'"x"', metadata={"key": key}))
        await until(lambda: named() == {"a.txt", "b.txt"})
    await writing.close()


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        (aws_sqs.SPEC, {"queueName": "nowhere"}),
        (aws_s3.SPEC, {"bucket": "nowhere", "forcePathStyle": "true"}),
        (aws_dynamodb.SPEC, {"table": "nowhere"}),
    ],
    ids=lambda value: getattr(value, "type", ""),
)
async def test_what_is_not_there_is_said(server: MotoServer, spec: object, settings: dict[str, str]) -> None:
    binding: OutputBinding = opened(spec, **settings, **server.settings)  # type: ignore[arg-type]
    await binding.start()
    with pytest.raises(StoreError, match=r"there is no queue 'nowhere'|NoSuchBucket|ResourceNotFound"):
        await binding.invoke(Invocation(operation="create", data=b'{"id": "1"}'))
    await binding.close()


async def test_a_list_is_cut_and_goes_on(server: MotoServer) -> None:
    bucket = f"bucket-{secrets.token_hex(4)}"
    own = server.client("s3")
    own.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    binding: OutputBinding = opened(aws_s3.SPEC, bucket=bucket, forcePathStyle="true", **server.settings)
    await binding.start()
    items = [{"key": f"k/{number}", "data": str(number)} for number in range(5)]
    await binding.invoke(Invocation(operation="bulkCreate", data=msgspec.json.encode({"items": items})))
    marker, found = "", []
    while True:
        wanted = msgspec.json.encode({"marker": marker, "maxResults": 2, "prefix": "k/"})
        page = msgspec.json.decode((await binding.invoke(Invocation(operation="list", data=wanted))).data or b"")
        found += [entry["Key"] for entry in page["Contents"]]
        if not page["IsTruncated"]:
            break
        marker = found[-1]
    assert found == [item["key"] for item in items]
    empty = await binding.invoke(Invocation(operation="list", data=b'{"prefix": "none"}'))
    assert msgspec.json.decode(empty.data or b"")["Contents"] is None
    await binding.close()


async def test_an_object_too_large_to_answer_with(server: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = f"bucket-{secrets.token_hex(4)}"
    own = server.client("s3")
    own.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    own.put_object(Bucket=bucket, Key="a", Body=bytes(60))
    monkeypatch.setattr(aws_s3, "MAX_SIZE", 100)
    binding: OutputBinding = opened(aws_s3.SPEC, bucket=bucket, forcePathStyle="true", **server.settings)
    await binding.start()
    bulk = msgspec.json.encode({"items": [{"key": "a"}, {"key": "a"}]})
    answer = await binding.invoke(Invocation(operation="bulkGet", data=bulk))
    assert sorted("error" in outcome for outcome in msgspec.json.decode(answer.data or b"")) == [False, True]
    own.put_object(Bucket=bucket, Key="a", Body=bytes(101))
    with pytest.raises(BindingError, match="there is room for 100"):
        await binding.invoke(Invocation(operation="get", metadata={"key": "a"}))
    await binding.close()


async def test_an_answer_that_breaks_off_or_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    serving: set[asyncio.Task[None] | None] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        request = await reader.readuntil(b"\r\n\r\n")
        if b"/chunked" in request:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        while b"/slow" in request and not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.05)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    listener = await asyncio.start_server(answer, "127.0.0.1", free_port())
    endpoint = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    keys = {"accessKey": "a", "secretKey": "b", "region": REGION}
    binding: OutputBinding = opened(aws_s3.SPEC, bucket="b", forcePathStyle="true", endpoint=endpoint, **keys)
    await binding.start()
    assert (await binding.invoke(Invocation(operation="get", metadata={"key": "chunked"}))).data == b"ok"
    monkeypatch.setattr(aws_s3, "TRANSFER", 0.5)
    for key in ("short", "slow"):
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(binding.invoke(Invocation(operation="get", metadata={"key": key})), 3)
    await binding.close()
    listener.close()
    async with asyncio.timeout(30):
        await asyncio.gather(listener.wait_closed(), *filter(None, serving))


def test_an_endpoint_of_aws_without_tls() -> None:
    opened(aws_s3.SPEC, bucket="b", region=REGION, disableSSL="true")


@pytest.mark.parametrize("settings", [{"disableSSL": "true", "endpoint": "https://localhost"}, {"endpoint": "x"}])
def test_settings_that_cannot_be_obeyed(settings: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="metadata"):
        opened(aws_s3.SPEC, bucket="b", region=REGION, **settings)
