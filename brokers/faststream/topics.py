"""The addresses of one app, as FastStream's `subscriber` and `publisher` take them."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypedDict
from urllib.parse import unquote

from faststream import AckPolicy
from faststream.nats import JStream
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig

from brokers.faststream.event import MeshMessage, decode, parse
from brokers.faststream.group import Membership
from mesh import addressing
from mesh.delivery.plan import CONCURRENCY, Plan
from mesh.errors import ConfigurationError, clip
from mesh.ports import Group, Order, Topic

DEFAULT_PUBSUB = "pubsub"
"""The pub/sub component that every sidecar has."""

_ORDERS = [order.value for order in Order]

_name = re.compile(r"[A-Za-z0-9_-]{1,64}").fullmatch


class SubscriberOptions(TypedDict):
    """What `Mesh.topic` gives to FastStream's `subscriber`."""

    subject: str
    queue: str
    stream: JStream
    config: ConsumerConfig
    parser: Callable[[Msg], Awaitable[MeshMessage]]
    decoder: Callable[[MeshMessage], Awaitable[Any]]
    ack_policy: AckPolicy
    no_reply: bool


class Mesh:
    """The addresses of one app in one mesh. Needs no connection: routers in other modules use it too."""

    def __init__(
        self,
        app_id: str,
        *,
        namespace: str = addressing.DEFAULT_NAMESPACE,
        prefix: str = addressing.DEFAULT_PREFIX,
    ) -> None:
        """`app_id` names the group of every subscription and is the `source` of new events; `namespace` and
        `prefix` are the sidecars' `NAMESPACE` and `MESHWIRE_PREFIX`. Raises `ConfigurationError` for a bad name.
        """
        for what, name in (("app id", app_id), ("namespace", namespace), ("prefix", prefix)):
            if not _name(name):
                raise ConfigurationError(f"the {what} must be 1 to 64 letters, digits, '-' or '_' (got '{clip(name)}')")
        self.app_id = app_id
        self.namespace = namespace
        self.prefix = prefix
        self._root = addressing.event_subjects(prefix, namespace)[:-1]

    def topic(
        self,
        name: str,
        *,
        pubsub: str = DEFAULT_PUBSUB,
        dead_letter: str | None = None,
        concurrency: int = CONCURRENCY,
        order: Literal["none", "key", "strict"] = "key",
    ) -> SubscriberOptions:
        """Options for `broker.subscriber(**…)`: join the group of this app on the topic.

        At most `concurrency` handlers run at once. A handler that returns has handled the event. One that raises
        gets it again after 0.5 s, growing to 60 s, for ever; with `dead_letter`, a topic of the same component, it
        goes there at once. `RejectMessage` drops it, or dead-letters it; `NackMessage(delay=…)` returns it after
        so many seconds in either case.

        Events with the same `partitionkey` are handled one after the other, over all members of the group; with the
        order `strict` all events of the topic are, with `none` no events. All members ask for the same, sidecars too.

        Raises `InvalidTopic`, and `ConfigurationError` for a `concurrency` below 1 or another order.
        """
        if concurrency < 1:
            raise ConfigurationError(f"concurrency must be at least 1 (got {concurrency})")
        if order not in _ORDERS:
            raise ConfigurationError(f"order must be one of {', '.join(_ORDERS)} (got '{clip(str(order))}')")
        letters = None
        if dead_letter is not None:
            addressing.check_topic(dead_letter)
            letters = Topic(pubsub, dead_letter)
        topic = Topic(pubsub, name)
        return SubscriberOptions(
            subject=addressing.topic_root(self.prefix, self.namespace, topic) + "*",
            queue=self.app_id,
            stream=JStream(addressing.event_stream(self.prefix, self.namespace), declare=False),
            config=Membership(Group(self.app_id, topic), Plan(dead_letter=letters, order=Order(order)), concurrency),
            parser=parse,
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
        if not subject.startswith(self._root):
            return None
        pubsub, *name = ["" if part == "%" else unquote(part) for part in subject[len(self._root) :].split(".")[:-1]]
        return Topic(pubsub, ".".join(name))
