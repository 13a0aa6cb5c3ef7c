"""Events for FastStream services, and what their handlers get."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel

from mesh.codec import json as json_codec
from mesh.event import CloudEvent as StoredEvent
from mesh.event import DataForm
from mesh.ports import Message, Mode, Topic

ATTRIBUTES = {
    "specversion": "1.0",
    "id": "öne",
    "source": "/shop?a=%20b",
    "type": "order.placed",
    "datacontenttype": "application/json",
    "subject": 'with "quotes"',
    "time": "2026-05-01T12:34:56.123456+02:00",
    "partitionkey": "customer 7",
    "tier": "gold",
}


class Order(BaseModel):
    number: int


class Got(asyncio.Queue[Any]):
    """What a handler got."""

    calls = 0

    def put_nowait(self, item: Any) -> None:
        self.calls += 1
        super().put_nowait(item)

    async def next(self) -> Any:
        return await asyncio.wait_for(self.get(), 30)

    async def nothing_more(self, seconds: float = 0.3) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(self.get(), seconds)


def topic(name: str) -> Topic:
    return Topic("pubsub", name)


def binary(attributes: dict[str, Any], data: bytes | None, **options: Any) -> Message:
    return Message(mode=Mode.BINARY, attributes=attributes, payload=data, key=attributes.get("partitionkey"), **options)


def structured(attributes: dict[str, Any], data: bytes | None, form: DataForm = DataForm.JSON) -> Message:
    payload = json_codec.encode_event(StoredEvent(attributes, data, form))
    return Message(mode=Mode.STRUCTURED, payload=payload, key=attributes.get("partitionkey"))


def simple(number: int, **more: Any) -> Message:
    attributes = {"specversion": "1.0", "id": str(number), "source": "/shop", "type": "order.placed", **more}
    return binary(attributes | {"datacontenttype": "application/json"}, b'{"number": %d}' % number)
