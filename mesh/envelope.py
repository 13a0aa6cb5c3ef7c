"""From what an app publishes on Dapr's route to the message that is stored.

Four ways, by the request: raw bytes, a caller's event in structured or in binary mode, and everything else, which
is put into an envelope of our own. The rules are Dapr's, and as lenient; where Dapr would overwrite an id, a
source, a time or a trace that the caller gave, the caller wins (docs/compatibility.md).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import lru_cache

import msgspec

from mesh import addressing, ids
from mesh.codec import http as http_codec
from mesh.codec import json as json_codec
from mesh.codec.attributes import timestamp
from mesh.errors import ApiError, Code, InvalidEvent, clip
from mesh.event import Attributes, CloudEvent
from mesh.ports import Message, Mode, Topic
from mesh.quantities import boolean, duration
from mesh.trace import TraceContext

DEFAULT_TYPE = "com.dapr.event.sent"
DEFAULT_SOURCE = "Dapr"
"""The source of an event whose structured form names none."""

TRACE_ATTRIBUTES = ("traceid", "traceparent", "tracestate")
EXPIRY_ATTRIBUTES = ("expirytime", "expiration")
LETTER_ATTRIBUTE = "meshwirereason"
"""The extension attribute that makes an event a dead letter. A letter tells what was, and has no end of its own."""
KEPT_EXPIRED = 3600.0
"""Seconds for which the broker keeps an event that has expired. Whoever would have delivered it finds it then, and can
tell that it expired, or make a dead letter of it; an event that is gone is told of by nobody."""
"""When an event ends: the CloudEvents extension, and the attribute that Dapr adds for a TTL."""

Headers = Sequence[tuple[bytes, bytes]]

_quoted = msgspec.json.Encoder().encode
_is_json = msgspec.json.Decoder(msgspec.Raw).decode
_text = msgspec.json.Decoder(str).decode


class Publication(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One publish request, as any API received it."""

    topic: Topic
    body: bytes
    content_type: str | None
    headers: Headers = ()
    """All headers of the request, names in lower case: those of a binary-mode event among them."""
    metadata: Mapping[str, str] = {}
    """Dapr's request metadata: the `metadata.` query parameters, by what follows the dot."""
    trace: TraceContext | None = None
    baggage: str | None = None

    def hop(self) -> dict[str, str]:
        return hop_headers(self.trace, self.baggage)


def hop_headers(trace: TraceContext | None, baggage: str | None) -> dict[str, str]:
    """The context that travels beside an event to its subscribers."""
    hop: dict[str, str] = {}
    if trace is not None:
        hop["traceparent"] = trace.traceparent
        if trace.tracestate:
            hop["tracestate"] = trace.tracestate
    if baggage:
        hop["baggage"] = baggage
    return hop


class Options(msgspec.Struct, frozen=True, gc=False):
    """What the metadata of a request asks for. Apart from `rawPayload`, Dapr ignores what it cannot read."""

    ttl: float | None = None
    key: str | None = None
    overrides: Mapping[str, str] = {}


_NO_OPTIONS = Options()


def is_raw(metadata: Mapping[str, str], pubsub: str) -> bool:
    """`metadata.rawPayload`, a Go boolean in exactly this spelling. Raises `ApiError`, which names `pubsub`."""
    text = metadata.get("rawPayload")
    if text is None:
        return False
    try:
        return boolean(text)
    except ValueError:
        raise ApiError(
            Code.PUBSUB_METADATA,
            f"failed deserializing metadata. Error: rawPayload value must be a valid boolean: actual is '{clip(text)}'",
            resource=("pubsub", pubsub),
            metadata={name: clip(value) for name, value in metadata.items()},
        ) from None


def options(metadata: Mapping[str, str]) -> Options:
    if not metadata:
        return _NO_OPTIONS
    folded = {name.lower(): value for name, value in metadata.items()}
    overrides = {name[11:]: value for name, value in folded.items() if name.startswith("cloudevent.") and value}
    return Options(
        ttl=_ttl(folded.get("ttl") or folded.get("ttlinseconds")),
        key=folded.get("partitionkey") or None,
        overrides=overrides,
    )


def _ttl(text: str | None) -> float | None:
    """Whole seconds, or a Go duration. Invalid text and negative numbers count as none, as in Dapr."""
    if not text:
        return None
    try:
        seconds = duration(text)
    except ValueError:
        return None
    if seconds < 0 and text.lstrip("-").isdigit():
        return None
    return max(0.0, seconds)


