"""The stream of a scope: its table and its alarms, so that all of a scope is one thing to back up, permit and delete.

Both of its users get it here: whoever comes first makes it (docs/adr/0006-state-on-nats.md).
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Any, NamedTuple

from brokers.nats import jetstream
from brokers.nats.connection import Connection
from mesh import addressing
from mesh.errors import BrokerError, ConfigurationError

DUPLICATE_WINDOW = 40.0
"""Seconds for which the id of a write is remembered: longer than one is repeated (`retry.OPERATION_TIMEOUT`), and no
longer, since the server keeps these ids in memory and looks for them all when it starts."""
GONE_KEPT = 3600
"""Seconds for which a deletion or an expiry can be watched after the fact."""
MAX_CONSUMERS = 100_000
"""Set, since the server's default is a silent 1,000."""

_NANOSECONDS = 1_000_000_000

_FIXED = (
    "max_msgs_per_subject",
    "max_msgs",
    "max_bytes",
    "max_age",
    "allow_msg_ttl",
    "allow_atomic",
    "allow_msg_schedules",
)
"""What an operator may not change: with a limit of its own, a stream would delete state without a word."""


class Standing(NamedTuple):
    """A stream as it was found or made."""

    created: str
    """When. A stream of another time is another stream, which counts its messages from 1 again."""
    direct: bool
    """Whether a direct get tells what is newest: one server has the stream, and no other stream answers for it."""
    last: int
    """The sequence of its last message."""
    ahead: float = 0.0
    """Seconds by which the server's clock is ahead of ours, as of then. At most so many: its answer took time."""


class ScopeStream:
    """The one stream of a scope. Nothing is asked of the server before the first `ensure`."""

    def __init__(self, connection: Connection, *, prefix: str, namespace: str, scope: str, replicas: int = 1) -> None:
        """Raises `InvalidKey` for a scope that cannot be named."""
        self.name = addressing.state_stream(prefix, namespace, scope)
        self.root = addressing.state_root(prefix, namespace, scope)
        """What all its subjects begin with, dot included."""
        self._connection = connection
        self._config: dict[str, Any] = {
            "name": self.name,
            "subjects": [f"{self.root}>"],
            "retention": "limits",
            "storage": "file",
            "discard": "old",
            "num_replicas": replicas,
            "max_msgs_per_subject": 1,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_age": 0,
            "max_consumers": MAX_CONSUMERS,
            "duplicate_window": int(DUPLICATE_WINDOW * _NANOSECONDS),
            "allow_direct": True,
            "allow_msg_ttl": True,
            "allow_atomic": True,
            "allow_msg_schedules": True,
            "allow_rollup_hdrs": True,  # comes with schedules, asked for or not
            "subject_delete_marker_ttl": GONE_KEPT * _NANOSECONDS,
            "metadata": {"io.meshwire.scope": scope},
        }
        self.standing: Standing | None = None
        """As it was when last looked at."""
        self.closed = False
        """Whether its user has let go of it: nothing is tried again then."""
        self._look: asyncio.Future[Standing] | None = None

    async def ensure(self) -> Standing:
        """Make the stream unless it is known to exist. Raises `BrokerError`, `BrokerUnavailable`."""
        return self.standing or await self.restore()

    async def restore(self) -> Standing:
        """As `ensure`, when there is reason to believe that it has vanished. One look at a time serves all."""
        if self._look is None:
            self._look = asyncio.ensure_future(self._look_after())
        return await asyncio.shield(self._look)

    async def _look_after(self) -> Standing:
        try:
            await jetstream.ensure_stream(self._connection, self._config)
            asked = time.time()
            info = await jetstream.call(self._connection, f"STREAM.INFO.{self.name}")
        except ConfigurationError as refusal:
            raise BrokerError(str(refusal)) from None
        finally:
            self._look = None
        found = info["config"]
        for setting in _FIXED:
            if found.get(setting) != self._config[setting]:
                raise BrokerError(
                    f"the stream {self.name} has {setting} {found.get(setting)}; set it to {self._config[setting]}"
                )
        told = datetime.fromisoformat(info["ts"]).timestamp() if "ts" in info else asked
        self.standing = Standing(
            str(info["created"]),
            bool(found["allow_direct"]) and int(found["num_replicas"]) == 1,
            int(info["state"]["last_seq"]),
            told - asked,
        )
        return self.standing
