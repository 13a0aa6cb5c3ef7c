"""`meshwire unsubscribe`: forget a durable subscription at the broker."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os

from brokers.nats.embedded import ensure_keeper, hold, mesh_folder
from mesh.addressing import DEFAULT_NAMESPACE, DEFAULT_PREFIX, binding_topic
from mesh.errors import BrokerUnavailable, MeshError, clip
from mesh.ports import Group, Topic
from sidecar.cli import OK
from sidecar.settings import BrokerAddress, parse_broker

TIMEOUT = 30.0
"""Seconds for all of it; an embedded broker may have to be started."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--app-id", "-a", required=True, help="the app that subscribed")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--topic", "-t", help="the topic that it subscribed to")
    what.add_argument("--binding", "-b", metavar="NAME", help="the input binding that it had")
    parser.add_argument("--pubsub", "-p", default="pubsub", help="pub/sub component (default: pubsub)")
    parser.add_argument("--group", "-g", default="", help="the group, of a subscription that is pulled from")
    parser.add_argument("--namespace", "-n", help="namespace of the app (default: $NAMESPACE, else default)")
    parser.add_argument(
        "--mesh", default="default", help="the mesh whose embedded broker it is, unless MESHWIRE_BROKER names another"
    )


def execute(args: argparse.Namespace) -> int:
    """Raises `MeshError` when there is no such subscription, or when the broker refuses or does not answer."""
    namespace = args.namespace or os.environ.get("NAMESPACE") or DEFAULT_NAMESPACE
    broker = parse_broker(os.environ.get("MESHWIRE_BROKER") or f"embedded:{mesh_folder(args.mesh)}", os.environ)
    topic = binding_topic(args.app_id, args.binding) if args.binding else Topic(args.pubsub, args.topic)
    group = Group(args.app_id, topic, args.group)
    with contextlib.ExitStack() as held:
        if broker.folder is not None:
            held.callback(hold(broker.folder).close)
            ensure_keeper(broker.folder)
        forgotten = asyncio.run(_forget(group, broker, namespace))
    shown = f"{clip(args.app_id)} {{}} to {clip(topic.name)} of {clip(topic.pubsub)}"
    if not forgotten:
        where = f"namespace '{clip(namespace)}'"
        raise MeshError(f"{shown.format('does not subscribe')} in {where}; nothing was forgotten")
    print(f"✅ {shown.format('no longer subscribes')}")
    return OK


async def _forget(group: Group, broker: BrokerAddress, namespace: str) -> bool:
    from sidecar.backbone import open_event_log

    prefix = os.environ.get("MESHWIRE_PREFIX") or DEFAULT_PREFIX
    log = open_event_log(broker, name="unsubscribe", namespace=namespace, prefix=prefix)
    try:
        async with asyncio.timeout(TIMEOUT):
            await log.start()
            return await log.unsubscribe(group)
    except TimeoutError:
        raise BrokerUnavailable(f"the broker did not answer within {TIMEOUT:g} s: {log.problem or 'busy'}") from None
    finally:
        await log.close()