def messages(publication: Publication, app_id: str, now: float) -> list[Message]:
    """What is to be stored: one message, or one for each member of a batch. Raises `ApiError`."""
    metadata = publication.metadata
    asked = options(metadata)
    if metadata and is_raw(metadata, publication.topic.pubsub):
        return [
            Message(
                mode=Mode.RAW,
                payload=publication.body,
                content_type=publication.content_type,
                key=asked.key,
                ttl=asked.ttl,
                headers=publication.hop(),
            )
        ]
    media_type = (publication.content_type or "").partition(";")[0].strip().lower()
    try:
        if media_type == "application/cloudevents+json":
            return [_amend(json_codec.members(publication.body), publication, asked, now)]
        if media_type == "application/cloudevents-batch+json":
            batch = json_codec.decode_batch(publication.body, limit=http_codec.BATCH_LIMIT)
            return [_amend_event(event, Mode.STRUCTURED, publication, asked, now) for event in batch]
        if http_codec.has_required_headers(publication.headers):
            event = http_codec.decode_binary(publication.headers, publication.body)
            return [_amend_event(event, Mode.BINARY, publication, asked, now)]
    except InvalidEvent as fault:  # Dapr's answer is 500; the cause stands in the details
        raise ApiError(
            Code.PUBSUB_CLOUD_EVENT,
            "cannot create cloudevent",
            resource=("pubsub", publication.topic.pubsub),
            metadata={"topic": publication.topic.name, "error": str(fault)},
        ) from fault
    return [_wrap(publication, media_type, asked, app_id, now)]


@lru_cache(maxsize=1024)
def _json_text(text: str) -> bytes:
    """`text` as a JSON string; for texts that come again with each event."""
    return _quoted(text)


def _wrap(publication: Publication, media_type: str, asked: Options, app_id: str, now: float) -> Message:
    """Dapr's envelope: members in alphabetical order, the data as it came."""
    overrides = asked.overrides
    topic = publication.topic
    trace = publication.trace
    event_id = overrides.get("id") or ids.uuid4()
    source = overrides.get("source") or app_id or DEFAULT_SOURCE
    traceparent = overrides.get("traceparent") or overrides.get("traceid") or (trace.traceparent if trace else "")
    tracestate = overrides.get("tracestate") or (trace.tracestate if trace else "")
    subject = overrides.get("subject")
    quoted_trace = _quoted(traceparent)
    payload = b'{%b,"datacontenttype":%b%b,"id":%b,"pubsubname":%b,"source":%b,"specversion":"1.0"%b,"time":"%b",' % (
        _data_member(media_type, publication.body),
        _json_text(publication.content_type or "text/plain"),
        b"" if asked.ttl is None else b',"expiration":%b' % _expiration(now, asked.ttl),
        _quoted(event_id),
        _json_text(topic.pubsub),
        _json_text(source),
        b"" if subject is None else b',"subject":%b' % _quoted(subject),
        ids.local_time().encode(),
    ) + b'"topic":%b,"traceid":%b,"traceparent":%b,"tracestate":%b,"type":%b}' % (
        _json_text(topic.name),
        quoted_trace,
        quoted_trace,
        _quoted(tracestate),
        _json_text(overrides.get("type") or DEFAULT_TYPE),
    )
    return Message(
        mode=Mode.STRUCTURED,
        payload=payload,
        key=asked.key,
        dedupe_id=addressing.identity(source, event_id) if "id" in overrides else None,
        ttl=None if asked.ttl is None else asked.ttl + KEPT_EXPIRED,
        headers=publication.hop(),
    )


