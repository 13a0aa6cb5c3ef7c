"""The topics of Kafka as one process knows them: how many partitions they have, and how large a record they take."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import aiokafka.errors as errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.protocol.metadata import MetadataRequest

from brokers.kafka.refusals import translated
from mesh.errors import BrokerError, MessageTooLarge

logger = logging.getLogger("meshwire.kafka")

MAX_BATCH = 64 * 1024
"""Bytes of records that are sent together, unless a topic takes less."""
MAX_REQUEST = 1024 * 1024
"""Bytes of a record with its headers that this client sends at most, unless a topic takes less: what Kafka takes."""
TOPICS_LIMIT = "max.message.bytes of the topic"

_PASSING = (0, errors.LeaderNotAvailableError.errno, errors.UnknownTopicOrPartitionError.errno)
"""What is said of a topic while it is made, or is not there."""


class Topics:
    """What is known is kept until somebody says that it is wrong, with `forget`."""

    def __init__(
        self,
        admin: Callable[[], Awaitable[AIOKafkaAdminClient]],
        within: Callable[[Awaitable[Any]], Awaitable[Any]],
        *,
        replicas: int,
    ) -> None:
        """`within` sets a limit to what is asked of the servers, and tells errors in our words; `replicas` are the
        copies of a topic that is made."""
        self._admin = admin
        self._within = within
        self._replicas = replicas
        self._known: dict[str, int] = {}
        self._limits: dict[str, int] = {}  # bytes of a record, where that is less than MAX_REQUEST
        self.batch = MAX_BATCH
        """Bytes of records that all topics take together."""

    async def partitions(self, topic: str) -> int | None:
        """How many it has; `None` when there is no such topic. Raises `BrokerError`, `BrokerUnavailable`."""
        if topic not in self._known:
            await self._within(self._look_up(await self._admin(), topic))
        return self._known.get(topic)

    async def ensure(self, topic: str, partitions: int, configuration: Mapping[str, str] | None = None) -> int:
        """Make the topic unless it is there. Returns how many partitions it has, once all of them have a leader.

        Raises `BrokerError`, `BrokerUnavailable`.
        """
        known = await self.partitions(topic)
        if known is not None:
            return known
        admin = await self._admin()
        new = NewTopic(topic, partitions, self._replicas, topic_configs=dict(configuration or {}))
        answer = await self._within(admin.create_topics([new]))
        code, text = answer.topic_errors[0][1], answer.topic_errors[0][2]
        if code == errors.TopicAuthorizationFailedError.errno:
            raise BrokerError(
                f"Kafka refused: there is no topic {topic}, and this user may not make it; `meshwire acl kafka` lists"
                " all rights"
            )
        if code not in (0, errors.TopicAlreadyExistsError.errno):
            raise translated(errors.for_code(code)(text or topic))
        await self._within(self._led(admin, topic))
        return self._known[topic]

    async def _led(self, admin: AIOKafkaAdminClient, topic: str) -> None:
        """A client that asks before all servers know a topic asks again in minutes."""
        while topic not in self._known:
            await self._look_up(admin, topic)
            await asyncio.sleep(0.02)

    async def _look_up(self, admin: AIOKafkaAdminClient, topic: str) -> None:
        """Note how many partitions it has, if it is there and each has a leader."""
        answer = await admin._send_request(MetadataRequest([topic], allow_auto_topic_creation=False))
        code, _, _, partitions = answer.topics[0]
        if code not in _PASSING:
            raise errors.for_code(code)(topic)
        if code == 0 and partitions and all(leader >= 0 for _, _, leader, *_ in partitions):
            await self.learn_limit(topic)
            self._known[topic] = len(partitions)

    async def learn_limit(self, topic: str) -> None:
        """Look how large a record may be, where a server tells us: not all do, and not everybody may know."""
        asked = ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": None})
        try:
            [answer] = await (await self._admin()).describe_configs([asked])
            limit = next((int(entry[1]) for entry in answer.resources[0][4]), MAX_REQUEST)
        except (errors.KafkaError, ValueError, LookupError, TypeError) as error:
            logger.debug("how much the topic %s takes is not known: %s", topic, error)
            return
        if limit < MAX_REQUEST:
            self._limits[topic] = limit
            self.batch = min(self.batch, limit)
        else:
            self._limits.pop(topic, None)

    def limit(self, topic: str) -> int:
        """Bytes of a record that it takes, as far as we know."""
        return self._limits.get(topic, MAX_REQUEST)

    def check_size(self, topic: str, size: int) -> None:
        """Raises `MessageTooLarge` for a record of more than `limit` bytes."""
        limit = self.limit(topic)
        if size > limit:
            raise MessageTooLarge(size, limit, TOPICS_LIMIT if limit < MAX_REQUEST else None)

    async def missing(self, topics: Sequence[str]) -> set[str]:
        """Those that are not there, as one server sees it now. Raises `BrokerError`, `BrokerUnavailable`."""
        admin = await self._admin()
        answer = await self._within(admin._send_request(MetadataRequest(list(topics), allow_auto_topic_creation=False)))
        unknown = errors.UnknownTopicOrPartitionError.errno
        return {name for code, name, *_ in answer.topics if code == unknown}

    def forget(self, topic: str) -> None:
        """Somebody says that it is gone: look anew."""
        self._known.pop(topic, None)
