"""What the servers of Kafka offer, found out by asking them.

Only idempotence is tried. The rest follows from the requests that a server knows: no version tells whether offsets are
found by time or a waiting fetch ends early, but every server that knows how to add partitions to a topic does both, and
those that do not (tansu) lack much else (`tests/contract/test_kafka_probe.py`, `test_kafka_lesser_server.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiokafka.errors as errors
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.protocol.transaction import InitProducerIdRequest

from mesh.errors import BrokerError, BrokerUnavailable

if TYPE_CHECKING:
    from brokers.kafka.connection import Connection, Offered

_DELETE_RECORDS, _ADD_PARTITIONS_TO_TXN, _CREATE_PARTITIONS = 21, 24, 37
_NOT_THERE_YET = (errors.CoordinatorLoadInProgressError.errno, errors.GroupCoordinatorNotAvailableError.errno)


async def offered(connection: Connection) -> Offered:
    """Ask the first server that answers. Raises `BrokerUnavailable` when none does, `BrokerError` when signing in is
    refused."""
    from brokers.kafka.connection import Offered

    server = await _dial(connection)
    try:
        answer = await connection.within(server.send(InitProducerIdRequest(None, 2**31 - 1)))
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
            wakes=whole,
        )
    finally:
        server.close()


async def _dial(connection: Connection) -> Any:
    """A bare connection. It tells wrong credentials from a server that is away, which no client of aiokafka does."""
    from brokers.kafka.connection import REQUEST_TIMEOUT

    options = {"security_protocol": "PLAINTEXT", **connection.access.options}
    failure: BrokerError | None = None
    for host, port, _ in collect_hosts(list(connection.access.servers)):
        try:
            return await connection.within(
                create_conn(
                    host,
                    port,
                    client_id=connection.name,
                    request_timeout_ms=int(REQUEST_TIMEOUT * 1000),
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
