"""`meshwire invoke`: one call of an app's method, through a sidecar that runs."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from urllib.parse import quote

import msgspec

from brokers.nats.embedded import mesh_folder
from mesh.errors import MeshError, clip
from sidecar import registry
from sidecar.cli import FAILED, OK, UsageError
from sidecar.cli.api import Address, address_of, call

TIMEOUT = 60.0
"""Seconds for the whole call."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--app-id", "-a", required=True, metavar="ID", help="app to call; anywhere in the mesh")
    parser.add_argument("--method", "-m", required=True, help="path of the method; may have a query")
    parser.add_argument("--verb", "-v", default="POST", help="HTTP verb (default: POST)")
    payload = parser.add_mutually_exclusive_group()
    payload.add_argument("--data", "-d", help="body of the request")
    payload.add_argument("--data-file", "-f", metavar="FILE", help="read the body from FILE; - is stdin")
    parser.add_argument("--unix-domain-socket", "-u", metavar="DIR", help="folder of the app's sidecar's socket")
    parser.add_argument("--mesh", default="default", help="the mesh whose sidecars to go through (default: default)")


def execute(args: argparse.Namespace) -> int:
    """Writes the body of the answer to stdout as it came; a status of 200 to 399 is a success (Dapr).

    Raises `UsageError`, or `MeshError` when there is no sidecar or it gives no answer.
    """
    verb = args.verb.upper()
    if not re.fullmatch(r"[A-Z]{1,20}", verb):
        raise UsageError(f"--verb '{clip(args.verb)}' is no HTTP verb")
    body = _body(args)
    answer = call(_address(args), verb, _path(args), body=body, headers=_headers(body), timeout=TIMEOUT)
    if 200 <= answer.status < 400:
        sys.stdout.buffer.write(answer.body)
        if answer.body and not answer.body.endswith(b"\n") and sys.stdout.isatty():
            sys.stdout.buffer.write(b"\n")
        sys.stdout.buffer.flush()
        print(f"✅  App invoked successfully ({answer.status})", file=sys.stderr)
        return OK
    print(f"meshwire invoke: {clip(args.app_id)}: {answer.problem}", file=sys.stderr)
    return FAILED


def _path(args: argparse.Namespace) -> str:
    """What a path may hold stays as it is, `%` included; the rest is encoded."""
    method = quote(args.method.lstrip("/"), safe="/?:@!$&'()*+,;=~%-._")
    return f"/v1.0/invoke/{quote(args.app_id, safe='')}/method/{method}"


def _body(args: argparse.Namespace) -> bytes | None:
    if args.data_file == "-":
        return sys.stdin.buffer.read()
    if args.data_file is not None:
        return Path(args.data_file).read_bytes()
    return None if args.data is None else os.fsencode(args.data)


def _headers(body: bytes | None) -> dict[str, str]:
    if not body:
        return {}
    try:
        msgspec.json.decode(body)
    except msgspec.DecodeError:
        return {"content-type": "text/plain" if _is_text(body) else "application/octet-stream"}
    return {"content-type": "application/json"}


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _address(args: argparse.Namespace) -> Address:
    """The sidecar of the app itself, as `dapr invoke` goes; else the newest one, since each can reach every app."""
    if args.unix_domain_socket is not None:
        return Address(None, str(Path(args.unix_domain_socket) / f"dapr-{args.app_id}-http.socket"))
    running = registry.entries(mesh_folder(args.mesh))
    if not running:
        raise MeshError(
            f"no sidecar runs in mesh '{clip(args.mesh)}' to call through; start one with: meshwire run --app-id shell"
        )
    return address_of(next((entry for entry in reversed(running) if entry.app_id == args.app_id), running[-1]))
