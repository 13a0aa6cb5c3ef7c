"""`bindings.nats` (ours): messages of a NATS that is there already, apart from the backbone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from bindings.bindings.lanes import LANES, accept_all
from bindings.invocations import check_metadata
from brokers.nats import jetstream
from brokers.nats.codec import parse_block
from brokers.nats.connection import Connection, Lookup, Servers
from mesh.components import ComponentSpec, Field, Kind, Settings, Setup
from mesh.errors import BrokerError, BrokerUnavailable, MessageTooLarge
from mesh.ports.bindings import Accept, BindingError, InvalidOperation, Invocation, Item, Result
from mesh.ports.stores import StoreError, StoreUnavailable

log = logging.getLogger("meshwire.bindings.nats")

TIME_LIMIT = 5.0
"""Seconds for connecting, and for an acknowledgement."""
MAX_WAITING = 1000
"""Messages of a plain subject that wait in memory; beyond, the oldest are lost."""
PULL = 5.0
"""Seconds that a request for messages lasts."""
LOG_PAUSE = 10.0
"""Seconds between two log lines about messages that are lost."""
ENDED = (b"404", b"408")
"""What the server says of a request for messages that has ended as it should: there are none, it has lasted its time.
What else it says is of a consumer that cannot be read."""


class Message(NamedTuple):
    subject: bytes
    reply: bytes
    headers: bytes
    payload: bytes

    @property
    def status(self) -> bytes:
        """A word of the server's, such as that a request for messages has ended; empty for a message, which alone
        can be answered."""
        if self.reply or not self.headers.startswith(b"NATS/1.0 "):
            return b""
        return self.headers[9:].split(b"\r\n", 1)[0]


class NatsBinding:
    """An `OutputBinding`; its connection mends itself."""

    exclusive = False
    operations: Sequence[str] = ("create", "request")

    def __init__(self, setup: Setup) -> None:
        """Raises `ConfigurationError`."""
        self.settings = setup.settings
        self._subject: str = setup.settings["subject"] or ""
        self._lookup = _lookup(setup.settings)
        self._name = setup.app_id
        self._connection: Connection | None = None
        self._starting: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        await self.connection()

    async def ping(self) -> None:
        await self.connection()

    async def close(self) -> None:
        self._closed = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._connection is not None:
            await self._connection.close()

    async def connection(self) -> Connection:
        """One that stands. Raises `StoreUnavailable`; `StoreError` for credentials that are refused."""
        if self._closed:
            raise StoreUnavailable("NATS: the connection is closed")
        if self._connection is None or self._starting is None:
            self._connection = Connection(self._lookup, name=self._name, purpose="binding")
            self._starting = asyncio.create_task(self._connection.start())
        connection, starting = self._connection, self._starting
        await asyncio.wait({starting}, timeout=TIME_LIMIT)
        if not starting.done():
            raise StoreUnavailable(f"NATS cannot be reached: {connection.problem}")
        if starting.cancelled() or starting.exception() is not None:
            self._connection = self._starting = None
            await connection.close()
            raise StoreError("NATS refused the credentials")
        try:
            await connection.wait_connected(TIME_LIMIT)
        except BrokerUnavailable as error:
            raise StoreUnavailable(str(error)) from None
        return connection

    async def invoke(self, invocation: Invocation) -> Result:
        """`create` publishes the data as it is, and returns once a server, or the stream, has it; `request` returns
        the answer."""
        check_metadata(invocation, ("subject",))
        subject = invocation.text("subject") or self._subject
        if not _is_concrete(subject):
            raise InvalidOperation("metadata subject: there must be one, without blanks and wildcards")
        connection = await self.connection()
        try:
            if invocation.operation == "request":
                return await self._request(connection, subject, invocation.data)
            if self.settings["stream"]:
                await self._store(connection, subject, invocation.data)
            else:
                connection.publish(subject.encode(), b"", b"NATS/1.0\r\n\r\n", invocation.data)
                await connection.round_trip()
        except MessageTooLarge as error:
            raise InvalidOperation(str(error)) from None
        except BrokerUnavailable as error:
            raise StoreUnavailable(f"NATS: {error}") from None
        except BrokerError as error:
            raise BindingError(f"NATS: {error}") from None
        return Result()

    async def _request(self, connection: Connection, subject: str, data: bytes) -> Result:
        reply = await connection.call(subject, b"", data, self.settings["timeout"])
        if reply.no_responders:
            raise StoreUnavailable(f"NATS: nobody answers at {subject}")
        return Result(data=reply.payload)

    async def _store(self, connection: Connection, subject: str, data: bytes) -> None:
        reply = await connection.call(subject, b"", data, self.settings["timeout"])
        if reply.no_responders:
            raise BindingError(f"NATS: no stream takes the subject {subject}")
        stored = jetstream.decode_answer(reply.payload).get("stream")
        if stored != self.settings["stream"]:
            raise BindingError(f"NATS: the stream {stored} has taken it, not {self.settings['stream']}")


class SubjectBinding(NatsBinding):
    """Takes messages of a subject, of which each member of the queue group gets some. What comes while nobody listens
    is lost."""

    async def run(self, accept: Accept) -> None:
        """As `InputBinding.run`."""
        connection = await self.connection()
        waiting: asyncio.Queue[Message] = asyncio.Queue(MAX_WAITING)
        lost, silent_until = 0, 0.0

        def take(*message: bytes) -> None:
            nonlocal lost, silent_until
            if waiting.full():
                waiting.get_nowait()
                lost += 1
                now = asyncio.get_running_loop().time()
                if now >= silent_until:
                    silent_until = now + LOG_PAUSE
                    log.warning("messages of %s come faster than they are stored: %d are lost", self._subject, lost)
            waiting.put_nowait(Message(*message))

        stop = connection.listen(self._subject, take, self.settings["queueGroup"] or self._name)
        try:
            while True:
                await accept_all(accept, [_item(message) for message in await _some(waiting)])
        finally:
            stop()


class StreamBinding(NatsBinding):
    """Takes messages of a stream by a durable consumer, and acknowledges each when it is stored."""

    async def run(self, accept: Accept) -> None:
        """As `InputBinding.run`. Raises `StoreError`, and what `accept` does."""
        connection = await self.connection()
        stream, durable = self.settings["stream"], self.settings["durable"] or self._name
        await self._ensure_consumer(connection, stream, durable)
        waiting: asyncio.Queue[Message] = asyncio.Queue()  # no more come than were asked for
        async with _inbox(connection, waiting) as inbox:
            while True:
                await connection.wait_connected(TIME_LIMIT)
                request = msgspec.json.encode({"batch": LANES, "expires": int(PULL * 1e9)})
                connection.send(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}".encode(), request, inbox)
                await self._take(connection, waiting, accept)

    async def _take(self, connection: Connection, waiting: asyncio.Queue[Message], accept: Accept) -> None:
        """What one request brings."""
        missing = LANES
        while missing:
            try:
                async with asyncio.timeout(PULL + 1):
                    messages = await _some(waiting)
            except TimeoutError:
                return  # the connection was lost meanwhile
            missing -= len(messages)
            offered = [message for message in messages if not message.status]
            try:
                await accept_all(accept, [_item(message) for message in offered])
            except BaseException:
                for message in offered:
                    connection.send(message.reply, b"-NAK")  # at once, not after ack_wait
                raise
            for message in offered:
                connection.send(message.reply, b"+ACK")
            for status in (message.status for message in messages if message.status):
                if not status.startswith(ENDED):
                    raise StoreUnavailable(f"NATS: the consumer cannot be read: {status.decode('ascii', 'replace')}")
                return

    async def _ensure_consumer(self, connection: Connection, stream: str, durable: str) -> None:
        config = {
            "durable_name": durable,
            "ack_policy": "explicit",
            "deliver_policy": self.settings["deliverPolicy"],
            "metadata": {},
        }
        if self._subject:
            config["filter_subject"] = self._subject
        try:
            await jetstream.ensure_consumer(connection, stream, config)
        except BrokerUnavailable as error:
            raise StoreUnavailable(f"NATS: {error}") from None
        except BrokerError as error:
            raise StoreError(f"NATS: {error}") from None


@asynccontextmanager
async def _inbox(connection: Connection, waiting: asyncio.Queue[Message]) -> AsyncIterator[bytes]:
    subject = f"{connection.new_inbox()}.messages"
    stop = connection.listen(subject, lambda *message: waiting.put_nowait(Message(*message)))
    try:
        yield subject.encode()
    finally:
        stop()


async def _some(waiting: asyncio.Queue[Message]) -> list[Message]:
    """At least one, and what came with it."""
    first = await waiting.get()
    return [first, *_drained(waiting, LANES - 1)]


def _drained(waiting: asyncio.Queue[Message], most: int = MAX_WAITING) -> list[Message]:
    return [waiting.get_nowait() for _ in range(min(most, waiting.qsize()))]


def _item(message: Message) -> Item:
    subject = message.subject.decode("utf-8", "replace")
    metadata = {**(parse_block(message.headers) if message.headers else {}), "subject": subject}
    words = message.reply.decode().split(".")
    if words[:2] != ["$JS", "ACK"] or len(words) < 9:
        return Item(data=message.payload, key=subject, metadata=metadata)
    # $JS.ACK.[domain.account.]stream.consumer.delivered.sequence.consumer sequence.time.pending[.token]
    stream, _, _, sequence, _, nanoseconds = words[4:10] if len(words) > 9 else words[2:8]
    return Item(
        data=message.payload,
        key=subject,
        metadata=metadata,
        id=f"{stream}-{sequence}-{nanoseconds}",
        time=int(nanoseconds) / 1e9,
    )


def _is_concrete(subject: str) -> bool:
    tokens = subject.split(".")
    return all(token and token not in ("*", ">") for token in tokens) and subject.isprintable() and " " not in subject


def _is_filter(subject: str) -> bool:
    *tokens, last = subject.split(".")
    return all(tokens) and ">" not in tokens and bool(last) and " " not in subject


def _lookup(settings: Settings) -> Lookup:
    urls = [url if "://" in url else f"nats://{url}" for url in settings["url"]]
    for url in urls:
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("nats", "tls") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            usable = False
        if not usable:
            raise settings.fault("url", "it must be of the form nats://user:password@host:4222")
    servers = Servers(urls, settings["token"])
    return Lookup(lambda: servers)


def _open(setup: Setup) -> NatsBinding:
    settings = setup.settings
    if settings["subject"] and not _is_filter(settings["subject"]):
        raise settings.fault("subject", "it is no subject")
    if settings["stream"]:
        for name in ("stream", "durable"):
            if settings[name] and not (settings[name].isprintable() and not set(settings[name]) & set(" .*>/\\")):
                raise settings.fault(name, "it has blanks, dots, wildcards or slashes")
        if settings["queueGroup"]:
            raise settings.fault("queueGroup", "members of a durable consumer share its messages without")
        return StreamBinding(setup)
    for name in ("durable", "deliverPolicy"):
        if settings.given(name):
            raise settings.fault(name, "it needs stream")
    return SubjectBinding(setup) if settings["subject"] else NatsBinding(setup)


SPEC = ComponentSpec(
    type="bindings.nats",
    title="NATS",
    about=(
        "A NATS that is there already, apart from the backbone (ours: Dapr has none). Output: `create` publishes the "
        "data, `request` returns the answer; `subject` in the metadata is another than that of the component. Input: "
        "with `stream`, messages of a JetStream stream by a durable consumer, each acknowledged when it is stored; "
        "without, those of a `subject`, which are lost while nobody listens. Replicas share them."
    ),
    open=_open,
    fields=(
        Field(
            "url",
            "The servers, as `nats://user:password@host:4222`, with commas between them.",
            Kind.LIST,
            required=True,
            secret=True,
            aliases=("natsURL",),
        ),
        Field("token", "In place of user and password.", secret=True),
        Field("subject", "Where messages come from, wildcards allowed, and where they go."),
        Field("queueGroup", "Of the members of a group one gets each message; the app id, if not given."),
        Field("stream", "The stream to take messages from, which must be there; `create` waits until it has them."),
        Field("durable", "The consumer of the stream; made if it is missing. The app id, if not given."),
        Field(
            "deliverPolicy",
            "Where a new consumer starts.",
            Kind.CHOICE,
            "all",
            choices=("all", "new", "last"),
        ),
        Field("timeout", "Longest wait for an answer.", Kind.DURATION, TIME_LIMIT, minimum=0.1, maximum=300),
    ),
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: legacy-orders
spec:
  type: bindings.nats
  version: v1
  metadata:
  - name: url
    value: nats://localhost:4222
  - name: stream
    value: ORDERS
  - name: subject
    value: orders.*
""",
)
