"""`meshwire acl`: what the broker has to be told, so that each app can act in its own name only."""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path

import msgspec

from mesh import needs
from mesh.errors import BrokerUnavailable
from mesh.ports import Peer
from sidecar.cli import OK, UsageError
from sidecar.settings import parse_broker

TIMEOUT = 60.0
"""Seconds for making all streams."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("broker", choices=("kafka", "nats"), help="what to write for")
    parser.add_argument("file", type=Path, help="who publishes, subscribes to and calls what (docs/security.md)")
    parser.add_argument(
        "--output",
        "-o",
        choices=("text", "json"),
        default="text",
        help="text: commands for kafka-acls.sh, or a file for nats-server to include (default)",
    )
    parser.add_argument(
        "--servers", default="localhost:9092", help="Kafka: host:port in the commands (default: localhost:9092)"
    )
    parser.add_argument(
        "--prepare",
        action="store_true",
        help="NATS: make the streams instead, as the user of $MESHWIRE_BROKER, who may do so",
    )
    parser.add_argument(
        "--replicas", type=int, choices=range(1, 6), default=1, help="NATS: copies of the streams (default: 1)"
    )


def execute(args: argparse.Namespace) -> int:
    """Raises `ConfigurationError` for a file that says nothing sensible, `MeshError` when the broker refuses."""
    found = needs.load(args.file)
    if args.prepare:
        if args.broker != "nats":
            raise UsageError("--prepare is for NATS: on Kafka sidecars make their topics")
        asyncio.run(_prepare(found, args.replicas))
        print("✅ The streams are there")
    elif args.broker == "kafka":
        from brokers.kafka.rights import commands, rights

        granted = rights(found)
        print(_json(granted) if args.output == "json" else "\n".join(commands(granted, args.servers)))
    else:
        from brokers.nats.rights import configuration, users

        allowed = users(found)
        print(_json(allowed) if args.output == "json" else "\n".join(configuration(allowed)))
    return OK


def _json(found: object) -> str:
    return msgspec.json.format(msgspec.json.encode(found), indent=2).decode()


async def _prepare(found: needs.Needs, replicas: int) -> None:
    from brokers.nats.rights import prepare
    from sidecar.backbone import open_backbone

    broker = parse_broker(os.environ.get("MESHWIRE_BROKER", ""), os.environ)
    if broker.kind != "nats":
        raise UsageError("--prepare needs MESHWIRE_BROKER=nats://…, with a user who may make streams")
    backbone = open_backbone(broker, Peer(found.namespace, "acl"), prefix=found.prefix, replicas=replicas)
    try:
        async with asyncio.timeout(TIMEOUT):
            await backbone.start()
            await prepare(found, backbone.tables)
    except TimeoutError:
        raise BrokerUnavailable(
            f"the streams are not there after {TIMEOUT:g} s: {backbone.problem or 'busy'}"
        ) from None
    finally:
        await backbone.close()
