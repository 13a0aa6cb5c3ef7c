"""`bindings.aws.sqs`: messages of a queue of SQS, taken and sent. A bucket's notifications come this way, too."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from bindings import aws
from bindings.aws import Client, translated
from bindings.invocations import check_metadata, check_size
from mesh.components import ComponentSpec, Field, Setup
from mesh.errors import BrokerError, BrokerUnavailable, clip
from mesh.ports import Clock
from mesh.ports.bindings import Accept, InvalidOperation, Invocation, Item, Result
from mesh.ports.stores import StoreError

logger = logging.getLogger("meshwire.bindings.sqs")

SERVICE = "SQS"
OPERATIONS = ("create",)
BATCH = 10
"""Messages in one answer of the queue (SQS gives no more)."""
BATCHES = 10
"""Batches that are under way at once."""
POLL = 8
"""Seconds that the queue waits for a message: less than `aws.READ_TIMEOUT`."""
HIDDEN = 30
"""Seconds for which the queue gives a message to nobody else; prolonged as long as it is in hand."""
PROLONG_AFTER = 10.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a message that could not be stored is offered again."""
GOODBYE = 2.0
"""Seconds for what is said to the queue when the run is cancelled."""
MAX_MESSAGE = 1 << 20
"""Bytes (SQS)."""

_MISSING = ("AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist")
_REFUSED = ("InvalidMessageContents", "InvalidParameterValue", "MissingParameter", "InvalidAttributeValue")
_NOT_ALLOWED = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_FIFO = ("messageGroupId", "messageDeduplicationId")


