"""The broker: a stock `NatsBroker` on which the topics of a mesh are subscribed and published to."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any

from faststream import BaseMiddleware, ContextRepo
from faststream.nats import NatsBroker
from faststream.nats.publisher.producer import NatsFastProducer
from faststream.nats.response import NatsPublishCommand
from faststream.response.publish_type import PublishType
from nats.aio.client import Client
from nats.aio.msg import Msg

from brokers.faststream.event import HOP, MeshMessage, make_event
from brokers.faststream.group import JetStream
from brokers.faststream.topics import Mesh
from brokers.nats import codec
from brokers.nats.connection import Connection, Lookup, Servers
from brokers.nats.event_log import NatsEventLog
from brokers.nats.tables import NatsTables
from mesh import envelope, ids
from mesh.errors import ConfigurationError, MeshError, clip
from mesh.event import Attributes
from mesh.ports import Message, Mode, Topic


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
        jetstream = JetStream(connection, log, **self.config.broker_config.js_options)
        self.config.connection_state.connect(connection, jetstream)
        return connection

    async def stop(self, *exc_info: Any) -> None:
        try:
            await super().stop(*exc_info)
        finally:
            log, self._log = self._log, None
            if log is not None:
                await log.close()

    async def _store(self, message: _Wire) -> None:
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


class _Wire(bytes):
    """The payload of an event that is ready to be stored, and the event beside it."""

    topic: Topic
    message: Message


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
        if cmd.publish_type is PublishType.REQUEST or cmd.reply_to or cmd.schedule:
            raise MeshError(f"an event of topic {topic.name} has no reply and no schedule")
        given = {name.lower(): str(value) for name, value in cmd.headers.items()}
        handled = self.context.get_local("message")
        hop = {name: given[name] for name in HOP if name in given}
        if isinstance(handled, MeshMessage) and "traceparent" not in hop:
            hop = {**handled.hop, **hop}
        others = {name for name in given if not name.startswith("ce-")} - {*HOP, "content-type", "correlation_id"}
        if others:
            raise MeshError(f"an event has attributes, given as ce- headers, and no header {clip(min(others))}")
        attributes: Attributes = {name[3:]: value for name, value in given.items() if name.startswith("ce-")}
        serializer = self._broker.config.fd_config._serializer
        event = make_event(cmd.body, attributes, self._broker.mesh.app_id, hop, serializer)
        message = envelope.event_message(event, Mode.BINARY, hop, time.time())
        # Under TestNatsBroker the command itself is delivered.
        wire = _Wire(message.payload or b"")
        wire.topic, wire.message = topic, message
        cmd.body = wire
        cmd.headers = codec.parse_block(codec.encode(message, ids.random_id()))
        return await call_next(cmd)


class _Producer(NatsFastProducer):
    """FastStream's producer, except that events are stored, and are acknowledged when this returns."""

    def __init__(self, stock: NatsFastProducer, store: Callable[[_Wire], Awaitable[None]]) -> None:
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
        if isinstance(cmd.body, _Wire):
            return await self._store(cmd.body)
        return await self._stock.publish(cmd)

    async def request(self, cmd: NatsPublishCommand) -> Msg:
        return await self._stock.request(cmd)
