"""The names of one app in one mesh, and what its subscribers ask for, whichever the broker."""

from __future__ import annotations

import re
from typing import Literal, TypedDict

from brokers.faststream.member import Membership
from mesh import addressing
from mesh.delivery.plan import CONCURRENCY, Plan
from mesh.errors import ConfigurationError, clip
from mesh.ports import Group, Order, Topic

DEFAULT_PUBSUB = "pubsub"
"""The pub/sub component that every sidecar has."""

OrderName = Literal["none", "key", "strict"]

_ORDERS = [order.value for order in Order]

_name = re.compile(r"[A-Za-z0-9_-]{1,64}").fullmatch


class MemberOptions(TypedDict, total=False):
    """See `Names.membership`."""

    dead_letter: str | None
    concurrency: int
    order: OrderName


class Names:
    """Needs no connection: routers in other modules use it, too."""

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

    def membership(
        self,
        name: str,
        *,
        pubsub: str = DEFAULT_PUBSUB,
        dead_letter: str | None = None,
        concurrency: int = CONCURRENCY,
        order: OrderName = "key",
    ) -> Membership:
        """Of this app in its group on the topic.

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
        group = Group(self.app_id, Topic(pubsub, name))
        return Membership(group, Plan(dead_letter=letters, order=Order(order)), concurrency)
