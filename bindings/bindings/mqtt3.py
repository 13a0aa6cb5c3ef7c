"""`bindings.mqtt3`: messages of an MQTT 3.1.1 broker.

aiomqtt acknowledges a message when it is read; so its client of paho is told that we do that ourselves. What was not
acknowledged the broker keeps in the session, and sends again with the next connection.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from bindings.bindings import client_tls
from bindings.bindings.lanes import LANES, accept_all
from bindings.invocations import check_metadata
from mesh.components import ComponentSpec, Field, Kind, Settings, Setup
from mesh.ports.bindings import Accept, InvalidOperation, Invocation, Item, Result
from mesh.ports.stores import StoreError, StoreUnavailable

if TYPE_CHECKING:
    import aiomqtt

QOS = 1
"""Dapr: always at least once."""
TIME_LIMIT = 5.0
"""Seconds for connecting, and for each acknowledgement of the broker."""
KEEP_ALIVE = 10
"""Seconds; a connection that is dead is noticed after one and a half of it."""
MAX_TOPIC = 65_535
MAX_WAITING = 10_000
"""Messages that may wait in memory; beyond, the broker sends them again with the next connection. Brokers themselves
send some tens to thousands before they want an acknowledgement."""
MAX_SENDING = 64
"""Messages that are sent at once."""
PORTS = {"mqtt": 1883, "tcp": 1883, "mqtts": 8883, "ssl": 8883, "tls": 8883}
REFUSED = frozenset({"Bad user name or password", "Not authorized", "Client identifier not valid"})


class MqttBinding:
    """An `InputBinding` and an `OutputBinding`."""

    exclusive = True
    """A session belongs to one connection."""
    operations: Sequence[str] = ("create",)

    def __init__(self, settings: Settings, app_id: str) -> None:
        """Raises `ConfigurationError`, `ImportError`."""
        import aiomqtt

        self._library = aiomqtt
        self._settings = settings
        self._topic: str = settings["topic"]
        self._session = f"{settings['consumerID'] or app_id}-consumer"
        self._options = _options(settings)
        self._producer: aiomqtt.Client | None = None
        self._connecting = asyncio.Lock()
        self._turns = asyncio.Semaphore(MAX_SENDING)
        self._closed = False

    async def start(self) -> None:
        await self._client()

    async def ping(self) -> None:
        await self._client()

    async def close(self) -> None:
        self._closed = True
        async with self._connecting:
            await self._drop(self._producer)

    async def invoke(self, invocation: Invocation) -> Result:
        """Publish the data as it is (Dapr)."""
        check_metadata(invocation, ("topic",))
        topic = invocation.text("topic") or self._topic
        if not topic or len(topic.encode()) > MAX_TOPIC or any(sign in topic for sign in "+#\0"):
            raise InvalidOperation("metadata topic: no message can be sent to it: at most 65535 bytes, without + and #")
        async with self._turns:
            client = await self._client()
            try:
                await client.publish(topic, invocation.data, QOS, self._settings["retain"])
            except ValueError as error:
                raise InvalidOperation(f"the broker cannot take it: {error}") from None
            except self._library.MqttError as error:
                if self._producer is client:
                    await self._drop(client)
                raise _translated(error) from error
        return Result()

    async def run(self, accept: Accept) -> None:
        """As `InputBinding.run`. Raises `StoreError`, and what `accept` does."""
        client = self._new(self._session, clean=self._settings["cleanSession"])
        paho = client._client
        paho.manual_ack_set(True)
        try:
            async with client:
                [granted, *_] = await client.subscribe(self._topic, QOS)
                if granted not in (0, 1, 2):
                    raise StoreError("MQTT: the broker refuses the subscription")
                messages = client.messages
                while True:
                    batch = [await anext(messages)]
                    while len(messages) and len(batch) < LANES:
                        batch.append(await anext(messages))
                    await accept_all(accept, [_item(message) for message in batch])
                    for message in batch:  # in the order in which they came, as the protocol asks for
                        paho.ack(message.mid, message.qos)
        except self._library.MqttError as error:
            raise _translated(error) from error

    async def _client(self) -> aiomqtt.Client:
        """The connection for publishing. Raises `StoreError`."""
        async with self._connecting:
            if self._closed:
                raise StoreUnavailable("MQTT: the connection is closed")
            if self._producer is not None and self._producer._disconnected.done():
                await self._drop(self._producer)
            if self._producer is None:
                # Unlike Dapr's its id is not the same for all replicas, of which each would throw out the other.
                client = self._new(f"{self._session.removesuffix('-consumer')}-producer-{secrets.token_hex(4)}")
                try:
                    await client.__aenter__()
                except self._library.MqttError as error:
                    raise _translated(error) from error
                self._producer = client
            return self._producer

    async def _drop(self, client: aiomqtt.Client | None) -> None:
        self._producer = None
        if client is not None:
            with suppress(self._library.MqttError):
                await client.__aexit__(None, None, None)

    def _new(self, identifier: str, *, clean: bool = True) -> aiomqtt.Client:
        client = self._library.Client(
            **self._options,
            identifier=identifier,
            clean_session=clean,
            timeout=TIME_LIMIT,
            keepalive=KEEP_ALIVE,
            max_queued_incoming_messages=MAX_WAITING,
        )
        client.pending_calls_threshold = MAX_SENDING
        client._client.connect_timeout = TIME_LIMIT
        # Whoever uses a client hears of its end by a call that fails; without a call asyncio complains of it.
        client._disconnected.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return client


def _item(message: aiomqtt.Message) -> Item:
    payload = message.payload
    topic = str(message.topic)
    return Item(data=payload if isinstance(payload, bytes) else b"", key=topic, metadata={"topic": topic})


def _translated(error: aiomqtt.MqttError) -> StoreError:
    """The library's texts have neither addresses nor passwords."""
    text = " ".join(str(error).split()) or type(error).__name__
    kind = StoreError if any(reason in text for reason in REFUSED) else StoreUnavailable
    return kind(f"MQTT: {text}")


