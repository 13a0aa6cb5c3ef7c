"""The error tree, and the catalogue of codes that a client can meet.

Each error says what failed, why, and what to do. Inner layers raise; `sidecar/http/responses.py` translates
once, at the edge. Statuses, codes and reasons are Dapr's where Dapr has one (the `Code` rows below).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

CLIPPED_VALUE = 80
"""Longest piece of an offending value, in characters, that an error message repeats."""


def clip(value: object, limit: int = CLIPPED_VALUE) -> str:
    """`value` as it may be shown in a message: printable, and of `limit` characters at most."""
    text = value if isinstance(value, str) else repr(value)
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= limit else text[: limit - 1] + "…"


class CodeRow(NamedTuple):
    error_code: str
    status: int
    reason: str | None = None
    """The `ErrorInfo.reason` of a standardised error; `None` for a legacy one, which has no details."""


class Code(CodeRow, Enum):
    """Every error code of the HTTP API, with its status: one row each."""

    PUBSUB_NOT_FOUND = "ERR_PUBSUB_NOT_FOUND", 404, "DAPR_PUBSUB_NOT_FOUND"
    PUBSUB_METADATA = "ERR_PUBSUB_REQUEST_METADATA", 400, "DAPR_PUBSUB_METADATA_DESERIALIZATION"
    PUBSUB_CLOUD_EVENT = "ERR_PUBSUB_CLOUD_EVENTS_SER", 500, "DAPR_PUBSUB_CLOUD_EVENT_CREATION"
    PUBSUB_FORBIDDEN = "ERR_PUBSUB_FORBIDDEN", 403, "DAPR_PUBSUB_FORBIDDEN"
    PUBSUB_PUBLISH = "ERR_PUBSUB_PUBLISH_MESSAGE", 500, "DAPR_PUBSUB_PUBLISH_MESSAGE"
    PUBSUB_EVENTS = "ERR_PUBSUB_EVENTS_SER", 400, "DAPR_PUBSUB_UNMARSHAL_EVENTS"
    PUBSUB_ENVELOPE = "ERR_PUBSUB_EVENTS_SER", 400, "DAPR_PUBSUB_MARSHAL_ENVELOPE"
    PUBSUB_ENTRY_ID = "ERR_PUBSUB_EVENTS_SER", 400, "DAPR_PUBSUB_MARSHAL_EVENTS"
    DIRECT_INVOKE = "ERR_DIRECT_INVOKE", 404, None
    HEALTH_NOT_READY = "ERR_HEALTH_NOT_READY", 500, None
    HEALTH_APPID = "ERR_HEALTH_APPID_NOT_MATCH", 500, None
    OUTBOUND_NOT_READY = "ERR_OUTBOUND_HEALTH_NOT_READY", 500, None
    BODY_READ = "ERR_BODY_READ", 400, None
    MALFORMED_REQUEST = "ERR_MALFORMED_REQUEST", 400, None
    INTERNAL = "ERROR", 500, None

    STATE_NOT_CONFIGURED = "ERR_STATE_STORE_NOT_CONFIGURED", 500, "DAPR_STATE_NOT_CONFIGURED"
    STATE_NOT_FOUND = "ERR_STATE_STORE_NOT_FOUND", 400, "DAPR_STATE_NOT_FOUND"
    STATE_NO_TRANSACTIONS = "ERR_STATE_STORE_NOT_SUPPORTED", 500, "DAPR_STATE_TRANSACTIONS_NOT_SUPPORTED"
    STATE_NO_QUERY = "ERR_STATE_STORE_NOT_SUPPORTED", 500, "DAPR_STATE_QUERYING_NOT_SUPPORTED"
    STATE_TOO_MANY = "ERR_STATE_STORE_TOO_MANY_TRANSACTIONS", 400, "DAPR_STATE_TOO_MANY_TRANSACTIONS"
    STATE_ILLEGAL_KEY = "ERR_MALFORMED_REQUEST", 400, "DAPR_STATE_ILLEGAL_KEY"
    STATE_OPERATION = "ERR_NOT_SUPPORTED_STATE_OPERATION", 400, None
    STATE_SAVE = "ERR_STATE_SAVE", 500, None
    STATE_GET = "ERR_STATE_GET", 500, None
    STATE_DELETE = "ERR_STATE_DELETE", 500, None
    STATE_BULK_GET = "ERR_STATE_BULK_GET", 500, None
    STATE_TRANSACTION = "ERR_STATE_TRANSACTION", 500, None
    STATE_OUTBOX = "ERR_PUBLISH_OUTBOX", 500, "DAPR_PUBSUB_OUTBOX"
    STATE_QUERY = "ERR_STATE_QUERY", 500, "DAPR_STATE_QUERY_FAILED"

    CONFIGURATION_NOT_CONFIGURED = "ERR_CONFIGURATION_STORE_NOT_CONFIGURED", 500, None
    CONFIGURATION_NOT_FOUND = "ERR_CONFIGURATION_STORE_NOT_FOUND", 400, None
    CONFIGURATION_GET = "ERR_CONFIGURATION_GET", 500, None
    CONFIGURATION_SUBSCRIBE = "ERR_CONFIGURATION_SUBSCRIBE", 500, None
    APP_CHANNEL_NIL = "ERR_APP_CHANNEL_NIL", 500, None
    SECRET_NOT_CONFIGURED = "ERR_SECRET_STORES_NOT_CONFIGURED", 500, None
    SECRET_NOT_FOUND = "ERR_SECRET_STORE_NOT_FOUND", 401, None
    SECRET_DENIED = "ERR_PERMISSION_DENIED", 403, None
    SECRET_GET = "ERR_SECRET_GET", 500, None

    ACTOR_INVOKE = "ERR_ACTOR_INVOKE_METHOD", 500, None
    ACTOR_BAD_REQUEST = "ERR_BAD_REQUEST", 400, None
    ACTOR_STACK_DEPTH = "ERR_ACTOR_STACK_DEPTH", 500, None
    ACTOR_INSTANCE_MISSING = "ERR_ACTOR_INSTANCE_MISSING", 400, None
    ACTOR_TYPE_RESERVED = "ERR_ACTOR_TYPE_RESERVED", 403, None
    ACTOR_CLOSED = "ERR_ACTOR_RUNTIME_CLOSED", 503, None
    ACTOR_STATE_GET = "ERR_ACTOR_STATE_GET", 500, None
    ACTOR_STATE_SAVE = "ERR_ACTOR_STATE_TRANSACTION_SAVE", 500, None
    ACTOR_TIMER_CREATE = "ERR_ACTOR_TIMER_CREATE", 500, None
    REMINDER_NON_HOSTED = "ERR_ACTOR_REMINDER_NON_HOSTED", 403, None
    REMINDER_CREATE = "ERR_ACTOR_REMINDER_CREATE", 500, None
    REMINDER_GET = "ERR_ACTOR_REMINDER_GET", 500, None
    REMINDER_DELETE = "ERR_ACTOR_REMINDER_DELETE", 500, None
    REMINDER_NOT_FOUND = "ERR_ACTOR_REMINDER_NOT_FOUND", 404, None
    REMINDER_EXISTS = "ERR_ACTOR_REMINDER_ALREADY_EXISTS", 409, None

    INVOKE_OUTPUT_BINDING = "ERR_INVOKE_OUTPUT_BINDING", 500, None

    LOCK_NOT_CONFIGURED = "ERR_LOCK_STORE_NOT_CONFIGURED", 500, None
    LOCK_NOT_FOUND = "ERR_LOCK_STORE_NOT_FOUND", 400, None
    LOCK_TRY = "ERR_TRY_LOCK", 500, None
    LOCK_UNLOCK = "ERR_UNLOCK", 500, None

    JOB_NAME = "DAPR_SCHEDULER_JOB_NAME", 400, "DAPR_SCHEDULER_JOB_NAME"
    JOB_NAME_EMPTY = "DAPR_SCHEDULER_JOB_NAME_EMPTY", 400, "DAPR_SCHEDULER_JOB_NAME_EMPTY"
    JOB_SCHEDULE_EMPTY = "DAPR_SCHEDULER_SCHEDULE_EMPTY", 400, "DAPR_SCHEDULER_SCHEDULE_EMPTY"
    JOB_SCHEDULE = "DAPR_SCHEDULER_SCHEDULE_JOB", 500, "DAPR_SCHEDULER_SCHEDULE_JOB"
    JOB_GET = "DAPR_SCHEDULER_GET_JOB", 500, "DAPR_SCHEDULER_GET_JOB"
    JOB_DELETE = "DAPR_SCHEDULER_DELETE_JOB", 500, "DAPR_SCHEDULER_DELETE_JOB"
    JOB_LIST = "DAPR_SCHEDULER_LIST_JOBS", 500, "DAPR_SCHEDULER_LIST_JOBS"

    # Meshwire's own. The event ingress has its own statuses (CloudEvents binding; docs/pubsub.md).
    TOPIC_EMPTY = "ERR_TOPIC_NAME_EMPTY", 404, "DAPR_PUBSUB_TOPIC_NAME_EMPTY"
    TOPIC_INVALID = "ERR_TOPIC_NAME_INVALID", 400, "MESHWIRE_TOPIC_NAME_INVALID"
    EVENT_INVALID = "ERR_EVENT_INVALID", 400, "MESHWIRE_EVENT_INVALID"
    EVENT_FORMAT = "ERR_EVENT_FORMAT_UNSUPPORTED", 415, "MESHWIRE_EVENT_FORMAT_UNSUPPORTED"
    EVENT_TOO_LARGE = "ERR_EVENT_TOO_LARGE", 413, "MESHWIRE_EVENT_TOO_LARGE"
    EVENT_NOT_STORED = "ERR_EVENT_NOT_STORED", 503, "MESHWIRE_EVENT_NOT_STORED"
    STATE_FEATURE = "ERR_STATE_FEATURE_NOT_SUPPORTED", 501, "MESHWIRE_STATE_FEATURE_NOT_SUPPORTED"
    STATE_EXPIRED = "ERR_STATE_POSITION_EXPIRED", 410, "MESHWIRE_STATE_POSITION_EXPIRED"
    STATE_READ = "ERR_STATE_READ", 500, "MESHWIRE_STATE_READ"
    CONFIGURATION_READ_ONLY = "ERR_CONFIGURATION_READ_ONLY", 501, "MESHWIRE_CONFIGURATION_READ_ONLY"
    CONFIGURATION_WRITE = "ERR_CONFIGURATION_WRITE", 500, "MESHWIRE_CONFIGURATION_WRITE"
    EVENT_UNKNOWN = "ERR_EVENT_UNKNOWN", 404, "MESHWIRE_EVENT_UNKNOWN"
    JOURNAL_READ = "ERR_JOURNAL_READ", 503, "MESHWIRE_JOURNAL_READ"
    SUBSCRIPTION_NOT_FOUND = "ERR_SUBSCRIPTION_NOT_FOUND", 404, "MESHWIRE_SUBSCRIPTION_NOT_FOUND"
    SUBSCRIPTION_CONTROL = "ERR_SUBSCRIPTION_CONTROL", 503, "MESHWIRE_SUBSCRIPTION_CONTROL"
    SUBSCRIPTION_PUSHED = "ERR_SUBSCRIPTION_PUSHED", 409, "MESHWIRE_SUBSCRIPTION_PUSHED"
    PULL = "ERR_PULL", 503, "MESHWIRE_PULL"
    PULL_LIMIT = "ERR_PULL_LIMIT", 429, "MESHWIRE_PULL_LIMIT"
    PULL_TOKEN_UNKNOWN = "ERR_PULL_TOKEN_UNKNOWN", 404, "MESHWIRE_PULL_TOKEN_UNKNOWN"
    PULL_TOKEN_FOREIGN = "ERR_PULL_TOKEN_FOREIGN", 409, "MESHWIRE_PULL_TOKEN_FOREIGN"
    PULL_TOKEN_EXPIRED = "ERR_PULL_TOKEN_EXPIRED", 410, "MESHWIRE_PULL_TOKEN_EXPIRED"
    ACTOR_BUSY = "ERR_ACTOR_BUSY", 503, "MESHWIRE_ACTOR_BUSY"
    BINDING_NOT_FOUND = "ERR_BINDING_NOT_FOUND", 404, "MESHWIRE_BINDING_NOT_FOUND"
    BINDING_TRIGGER = "ERR_BINDING_TRIGGER", 503, "MESHWIRE_BINDING_TRIGGER"
    DEAD_LETTERS = "ERR_DEAD_LETTERS", 503, "MESHWIRE_DEAD_LETTERS"
    DEAD_LETTER_NOT_FOUND = "ERR_DEAD_LETTER_NOT_FOUND", 404, "MESHWIRE_DEAD_LETTER_NOT_FOUND"
    REPLAY = "ERR_REPLAY", 503, "MESHWIRE_REPLAY"
    REPLAY_UNSUPPORTED = "ERR_REPLAY_UNSUPPORTED", 501, "MESHWIRE_REPLAY_UNSUPPORTED"
    RUN_NOT_FOUND = "ERR_RUN_NOT_FOUND", 404, "MESHWIRE_RUN_NOT_FOUND"
    RUN_LIMIT = "ERR_RUN_LIMIT", 429, "MESHWIRE_RUN_LIMIT"
    JOB_NOT_FOUND = "ERR_JOB_NOT_FOUND", 404, "MESHWIRE_JOB_NOT_FOUND"
    JOB_RUN = "ERR_JOB_RUN", 503, "MESHWIRE_JOB_RUN"
    DELIVERY_TIME = "ERR_DELIVERY_TIME", 400, "MESHWIRE_DELIVERY_TIME"
    SCHEDULED = "ERR_SCHEDULED", 503, "MESHWIRE_SCHEDULED"
    SCHEDULED_NOT_FOUND = "ERR_SCHEDULED_NOT_FOUND", 404, "MESHWIRE_SCHEDULED_NOT_FOUND"
    METHOD_NOT_ALLOWED = "ERR_METHOD_NOT_ALLOWED", 405, "MESHWIRE_METHOD_NOT_ALLOWED"
    HOST_REFUSED = "ERR_HOST_REFUSED", 403, "MESHWIRE_HOST_REFUSED"
    ORIGIN_REFUSED = "ERR_ORIGIN_REFUSED", 403, "MESHWIRE_ORIGIN_REFUSED"


class MeshError(Exception):
    """Root of every error that Meshwire raises on purpose."""


class ApiError(MeshError):
    """An error on its way to an API client.

    `resource` is the (type, name) that a standardised error names in `ResourceInfo`; `metadata` becomes
    `ErrorInfo.metadata`; `detail` is the kind and the members of one more detail (`BadRequest`, `Help`); `extra` adds
    members to the error object itself.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        resource: tuple[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        status: int | None = None,
        detail: tuple[str, Mapping[str, object]] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.resource = resource
        self.metadata = metadata
        self.status = status or code.status
        self.detail = detail
        self.extra = extra


class InvalidEvent(MeshError):
    """Something claims to be a CloudEvent and is none.

    `attribute` is the attribute (or header, or member) at fault, `rule` the rule that it breaks, `value` the
    offending value, clipped. `unsupported` marks an event format or charset that we do not speak (415).
    """

    def __init__(self, attribute: str | None, rule: str, value: object = None, *, unsupported: bool = False):
        self.attribute = attribute
        self.rule = rule
        self.value = None if value is None else clip(value)
        self.unsupported = unsupported
        shown = "" if value is None else f" (got '{self.value}')"
        super().__init__(f"{attribute}: {rule}{shown}" if attribute else f"{rule}{shown}")


class InvalidBatch(InvalidEvent):
    """One or more members of a batch are invalid; nothing of the batch may be stored.

    `faults` pairs the index of each bad member with its error.
    """

    def __init__(self, faults: list[tuple[int, InvalidEvent]]):
        self.faults = faults
        listed = "; ".join(f"[{index}] {fault}" for index, fault in faults[:3])
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        super().__init__(None, f"{len(faults)} invalid member(s): {listed}{more}")


class ConfigurationError(MeshError):
    """A file, a flag or the environment says something that cannot be obeyed. Ends the start-up."""


class BrokerError(MeshError):
    """The broker refused an operation, and will refuse it again."""


class BrokerUnavailable(BrokerError):
    """No acknowledgement came in time. The operation may or may not have happened; repeating it is safe
    when it carries an id (`Message.dedupe_id`)."""


class MessageTooLarge(BrokerError):
    """Headers and payload together pass the broker's limit; nothing was sent. Sizes in bytes. `setting` is what the
    operator can raise, if there is anything."""

    def __init__(self, size: int, limit: int, setting: str | None = "max_payload on the server") -> None:
        raised = f", or raise {setting}" if setting else ""
        super().__init__(
            f"the message has {size} bytes with its headers, the broker takes at most {limit}; send less{raised}"
        )
        self.size = size
        self.limit = limit


class AppError(MeshError):
    """The app could not be called, or gave no complete answer."""


class AppUnreachable(AppError):
    """No connection to the app could be made, or none was free in time: it has seen nothing of the call."""