def _data_member(media_type: str, body: bytes) -> bytes:
    """`data` or `data_base64` (Dapr: only `application/json` itself is JSON; other text becomes a string)."""
    if media_type == "application/json":
        try:
            if not body.isascii():
                body.decode()
            return b'"data":%b' % _is_json(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # not JSON after all: Dapr keeps such a body as text
    elif media_type in ("application/octet-stream", "application/cloudevents+protobuf"):
        return _base64_member(body)
    try:
        return b'"data":%b' % _quoted(body.decode())
    except UnicodeDecodeError:
        return _base64_member(body)  # as a string it would be garbled


def _base64_member(body: bytes) -> bytes:
    return b'"data_base64":"%b"' % base64.b64encode(body)


def _expiration(now: float, ttl: float) -> bytes:
    try:
        return _quoted(ids.utc_time(now + ttl))
    except (OverflowError, ValueError, OSError):
        return b'"9999-12-31T23:59:59Z"'


def _amend(members: dict[str, msgspec.Raw], publication: Publication, asked: Options, now: float) -> Message:
    """A caller's event in structured mode: what is missing is added, `topic` and `pubsubname` are set.

    It need not be a valid event: Dapr takes any JSON object.
    """
    event: dict[str, bytes | msgspec.Raw] = dict(members)
    given_id = _string(members.get("id"))
    for name, value in (("specversion", "1.0"), ("source", DEFAULT_SOURCE), ("type", DEFAULT_TYPE)):
        if _is_unset(members.get(name)):
            event[name] = _json_text(value)
    if _is_unset(members.get("id")):
        event["id"] = _quoted(ids.uuid4())
    if "time" not in members:
        event["time"] = b'"%b"' % ids.local_time().encode()
    given_trace = {name: _string(value) for name, value in members.items() if name in TRACE_ATTRIBUTES}
    for name, text in _missing_trace(given_trace, publication.trace).items():
        event[name] = _quoted(text)
    event["topic"] = _json_text(publication.topic.name)
    event["pubsubname"] = _json_text(publication.topic.pubsub)
    if asked.ttl is not None and "expiration" not in members:
        event["expiration"] = _expiration(now, asked.ttl)
    return Message(
        mode=Mode.STRUCTURED,
        payload=json_codec.join_members(event),
        key=asked.key or _string(members.get("partitionkey")) or None,
        # An empty id names nothing: all such events would be repeats of the first.
        dedupe_id=addressing.identity(_string(event["source"]) or "", given_id) if given_id else None,
        ttl=_kept(asked.ttl, [_string(event.get(name)) for name in EXPIRY_ATTRIBUTES], now),
        headers=publication.hop(),
    )


def _is_unset(value: msgspec.Raw | None) -> bool:
    return value is None or bytes(value) == b"null"


def _string(value: bytes | msgspec.Raw | None) -> str | None:
    """The text of a JSON string; `None` for anything else."""
    if value is None:
        return None
    try:
        return _text(value)
    except (msgspec.DecodeError, ValueError):
        return None


def _amend_event(event: CloudEvent, mode: Mode, publication: Publication, asked: Options, now: float) -> Message:
    """A valid event: what Dapr adds becomes extension attributes of it."""
    attributes: Attributes = dict(event.attributes)
    given_trace = {name: str(attributes[name]) for name in TRACE_ATTRIBUTES if name in attributes}
    attributes.update(_missing_trace(given_trace, publication.trace))
    attributes["topic"] = publication.topic.name
    attributes["pubsubname"] = publication.topic.pubsub
    if asked.ttl is not None:
        attributes.setdefault("expiration", msgspec.json.decode(_expiration(now, asked.ttl), type=str))
    return event_message(
        CloudEvent(attributes, event.data, event.form), mode, publication.hop(), now, key=asked.key, ttl=asked.ttl
    )


def event_message(
    event: CloudEvent,
    mode: Mode,
    hop: Mapping[str, str],
    now: float,
    *,
    key: str | None = None,
    ttl: float | None = None,
) -> Message:
    """How a valid event is stored: unchanged, in `mode`. `key` and `ttl` go before what its attributes say."""
    attributes = event.attributes
    partition_key = attributes.get("partitionkey")
    return Message(
        mode=mode,
        payload=event.data if mode is Mode.BINARY else json_codec.encode_event(event),
        attributes=attributes if mode is Mode.BINARY else {},
        key=key or (str(partition_key) if partition_key is not None else None),
        dedupe_id=addressing.identity(event.source, event.id),
        ttl=_kept(ttl, [str(attributes[name]) for name in EXPIRY_ATTRIBUTES if name in attributes], now),
        headers=hop,
    )


def with_trace(event: CloudEvent, trace: TraceContext | None) -> CloudEvent:
    """`event`, with the trace it was born in when it names none itself (CloudEvents distributed tracing)."""
    if trace is None or "traceparent" in event.attributes:
        return event
    attributes: Attributes = {**event.attributes, "traceparent": trace.traceparent}
    if trace.tracestate:
        attributes.setdefault("tracestate", trace.tracestate)
    return CloudEvent(attributes, event.data, event.form)


def _missing_trace(given: Mapping[str, str | None], trace: TraceContext | None) -> dict[str, str]:
    """Dapr's trace attributes that an event lacks. A caller's own `traceparent` stays, and is its `traceid` too."""
    traceparent = given.get("traceparent")
    if traceparent:
        return {} if "traceid" in given else {"traceid": traceparent}
    if trace is None or "traceid" in given:
        return {}
    missing = {"traceid": trace.traceparent, "traceparent": trace.traceparent}
    if trace.tracestate and "tracestate" not in given:
        missing["tracestate"] = trace.tracestate
    return missing


def _kept(ttl: float | None, expiries: Sequence[str | None], now: float) -> float | None:
    """Seconds for which the broker keeps what may be delivered for `ttl`, and until the first of `expiries`.

    Longer than that where the event itself says when it ends; what it does not say only the broker can obey.
    """
    stated = lifetime(None, expiries, now)
    return ttl if stated is None or (ttl is not None and ttl < stated) else stated + KEPT_EXPIRED


def lifetime(ttl: float | None, expiries: Sequence[str | None], now: float) -> float | None:
    """Seconds until the earliest of the given ends; never negative; `None` without any that can be read."""
    ends = [] if ttl is None else [ttl]
    for text in expiries:
        moment = expiry(text)
        if moment is not None:
            ends.append(max(0.0, moment - now))
    return min(ends, default=None)


def expiry(text: object) -> float | None:
    """The moment that an expiry attribute names, in seconds since the epoch; `None` when it names none."""
    if not isinstance(text, str):
        return None
    try:
        return timestamp(text)
    except ValueError:
        return None
