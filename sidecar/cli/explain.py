"""`meshwire explain`: the delivery plan of each subscription, before anything runs or of a running sidecar."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import msgspec

from brokers.nats.embedded import mesh_folder
from mesh.delivery.explanation import PlanExplained
from mesh.errors import MeshError, clip
from sidecar import registry
from sidecar.cli import FAILED, OK, UsageError
from sidecar.cli.api import address_of, call, choose

TIMEOUT = 10.0
"""Seconds for the sidecar's answer."""


class _Plans(msgspec.Struct):
    plans: list[PlanExplained]
    problems: list[str] = []
    """Subscriptions without a plan, and why."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--app-id", "-a", metavar="ID", help="the app (default: the only one that runs)")
    parser.add_argument(
        "--resources-path",
        "-d",
        metavar="FOLDER",
        action="append",
        type=Path,
        help="explain the subscriptions of these files, instead of those of a running sidecar; may be repeated",
    )
    parser.add_argument("--config", "-c", metavar="FILE", action="append", type=Path, help="configuration file")
    parser.add_argument("--topic", "-t", help="this topic only")
    parser.add_argument("--pubsub", "-p", metavar="NAME", help="this pub/sub component only")
    parser.add_argument("--mesh", default="default", help="the mesh of the running sidecar (default: default)")
    parser.add_argument("--output", "-o", choices=("text", "json"), default="text", help="default: text")


def execute(args: argparse.Namespace) -> int:
    """Returns 1 when a subscription cannot have a plan. Raises `UsageError`, or `MeshError` when the files say what is
    impossible, or no sidecar answers."""
    found = _running(args) if args.resources_path is None else asyncio.run(_declared(args))
    plans = [
        plan for plan in found.plans if args.topic in (None, plan.topic) and args.pubsub in (None, plan.pubsubname)
    ]
    if args.output == "json":
        print(msgspec.json.format(msgspec.json.encode(_Plans(plans, found.problems)), indent=2).decode())
    else:
        print("\n\n".join([*map(_text, plans), *(f"✗ {problem}" for problem in found.problems)]) or "No subscriptions.")
    return FAILED if found.problems else OK


def _running(args: argparse.Namespace) -> _Plans:
    if args.config:
        raise UsageError("--config belongs to --resources-path; a running sidecar has read its files already")
    entry = choose(registry.entries(mesh_folder(args.mesh)), args.app_id, args.mesh, "--app-id")
    answer = call(address_of(entry), "GET", quote("/mesh/v1/plans"), timeout=TIMEOUT)
    if answer.status != 200:
        raise MeshError(f"the sidecar of {clip(entry.app_id)} does not tell its plans: {answer.problem}")
    return msgspec.json.decode(answer.body, type=_Plans)


async def _declared(args: argparse.Namespace) -> _Plans:
    """The subscriptions that files declare; what the app asks for in code, nobody knows before it runs. The broker of
    the mesh is not asked: it is taken to offer what all of its kind do."""
    from brokers.kafka.security import Security
    from mesh import resources, subscriptions
    from mesh.configuration import load_configuration
    from mesh.delivery.compile import check_plan, plan_of
    from mesh.delivery.explanation import explain
    from mesh.resiliency.targets import Resiliency
    from sidecar.assembly import pubsubs_of
    from sidecar.backbone import open_event_log
    from sidecar.settings import parse_broker

    if args.app_id is None:
        raise UsageError("--resources-path needs --app-id: scopes and templates depend on it")
    environ, app_id = os.environ, args.app_id
    configuration = load_configuration(args.config or (), environ)
    namespace = environ.get("NAMESPACE", "")
    manifests = resources.load(
        args.resources_path,
        app_id=app_id,
        namespace=namespace,
        environ=environ,
        denied=configuration.components_deny,
    )
    broker = parse_broker(environ.get("MESHWIRE_BROKER") or f"embedded:{mesh_folder(args.mesh)}", environ)
    log = open_event_log(dataclasses.replace(broker, security=Security()), name=app_id, namespace=namespace, prefix="")
    components, clock = pubsubs_of(manifests.components, app_id, namespace, configuration.components_deny, log)
    resiliency = Resiliency(manifests.resiliency, clock=clock)
    for one in components.values():
        check_plan(one, resiliency)
    parsed = subscriptions.from_manifests(manifests.subscriptions)
    found = _Plans([], [*parsed.refused])
    for spec in subscriptions.merge([], parsed.specs):
        component = components.get(spec.pubsub)
        where = f"{spec.origin}: topic '{clip(spec.topic)}' of '{clip(spec.pubsub)}'"
        if component is None:
            found.problems.append(f"{where}: there is no such pub/sub component")
            continue
        try:
            policies = resiliency.inbound(component.name, "pubsub")
            plan, origins = plan_of(spec, component, policies, app_id, component.log.features)
        except MeshError as error:
            found.problems.append(f"{where}: {error}")
        else:
            found.plans.append(explain(spec.pubsub, spec.topic, spec.origin, plan, origins))
    return found


def _text(plan: PlanExplained) -> str:
    lines = [f"{plan.pubsubname}/{plan.topic}  ({plan.origin})"]
    lines += _columns([(f"  {value.name}", value.value, value.origin) for value in plan.plan])
    lines += ["  attempts, in seconds after the first, if the app answers at once:"]
    for one in plan.attempts:
        when = f"{one.earliest:g}" if one.earliest == one.latest else f"{one.earliest:g} to {one.latest:g}"
        lines.append(f"    {one.attempt:>3}  {when}")
    if plan.then:
        lines.append(f"    {plan.then}")
    return "\n".join([*lines, f"  {plan.end}"])


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
