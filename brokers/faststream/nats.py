"""FastStream on NATS: a stock `NatsBroker` on which the topics of a mesh are subscribed and published to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypedDict, Unpack
from urllib.parse import unquote

from faststream import AckPolicy, BaseMiddleware, ContextRepo
from faststream.nats import JStream, NatsBroker
from faststream.nats.message import NatsMessage
from faststream.nats.publisher.producer import NatsFastProducer
from faststream.nats.response import NatsPublishCommand
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig

from brokers.faststream.event import EventMessage, Parsed, Wire, decode, to_message
from brokers.faststream.member import Held, Member, Membership
from brokers.faststream.names import DEFAULT_PUBSUB, MemberOptions, Names
from brokers.nats import codec
from brokers.nats.connection import Connection, Lookup, Servers
from brokers.nats.event_log import NatsEventLog
from brokers.nats.tables import NatsTables
from mesh import addressing, ids
from mesh.errors import ConfigurationError, MeshError
from mesh.ports import EventLog, Mode, Topic


class SubscriberOptions(TypedDict):
    """What `Mesh.topic` gives to FastStream's `subscriber`."""

    subject: str
    queue: str
    stream: JStream
    config: ConsumerConfig
    parser: Callable[[Msg], Awaitable[MeshMessage]]
    decoder: Callable[[EventMessage], Awaitable[Any]]
    ack_policy: AckPolicy
    no_reply: bool


class Mesh(Names):
    """The addresses of one app in one mesh. Needs no connection: routers in other modules use it too."""

    def topic(self, name: str, *, pubsub: str = DEFAULT_PUBSUB, **options: Unpack[MemberOptions]) -> SubscriberOptions:
        """Options for `broker.subscriber(**…)`: join the group of this app on the topic. `options` are those of
        `membership`, and so are the errors."""
        topic = Topic(pubsub, name)
        return SubscriberOptions(
            subject=addressing.topic_root(self.prefix, self.namespace, topic) + "*",
            queue=self.app_id,
            stream=JStream(addressing.event_stream(self.prefix, self.namespace), declare=False),
            config=_Consumer(self.membership(name, pubsub=pubsub, **options)),
            parser=_parse,
            decoder=decode,
            ack_policy=AckPolicy.NACK_ON_ERROR,
            no_reply=True,
        )

    def subject(self, name: str, *, pubsub: str = DEFAULT_PUBSUB) -> str:
        """Where to publish: for `broker.publish(…, subject)` and `broker.publisher(subject)`.

        What is published becomes an event; attributes are given as headers, `{"ce-type": "order.paid"}`. An event
        with `ce-partitionkey` finds its own partition. Raises `InvalidTopic`.
        """
        topic = Topic(pubsub, name)
        return addressing.topic_root(self.prefix, self.namespace, topic) + addressing.UNKEYED

    def find(self, subject: str) -> Topic | None:
        """The topic that a subject belongs to; `None` when it is none of this mesh's."""
        root = addressing.event_subjects(self.prefix, self.namespace)[:-1]
        if not subject.startswith(root):
            return None
        pubsub, *name = ["" if part == "%" else unquote(part) for part in subject[len(root) :].split(".")[:-1]]
        return Topic(pubsub, ".".join(name))


class MeshMessage(EventMessage, NatsMessage):
    """FastStream's message of a mesh topic."""

    def __init__(self, raw_message: Msg, parsed: Parsed) -> None:
        super().__init__(raw_message=raw_message, **parsed.options())
        self.stored, self.hop = parsed.event, parsed.hop


async def _parse(raw: Msg) -> MeshMessage:
    """FastStream's parser for mesh topics, for any consumer of their subjects. Raises as `Parsed`."""
    if isinstance(raw, _Received):
        delivery = raw.held.delivery
        return MeshMessage(raw, Parsed(delivery.payload, delivery.mode, delivery.attributes, delivery.headers))
    stored = {name.lower(): value for name, value in (raw.headers or {}).items()}
    payload = None if not raw.data and "meshwire-no-data" in stored else raw.data
    mode = codec.mode(stored, payload or b"")
    attributes = codec.decode_attributes(stored) if mode is Mode.BINARY else {}
    return MeshMessage(raw, Parsed(payload, mode, attributes, codec.transport_headers(stored)))


class MeshBroker(NatsBroker):
    """A FastStream `NatsBroker` on which the topics of `mesh` work.

    Their events travel on a connection of their own, to the same servers. Everything else is stock.
    """

    def __init__(
        self,
        mesh: Mesh,
        servers: str | Iterable[str] = ("nats://localhost:4222",),
        *,
        middlewares: Iterable[Any] = (),
        **options: Any,
    ) -> None:
        """`options` are those of `NatsBroker`, except `codec`. Raises `ConfigurationError` for credentials that the
        mesh does not take: it knows user and password, or a token, in the URL, and `NatsToken`.
        """
        if options.get("codec") is not None:
            raise ConfigurationError("a MeshBroker takes no codec: the data of an event is coded by its content type")
        super().__init__(servers, middlewares=(*middlewares, partial(_ToEvent, self)), **options)
        self.mesh = mesh
        self._lookup = _lookup(self._connection_kwargs)
        self._log: NatsEventLog | None = None
        config = self.config.broker_config
        config.producer = _Producer(config.producer, self._store)
        config.js_producer = _Producer(config.js_producer, self._store)

    async def _connect(self) -> Client:
        connection = await super()._connect()
        own = Connection(self._lookup, name=self.mesh.app_id)
        namespace, prefix = self.mesh.namespace, self.mesh.prefix
        tables = NatsTables(own, namespace=namespace, prefix=prefix)
        log = NatsEventLog(own, namespace=namespace, prefix=prefix, tables=tables)
        try:
            await log.start()
        except BaseException:
            await log.close()
            await connection.close()
            raise
        self._log = log
        jetstream = _JetStream(connection, log, **self.config.broker_config.js_options)
        self.config.connection_state.connect(connection, jetstream)
        return connection

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


