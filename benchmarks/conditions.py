"""What a run of the benchmarks was asked for, and where it takes place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from benchmarks.processes import Kind, NatsServer, meshwire
from mesh import addressing
from mesh.ports import Topic
from mesh.pubsub import DEFAULT_COMPONENT


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`seconds` is the length of one run of a rate, `slice` that of one way's turn where latencies of several ways
    are compared, `events` their number where it is fixed, `streamed` the bytes of a long body."""

    runs: int = 5
    seconds: float = 3.0
    slice: float = 10.0
    events: int = 20_000
    streamed: int = 1 << 30
    rate: float = 1000.0
    """Events per second where latency is measured."""
    peer: Kind | None = None


class Place(msgspec.Struct, frozen=True):
    """A server, the sidecars to be measured with it, and a folder for logs and data."""

    folder: Path
    server: NatsServer
    kinds: list[Kind]


LOG_TAIL = 1500
"""Characters of each log that are shown when something could not be measured."""

STREAM = addressing.event_stream(addressing.DEFAULT_PREFIX, addressing.DEFAULT_NAMESPACE)


def subject(topic: str) -> str:
    """Where Meshwire stores the events of `topic` that have no key."""
    root = addressing.topic_root(
        addressing.DEFAULT_PREFIX, addressing.DEFAULT_NAMESPACE, Topic(DEFAULT_COMPONENT, topic)
    )
    return root + addressing.UNKEYED


@contextmanager
def place(options: Options) -> Iterator[Place]:
    """A fresh server, for the `with` block. A `RuntimeError` from within gets the ends of all logs as notes."""
    with TemporaryDirectory(prefix="meshwire-bench-") as name, NatsServer(Path(name) / "nats") as server:
        kinds = [meshwire(server.url)]
        if options.peer is not None:
            kinds.append(options.peer)
        try:
            yield Place(Path(name), server, kinds)
        except RuntimeError as error:
            for log in sorted(Path(name).glob("*.log")):
                error.add_note(f"{log.name} ends with:\n{log.read_text(errors='replace')[-LOG_TAIL:]}")
            raise
