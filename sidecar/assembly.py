"""The composition root: the only place where adapters are constructed and joined to the core."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, NamedTuple

from starlette.types import ASGIApp

from mesh import __version__, resources, subscriptions
from mesh.access import AccessPolicy
from mesh.clock import SystemClock
from mesh.configuration import load_configuration
from mesh.errors import ConfigurationError
from mesh.invocation import Callee, Caller
from mesh.invocation.callee import Permits
from mesh.ports import Clock, EventLog, Peer, Requests
from mesh.pubsub import DEFAULT_COMPONENT, Component, PubSub
from mesh.resiliency.targets import INITIALIZATION_RETRIES, Resiliency
from mesh.scopes import TopicScopes
from mesh.telemetry import Meter
from mesh.telemetry_settings import with_environment
from sidecar.api import invoke
from sidecar.api.events import EventsApi
from sidecar.api.invoke import InvokeApi
from sidecar.api.operations import HealthApi, MetadataApi, ShutdownApi
from sidecar.api.publish import PublishApi
from sidecar.app_health import AppHealth
from sidecar.channel import OutsideWorld, open_app_channel
from sidecar.flags import SidecarFlags
from sidecar.health import Health
from sidecar.http.api_log import ApiLog
from sidecar.http.guard import Guard
from sidecar.http.protocol import Limits
from sidecar.http.responses import CatchErrors
from sidecar.http.routing import Router
from sidecar.http.server import HttpServer, socket_path
from sidecar.metadata import describe
from sidecar.runtime import App, Runtime
from sidecar.settings import CALLERS_VERIFIED, BrokerAddress, Settings
from sidecar.telemetry import Observers

if TYPE_CHECKING:
    from brokers.nats.connection import Connection

logger = logging.getLogger("meshwire.runtime")

COMPONENT_TYPES = ("pubsub.meshwire", "pubsub.in-memory")
HEADER_SLACK = 4096
"""Bytes of header beyond `--read-buffer-size` that are still taken, as Dapr's server does."""
PUBSUB_METADATA = ("publishingScopes", "subscriptionScopes", "allowedTopics", "protectedTopics")
"""What every pub/sub component understands."""


class Backbone(NamedTuple):
    """The broker of the mesh, not started. The requests share the connection of the log: close them first."""

    log: EventLog
    requests: Requests


def open_backbone(broker: BrokerAddress, me: Peer, *, prefix: str, replicas: int = 1) -> Backbone:
    if broker.kind == "memory":
        from brokers.memory import MemoryEventLog
        from brokers.memory_requests import MemoryExchange, MemoryRequests

        return Backbone(MemoryEventLog(), MemoryRequests(MemoryExchange(), me))
    from brokers.nats.event_log import NatsEventLog
    from brokers.nats.requests import NatsRequests

    connection = nats_connection(broker, me.app_id)
    return Backbone(
        NatsEventLog(connection, namespace=me.namespace, prefix=prefix, replicas=replicas),
        NatsRequests(connection, me, prefix=prefix),
    )


def open_event_log(broker: BrokerAddress, *, name: str, namespace: str, prefix: str) -> EventLog:
    """The event log of the backbone alone, not started. `name` is what the broker shows for this client."""
    if broker.kind == "memory":
        from brokers.memory import MemoryEventLog

        return MemoryEventLog()
    from brokers.nats.event_log import NatsEventLog

    return NatsEventLog(nats_connection(broker, name), namespace=namespace, prefix=prefix)


def nats_connection(broker: BrokerAddress, name: str) -> Connection:
    from brokers.nats.connection import Connection, Lookup, Servers

    if broker.folder is None:
        servers = Servers(broker.servers)
        lookup = Lookup(lambda: servers)
    else:
        from brokers.nats import embedded

        folder = broker.folder

        def find() -> Servers | None:
            endpoint = embedded.endpoint(folder)
            return None if endpoint is None else Servers([endpoint.url], endpoint.token)

        lookup = Lookup(find, lambda: embedded.failure(folder))
    return Connection(lookup, name=name)