def _options(settings: Settings) -> dict[str, Any]:
    """Of the library's client."""
    url = settings["url"]
    try:
        parts = urlsplit(url if "://" in url else f"tcp://{url}")
        port = parts.port
    except ValueError:
        raise settings.fault("url", "it is no address such as tcp://host:1883") from None
    if parts.scheme not in PORTS or not parts.hostname:
        raise settings.fault("url", f"it must be {', '.join(f'{scheme}://host' for scheme in PORTS)}")
    options: dict[str, Any] = {"hostname": parts.hostname, "port": port or PORTS[parts.scheme]}
    if parts.username is not None:
        options |= {"username": unquote(parts.username), "password": unquote(parts.password or "")}
    if parts.scheme in ("mqtts", "ssl", "tls"):
        options["tls_context"] = client_tls.context(settings)
    else:
        for name in ("caCert", "clientCert", "clientKey"):
            if settings.given(name):
                raise settings.fault(name, "it needs a url with mqtts://")
    return options


def _open(setup: Setup) -> MqttBinding:
    return MqttBinding(setup.settings, setup.app_id)


SPEC = ComponentSpec(
    type="bindings.mqtt3",
    title="MQTT 3.1.1",
    about=(
        "Output: `create` publishes the data at QoS 1, to the topic of the component or to `topic` in the metadata. "
        "Input: messages of a topic, `+` and `#` allowed; each is acknowledged to the broker when it is stored, and "
        "those of a topic stay in order. One replica of the app reads, under one session, which the broker keeps "
        "while none does. MQTT gives messages no id: one that the broker sends again after a crash arrives again."
    ),
    open=_open,
    fields=(
        Field(
            "url",
            "The broker, as `tcp://host:1883`, or with TLS `mqtts://user:password@host:8883`.",
            required=True,
            secret=True,
        ),
        Field("topic", "Where messages come from, and where they go if a request names no other.", required=True),
        Field("consumerID", "The name of the session at the broker; the app id, if not given."),
        Field("retain", "The broker keeps the last message of each topic for those who come later.", Kind.BOOL, False),
        Field("cleanSession", "The broker forgets what came while no sidecar was connected.", Kind.BOOL, False),
        Field(
            "backOffMaxRetries",
            "How often a message is offered to the app.",
            Kind.INTEGER,
            refused="the delivery plan says how often: use a resiliency policy",
        ),
        *client_tls.fields(),
    ),
    needs="mqtt",
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: machines
spec:
  type: bindings.mqtt3
  version: v1
  metadata:
  - name: url
    secretKeyRef:
      name: mqtt
      key: url
  - name: topic
    value: machines/+/temperature
  - name: direction
    value: input
auth:
  secretStore: secrets
""",
)
