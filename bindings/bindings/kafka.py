"""`bindings.kafka`: records of Apache Kafka."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote_plus

from bindings.bindings import client_tls
from bindings.bindings.lanes import accept_all
from mesh.components import ComponentSpec, Field, Kind, Settings, Setup
from mesh.errors import ConfigurationError, clip
from mesh.ports.bindings import Accept, InvalidOperation, Invocation, Item, Result
from mesh.ports.stores import StoreError, StoreUnavailable

log = logging.getLogger("meshwire.bindings.kafka")

T = TypeVar("T")

BATCH = 256
"""Records that are taken at once; the offsets behind them are committed when all are stored."""
WAIT = 100
"""Milliseconds that a server may wait for records before it answers that there are none."""
SILENCE = 10.0
"""Seconds without a record after which the servers are asked whether they are there: the library looks for them in
silence, for ever."""
END_LIMIT = 5.0
"""Seconds for leaving the group."""
KEYS = ("partitionkey", "__key", "key")
PARTITION = "partitionnumber"

_MECHANISMS = {"PLAINTEXT": "PLAIN", "SHA-256": "SCRAM-SHA-256", "SHA-512": "SCRAM-SHA-512"}
_NO_OIDC = "only the authType none, password and mtls are supported"
_NO_SCHEMAS = "schema registries are not supported: the app gets the bytes of the record"
_BY_THE_PLAN = "a record that the app does not take is offered again by the delivery plan: remove the setting"
_BY_THE_CLIENT = "the client library decides it: remove the setting"


class KafkaBinding:
    """An `OutputBinding`."""

    operations: Sequence[str] = ("create",)

    def __init__(self, settings: Settings, app_id: str) -> None:
        """Raises `ConfigurationError`, `ImportError`."""
        import aiokafka

        self.library = aiokafka
        self.settings = settings
        self.app_id = app_id
        self.common = _common(settings, app_id)
        self.timeout: float = settings["readTimeout"]
        pattern = settings["excludeHeaderMetaRegex"]
        try:
            self._excluded = re.compile(pattern) if pattern else None
        except re.error as error:
            raise settings.fault("excludeHeaderMetaRegex", f"it is no regular expression: {error}") from None
        self._producer: Any = None
        self._starting = asyncio.Lock()
        self._closed = False

    async def start(self) -> None:
        await self.ping()

    async def ping(self) -> None:
        producer = await self._started()
        await self.within(producer.client.fetch_all_metadata())

    async def close(self) -> None:
        self._closed = True
        async with self._starting:
            producer, self._producer = self._producer, None
            if producer is not None:
                await _stop(producer)

    async def invoke(self, invocation: Invocation) -> Result:
        """Dapr: `partitionKey` (or `__key`) and `partitionNumber`; all of the metadata become headers."""
        topic = self.settings["publishTopic"]
        if not topic:
            raise InvalidOperation("the component has no publishTopic")
        names = {name.lower(): value for name, value in invocation.metadata.items()}
        key = next((names[name] for name in KEYS if names.get(name)), None)
        producer = await self._started()
        partition = await self._partition(producer, topic, names.get(PARTITION, ""))
        headers = [
            (name, value.encode())
            for name, value in invocation.metadata.items()
            if self._excluded is None or not self._excluded.search(name)
        ]
        send = producer.send_and_wait(
            topic, invocation.data, None if key is None else key.encode(), partition, headers=headers
        )
        await self.within(send)
        return Result()

    async def within(self, work: Awaitable[T], more: float = 0.0) -> T:
        """Raises `StoreError`, and `StoreUnavailable` after readTimeout, and `more` seconds."""
        import aiokafka.errors as errors

        try:
            async with asyncio.timeout(self.timeout + more):
                return await work
        except TimeoutError:
            raise StoreUnavailable("Kafka did not answer in time") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # the library cancels what waits for a connection that it closes
            raise StoreUnavailable("Kafka: the connection was lost") from None
        except (errors.MessageSizeTooLargeError, errors.RecordTooLargeError, errors.RecordListTooLargeError):
            raise InvalidOperation("the record is larger than Kafka, or maxMessageBytes, allows") from None
        except errors.KafkaError as error:
            raise translated(error) from error

    async def _partition(self, producer: Any, topic: str, text: str) -> int | None:
        if not text:
            return None
        there: set[int] = await self.within(producer.partitions_for(topic))
        if not re.fullmatch("[0-9]{1,9}", text) or int(text) not in there:
            raise InvalidOperation(f"metadata partitionNumber: '{clip(text)}' is none of the topic's {len(there)}")
        return int(text)

    async def _started(self) -> Any:
        async with self._starting:
            if self._closed:
                raise StoreUnavailable("Kafka: the connections are closed")
            if self._producer is None:
                producer = self._new_producer()
                try:
                    await self.within(producer.start())
                except BaseException:
                    await _stop(producer)
                    raise
                self._producer = producer
            return self._producer

    def _new_producer(self) -> Any:
        settings = self.settings
        more: dict[str, Any] = {}
        if settings["maxMessageBytes"]:
            more["max_request_size"] = settings["maxMessageBytes"]
        return self.library.AIOKafkaProducer(
            **self.common,
            acks={"all": "all", "local": 1, "none": 0}[settings["producerRequiredAcks"]],
            compression_type=None if settings["compression"] == "none" else settings["compression"],
            **more,
        )


class KafkaInput(KafkaBinding):
    """An `InputBinding` too."""

    exclusive = False

    async def run(self, accept: Accept) -> None:
        """As `InputBinding.run`. Raises `StoreError`, and what `accept` does."""
        import aiokafka.errors as errors

        consumer = self._new_consumer()
        stored = _Stored(self.library, asyncio.Lock())
        try:
            # a member that went without a word is waited for
            await self.within(self._join(consumer, stored.listener), self.settings["sessionTimeout"])
            while True:
                batches = await consumer.getmany(timeout_ms=_milliseconds(SILENCE), max_records=BATCH)
                if not batches:
                    await self.ping()
                    continue
                async with stored.busy:
                    escape = self.settings["escapeHeaders"]
                    await accept_all(accept, [_item(record, escape) for batch in batches.values() for record in batch])
                    await self._commit(consumer, {place: batch[-1].offset + 1 for place, batch in batches.items()})
        except errors.KafkaError as error:
            raise translated(error) from error
        finally:
            await _stop(consumer)

    async def _join(self, consumer: Any, listener: Any) -> None:
        """The library takes a coordinator that is still loading for one that knows no group: we ask in its place."""
        from brokers.kafka.committed import committed

        await consumer.start()
        for topic in self.settings["topics"]:
            await consumer._client._wait_on_metadata(topic)
        coordinator = consumer._coordinator
        coordinator._do_fetch_commit_offsets = partial(committed, coordinator)
        consumer.subscribe(self.settings["topics"], listener=listener)
        await consumer._subscription.wait_for_assignment()

    async def _commit(self, consumer: Any, offsets: dict[Any, int]) -> None:
        import aiokafka.errors as errors

        try:
            async with asyncio.timeout(self.timeout):
                await consumer.commit(offsets)
        except TimeoutError:
            raise StoreUnavailable("Kafka did not answer in time") from None
        except (errors.CommitFailedError, errors.IllegalStateError) as error:
            # Another member has the partition now: it takes the same records again, under the same ids.
            log.info("records are offered again, since the partitions went to another member: %s", error)

    def _new_consumer(self) -> Any:
        from aiokafka.coordinator.assignors import range as range_
        from aiokafka.coordinator.assignors import roundrobin
        from aiokafka.coordinator.assignors.sticky import sticky_assignor

        settings = self.settings
        assignor = {
            "range": range_.RangePartitionAssignor,
            "roundrobin": roundrobin.RoundRobinPartitionAssignor,
            "sticky": sticky_assignor.StickyPartitionAssignor,
        }[settings["consumerGroupRebalanceStrategy"]]
        return self.library.AIOKafkaConsumer(
            **self.common,
            group_id=settings["consumerGroup"] or self.app_id,
            enable_auto_commit=False,
            auto_offset_reset="earliest" if settings["initialOffset"] == "oldest" else "latest",
            partition_assignment_strategy=(assignor,),
            heartbeat_interval_ms=_milliseconds(settings["heartbeatInterval"]),
            session_timeout_ms=_milliseconds(settings["sessionTimeout"]),
            fetch_min_bytes=settings["consumerFetchMin"],
            max_partition_fetch_bytes=settings["consumerFetchDefault"],
            fetch_max_wait_ms=WAIT,
        )


class _Stored:
    """Lets partitions go when what was taken from them is stored and committed."""

    def __init__(self, library: Any, busy: asyncio.Lock) -> None:
        class Listener(library.ConsumerRebalanceListener):  # type: ignore[misc]
            async def on_partitions_revoked(self, revoked: Any) -> None:
                async with busy:
                    pass

            async def on_partitions_assigned(self, assigned: Any) -> None:
                pass

        self.busy = busy
        self.listener = Listener()


def _item(record: Any, escape: bool) -> Item:
    """Dapr: names and values of the metadata."""
    headers = {name: (value or b"").decode("utf-8", "replace") for name, value in record.headers}
    if escape:
        headers = {name: quote_plus(value) for name, value in headers.items()}
    key = None if record.key is None else record.key.decode("utf-8", "replace")
    place = {
        "__topic": record.topic,
        "__partition": str(record.partition),
        "__offset": str(record.offset),
        "__timestamp": str(record.timestamp),
    }
    return Item(
        data=record.value or b"",
        metadata=headers | place | ({} if key is None else {"__key": key}),
        # with the time, since a topic that is made anew counts from 0 again
        id=f"{record.topic}-{record.partition}-{record.offset}-{record.timestamp}",
        key=key,
        time=record.timestamp / 1000 if record.timestamp >= 0 else None,
    )


async def _stop(client: Any) -> None:
    """Whatever it says, it is not used any more. A consumer whose servers are gone says that it was cancelled, and
    leaves its connections open."""
    await _ended(client.stop())
    connections = getattr(client, "_client", None)
    if connections is not None:
        await _ended(connections.close())


async def _ended(work: Awaitable[None]) -> None:
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=END_LIMIT)
    finally:
        task.cancel()
        if task.done() and not task.cancelled():
            task.exception()


def translated(error: Any) -> StoreError:
    """Of a `KafkaError`."""
    import aiokafka.errors as errors

    text = clip(" ".join(str(error).split()) or type(error).__name__)
    refused = (
        errors.AuthenticationFailedError,
        errors.TopicAuthorizationFailedError,
        errors.GroupAuthorizationFailedError,
        errors.ClusterAuthorizationFailedError,
        errors.UnsupportedSaslMechanismError,
    )
    if isinstance(error, refused):
        return StoreError(f"Kafka refused: {text}")
    return StoreUnavailable(f"Kafka: {text}")


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _common(settings: Settings, app_id: str) -> dict[str, Any]:
    """What consumers and producers share. Raises `ConfigurationError`."""
    auth = _auth(settings)
    common: dict[str, Any] = {
        "bootstrap_servers": list(settings["brokers"]),
        "client_id": settings["clientID"] or app_id,
        "request_timeout_ms": _milliseconds(settings["readTimeout"]),
        "metadata_max_age_ms": _milliseconds(settings["clientConnectionTopicMetadataRefreshInterval"]),
    }
    tls = auth != "none" and not settings["disableTls"]
    if tls:
        common["ssl_context"] = client_tls.context(settings, verify=not settings["skipVerify"])
    else:
        for name in ("caCert", "clientCert", "clientKey", "skipVerify"):
            if settings[name]:
                raise settings.fault(name, "there is no TLS: authType is none, or disableTls is set (Dapr)")
    if auth == "mtls" and not (tls and settings["clientCert"]):
        raise settings.fault("authType", "mtls needs clientCert and clientKey, and TLS")
    if auth != "password":
        return common | {"security_protocol": "SSL" if tls else "PLAINTEXT"}
    for name in ("saslUsername", "saslPassword"):
        if not settings[name]:
            raise settings.fault(name, "authType password needs it")
    return common | {
        "security_protocol": "SASL_SSL" if tls else "SASL_PLAINTEXT",
        "sasl_mechanism": _MECHANISMS[settings["saslMechanism"]],
        "sasl_plain_username": settings["saslUsername"],
        "sasl_plain_password": settings["saslPassword"],
    }


def _auth(settings: Settings) -> str:
    if settings["authType"]:
        return str(settings["authType"])
    if not settings.given("authRequired"):
        raise settings.fault("authType", f"a component of type {SPEC.type} needs it: none, password or mtls")
    if not settings["authRequired"]:
        return "none"
    return "password" if settings["saslPassword"] else "mtls"


def _open(setup: Setup) -> KafkaBinding:
    settings = setup.settings
    if settings["sessionTimeout"] <= settings["heartbeatInterval"]:
        raise settings.fault("sessionTimeout", "it must be longer than heartbeatInterval")
    _check_compression(settings)
    if not settings["topics"]:
        if not settings["publishTopic"]:
            raise settings.fault("topics", "it is needed for an input, publishTopic for an output")
        return KafkaBinding(settings, setup.app_id)
    return KafkaInput(settings, setup.app_id)


def _check_compression(settings: Settings) -> None:
    from aiokafka import codec

    name: str = settings["compression"]
    if name != "none" and not getattr(codec, f"has_{name}")():
        raise ConfigurationError(f"{settings.origin}: metadata.compression: {name} needs: pip install cramjam")


SPEC = ComponentSpec(
    type="bindings.kafka",
    title="Apache Kafka",
    about=(
        "Input: records of `topics`, as a member of a consumer group; offsets are committed when the records before "
        "them are stored, and those of a key stay in order. Output: `create` sends the data to `publishTopic`; "
        "`partitionKey` in the metadata is the record's key, all metadata become headers."
    ),
    open=_open,
    fields=(
        Field("brokers", "Some of the servers, as `host:9092`, with commas between them.", Kind.LIST, required=True),
        Field("topics", "The topics of the input.", Kind.LIST, ()),
        Field("publishTopic", "The topic of the output."),
        Field(
            "authType",
            "How the client shows who it is; all but `none` speak TLS, unless disableTls is set.",
            Kind.CHOICE,
            choices=("none", "password", "mtls"),
        ),
        Field(
            "authRequired",
            "In place of authType, as early versions had it: `false` is none; `true` is password where there is one, "
            "else mtls.",
            Kind.BOOL,
        ),
        Field("clientID", "The name that the servers log; the app id, if not given."),
        Field("consumerGroup", "The consumer group; the app id, if not given.", aliases=("consumerID",)),
        Field("saslUsername", "The user, for authType password."),
        Field("saslPassword", "The user's password.", secret=True),
        Field(
            "saslMechanism",
            "How the password is shown.",
            Kind.CHOICE,
            "PLAINTEXT",
            choices=tuple(_MECHANISMS),
        ),
        *client_tls.fields(),
        Field("skipVerify", "Take any certificate of the servers: for tests only.", Kind.BOOL, False),
        Field("disableTls", "Speak without TLS.", Kind.BOOL, False),
        Field("initialOffset", "Where a new group starts.", Kind.CHOICE, "newest", choices=("newest", "oldest")),
        Field("maxMessageBytes", "Largest record to send; 0 is 1 MiB.", Kind.SIZE, 0, minimum=0),
        Field("version", "The version of the servers. It is negotiated: whatever stands here fits."),
        Field("heartbeatInterval", "How often a member of the group says that it lives.", Kind.DURATION, 3.0),
        Field("sessionTimeout", "When a member that does not is taken for dead.", Kind.DURATION, 10.0),
        Field("readTimeout", "Longest wait for an answer.", Kind.DURATION, 30.0, minimum=0.1),
        Field("consumerFetchMin", "Fewest bytes that a server waits for.", Kind.INTEGER, 1, minimum=1),
        Field(
            "consumerFetchDefault", "Most bytes of a partition that are read at once.", Kind.INTEGER, 1 << 20, minimum=1
        ),
        Field(
            "clientConnectionTopicMetadataRefreshInterval",
            "How often the servers are asked where the partitions are.",
            Kind.DURATION,
            480.0,
            minimum=1,
        ),
        Field(
            "producerRequiredAcks",
            "Who must have a record before it counts as sent: all replicas, the leader, nobody.",
            Kind.CHOICE,
            "all",
            choices=("all", "local", "none"),
        ),
        Field(
            "compression",
            "How records are compressed.",
            Kind.CHOICE,
            "none",
            choices=("none", "gzip", "snappy", "lz4", "zstd"),
        ),
        Field("escapeHeaders", "Percent-encode the values of headers that arrive.", Kind.BOOL, False),
        Field("excludeHeaderMetaRegex", "Metadata whose name matches become no headers."),
        Field(
            "consumerGroupRebalanceStrategy",
            "How partitions are shared out.",
            Kind.CHOICE,
            "range",
            choices=("range", "sticky", "roundrobin"),
        ),
        Field("consumeRetryEnabled", "Offer records again.", Kind.BOOL, False, refused=_BY_THE_PLAN),
        Field("consumeRetryInterval", "When.", refused=_BY_THE_PLAN),
        *(
            Field(name, "Of Dapr's client.", refused=_BY_THE_CLIENT)
            for name in (
                *("dialTimeout", "writeTimeout", "metadataTimeout", "channelBufferSize"),
                *("clientConnectionKeepAliveInterval", "producerRetryMax"),
            )
        ),
        *(
            Field(name, "Part of signing in by OpenID Connect.", refused=_NO_OIDC)
            for name in (
                *("oidcTokenEndpoint", "oidcClientID", "oidcClientSecret", "oidcScopes", "oidcExtensions"),
                *("oidcClientAssertionCert", "oidcClientAssertionKey", "oidcResource", "oidcAudience", "oidcKid"),
            )
        ),
        *(
            Field(name, "Part of a schema registry.", refused=_NO_SCHEMAS)
            for name in (
                *("schemaRegistryURL", "schemaRegistryAPIKey", "schemaRegistryAPISecret", "schemaCachingEnabled"),
                *("schemaLatestVersionCacheTTL", "useAvroJSON"),
            )
        ),
    ),
    needs="kafka",
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: invoices
spec:
  type: bindings.kafka
  version: v1
  metadata:
  - name: brokers
    value: localhost:9092
  - name: topics
    value: invoices
  - name: publishTopic
    value: invoices
  - name: consumerGroup
    value: bookkeeping
  - name: initialOffset
    value: oldest
  - name: authType
    value: none
""",
)