def assemble(settings: Settings, extended: MutableMapping[str, str], exit_now: Callable[[], None]) -> Runtime:
    """A sidecar, not started. Raises `ConfigurationError`. To be called inside the event loop.

    `extended` is the part of the metadata that clients write. `exit_now` ends the process on the spot.
    """
    flags = settings.flags
    clock = SystemClock()
    configuration = load_configuration(flags.config, settings.environ)
    manifests = resources.load(
        flags.resources_path,
        app_id=flags.app_id,
        namespace=settings.environ.get("NAMESPACE", ""),
        environ=settings.environ,
        denied=configuration.components_deny,
    )
    tracing = with_environment(configuration.tracing, settings.environ)
    observers = Observers(flags, tracing, configuration.metrics, settings.namespace)
    me = Peer(settings.namespace, flags.app_id)
    backbone = open_backbone(settings.broker, me, prefix=settings.prefix, replicas=settings.replicas)
    logs = [backbone.log]
    components = _pubsub_components(
        manifests.components, backbone.log, logs, settings.namespace, observers.telemetry.meter
    )
    declared = subscriptions.from_manifests(manifests.subscriptions)
    health = Health(lambda: next((log.problem for log in logs if log.problem), None))
    warnings = [*settings.warnings, *configuration.warnings, *manifests.warnings, *declared.warnings]
    for warning in warnings:
        logger.warning("%s", warning)
    for refusal in declared.refused:
        logger.error("%s", refusal)

    app = _app(settings, clock)
    resiliency = Resiliency(manifests.resiliency, clock=clock)
    for warning in resiliency.warnings:
        logger.warning("%s", warning)
    callee = Callee(
        me,
        None if app is None else app.channel,
        is_healthy=lambda: app is not None and app.health.healthy,
        permits=_permits(configuration.access, settings.callers_verified),
        telemetry=observers.telemetry,
    )
    outside = OutsideWorld(manifests.http_endpoints)
    caller = Caller(
        me,
        backbone.requests,
        callee,
        clock,
        external=outside,
        resiliency=resiliency,
        telemetry=observers.telemetry,
    )
    invoke_api = InvokeApi(caller, flags.max_body_size or 0)

    # The API describes the runtime and can stop it, and the runtime serves the API: the one knot to tie here.
    runtime: Runtime
    serves_invoke = configuration.serves(invoke.GROUP, invoke.TEMPLATE)
    router = Router(invoke_api if serves_invoke else None, permits=configuration.serves)
    body_limit = flags.max_body_size or 0
    pubsub = PubSub(flags.app_id, components.values(), clock, telemetry=observers.telemetry)
    health_api = HealthApi(flags.app_id, health)
    metadata_api = MetadataApi(
        lambda: describe(flags, manifests, components, runtime.subscriptions), __version__, extended
    )
    for block in (
        PublishApi(pubsub, body_limit),
        EventsApi(pubsub, body_limit),
        health_api,
        metadata_api,
        ShutdownApi(lambda: runtime.stop(), exit_now),
    ):
        block.add_to(router)
    guarded = Guard(
        observers.within(router),
        token=settings.api_token,
        allowed_origins=flags.allowed_origins,
        allowed_hosts=settings.allowed_hosts,
    )
    api = observers.around(CatchErrors(guarded))
    api_logging = configuration.api_logging
    if api_logging.enabled if flags.enable_api_logging is None else flags.enable_api_logging:
        api = ApiLog(api, omit_health_checks=api_logging.omit_health_checks)
    public = Router()
    health_api.add_to(public)
    metadata_api.add_to(public)
    runtime = Runtime(
        app_id=flags.app_id,
        logs=logs,
        requests=backbone.requests,
        outside=outside,
        callee=callee,
        init_retries=resiliency.built_in(INITIALIZATION_RETRIES),
        components=components,
        declared=declared.specs,
        health=health,
        servers=_servers(flags, api, CatchErrors(public)),
        observers=observers,
        app=app,
        clock=clock,
        grace=flags.graceful_shutdown,
        block_shutdown=flags.block_shutdown,
    )
    return runtime


