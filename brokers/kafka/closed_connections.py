"""A connection of aiokafka that is closed and does not know it yet.

What is written to it then vanishes on the loop of asyncio, and is a `RuntimeError` on uvloop. That is no error of a
connection to aiokafka: the task that sends, or reads, ends for good.
"""

from __future__ import annotations

from typing import Any

from aiokafka import errors
from aiokafka.conn import AIOKafkaConnection, CloseReason

_send = AIOKafkaConnection.send


def _send_or_close(self: AIOKafkaConnection, request: Any, expect_response: bool = True) -> Any:
    """Raises `KafkaConnectionError`, as `send` does for any other connection that is lost."""
    try:
        return _send(self, request, expect_response)
    except errors.KafkaError:  # which is a RuntimeError, too
        raise
    except RuntimeError as error:
        self.close(reason=CloseReason.CONNECTION_BROKEN)
        raise errors.KafkaConnectionError(f"Connection at {self.host}:{self.port} closed: {error}") from error


def install() -> None:
    """For all connections of this process."""
    AIOKafkaConnection.send = _send_or_close
