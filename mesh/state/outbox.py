"""The transactional outbox: what a transaction publishes is stored with it, and forwarded from there.

A store that declares `OUTBOX` keeps the events in the same atomic batch as the items. For any other store with
transactions it is done as Dapr does it: the event goes to an internal topic before the commit, the transaction brings
a marker, and whoever takes the event from the topic publishes it only once the marker is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from mesh import envelope, ids
from mesh.codec import json as json_codec
from mesh.envelope import Publication
from mesh.errors import clip
from mesh.fencing import METADATA as FENCE
from mesh.ports import Topic
from mesh.ports.stores import OutboxRecord
from mesh.state.component import OutboxSettings
from mesh.state.requests import CONTENT_TYPE, TTL, BadRequest, Write
from mesh.trace import TraceContext

ID_PREFIX = "outbox-"
"""Before the random part of the id of each event, which is the key of its marker too (Dapr)."""

PROJECTION = "outbox.projection"

_OWN_MEMBERS = ("id", "data", "data_base64")
_SETTINGS = (TTL, CONTENT_TYPE, PROJECTION, "partitionkey", FENCE.lower())
"""Metadata that says how an item is stored, and nothing about its event."""

_quoted = msgspec.json.Encoder().encode


class Plan(NamedTuple):
    writes: Sequence[Write]
    """What is stored: all but the projections."""
    records: Sequence[OutboxRecord]
    """One for each upsert."""


def plan(
    settings: OutboxSettings, writes: Sequence[Write], app_id: str, trace: TraceContext | None, now: float
) -> Plan:
    """Raises `BadRequest` for a projection without the item that it is one of."""
    stored: list[Write] = []
    projections: dict[str, Write] = {}
    for write in writes:
        if write.value is not None and write.metadata.get(PROJECTION, "").lower() == "true":
            projections[write.key] = write
        else:
            stored.append(write)
    missing = projections.keys() - {write.key for write in stored if write.value is not None}
    if missing:
        raise BadRequest(f"{PROJECTION}: no other upsert of the transaction has the key '{min(missing)}'")
    records = [
        _record(settings, write, projections.get(write.key, write), app_id, trace, now)
        for write in stored
        if write.value is not None
    ]
    return Plan(stored, records)


def _record(
    settings: OutboxSettings, stored: Write, shown: Write, app_id: str, trace: TraceContext | None, now: float
) -> OutboxRecord:
    """The event of one upsert: the value that `shown` has, with the metadata of what is `stored` as attributes."""
    record_id = ID_PREFIX + ids.uuid4()
    content_type = _content_type(shown) or _content_type(stored)
    if content_type.lower().startswith("application/cloudevents"):
        raise BadRequest(
            f"contentType {clip(content_type)}: the outbox puts values into events, not events into events"
        )
    publication = Publication(
        topic=Topic(settings.pubsub, settings.topic),
        body=shown.value or b"",
        content_type=content_type or None,
        metadata={"cloudevent.id": record_id},
        trace=trace,
    )
    [message] = envelope.messages(publication, app_id, now)
    members: dict[str, bytes | msgspec.Raw] = dict(json_codec.members(message.payload or b""))
    for name, text in stored.metadata.items():
        if name not in _OWN_MEMBERS and name.lower() not in _SETTINGS:
            members[name] = _quoted(text)
    return OutboxRecord(record_id, json_codec.join_members(members))


def _content_type(write: Write) -> str:
    if write.content_type:
        return write.content_type
    return next((text for name, text in write.metadata.items() if name.lower() == CONTENT_TYPE), "")
