"""The servers of Kafka as one process uses them: one producer and one administrator for all, and consumers on request.

aiokafka is wrapped where it would harm: a producer that has been refused one record is of no use any more, one that is
idempotent never gives up, a failed start leaves connections open, asking for a topic makes it. What Apache Kafka and
aiokafka do is held in `tests/contract/test_kafka_probe.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiokafka.errors as errors
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import RecordMetadata

from brokers.kafka import closed_connections
from brokers.kafka.ending import stop
from brokers.kafka.probe import Offered, addresses, offered, reach
from brokers.kafka.refusals import LONGEST_REASON, translated
from brokers.kafka.sticky import StickyPartitions
from brokers.kafka.topics import MAX_REQUEST, TOPICS_LIMIT, Topics
from mesh.errors import BrokerError, BrokerUnavailable, ConfigurationError, MessageTooLarge, clip

logger = logging.getLogger("meshwire.kafka")
closed_connections.install()

T = TypeVar("T")

REQUEST_TIMEOUT = 5.0
"""Seconds that a server has for an answer."""
ATTEMPTS = 4
"""At a record, when others of its producer or of its batch were refused."""
LOOK_AGAIN = 1.0
"""Seconds for one look-up of a topic's leader."""
ACK_TIMEOUT = 10.0
"""Seconds after which a record that is not acknowledged has an unknown fate."""
CHECK_INTERVAL = 2.0
"""Seconds between looks at whether the servers are there."""
ASKED_AT_ONCE = 3
"""Servers that are asked: one that answers is enough."""
RETRY_PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds between attempts to reach a server; the last one is repeated."""
RECORD_OVERHEAD = 128
"""Bytes that Kafka counts for a record and the batch around it, beside key, value and headers."""
MAX_WAITING = 16_384
MAX_WAITING_BYTES = 64 * 1024 * 1024
"""Records, and their bytes, that wait for their acknowledgement at once."""
METADATA_AGE = 30.0
"""Seconds after which a client looks anew at where partitions are, when nothing told it before."""

_HARMLESS = (errors.KafkaTimeoutError, errors.TopicAuthorizationFailedError)
"""What is no reason for another producer: a topic that is forbidden misses records by itself, once it is allowed."""

Headers = Sequence[tuple[str, bytes]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """Where the servers are, and how to sign in."""

    servers: tuple[str, ...]
    """`host:port` each."""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What every client of aiokafka is given for TLS and SASL."""
    replicas: int = 1
    """Copies of the topics that are made."""


