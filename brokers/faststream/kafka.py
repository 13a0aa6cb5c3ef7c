"""FastStream on Kafka: a stock `KafkaBroker` on which the topics of a mesh are subscribed and published to.

    from brokers.faststream.kafka import Event, Mesh, MeshBroker

    mesh = Mesh("warehouse")
    broker = MeshBroker(mesh, "localhost:9092")

    @broker.subscriber(**mesh.topic("orders", dead_letter="orders-dead"))
    @broker.publisher(mesh.subject("shipments"), headers={"ce-type": "shipment.sent"})
    async def ship(order: Order, event: Event) -> Shipment: ...

As on NATS, topics of the mesh are worked by the adapter that sidecars use, here `KafkaEventLog`: each event is settled
by itself, and a slow one holds up no other key, while FastStream's subscriber commits whole partitions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, TypedDict, Unpack

from aiokafka import ConsumerRecord
from aiokafka.errors import ConsumerStoppedError
from faststream import AckPolicy, BaseMiddleware, ContextRepo
from faststream.kafka import KafkaBroker, KafkaRouter
from faststream.kafka.broker.registrator import KafkaRegistrator
from faststream.kafka.message import FAKE_CONSUMER, KafkaMessage
from faststream.kafka.publisher.producer import AioKafkaFastProducer
from faststream.kafka.response import KafkaPublishCommand
from faststream.kafka.schemas import Topic as KafkaTopic

from brokers.faststream.event import Event, EventMessage, Parsed, Wire, decode, to_message
from brokers.faststream.member import Held, Member, Membership
from brokers.faststream.names import DEFAULT_PUBSUB, MemberOptions, Names
from brokers.kafka import codec
from brokers.kafka.connection import Access, Connection
from brokers.kafka.event_log import PARTITIONS, KafkaEventLog
from mesh import addressing
from mesh.errors import ConfigurationError, MeshError
from mesh.ports import EventLog, Topic

__all__ = ["Event", "Mesh", "MeshBroker", "MeshMessage", "MeshRouter"]

_SIGN_IN = (
    "security_protocol",
    "ssl_context",
    "sasl_mechanism",
    "sasl_plain_username",
    "sasl_plain_password",
)
"""Options of aiokafka's clients that say how to sign in."""


class SubscriberOptions(TypedDict):
    """What `Mesh.topic` gives to `subscriber`."""

    membership: Membership
    subject: str


class Mesh(Names):
    """The addresses of one app in one mesh. Needs no connection: routers in other modules use it too."""

    def __init__(self, app_id: str, **options: Any) -> None:
        """As `Names`."""
        super().__init__(app_id, **options)
        self._shortened: dict[str, Topic] = {}  # those whose names on Kafka do not tell them

    def topic(self, name: str, *, pubsub: str = DEFAULT_PUBSUB, **options: Unpack[MemberOptions]) -> SubscriberOptions:
        """Options for `broker.subscriber(**…)`: join the group of this app on the topic. `options` are those of
        `membership`, and so are the errors."""
        membership = self.membership(name, pubsub=pubsub, **options)
        return SubscriberOptions(membership=membership, subject=self.subject(name, pubsub=pubsub))

    def subject(self, name: str, *, pubsub: str = DEFAULT_PUBSUB) -> str:
        """Where to publish: for `broker.publish(…, subject)` and `broker.publisher(subject)`.

        What is published becomes an event; attributes are given as headers, `{"ce-type": "order.paid"}`. An event's
        `partitionkey` is the key of its record. Raises `InvalidTopic`.
        """
        topic = Topic(pubsub, name)
        subject = addressing.kafka_event_topic(self.prefix, self.namespace, topic)
        if addressing.kafka_topic_of_events(self.prefix, self.namespace, subject) != topic:
            self._shortened[subject] = topic
        return subject

    def find(self, subject: str) -> Topic | None:
        """The topic that a subject belongs to; `None` when it is none of this mesh's."""
        return self._shortened.get(subject) or addressing.kafka_topic_of_events(self.prefix, self.namespace, subject)


class MeshMessage(EventMessage, KafkaMessage):
    """FastStream's message of a mesh topic."""

    def __init__(self, raw_message: _Received | ConsumerRecord[Any, Any], parsed: Parsed) -> None:
        held = raw_message.held if isinstance(raw_message, _Received) else None
        super().__init__(raw_message=raw_message, consumer=FAKE_CONSUMER, **parsed.options())
        self.stored, self.hop = parsed.event, parsed.hop
        self.committed = None
        self._held = held

    async def ack(self) -> None:
        if self._held is not None:
            self._held.done()
        await super().ack()

    async def nack(self, delay: float | None = None) -> None:
        if self._held is not None:
            await self._held.fail(delay)
        await super().nack()

    async def reject(self) -> None:
        if self._held is not None:
            await self._held.drop()
        await super().reject()


