"""Bulk publish, by Dapr's routes: `POST /v1.0/publish/bulk/{pubsubname}/{topic}`, and the same under `v1.0-alpha1`."""

from __future__ import annotations

import base64
import binascii

import msgspec
from starlette.types import Receive, Scope, Send

from mesh import envelope
from mesh.envelope import Publication
from mesh.errors import ApiError, Code, clip
from mesh.ports import Topic
from mesh.pubsub import PubSub
from mesh.trace import InvalidBaggage
from sidecar.api.plain_json import Malformed, read_array
from sidecar.api.request import Context, context, query_metadata
from sidecar.http.body import BodyTooLarge, read_body
from sidecar.http.responses import send_response, send_text
from sidecar.http.routing import Router

MAX_HEADER = 8 << 10
"""Longest answer, in bytes, that stands in a header too: clients refuse longer heads."""

NULL = msgspec.Raw(b"null")


class _Entry(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    entryId: str = ""
    event: msgspec.Raw = NULL
    contentType: str = ""
    metadata: dict[str, str] | None = None


class _Failed(msgspec.Struct, gc=False):
    entryId: str
    error: str


class _Answer(msgspec.Struct, gc=False):
    failedEntries: list[_Failed]
    errorCode: str = Code.PUBSUB_PUBLISH.error_code


_decode = msgspec.json.Decoder(list[_Entry]).decode
_text = msgspec.json.Decoder(str).decode


class BulkPublishApi:
    def __init__(self, pubsub: PubSub, max_body_size: int) -> None:
        self._pubsub = pubsub
        self._max_body_size = max_body_size

    def add_to(self, router: Router) -> None:
        path = "/publish/bulk/{pubsubname}/{topic:path}"
        router.add(("POST", "PUT"), f"/v1.0{path}", self.publish, group="v1/publish")
        router.add(("POST", "PUT"), f"/v1.0-alpha1{path}", self.publish, group="v1alpha1/publish")

    async def publish(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Dapr's order of checks: component, `rawPayload`, array, each entry (event, then id), scope, broker."""
        parameters = scope["path_params"]
        topic = Topic(parameters["pubsubname"], parameters["topic"])
        metadata = query_metadata(scope)
        self._pubsub.component(topic.pubsub, metadata)
        try:
            asked = context(scope)
        except InvalidBaggage as error:
            await send_text(send, 400, str(error))
            return
        try:
            body = await read_body(receive, self._max_body_size, scope)
        except BodyTooLarge as error:
            raise self._unreadable(topic, error) from None
        raw = envelope.is_raw(metadata, topic.pubsub)
        try:
            entries = read_array(_Entry, body, _decode)
        except Malformed as error:
            raise self._unreadable(topic, error) from None
        publications = self._publications(entries, topic, metadata, raw, asked)
        failures = await self._pubsub.publish_many(topic, publications)
        if not failures:
            await send_response(send, 204, asked.echo(), b"")
            return
        failed = [_Failed(entries[index].entryId, str(error)) for index, error in sorted(failures.items())]
        answer = msgspec.json.encode(_Answer(failed))
        first = next(iter(failures.values()))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(answer)),
            (b"metadata.error", clip(str(first)).encode()),
        ]
        if len(answer) <= MAX_HEADER:
            headers.append((b"metadata.responsedata", answer))
        await send_response(send, 500, [*headers, *asked.echo()], answer)

    def _publications(
        self, entries: list[_Entry], topic: Topic, metadata: dict[str, str], raw: bool, asked: Context
    ) -> list[Publication]:
        seen: set[str] = set()
        publications = []
        for index, entry in enumerate(entries):
            try:
                body = _body(entry)
            except ValueError as error:
                raise self._fault(Code.PUBSUB_ENVELOPE, topic, f"[{index}]: {error}") from None
            if not entry.entryId or entry.entryId in seen:
                raise self._fault(
                    Code.PUBSUB_ENTRY_ID,
                    topic,
                    f"[{index}]: entryId is duplicated or not present for entry: '{clip(entry.entryId)}'",
                )
            seen.add(entry.entryId)
            # What a request says holds for the entries that do not say otherwise themselves. Whether an entry is raw
            # is said for all of them together.
            merged = {**metadata, **(entry.metadata or {})}
            merged.pop("rawPayload", None)
            if raw:
                merged["rawPayload"] = "true"
            publications.append(
                Publication(
                    topic=topic,
                    body=body,
                    content_type=entry.contentType,
                    metadata=merged,
                    trace=asked.trace,
                    baggage=asked.baggage,
                )
            )
        return publications

    def _unreadable(self, topic: Topic, cause: object) -> ApiError:
        return self._fault(Code.PUBSUB_EVENTS, topic, cause, {"appID": self._pubsub.app_id})

    @staticmethod
    def _fault(code: Code, topic: Topic, cause: object, metadata: dict[str, str] | None = None) -> ApiError:
        return ApiError(
            code,
            f"error when unmarshaling the request for topic {topic.name} pubsub {topic.pubsub}: {cause}",
            resource=("pubsub", topic.pubsub),
            metadata=metadata or {"topic": topic.name, "error": str(cause)},
        )


def _body(entry: _Entry) -> bytes:
    """The bytes that an entry publishes. Raises `ValueError`, with the rule (Dapr: bulk publish)."""
    media_type = entry.contentType.partition(";")[0].strip().lower()
    event = bytes(entry.event)
    if media_type in ("application/json", "application/cloudevents+json"):
        return event
    is_text = media_type.startswith("text/") or media_type == "application/xml"
    if not is_text and media_type != "application/octet-stream":
        raise ValueError(
            f"contentType '{clip(entry.contentType)}' is none of application/json, application/cloudevents+json, "
            "application/octet-stream, application/xml and text/*"
        )
    try:
        text = _text(event)
    except msgspec.DecodeError:
        raise ValueError(f"the event of contentType {clip(entry.contentType)} must be a string") from None
    if is_text:
        return text.encode()
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("the event of contentType application/octet-stream must be base64") from None