class Connection:
    """`start`, then anything, then `close`. Consumers are ended by whoever asked for them, with `stop`."""

    def __init__(self, access: Access, *, name: str) -> None:
        """`name` is what the servers show for this client. To be called in the event loop."""
        self.access = access
        self.name = name
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self._problem: str | None = "not connected yet"
        self._offered: Offered | None = None
        self._producer: AIOKafkaProducer | None = None
        self._admin: AIOKafkaAdminClient | None = None
        self._connected = asyncio.Event()
        self._opening = asyncio.Lock()
        self.topics = Topics(self.admin, self.within, replicas=access.replicas)
        self._sticky = StickyPartitions(self._loop.time)
        self._succession: asyncio.Task[None] | None = None
        self._patience: set[asyncio.Timeout] = set()
        self._waiting = 0
        self._waiting_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def problem(self) -> str | None:
        """Why the servers cannot be used, in one line; `None` when they can."""
        return self._problem

    @property
    def offered(self) -> Offered:
        """Known once `start` has returned. Raises `BrokerUnavailable` before."""
        if self._offered is None:
            raise BrokerUnavailable("not connected to Kafka yet")
        return self._offered

    @property
    def fetch_wait(self) -> int:
        """Milliseconds that a fetch may wait for the first record."""
        return 500 if self.offered.wakes else 5

    async def start(self) -> None:
        """Returns when a server has answered. Raises `ConfigurationError` when waiting cannot help, `BrokerUnavailable`
        when this is closed meanwhile."""
        self._task = self._loop.create_task(self._keep_connected(), name="kafka connection")
        connected = self._loop.create_task(self._connected.wait())
        try:
            await asyncio.wait({self._task, connected}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            connected.cancel()
        if self.closed:
            raise BrokerUnavailable("the connection to Kafka is closed")
        if self._task.done():
            await self._task

    async def close(self) -> None:
        """Publishes that wait fail with `BrokerUnavailable`."""
        self.closed = True
        self._problem = "closed"
        tasks = [task for task in (self._task, self._succession) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._connected.set()
        producer, self._producer = self._producer, None
        async with self._opening:
            admin, self._admin = self._admin, None
        await asyncio.gather(*(stop(client) for client in (producer, admin) if client is not None), *self._ending)
        for patience in self._patience:
            patience.reschedule(self._loop.time())

    async def wait_connected(self, timeout: float) -> None:
        """Raises `BrokerUnavailable` after `timeout` seconds without a server, or when this is closed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._connected.wait()
        if self._problem is not None:
            raise BrokerUnavailable(f"no connection to Kafka: {self._problem}")

    async def publish(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Headers = (),
        partition: int | None = None,
        timestamp: float | None = None,
        timeout: float = ACK_TIMEOUT,
    ) -> RecordMetadata:
        """Returns when all replicas in step have the record. The topic must exist. Without `partition` the key decides,
        as Kafka's own clients do it (see `sticky` where there is none); `timestamp` in seconds since the epoch.

        Raises `MessageTooLarge`, `BrokerError` when it is refused, `BrokerUnavailable` when nothing could be sent or
        nothing is known of it after `timeout` seconds: it may be stored later.
        """
        size = record_size(value, key, headers)
        self.topics.check_size(topic, size)
        if self._waiting >= MAX_WAITING or self._waiting_bytes + size > MAX_WAITING_BYTES:
            raise BrokerUnavailable("too many messages wait for the broker's acknowledgement; slow down and try again")
        if self._producer is None:
            raise BrokerUnavailable(f"no connection to Kafka: {self._problem}")
        stored = _NOTHING if value is None else value
        milliseconds = None if timestamp is None else int(timestamp * 1000)
        patience = asyncio.timeout(timeout)
        self._waiting += 1
        self._waiting_bytes += size
        self._patience.add(patience)
        try:
            async with patience:
                for _ in range(ATTEMPTS):
                    producer = self._producer
                    if producer is None:
                        break
                    if not await self._known_to(producer, topic):
                        continue
                    try:
                        free = partition is None and key is None
                        place = self._sticky.choose(topic, producer.client.cluster) if free else partition
                        sent = await producer.send(topic, stored, key, place, milliseconds, headers)
                        metadata = await sent
                        if free:
                            self._sticky.acknowledged(topic, metadata.partition)
                        return metadata
                    except errors.ProducerClosed:  # there is another one by now
                        continue
                    except errors.OutOfOrderSequenceNumber:  # not stored: the producer was refused another record
                        await self._replaced(producer)
                    except errors.MessageSizeTooLargeError:
                        await self._too_large(topic, size, producer)
                    except errors.KafkaError as error:
                        if not error.retriable and not isinstance(error, _HARMLESS):
                            self._replace(producer)
                        raise
            raise BrokerUnavailable(
                "the connection to Kafka is closed" if self.closed else "Kafka refuses again and again"
            )
        except TimeoutError:
            if self.closed:
                raise BrokerUnavailable("the connection to Kafka is closed") from None
            why = f": {self._problem}" if self._problem else ""
            raise BrokerUnavailable(f"Kafka did not acknowledge the message in time{why}") from None
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            raise BrokerUnavailable("the connection to Kafka was lost") from None
        except (errors.KafkaError, OSError, EOFError) as error:
            raise translated(error) from error
        finally:
            self._waiting -= 1
            self._waiting_bytes -= size
            self._patience.discard(patience)

    async def _known_to(self, producer: AIOKafkaProducer, topic: str) -> bool:
        """Returns `True` when `producer` knows where the topic is; `False` when another one took its place meanwhile.
        Servers that have just started say of any topic that there is none."""
        client = producer.client
        while topic not in client.cluster._partitions:  # `topics()` makes a set each time
            if self._producer is not producer:
                return False
            with suppress(errors.UnknownTopicOrPartitionError, TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN):  # where the producer ends, aiokafka waits for ever
                    await client._wait_on_metadata(topic)
        return True

    async def _too_large(self, topic: str, size: int, producer: AIOKafkaProducer) -> None:
        """The topic takes less than we knew, or less than all the records that were sent together. Returns when `size`
        may be tried again."""
        known = self.topics.limit(topic)
        await self.topics.learn_limit(topic)
        if self.topics.limit(topic) == known:  # the servers do not tell, or it was too much at once
            if producer._message_accumulator._batch_size <= size:
                raise MessageTooLarge(size, size - 1, TOPICS_LIMIT)
            self.topics.batch = min(self.topics.batch, size)
        self.topics.check_size(topic, size)
        await self._replaced(producer)

    async def admin(self) -> AIOKafkaAdminClient:
        """For requests that are rare. Use it within `within`. Raises `BrokerUnavailable`."""
        async with self._opening:
            if self.closed:
                raise BrokerUnavailable("the connection to Kafka is closed")
            if self._admin is None:
                admin = AIOKafkaAdminClient(**self._common())
                try:
                    await self.within(admin.start())
                except BaseException:
                    await stop(admin)
                    raise
                self._admin = admin
            return self._admin

    def consumer(self, **own: Any) -> AIOKafkaConsumer:
        """One more client, not started: `start` it by `within`, end it by `stop`. `own` are options of aiokafka."""
        given: dict[str, Any] = {
            "enable_auto_commit": False,
            "auto_offset_reset": "none",
            "fetch_max_wait_ms": self.fetch_wait,
            "isolation_level": "read_committed" if self.offered.transactions else "read_uncommitted",
        }
        return AIOKafkaConsumer(**self._common(), **given | own)

    def producer(self, **own: Any) -> AIOKafkaProducer:
        """One more client that writes, not started, as `consumer` is one that reads."""
        return AIOKafkaProducer(**self._common(), **own)

    async def within(self, work: Awaitable[T], timeout: float = REQUEST_TIMEOUT) -> T:
        """What a call of aiokafka returns. Raises `BrokerError`, and `BrokerUnavailable` after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                return await work
        except TimeoutError:
            raise BrokerUnavailable("Kafka did not answer in time") from None
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            raise BrokerUnavailable("the connection to Kafka was lost") from None
        except (errors.KafkaError, OSError, EOFError) as error:
            raise translated(error) from error

    def _common(self) -> dict[str, Any]:
        return {
            "bootstrap_servers": list(self.access.servers),
            "client_id": self.name,
            "request_timeout_ms": int(REQUEST_TIMEOUT * 1000),
            "metadata_max_age_ms": int(METADATA_AGE * 1000),
            **self.access.options,
        }

    async def _new_producer(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            **self._common(),
            acks="all",
            enable_idempotence=self.offered.idempotence,
            linger_ms=0,
            max_batch_size=self.topics.batch,
            value_serializer=_as_stored,
            max_request_size=2 * MAX_REQUEST,  # of a whole request; records are measured before
        )
        try:
            await self.within(producer.start())
        except BaseException as error:
            named = addresses(producer.client)
            await stop(producer)
            if isinstance(error, BrokerUnavailable) and named:
                raise BrokerUnavailable(f"{error}; it was asked at {named}") from error
            raise
        return producer

    def _replace(self, refused: AIOKafkaProducer) -> None:
        """aiokafka counts a record that was refused, and the server misses it ever after: there, this producer is of no
        use any more. It goes on elsewhere until there is another one."""
        if self._producer is refused and not self.closed and (self._succession is None or self._succession.done()):
            self._succession = self._loop.create_task(self._succeed(refused), name="replace the producer")

    async def _replaced(self, refused: AIOKafkaProducer) -> None:
        """Returns when there is another one."""
        self._replace(refused)
        if self._succession is not None:
            await asyncio.shield(self._succession)

    async def _succeed(self, refused: AIOKafkaProducer) -> None:
        pauses = itertools.chain(RETRY_PAUSES, itertools.repeat(RETRY_PAUSES[-1]))
        while True:
            try:
                self._producer = await self._new_producer()
                break
            except Exception as error:
                logger.debug("no producer yet: %r", error)
                await asyncio.sleep(next(pauses))
        ending = self._loop.create_task(stop(refused), name="end the producer")
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _keep_connected(self) -> None:
        """Until cancelled. Raises `ConfigurationError` before the first connection only."""
        pauses = itertools.chain(RETRY_PAUSES, itertools.repeat(RETRY_PAUSES[-1]))
        while self._producer is None:
            try:
                await self._open()
            except BrokerUnavailable as error:
                self._note(str(error))
                await asyncio.sleep(next(pauses))
            except BrokerError as error:
                raise ConfigurationError(str(error)) from error
            except Exception as error:  # what listens there need not be Kafka, and aiokafka trusts what it reads
                self._note(f"unexpected {type(error).__name__}: {clip(str(error), LONGEST_REASON)}")
                await asyncio.sleep(next(pauses))
        logger.info("%s is connected to Kafka at %s", self.name, ", ".join(self.access.servers))
        self._problem = None
        self._connected.set()
        while True:
            await asyncio.sleep(CHECK_INTERVAL)
            try:
                await self.within(self._knock())
            except BrokerError as error:
                self._note(await self._reason(error))
            except Exception as error:
                self._note(f"unexpected {type(error).__name__}: {clip(str(error), LONGEST_REASON)}")
            else:
                if not self._connected.is_set():
                    logger.info("%s is connected to Kafka again", self.name)
                    self._problem = None
                    self._connected.set()

    async def _reason(self, error: BrokerError) -> str:
        """Of any server to which there is no connection aiokafka says that it is not ready."""
        if not isinstance(error.__cause__, errors.NodeNotReadyError):
            return str(error)
        try:
            await reach(self.access.servers, self.access.options, self.within, name=self.name, timeout=REQUEST_TIMEOUT)
            named = addresses((await self.admin())._client)
        except BrokerError as reason:
            return str(reason)
        return f"Kafka answers, but not at {named}" if named else str(error)

    async def _knock(self) -> None:
        """Returns when one of the servers has answered. Raises what went wrong with the last one."""
        client = (await self.admin())._client
        nodes = [server.nodeId for server in client.cluster.brokers()]
        asked = [
            self._loop.create_task(client.send(node, MetadataRequest([])), name="knock at Kafka")
            for node in random.sample(nodes, min(ASKED_AT_ONCE, len(nodes)))
        ]
        try:
            for answer in asyncio.as_completed(asked):
                try:
                    await answer
                    return
                except asyncio.CancelledError:
                    if _is_cancelled():
                        raise
                    failure: Exception = errors.KafkaConnectionError("the connection was lost")
                except (errors.KafkaError, OSError, EOFError) as error:
                    failure = error
            raise failure if asked else errors.NodeNotReadyError("no server is known")
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _open(self) -> None:
        self._offered = await offered(
            self.access.servers, self.access.options, self.within, name=self.name, timeout=REQUEST_TIMEOUT
        )
        self._producer = await self._new_producer()

    def _note(self, problem: str) -> None:
        if problem != self._problem:
            logger.warning("no connection to Kafka: %s", problem)
            self._problem = problem
            self._connected.clear()


def _is_cancelled() -> bool:
    """Whether somebody wants this task to end. aiokafka, too, cancels what waits for a connection that it closes."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def record_size(value: bytes | None, key: bytes | None, headers: Headers) -> int:
    """What a record counts towards the servers' limit: never less than they find, by few bytes more."""
    size = RECORD_OVERHEAD + len(value or b"") + len(key or b"")
    for name, content in headers:
        size += 10 + len(name.encode()) + len(content)
    return size


class _Nothing(bytes):
    """Stands for no value. aiokafka refuses a record without key and value, which Kafka does not."""


_NOTHING = _Nothing()


def _as_stored(value: bytes) -> bytes | None:
    return None if value is _NOTHING else value


def placed(topic: str, partitions: Iterable[int]) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for number in partitions]