async def _parse(raw: _Received | ConsumerRecord[Any, Any]) -> MeshMessage:
    """FastStream's parser for mesh topics, for any consumer of them. Raises as `Parsed`."""
    if isinstance(raw, _Received):
        record = raw.held.delivery
        return MeshMessage(raw, Parsed(record.payload, record.mode, record.attributes, record.headers))
    # From TestKafkaBroker, which always gives a content type and a value.
    headers = [header for header in raw.headers if header != ("content-type", b"")]
    stored = codec.KafkaRecord(replace(raw, headers=headers), raw.topic)
    payload = stored.payload or (b"" if "datacontenttype" in stored.attributes else None)
    return MeshMessage(raw, Parsed(payload, stored.mode, stored.attributes, stored.headers))


_OPTIONS = frozenset({"title", "description", "include_in_schema", "dependencies", "persistent"})
"""Of FastStream's, that a subscriber of a mesh topic may have: those that are no consumer's."""


class _Subscribers(KafkaRegistrator):
    """`subscriber` takes what `Mesh.topic` gives."""

    def subscriber(
        self,
        *topics: Any,
        membership: Membership | None = None,
        subject: str = "",
        **options: Any,
    ) -> Any:
        """Raises `ConfigurationError` for options, or further topics, beside a membership that do not go with it."""
        if membership is None:
            return super().subscriber(*topics, **options)
        if topics or options.keys() - _OPTIONS:
            what = min(options.keys() - _OPTIONS, default="other topic")
            raise ConfigurationError(f"a topic of the mesh takes no {what} beside it")
        subscriber = super().subscriber(
            KafkaTopic(subject, declare=False),
            parser=_parse,
            decoder=decode,
            ack_policy=AckPolicy.NACK_ON_ERROR,
            no_reply=True,
            **options,
        )
        # Given to `_consumer`; aiokafka's own consumer, on a stock broker, refuses them.
        subscriber._connection_args = {"membership": membership, "subscriber": subscriber}
        return subscriber


class MeshRouter(_Subscribers, KafkaRouter):
    """A FastStream `KafkaRouter` whose subscribers may take topics of a mesh."""


class MeshBroker(_Subscribers, KafkaBroker):
    """A FastStream `KafkaBroker` on which the topics of `mesh` work.

    Their events travel by connections of their own, to the same servers. Everything else is stock.
    """

    def __init__(
        self,
        mesh: Mesh,
        bootstrap_servers: str | Iterable[str] = "localhost:9092",
        *,
        partitions: int = PARTITIONS,
        replicas: int = 1,
        middlewares: Iterable[Any] = (),
        **options: Any,
    ) -> None:
        """`bootstrap_servers` may be what sidecars know as `MESHWIRE_BROKER`, without a user. `partitions` and
        `replicas` are those of topics that are made: `MESHWIRE_KAFKA_PARTITIONS` and `MESHWIRE_REPLICAS` of sidecars.
        `options` are those of `KafkaBroker`, except `codec` and `consumer_only`.

        Raises `ConfigurationError` for security that the mesh does not know.
        """
        if options.get("codec") is not None:
            raise ConfigurationError("a MeshBroker takes no codec: the data of an event is coded by its content type")
        if options.get("consumer_only"):
            raise ConfigurationError(
                "a MeshBroker cannot be consumer_only: the mesh makes topics and stores dead letters"
            )
        if isinstance(bootstrap_servers, str):
            bootstrap_servers = bootstrap_servers.removeprefix("kafka://").split(",")
        super().__init__(bootstrap_servers, middlewares=(*middlewares, partial(_ToEvent, self)), **options)
        self.mesh = mesh
        self._partitions = partitions
        self._access = Access(
            servers=tuple(
                server if server.rpartition(":")[2].isdigit() else f"{server}:9092"
                for server in self._connection_kwargs["bootstrap_servers"]
            ),
            options=self._sign_in(),
            replicas=replicas,
        )
        self._log: KafkaEventLog | None = None
        config = self.config.broker_config
        config.producer = _Producer(config.producer, self._store)

    def _sign_in(self) -> dict[str, Any]:
        given = self._connection_kwargs
        options = {name: given[name] for name in _SIGN_IN if given.get(name) is not None}
        mechanism = options.get("sasl_mechanism")
        if mechanism in ("GSSAPI", "OAUTHBEARER"):
            raise ConfigurationError(f"the mesh does not sign in to Kafka by {mechanism} so far")
        return options

    async def _connect(self) -> Any:
        await super()._connect()
        connection = Connection(self._access, name=self.mesh.app_id)
        log = KafkaEventLog(
            connection, namespace=self.mesh.namespace, prefix=self.mesh.prefix, partitions=self._partitions
        )
        try:
            await log.start()
        except BaseException:
            await log.close()
            await self.config.disconnect()
            raise
        self._log = log
        config = self.config.broker_config
        config.builder = partial(_consumer, log, config.builder)
        return config.builder

    async def stop(self, *exc_info: Any) -> None:
        try:
            await super().stop(*exc_info)
        finally:
            log, self._log = self._log, None
            if log is not None:
                await log.close()

    async def _store(self, message: Wire) -> None:
        if self._log is None:
            raise MeshError("the broker is not connected; start it before you publish")
        await self._log.publish(message.topic, message.message)


