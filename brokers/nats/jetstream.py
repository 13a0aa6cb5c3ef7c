"""The JetStream API calls that Meshwire needs, with errors told apart."""

from __future__ import annotations

from typing import Any

import msgspec

from brokers.nats.connection import Connection
from mesh.errors import BrokerError, BrokerUnavailable, ConfigurationError

API_TIMEOUT = 5.0
"""Seconds for one call."""

STREAM_NOT_FOUND = 10059
CONSUMER_NOT_FOUND = 10014

PULL_EXPIRES = 30
"""Seconds after which the server ends a pull that did not get all it asked for."""

TRANSIENT_ERRORS = frozenset({10005, 10008, 10009, 10023, 10077, 10158, 10167})
"""`err_code`s that may be gone a moment later: no peers yet, no leader, short of resources, the store failed, the
same message id still under way, too many requests."""
OUT_OF_RESOURCES = 10023

_NANOSECONDS = 1_000_000_000

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Refused(BrokerError):
    """The server answered with an error; `code` is its `err_code`."""

    def __init__(self, code: int, description: str) -> None:
        advice = "; make room on its disk, or raise its max_file_store" if code == OUT_OF_RESOURCES else ""
        super().__init__(f"NATS refused: {description} (error {code}){advice}")
        self.code = code


class RefusedForNow(BrokerUnavailable):
    """The server answered with an error that may be gone a moment later."""


class NobodyAnswers(BrokerUnavailable):
    """No server takes calls to JetStream."""


def decode_answer(payload: bytes) -> dict[str, Any]:
    """Raises `Refused` when the answer is an error, `RefusedForNow` when it is one that may pass."""
    try:
        answer = _decode(payload)
    except msgspec.DecodeError:
        raise BrokerError("NATS answered something that is not JSON; is another program on its API subjects?") from None
    error = answer.get("error")
    if error:
        refusal = Refused(int(error.get("err_code", 0)), str(error.get("description", "no description")))
        if refusal.code in TRANSIENT_ERRORS:
            raise RefusedForNow(str(refusal))
        raise refusal
    return answer


async def call(
    connection: Connection, subject: str, request: object = None, timeout: float = API_TIMEOUT
) -> dict[str, Any]:
    """Raises `Refused`, `BrokerUnavailable`, and `BrokerError` when permissions forbid the call."""
    body = b"" if request is None else msgspec.json.encode(request)
    reply = await connection.call(f"$JS.API.{subject}", b"", body, timeout)
    if reply.no_responders:
        raise NobodyAnswers(
            "JetStream does not answer: it is switched off on this server, or has no leader right now; "
            "start nats-server with -js"
        )
    return decode_answer(reply.payload)


async def ensure_stream(connection: Connection, config: dict[str, Any]) -> str:
    """Make the stream unless it exists. Settings that its operator chose (limits, replicas) are left alone.

    Returns when it was made: a stream of another time is another stream, which counts its messages from 1 again.

    Raises `ConfigurationError` when a stream of that name cannot serve us.
    """
    name = config["name"]
    try:
        info = await call(connection, f"STREAM.INFO.{name}")
    except Refused as refusal:
        if refusal.code != STREAM_NOT_FOUND:
            raise
        try:
            info = await call(connection, f"STREAM.CREATE.{name}", config)
        except Refused as creation:
            raise ConfigurationError(f"cannot make the stream {name}: {creation}") from creation
    found = info["config"]
    if not set(config["subjects"]) <= set(found["subjects"]):
        raise ConfigurationError(
            f"the stream {name} exists and does not take the subjects {', '.join(config['subjects'])}; "
            "remove it, or choose another MESHWIRE_PREFIX or NAMESPACE"
        )
    for flag, harm in (
        ("allow_msg_schedules", "one message could erase every other"),  # before rollup, which it brings with it
        ("allow_rollup_hdrs", "one message could erase every other"),
    ):
        if found.get(flag) and not config.get(flag):
            raise ConfigurationError(f"the stream {name} has {flag} switched on, with which {harm}; switch it off")
    if config.get("allow_msg_ttl") and not found.get("allow_msg_ttl"):
        raise ConfigurationError(f"the stream {name} has allow_msg_ttl switched off; switch it on")
    return str(info["created"])


async def find_consumer(connection: Connection, stream: str, name: str) -> dict[str, Any] | None:
    """The info of a consumer; `None` when there is none."""
    try:
        return await call(connection, f"CONSUMER.INFO.{stream}.{name}")
    except Refused as refusal:
        if refusal.code in (CONSUMER_NOT_FOUND, STREAM_NOT_FOUND):
            return None
        raise


async def ensure_consumer(connection: Connection, stream: str, config: dict[str, Any]) -> dict[str, Any]:
    """Make the durable consumer unless it exists; bring an older one's settings up to date. Returns its info."""
    info = await update_consumer(connection, stream, config)
    if info is None:
        # Two members may come here at once: the same request twice is no error.
        return await _create_consumer(connection, stream, config["durable_name"], config, "")
    return info


async def update_consumer(connection: Connection, stream: str, config: dict[str, Any]) -> dict[str, Any] | None:
    """Bring the settings of the durable consumer up to date. Returns its info, or `None` when there is none."""
    name = config["durable_name"]
    info = await find_consumer(connection, stream, name)
    if info is None:
        return None
    start = {"deliver_policy", "opt_start_seq", "opt_start_time"}
    found = info["config"]
    wanted = found | {key: value for key, value in config.items() if key not in start}
    wanted["metadata"] = found.get("metadata", {}) | config["metadata"]  # the server adds some of its own
    if wanted != found:
        return await _create_consumer(connection, stream, name, wanted, "update")
    return info


async def _create_consumer(
    connection: Connection, stream: str, name: str, config: dict[str, Any], action: str
) -> dict[str, Any]:
    request = {"stream_name": stream, "config": config, "action": action}
    return await call(connection, f"CONSUMER.CREATE.{stream}.{name}", request)


async def delete_consumer(connection: Connection, stream: str, name: str) -> bool:
    """False when there is none."""
    try:
        await call(connection, f"CONSUMER.DELETE.{stream}.{name}")
    except Refused as refusal:
        if refusal.code in (CONSUMER_NOT_FOUND, STREAM_NOT_FOUND):
            return False
        raise
    return True


def pull_request(connection: Connection, batch: int, max_bytes: int, heartbeat: float) -> bytes:
    """What asks a consumer for `batch` messages of `max_bytes` together, or for a single larger one. While they are not
    there the server says every `heartbeat` seconds that it has not forgotten (NATS ADR-13)."""
    return b'{"batch":%d,"max_bytes":%d,"expires":%d,"idle_heartbeat":%d}' % (
        batch,
        max(max_bytes, 2 * connection.max_payload),
        PULL_EXPIRES * _NANOSECONDS,
        heartbeat * _NANOSECONDS,
    )
