"""Bindings of AWS, for the contract suites."""

from __future__ import annotations

import asyncio
import secrets
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from bindings.bindings import aws_dynamodb, aws_s3, aws_sqs
from mesh.ports.bindings import BindingError, InputBinding, Invocation, OutputBinding, Result
from tests.opened import opened
from tests.ports import free_port
from tests.servers.moto import REGION, MotoServer, moto

if TYPE_CHECKING:
    from tests.contract.bindings import Invoke, Source


def read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
        data: bytes = answer.read()
        return data


class DynamoDb:
    name = "aws.dynamodb"
    refused = (
        Invocation(operation="create"),
        Invocation(operation="create", data=b"{}"),
        Invocation(operation="create", data=b"[1]"),
        Invocation(operation="create", data=b'{"id": "1"'),
        Invocation(operation="create", data=b'{"other": "1"}'),
        Invocation(operation="create", data=b'{"id": "1", "n": 1e200}'),
        Invocation(operation="create", data=b'{"id": "1", "n": %s}' % (b"1" * 39)),
        Invocation(operation="create", data=b'{"id": "1", "n": %s}' % (b"[" * 40 + b"]" * 40)),
        Invocation(operation="create", data=b'{"id": "1", "n": "%s"}' % (b"x" * (400 << 10))),
        Invocation(operation="create", data=b'{"id": "1"}', metadata={"key": "1"}),
    )

    def start(self, folder: Path) -> None:
        self._moto = moto()

    def stop(self) -> None:
        pass

    async def binding(self) -> OutputBinding:
        self._table = f"table-{secrets.token_hex(4)}"
        self._moto.client("dynamodb").create_table(
            TableName=self._table,
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        binding: OutputBinding = opened(aws_dynamodb.SPEC, table=self._table, **self._moto.settings)
        return binding

    async def use(self, invoke: Invoke) -> None:
        item = b'{"id": "7", "n": 0.10000000000000000001, "list": [1, null, true], "map": {"a": "\\u00e4"}}'
        assert await invoke("create", item) == Result()
        stored = self._moto.client("dynamodb").get_item(TableName=self._table, Key={"id": {"S": "7"}})["Item"]
        assert stored == {
            "id": {"S": "7"},
            "n": {"N": "0.10000000000000000001"},
            "list": {"L": [{"N": "1"}, {"NULL": True}, {"BOOL": True}]},
            "map": {"M": {"a": {"S": "ä"}}},
        }

    def unreachable(self) -> OutputBinding:
        elsewhere = {"endpoint": f"http://127.0.0.1:{free_port()}"}
        binding: OutputBinding = opened(aws_dynamodb.SPEC, table="t", **self._moto.settings | elsewhere)
        return binding


class S3:
    name = "aws.s3"
    refused = (
        Invocation(operation="get"),
        Invocation(operation="delete"),
        Invocation(operation="presign", metadata={"key": "a"}),
        Invocation(operation="presign", metadata={"key": "a", "presignTTL": "soon"}),
        Invocation(operation="presign", metadata={"key": "a", "presignTTL": "200h"}),
        Invocation(operation="create", data=b"x", metadata={"key": "k" * 1025}),
        Invocation(operation="create", data=b"x", metadata={"kye": "k"}),
        *(
            Invocation(
                operation=operation, data=b"x", metadata={"key": key, "presignTTL": "1m"} if ttl else {"key": key}
            )
            for operation, ttl in (("create", True), ("get", False), ("delete", False), ("presign", True))
            for key in ("../other-bucket/k", "a/./b", "a\r\nb", "a\0b", "\ud800", " ")
        ),
        Invocation(operation="create", data=b"x", metadata={"key": "k", "Content-Type": "a/b\r\nx-amz-acl: public"}),
        Invocation(operation="create", data=b"x", metadata={"key": "k", "Content-Type": "ä"}),
        Invocation(operation="create", data=b"x", metadata={"key": "k", "storageClass": "A\nB"}),
        Invocation(operation="create", data=b"x", metadata={"key": "k", "tags": "a"}),
        Invocation(operation="create", data=b"x", metadata={"key": "k", "decodeBase64": "true"}),
        Invocation(operation="create", data=b"x", metadata={"key": "k", "filePath": "/etc/passwd"}),
        Invocation(operation="create", data=bytes(aws_s3.MAX_SIZE + 1), metadata={"key": "k"}),
        Invocation(operation="list", data=b"[1]"),
        Invocation(operation="list", data=b'{"maxResults": "many"}'),
        Invocation(operation="bulkGet", data=b"{}"),
        Invocation(operation="bulkGet", data=b'{"items": []}'),
        Invocation(operation="bulkGet", data=b'{"items": [{"key": "a"}], "concurrency": 0}'),
        Invocation(operation="bulkCreate", data=b'{"items": [1]}'),
        Invocation(operation="bulkDelete", data=b'{"keys": []}'),
    )

    def start(self, folder: Path) -> None:
        self._moto = moto()

    def stop(self) -> None:
        pass

    async def binding(self) -> OutputBinding:
        self._bucket = f"bucket-{secrets.token_hex(4)}"
        self._moto.client("s3").create_bucket(
            Bucket=self._bucket, CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        binding: OutputBinding = opened(aws_s3.SPEC, bucket=self._bucket, forcePathStyle="true", **self._moto.settings)
        return binding

    async def use(self, invoke: Invoke) -> None:
        own = self._moto.client("s3")
        made = await invoke(
            "create", b'"hello"', key="a b.txt", tags="x=1,y=2", presignTTL="1h", **{"Content-Type": "text/plain"}
        )
        answer = msgspec.json.decode(made.data or b"")
        assert made.metadata == {"key": "a b.txt"}
        assert answer["location"] == f"{self._moto.settings['endpoint']}/{self._bucket}/a%20b.txt"
        assert read(answer["presignURL"]) == b"hello"
        stored = own.get_object(Bucket=self._bucket, Key="a b.txt")
        assert (stored["Body"].read(), stored["ContentType"]) == (b"hello", "text/plain")
        assert len(own.get_object_tagging(Bucket=self._bucket, Key="a b.txt")["TagSet"]) == 2
        unnamed = await invoke("create", b'"AP8="', decodeBase64="true")
        assert (await invoke("get", key=unnamed.metadata["key"])).data == b"\x00\xff"
        assert (await invoke("get", key=unnamed.metadata["key"], encodeBase64="true")).data == b"AP8="
        listed = msgspec.json.decode((await invoke("list", b'{"prefix": "a b", "maxResults": 5}')).data or b"")
        assert [found["Key"] for found in listed["Contents"]] == ["a b.txt"]
        assert len(msgspec.json.decode((await invoke("list", b"null")).data or b"")["Contents"]) == 2
        signed = msgspec.json.decode((await invoke("presign", key="a b.txt", presignTTL="60s")).data or b"")
        assert read(signed["presignURL"]) == b"hello"
        bulk = await invoke("bulkCreate", b'{"items": [{"key": "k1", "data": "one"}, {"key": "k2"}], "concurrency": 2}')
        one, two = msgspec.json.decode(bulk.data or b"")
        assert (one["location"].endswith("/k1"), two["error"]) == (True, "data is required")
        bulk = await invoke("bulkGet", b'{"items": [{"key": "k1"}, {"key": "k2"}, {"key": "k1", "filePath": "/x"}]}')
        one, two, three = msgspec.json.decode(bulk.data or b"")
        assert (one["data"], two["error"]) == ("b25l", "object not found")
        assert "filePath" in three["error"]
        await invoke("bulkCreate", b'{"items": [{"key": "k3", "data": "three"}]}')
        bulk = await invoke("bulkDelete", b'{"keys": ["k1", "", "k3", "a\\u0001"]}')
        one, none, three, wrong = msgspec.json.decode(bulk.data or b"")
        assert (one, none, three) == ({"key": "k1"}, {"key": "", "error": "key is required"}, {"key": "k3"})
        assert "control characters" in wrong["error"]
        assert "Contents" not in own.list_objects(Bucket=self._bucket, Prefix="k")
        assert await invoke("delete", key="a b.txt") == Result()
        with pytest.raises(BindingError, match="object not found"):
            await invoke("get", key="a b.txt")

    def unreachable(self) -> OutputBinding:
        elsewhere = {"endpoint": f"http://127.0.0.1:{free_port()}"}
        binding: OutputBinding = opened(aws_s3.SPEC, bucket="b", **self._moto.settings | elsewhere)
        return binding


class SqsOutput:
    name = "aws.sqs"
    refused = (
        Invocation(operation="create"),
        Invocation(operation="create", data=b"\xff"),
        Invocation(operation="create", data=b"x" * (aws_sqs.MAX_MESSAGE + 1)),
        Invocation(operation="create", data=b"\x01"),
        Invocation(operation="create", data=b"x", metadata={"messageGroupId": "1"}),
    )

    def start(self, folder: Path) -> None:
        self._moto = moto()

    def stop(self) -> None:
        pass

    async def binding(self) -> OutputBinding:
        self._queue = f"queue-{secrets.token_hex(4)}"
        self._url = self._moto.client("sqs").create_queue(QueueName=self._queue)["QueueUrl"]
        binding: OutputBinding = opened(aws_sqs.SPEC, queueName=self._queue, **self._moto.settings)
        return binding

    async def use(self, invoke: Invoke) -> None:
        assert await invoke("create", '{"a": "ä"}'.encode()) == Result()
        [message] = self._moto.client("sqs").receive_message(QueueUrl=self._url)["Messages"]
        assert message["Body"] == '{"a": "ä"}'

    def unreachable(self) -> OutputBinding:
        elsewhere = {"endpoint": f"http://127.0.0.1:{free_port()}"}
        binding: OutputBinding = opened(aws_sqs.SPEC, queueName="q", **self._moto.settings | elsewhere)
        return binding


class Queue:
    def __init__(self, server: MotoServer, queue: str) -> None:
        self._server = server
        self._queue = queue
        self.create()

    def create(self) -> None:
        self._url = self._server.client("sqs").create_queue(QueueName=self._queue)["QueueUrl"]

    def binding(self) -> InputBinding:
        binding: InputBinding = opened(aws_sqs.SPEC, queueName=self._queue, **self._server.settings)
        return binding

    async def offer(self, number: int) -> bytes:
        body = f'{{"number": {number}, "text": "ä\\n"}}'
        self._server.client("sqs").send_message(QueueUrl=self._url, MessageBody=body)
        return body.encode()


class Sqs:
    name = "aws.sqs"
    bound = aws_sqs.BATCH * aws_sqs.BATCHES
    has_ids = True

    def start(self, folder: Path) -> None:
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(aws_sqs, "HIDDEN", 2)
        self._patch.setattr(aws_sqs, "PROLONG_AFTER", 0.5)
        self._patch.setattr(aws_sqs, "POLL", 1)  # the server goes on waiting for one that has gone
        self._server = MotoServer(threaded=True)
        self._server.start()

    def stop(self) -> None:
        self._server.stop()
        self._patch.undo()

    async def source(self) -> Source:
        return Queue(self._server, f"queue-{secrets.token_hex(4)}")

    async def restart(self, source: Source) -> None:
        assert isinstance(source, Queue)
        self._server.stop()
        await asyncio.to_thread(self._server.start)
        source.create()