def _consumer(
    log: EventLog,
    stock: Callable[..., Any],
    *,
    membership: Membership | None = None,
    subscriber: Any = None,
    **options: Any,
) -> Any:
    if membership is None:
        return stock(**options)
    return _Consumer(log, membership, partial(_hand_over, subscriber))


async def _hand_over(subscriber: Any, held: Held) -> None:
    await subscriber.consume(_Received(held))
    if subscriber.running:  # FastStream has no verdict for what not even its own parser can read
        await held.fail()


class _Consumer(Member):
    """What FastStream takes for aiokafka's consumer. It brings deliveries to the handlers by itself, as many at once as
    the membership says."""

    def subscribe(self, **_: object) -> None:
        """Done by `start`."""

    async def getone(self) -> Any:
        """There is nothing to be fetched."""
        raise ConsumerStoppedError


class _Received:
    """A delivery as aiokafka's record, and, for a message that FastStream's own parser makes of it, the consumer by
    which that is settled."""

    def __init__(self, held: Held) -> None:
        self.held = held
        self.consumer = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.held.delivery.stored, name)  # type: ignore[attr-defined]

    async def commit(self) -> None:
        self.held.done()

    def seek(self, **_: object) -> None:
        """What has no verdict yet has failed, when the handler is done."""


class _ToEvent(BaseMiddleware[KafkaPublishCommand]):
    """Makes an event of what is published to a topic of the mesh."""

    def __init__(self, broker: MeshBroker, msg: Any, /, *, context: ContextRepo) -> None:
        super().__init__(msg, context=context)
        self._broker = broker

    async def publish_scope(
        self, call_next: Callable[[KafkaPublishCommand], Awaitable[Any]], cmd: KafkaPublishCommand
    ) -> Any:
        topic = self._broker.mesh.find(cmd.destination)
        if topic is None:
            return await call_next(cmd)
        if cmd.extra_bodies:
            raise MeshError(f"events of topic {topic.name} are published one by one")
        for name in ("key", "partition", "timestamp_ms", "no_confirm"):
            if getattr(cmd, name) not in (None, False):
                raise MeshError(f"an event of topic {topic.name} takes no {name}: its partitionkey is its key")
        serializer = self._broker.config.fd_config._serializer
        message = to_message(cmd, topic, self._broker.mesh.app_id, self.context.get_local("message"), serializer)
        # Under TestKafkaBroker the command itself is delivered.
        cmd.body = Wire.of(topic, message)
        cmd.headers = {name: value.decode() for name, value in codec.encode(message)[2]}
        return await call_next(cmd)


class _Producer(AioKafkaFastProducer):
    """FastStream's producer, except that events are stored, and are acknowledged when this returns."""

    def __init__(self, stock: AioKafkaFastProducer, store: Callable[[Wire], Awaitable[None]]) -> None:
        self._stock = stock
        self._store = store
        self._parser, self._decoder, self.codec = stock._parser, stock._decoder, stock.codec

    async def connect(self, producer: Any, serializer: Any, codec: Any = None) -> None:
        await self._stock.connect(producer, serializer, codec)

    async def disconnect(self) -> None:
        await self._stock.disconnect()

    def __bool__(self) -> bool:
        return bool(self._stock)

    @property
    def closed(self) -> bool:
        return self._stock.closed

    async def flush(self) -> None:
        await self._stock.flush()

    async def publish(self, cmd: KafkaPublishCommand) -> Any:
        """Raises `BrokerUnavailable` when no acknowledgement came in time, `BrokerError` when it was refused."""
        if isinstance(cmd.body, Wire):
            return await self._store(cmd.body)
        return await self._stock.publish(cmd)

    async def publish_batch(self, cmd: KafkaPublishCommand) -> Any:
        return await self._stock.publish_batch(cmd)
