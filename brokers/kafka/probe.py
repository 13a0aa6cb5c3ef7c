"""What the servers of Kafka offer, found out by asking them.

Only idempotence is tried. The rest follows from the requests that a server knows: no version tells whether offsets are
found by time, a log ends where it is said to end, or a waiting fetch ends early. But every server that knows how to add
partitions to a topic does all of it, and those that do not (tansu) lack much else
(`tests/contract/test_kafka_probe.py`, `test_kafka_lesser_server.py`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiokafka.errors as errors
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.protocol.transaction import InitProducerIdRequest

from mesh.errors import BrokerError, BrokerUnavailable

_DELETE_RECORDS, _ADD_PARTITIONS_TO_TXN, _CREATE_PARTITIONS = 21, 24, 37
_NOT_THERE_YET = (errors.CoordinatorLoadInProgressError.errno, errors.GroupCoordinatorNotAvailableError.errno)


@dataclass(frozen=True, kw_only=True, slots=True)
class Offered:
    """What the servers can do beyond the protocol's core."""

    idempotence: bool
    transactions: bool
    offsets_by_time: bool
    delete_records: bool
    ends: bool
    """The end of a log that is told is behind its last record. Where it is not, it may be behind an earlier one."""
    wakes: bool
    """A fetch that waits ends with the first record. Where it does not, the wait is what a record takes."""


Within = Callable[[Awaitable[Any]], Awaitable[Any]]
"""Awaits, but not for ever, and raises our own errors for those of Kafka."""


async def offered(
    servers: Sequence[str], options: Mapping[str, Any], within: Within, *, name: str, timeout: float
) -> Offered:
    """Ask the first of `servers` that answers, as the client `name`, with what aiokafka is told in `options`. Each
    request may take `timeout` seconds.

    Raises `BrokerUnavailable` when none answers, `BrokerError` when signing in is refused.
    """
    server = await _dial(servers, options, within, name, timeout)
    try:
        answer = await within(server.send(InitProducerIdRequest(None, 2**31 - 1)))
        if answer.error_code in _NOT_THERE_YET:
            raise BrokerUnavailable("Kafka is still starting")
        if answer.error_code == errors.IllegalSaslStateError.errno:  # all that a server says of a token
            raise BrokerError("Kafka refused: the token is not valid")
        versions = server._versions
        whole = _CREATE_PARTITIONS in versions
        idempotence = answer.error_code == 0
        return Offered(
            idempotence=idempotence,
            transactions=idempotence and whole and _ADD_PARTITIONS_TO_TXN in versions,
            offsets_by_time=whole,
            delete_records=whole and _DELETE_RECORDS in versions,
            ends=whole,
            wakes=whole,
        )
    finally:
        server.close()


async def reach(
    servers: Sequence[str], options: Mapping[str, Any], within: Within, *, name: str, timeout: float
) -> None:
    """Returns when one of `servers` has let us in. Raises as `offered`, with the reason why none does."""
    server = await _dial(servers, options, within, name, timeout)
    server.close()


def addresses(client: AIOKafkaClient) -> str:
    """Where the servers say that they are, in words: perhaps nowhere near where they were found. Empty when unknown."""
    named = ", ".join(f"{server.host}:{server.port}" for server in client.cluster.brokers())
    return named and f"the addresses that it names (advertised.listeners): {named}"


async def _dial(servers: Sequence[str], options: Mapping[str, Any], within: Within, name: str, timeout: float) -> Any:
    """A bare connection. It tells wrong credentials from a server that is away, which no client of aiokafka does."""
    options = {"security_protocol": "PLAINTEXT", **options}
    failure: BrokerError | None = None
    for host, port, _ in collect_hosts(list(servers)):
        try:
            return await within(
                create_conn(
                    host,
                    port,
                    client_id=name,
                    request_timeout_ms=int(timeout * 1000),
                    **options,
                )
            )
        except BrokerError as error:
            failure = type(error)(f"{host}:{port}: {error}")
        except Exception as error:  # what listens there need not be Kafka, and aiokafka trusts what it reads
            failure = BrokerUnavailable(f"{host}:{port} does not speak as Kafka does ({type(error).__name__})")
        if not isinstance(failure, BrokerUnavailable):
            break
    raise failure or BrokerUnavailable("no server of Kafka is named")