class SqsBinding:
    """An `InputBinding` and an `OutputBinding`. The queue shares its messages out among those who ask.

    A message that the broker did not take stays in hand, hidden from others, and is offered again after a growing
    pause: its count of receives, by which the queue may move it to its own dead letters, does not grow meanwhile.
    """

    exclusive = False
    refuses = True
    operations = OPERATIONS

    def __init__(self, client: Client, clock: Clock, queue: str) -> None:
        self._client = client
        self._clock = clock
        self._queue = queue
        self._url = ""

    async def start(self) -> None:
        await self._client.start()

    async def ping(self) -> None:
        await self._queue_url()

    async def close(self) -> None:
        await self._client.close()

    async def invoke(self, invocation: Invocation) -> Result:
        fifo = self._queue.endswith(".fifo")
        check_metadata(invocation, _FIFO if fifo else ())
        check_size(invocation.data, MAX_MESSAGE)
        options = {name[0].upper() + name[1:]: invocation.text(name) for name in _FIFO if invocation.text(name)}
        if fifo and "MessageGroupId" not in options:
            raise InvalidOperation("a message of a FIFO queue needs the metadata 'messageGroupId'")
        url = await self._queue_url()
        with translated(SERVICE):
            try:
                await self._client.api.send_message(QueueUrl=url, MessageBody=_text(invocation.data), **options)
            except self._client.api.exceptions.ClientError as error:
                if aws.code(error).rpartition(".")[2] in _REFUSED:
                    raise InvalidOperation(f"{SERVICE}: {aws.message(error) or clip(aws.code(error))}") from error
                raise
        return Result()

    async def run(self, accept: Accept) -> None:
        url = await self._queue_url()
        slots = asyncio.Semaphore(BATCHES)

        async def work(messages: Sequence[Mapping[str, Any]]) -> None:
            try:
                await self._take(url, messages, accept)
            finally:
                slots.release()

        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await slots.acquire()
                    with translated(SERVICE):
                        answer = await self._client.api.receive_message(
                            QueueUrl=url,
                            MaxNumberOfMessages=BATCH,
                            WaitTimeSeconds=POLL,
                            VisibilityTimeout=HIDDEN,
                            AttributeNames=["SentTimestamp", "MessageGroupId"],
                        )
                    if messages := answer.get("Messages"):
                        group.create_task(work(messages))
                    else:
                        slots.release()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _take(self, url: str, messages: Sequence[Mapping[str, Any]], accept: Accept) -> None:
        """Messages of one group one after the other, others at once; those that are stored are deleted together."""
        lines: dict[str, list[Mapping[str, Any]]] = {}
        for message in messages:
            lines.setdefault(_group(message) or message["MessageId"], []).append(message)
        done: list[Mapping[str, Any]] = []
        left: list[Mapping[str, Any]] = []

        async def work(line: Sequence[Mapping[str, Any]]) -> None:
            for number, message in enumerate(line):
                if not await self._offer(message, accept):
                    left.extend(line[number:])
                    return
                done.append(message)

        try:
            async with self._prolonged(url, messages, left), asyncio.TaskGroup() as group:
                for line in lines.values():
                    group.create_task(work(line))
        except asyncio.CancelledError:
            undone = [message for message in messages if message not in done and message not in left]
            with contextlib.suppress(StoreError, TimeoutError):
                async with asyncio.timeout(GOODBYE):
                    await self._delete(url, done)
                    await self._show(url, undone, 0)
            raise
        await self._delete(url, done)

    async def _offer(self, message: Mapping[str, Any], accept: Accept) -> bool:
        """Whether it is stored: for a message that the broker will never take, it is not."""
        pause = FIRST_PAUSE
        while True:
            try:
                await accept(_item(message))
            except BrokerUnavailable as error:
                logger.warning("queue %s: message %s waits: %s", self._queue, message["MessageId"], error)
            except BrokerError as error:
                logger.error("queue %s: message %s is left there: %s", self._queue, message["MessageId"], error)
                return False
            else:
                return True
            await self._clock.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    @contextlib.asynccontextmanager
    async def _prolonged(
        self, url: str, messages: Sequence[Mapping[str, Any]], left: Sequence[Mapping[str, Any]]
    ) -> AsyncIterator[None]:
        """Those that are not `left` stay hidden from others within."""

        async def prolong() -> None:
            while True:
                await self._clock.sleep(PROLONG_AFTER)
                try:
                    await self._show(url, [message for message in messages if message not in left], HIDDEN)
                except StoreError as error:
                    logger.warning("queue %s: messages in hand may be given to others: %s", self._queue, error)

        task = asyncio.create_task(prolong())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait((task,))

    async def _delete(self, url: str, messages: Sequence[Mapping[str, Any]]) -> None:
        entries = [
            {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]} for number, message in enumerate(messages)
        ]
        try:
            if entries:
                with translated(SERVICE):
                    await self._client.api.delete_message_batch(QueueUrl=url, Entries=entries)
        except StoreError as error:
            logger.warning("queue %s: messages come again, under their ids: %s", self._queue, error)

    async def _show(self, url: str, messages: Sequence[Mapping[str, Any]], seconds: int) -> None:
        """To others, after so many seconds."""
        entries = [
            {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"], "VisibilityTimeout": seconds}
            for number, message in enumerate(messages)
        ]
        if entries:
            with translated(SERVICE):
                await self._client.api.change_message_visibility_batch(QueueUrl=url, Entries=entries)

    async def _queue_url(self) -> str:
        with translated(SERVICE):
            try:
                api = self._client.api
                self._url = self._url or (await api.get_queue_url(QueueName=self._queue))["QueueUrl"]
            except self._client.api.exceptions.ClientError as error:
                if aws.code(error) in _MISSING:
                    raise StoreError(f"{SERVICE}: there is no queue '{clip(self._queue)}'") from error
                raise
        return self._url


def _item(message: Mapping[str, Any]) -> Item:
    sent = message.get("Attributes", {}).get("SentTimestamp", "")
    return Item(
        data=message["Body"].encode(),
        id=message["MessageId"],
        key=_group(message) or None,
        time=int(sent) / 1000 if sent else None,
    )


def _group(message: Mapping[str, Any]) -> str:
    """Of a FIFO queue, or of a fair one."""
    return str(message.get("Attributes", {}).get("MessageGroupId", ""))


def _text(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise InvalidOperation("the data must be Unicode text") from None
    if not text or _NOT_ALLOWED.search(text):
        raise InvalidOperation("a message is not empty, and has no control characters but tab and line ends (SQS)")
    return text


def _open(setup: Setup) -> SqsBinding:
    return SqsBinding(Client(setup.settings, "sqs"), setup.clock, setup.settings["queueName"])


SPEC = ComponentSpec(
    type="bindings.aws.sqs",
    title="SQS",
    about=(
        "Input and output: messages of a queue of AWS SQS, which exists. A message is deleted once it is stored on the "
        "backbone; as long as that takes, it stays hidden from other readers. Messages of one group of a FIFO queue "
        "keep their order. `create` sends its data, the JSON as it is; to a FIFO queue with the metadata "
        "`messageGroupId` and, where the queue needs it, `messageDeduplicationId`. A bucket of S3 whose notifications "
        "go to the queue fires the app for each object: the data is the notification, with the bucket and the key in "
        "`Records[].s3`."
    ),
    open=_open,
    fields=(*aws.FIELDS, Field("queueName", "The name of the queue.", required=True)),
    needs="aws",
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: uploads
spec:
  type: bindings.aws.sqs
  version: v1
  metadata:
    - name: queueName
      value: uploads
    - name: region
      value: eu-central-1
    - name: direction
      value: input
    - name: route
      value: /on-upload
""",
)
