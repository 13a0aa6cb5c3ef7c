"""`meshwire doctor`: what is wrong, why, and what to do, from the broker to the app's routes."""

from __future__ import annotations

import argparse
import asyncio
import os

import msgspec

from brokers.nats.embedded import mesh_folder
from mesh.addressing import DEFAULT_NAMESPACE, DEFAULT_PREFIX
from sidecar import registry
from sidecar.cli import FAILED, OK
from sidecar.doctor import examine
from sidecar.findings import Finding, Patient, Status
from sidecar.settings import parse_broker, parse_requests

MARKS = {Status.OK: "✓", Status.FAILED: "✗", Status.SKIPPED: "–"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--app-id", "-a", metavar="ID", help="examine this app only (default: all that run here)")
    parser.add_argument("--mesh", default="default", help="the mesh to examine (default: default)")
    parser.add_argument(
        "--broker", metavar="URL", help="the broker ($MESHWIRE_BROKER, else the embedded one of the mesh)"
    )
    parser.add_argument("--namespace", "-n", help="namespace of the apps (default: $NAMESPACE, else default)")
    parser.add_argument("--output", "-o", choices=("text", "json"), default="text", help="default: text")


def execute(args: argparse.Namespace) -> int:
    """Returns 1 when something is wrong. Raises `ConfigurationError` for an address that is none."""
    folder = mesh_folder(args.mesh)
    broker = parse_broker(args.broker or os.environ.get("MESHWIRE_BROKER") or f"embedded:{folder}", os.environ)
    patient = Patient(
        broker=broker,
        requests=parse_requests(os.environ, broker),
        namespace=args.namespace or os.environ.get("NAMESPACE") or DEFAULT_NAMESPACE,
        prefix=os.environ.get("MESHWIRE_PREFIX") or DEFAULT_PREFIX,
        app_id=args.app_id,
        running=registry.entries(folder),
    )
    findings = asyncio.run(_walk(patient, show=args.output == "text"))
    culprit = next((finding for finding in findings if finding.status is Status.FAILED), None)
    if args.output == "json":
        told = {"healthy": culprit is None, "culprit": culprit and culprit.check, "findings": findings}
        print(msgspec.json.format(msgspec.json.encode(told), indent=2).decode())
    elif culprit is None:
        print("\nNothing is wrong.")
    else:
        print(f"\nThe culprit: {culprit.check}: {culprit.told}\nWhat to do: {culprit.advice}")
    return OK if culprit is None else FAILED


async def _walk(patient: Patient, *, show: bool) -> list[Finding]:
    findings = []
    async for finding in examine(patient):
        findings.append(finding)
        if show:
            advice = f" → {finding.advice}" if finding.advice else ""
            print(f"{MARKS[finding.status]} {finding.check}: {finding.told}{advice}", flush=True)
    return findings