def _app(settings: Settings, clock: Clock) -> App | None:
    """The app beside this sidecar, if there is one."""
    flags = settings.flags
    if flags.app_port is None:
        return None
    channel = open_app_channel(
        flags.app_protocol,
        flags.app_channel_address,
        flags.app_port,
        token=settings.app_token,
        max_concurrency=flags.app_max_concurrency,
    )
    health = AppHealth(
        channel,
        clock,
        enabled=flags.enable_app_health_check,
        path=flags.app_health_check_path,
        interval=flags.app_health_probe_interval,
        timeout=flags.app_health_probe_timeout,
        threshold=flags.app_health_threshold,
    )
    return App(
        channel=channel,
        port=flags.app_port,
        health=health,
        ask_config="config" not in flags.disable_init_endpoints,
        ask_subscriptions="subscribe" not in flags.disable_init_endpoints,
    )


def _servers(flags: SidecarFlags, api: ASGIApp, public: ASGIApp) -> list[HttpServer]:
    """The listeners: of the API, and of its public part where a port is given for it."""
    limits = Limits(head=flags.read_buffer_size + HEADER_SLACK)
    socket = flags.unix_domain_socket
    servers = [
        HttpServer(
            api,
            addresses=flags.listen_addresses,
            port=flags.http_port,
            unix_socket=None if socket is None else socket_path(socket, flags.app_id),
            limits=limits,
        )
    ]
    if flags.public_port is not None:
        servers.append(
            HttpServer(
                public,
                addresses=(flags.public_listen_address,),
                port=flags.public_port,
                flag="--dapr-public-port",
                limits=limits,
            )
        )
    return servers


def _permits(policy: AccessPolicy | None, verified: bool) -> Permits:
    if policy is None:
        return lambda _caller, _path, _verb: None
    if policy.policies and not verified:
        logger.warning(
            "the broker does not vouch for callers (%s), so only the defaultAction of accessControl applies",
            CALLERS_VERIFIED,
        )
    return lambda caller, path, verb: policy.permits(caller, verified, path, verb).reason or None


def _pubsub_components(
    manifests: Iterable[resources.Component], backbone: EventLog, logs: list[EventLog], namespace: str, meter: Meter
) -> dict[str, Component]:
    """The components that the manifests name, and the backbone's own where none takes its name.

    Every log that is opened on the way joins `logs`. Raises `ConfigurationError`.
    """
    components = {DEFAULT_COMPONENT: Component(name=DEFAULT_COMPONENT, log=backbone)}
    for manifest in manifests:
        try:
            components[manifest.name] = _pubsub_component(manifest, backbone, logs, namespace)
            meter.component_loaded(manifest.type)
        except ConfigurationError as error:
            meter.component_failed(manifest.type, manifest.name, "init")
            message = (
                f"[INIT_COMPONENT_FAILURE]: initialization error occurred for {manifest.name} "
                f"({manifest.type}/{manifest.version}): {error}"
            )
            if not manifest.ignore_errors:
                raise ConfigurationError(message) from error
            logger.error("%s; the component is left out (ignoreErrors)", message)
        else:
            logger.info("Component loaded: %s (%s/%s)", manifest.name, manifest.type, manifest.version)
    return components


def _pubsub_component(
    manifest: resources.Component, backbone: EventLog, logs: list[EventLog], namespace: str
) -> Component:
    if manifest.type == "pubsub.meshwire":
        log = backbone
    elif manifest.type == "pubsub.in-memory":
        from brokers.memory import MemoryEventLog

        log = MemoryEventLog()
        logs.append(log)
    else:
        raise ConfigurationError(
            f"{manifest.origin}: components of type {manifest.type} are not there yet (there are: "
            f"{', '.join(COMPONENT_TYPES)}); remove the file, or set spec.ignoreErrors"
        )
    unknown = manifest.unknown_metadata(PUBSUB_METADATA)
    if unknown:
        raise ConfigurationError("; ".join(unknown))
    return Component(
        name=manifest.name,
        log=log,
        type=manifest.type,
        version=manifest.version,
        scopes=TopicScopes.from_metadata(manifest.metadata),
        topic_prefix=namespace if manifest.namespace_scoped else "",
    )
