"""`meshwire publish`: one event through a sidecar that runs."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from urllib.parse import quote, urlencode

import msgspec

from brokers.nats.embedded import mesh_folder
from mesh.errors import ConfigurationError, clip
from sidecar import registry
from sidecar.cli import FAILED, OK, UsageError
from sidecar.cli.api import Address, address_of, call, choose

TIMEOUT = 30.0
"""Seconds that the sidecar may take to have the event stored."""
EVENT = {"id", "source", "specversion", "type", "data"}
"""The members by which a JSON object counts as a whole CloudEvent (Dapr: `dapr publish`)."""


def configure(parser: argparse.ArgumentParser) -> None:
    event = parser.add_argument_group("the event")
    event.add_argument("--topic", "-t", required=True, help="topic to publish to")
    event.add_argument("--pubsub", "-p", default="pubsub", help="pub/sub component (default: pubsub)")
    payload = event.add_mutually_exclusive_group()
    payload.add_argument("--data", "-d", help="the payload: JSON, a whole CloudEvent as JSON, or other text")
    payload.add_argument("--data-file", "-f", metavar="FILE", help="read the payload from FILE; - is stdin")
    event.add_argument("--metadata", "-m", metavar="JSON", help='such as {"ttlInSeconds": 60, "rawPayload": true}')
    through = parser.add_argument_group("the sidecar to go through (default: the only one that runs)")
    which = through.add_mutually_exclusive_group()
    which.add_argument("--publish-app-id", "-i", metavar="APP_ID", help="the sidecar of this app")
    which.add_argument("--dapr-http-port", type=_port, metavar="PORT", help="the one at this port ($DAPR_HTTP_PORT)")
    through.add_argument("--unix-domain-socket", "-u", metavar="DIR", help="folder of the app's sidecar's socket")
    through.add_argument("--mesh", default="default", help="the mesh that it runs in (default: default)")


def execute(args: argparse.Namespace) -> int:
    """Raises `UsageError`, or `MeshError` when there is no sidecar or it gives no answer."""
    payload, query = _payload(args), _query(args.metadata)
    path = f"/v1.0/publish/{quote(args.pubsub, safe='')}/{quote(args.topic, safe='')}{query}"
    answer = call(_address(args), "POST", path, body=payload, headers={"content-type": _type(payload)}, timeout=TIMEOUT)
    if not 200 <= answer.status < 300:
        print(f"meshwire publish: not published: {answer.problem}", file=sys.stderr)
        return FAILED
    print("✅ Event published successfully")
    return OK


def _payload(args: argparse.Namespace) -> bytes:
    if args.data_file is None:
        return os.fsencode(args.data or "")
    if args.data_file == "-":
        return sys.stdin.buffer.read()
    return Path(args.data_file).read_bytes()


def _type(payload: bytes) -> str:
    try:
        parsed = msgspec.json.decode(payload)
    except msgspec.DecodeError:
        pass
    else:
        return (
            "application/cloudevents+json"
            if isinstance(parsed, dict) and parsed.keys() >= EVENT
            else "application/json"
        )
    try:
        payload.decode()
    except UnicodeDecodeError:
        return "application/octet-stream"
    return "text/plain"


def _query(metadata: str | None) -> str:
    if not metadata:
        return ""
    try:
        pairs = msgspec.json.decode(metadata, type=dict[str, str | int | float | bool])
    except msgspec.DecodeError as error:
        raise UsageError(f"--metadata must be a JSON object of plain values: {error}") from None
    named = {
        f"metadata.{key}": str(value).lower() if isinstance(value, bool) else value for key, value in pairs.items()
    }
    return f"?{urlencode(named, quote_via=quote)}" if named else ""


def _address(args: argparse.Namespace) -> Address:
    if args.unix_domain_socket is not None:
        if args.publish_app_id is None:
            raise UsageError("--unix-domain-socket needs --publish-app-id, which is part of the socket's name")
        name = f"dapr-{args.publish_app_id}-http.socket"
        return Address(None, str(Path(args.unix_domain_socket) / name))
    if args.dapr_http_port is not None:
        return Address(args.dapr_http_port)
    if args.publish_app_id is None and (named := os.environ.get("DAPR_HTTP_PORT")):
        try:
            return Address(_port(named))
        except argparse.ArgumentTypeError as error:
            raise ConfigurationError(f"DAPR_HTTP_PORT: {error}") from None
    return address_of(choose(registry.entries(mesh_folder(args.mesh)), args.publish_app_id, args.mesh))


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and 0 < int(text) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError(f"'{clip(text)}' is no port (1 to 65535)")