def _lookup(options: Mapping[str, Any]) -> Lookup:
    for name in ("tls", "user", "user_credentials", "nkeys_seed", "nkeys_seed_str", "user_jwt_cb"):
        if options.get(name) is not None:
            raise ConfigurationError(
                f"the mesh does not take the option {name}: put credentials into the URL, "
                "as in tls://user:password@host:4222, or use NatsToken"
            )
    urls, token = list(options["servers"]), options.get("token")
    return Lookup(lambda: Servers(urls, token() if callable(token) else token))


class _Consumer(ConsumerConfig):
    """A membership that travels through FastStream as the configuration of a consumer, to `JetStream.subscribe`."""

    def __init__(self, membership: Membership) -> None:
        super().__init__()
        self.membership = membership

    def evolve(self, **_: object) -> _Consumer:
        """Called by nats-py to make a consumer of its own, as on a stock broker."""
        topic = self.membership.group.topic.name
        raise ConfigurationError(f"topic {topic} can only be subscribed to on a MeshBroker")


class _JetStream(JetStreamContext):
    def __init__(self, connection: Client, log: EventLog, **options: Any) -> None:
        super().__init__(connection, **options)
        self._log = log

    async def subscribe(self, subject: str, *args: Any, **options: Any) -> Any:
        consumer = options.get("config")
        if not isinstance(consumer, _Consumer):
            return await super().subscribe(subject, *args, **options)
        consume = options["cb"]
        subscription = _Subscription(self._log, consumer.membership, lambda held: consume(_Received(held, subject)))
        await subscription.start()
        return subscription


class _Subscription(Member):
    """What FastStream holds."""

    async def unsubscribe(self) -> None:
        """Called when its handlers have ended, or have had their time to."""
        await self.stop()


class _Received(Msg):
    """A delivery as nats-py's message, which FastStream settles."""

    def __init__(self, held: Held, subject: str) -> None:
        self.held = held
        super().__init__(_client=None, subject=subject, data=held.delivery.payload or b"")  # type: ignore[arg-type]

    __hash__ = object.__hash__
    __eq__ = object.__eq__

    @property
    def _ackd(self) -> bool:
        return self.held.settled

    @_ackd.setter
    def _ackd(self, _value: bool) -> None:
        """Set by nats-py at the beginning."""

    async def ack(self) -> None:
        self.held.done()

    async def nak(self, delay: float | None = None) -> None:
        await self.held.fail(delay)

    async def term(self) -> None:
        await self.held.drop()

    async def in_progress(self) -> None:
        """Nothing to do: the pull loop tells the server as long as the message is held."""


class _ToEvent(BaseMiddleware[NatsPublishCommand]):
    """Makes an event of what is published to a topic of the mesh."""

    def __init__(self, broker: MeshBroker, msg: Any, /, *, context: ContextRepo) -> None:
        super().__init__(msg, context=context)
        self._broker = broker

    async def publish_scope(
        self, call_next: Callable[[NatsPublishCommand], Awaitable[Any]], cmd: NatsPublishCommand
    ) -> Any:
        topic = self._broker.mesh.find(cmd.destination)
        if topic is None:
            return await call_next(cmd)
        if cmd.schedule:
            raise MeshError(f"an event of topic {topic.name} has no schedule")
        serializer = self._broker.config.fd_config._serializer
        message = to_message(cmd, topic, self._broker.mesh.app_id, self.context.get_local("message"), serializer)
        # Under TestNatsBroker the command itself is delivered.
        cmd.body = Wire.of(topic, message)
        cmd.headers = codec.parse_block(codec.encode(message, ids.random_id()))
        return await call_next(cmd)


class _Producer(NatsFastProducer):
    """FastStream's producer, except that events are stored, and are acknowledged when this returns."""

    def __init__(self, stock: NatsFastProducer, store: Callable[[Wire], Awaitable[None]]) -> None:
        self._stock = stock
        self.codec = stock.codec
        self._store = store
        self._parser = stock._parser
        self._decoder = stock._decoder

    def connect(self, connection: Any, serializer: Any, codec: Any = None) -> None:
        self._stock.connect(connection, serializer, codec)

    def disconnect(self) -> None:
        self._stock.disconnect()

    async def publish(self, cmd: NatsPublishCommand) -> Any:
        """Raises `BrokerUnavailable` when no acknowledgement came in time, `BrokerError` when it was refused."""
        if isinstance(cmd.body, Wire):
            return await self._store(cmd.body)
        return await self._stock.publish(cmd)

    async def request(self, cmd: NatsPublishCommand) -> Msg:
        return await self._stock.request(cmd)
