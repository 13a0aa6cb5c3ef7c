"""The composition root: the only place where adapters are constructed and joined to the core."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, MutableMapping, Sequence

from starlette.types import ASGIApp

from mesh import __version__, resources, subscriptions
from mesh.access import AccessPolicy
from mesh.actors.state import check_stores
from mesh.appconfig.block import AppConfiguration
from mesh.bindings.component import statements_of
from mesh.clock import SystemClock
from mesh.configuration import Configuration, load_configuration
from mesh.delivery.compile import check_plan, compile_plan
from mesh.invocation import Callee, Caller
from mesh.invocation.callee import Permits
from mesh.locks.block import Locks
from mesh.ports import Clock, EventLog, Feature, Peer
from mesh.pubsub import Component
from mesh.resiliency.targets import INITIALIZATION_RETRIES, Resiliency
from mesh.secret_access import SecretAccess
from mesh.state.block import State
from mesh.telemetry import Meter
from mesh.telemetry_settings import with_environment
from sidecar.api import invoke
from sidecar.api.configuration import ConfigurationApi
from sidecar.api.explain import ExplainApi
from sidecar.api.invoke import InvokeApi
from sidecar.api.lock import LockApi
from sidecar.api.operations import HealthApi, MetadataApi, ShutdownApi
from sidecar.api.secrets import SecretsApi
from sidecar.api.starting import WhileStarting
from sidecar.api.state import StateApi
from sidecar.api.state_extras import StateExtrasApi
from sidecar.app_health import AppHealth
from sidecar.backbone import Backbone, open_backbone
from sidecar.blocks.actors import Actors
from sidecar.blocks.bindings import Bindings
from sidecar.blocks.common import Common
from sidecar.blocks.delivery import Delivery
from sidecar.blocks.jobs import Schedules
from sidecar.channel import OutsideWorld, open_app_channel
from sidecar.components import Components, Surroundings, Upkeep
from sidecar.flags import SidecarFlags
from sidecar.folder_watch import FolderWatch
from sidecar.health import Health
from sidecar.http.api_log import ApiLog
from sidecar.http.guard import Guard
from sidecar.http.limits import Limits
from sidecar.http.responses import CatchErrors
from sidecar.http.routing import Router
from sidecar.http.server import HttpServer, socket_path
from sidecar.metadata import describe
from sidecar.runtime import App, ReadAgain, Runtime
from sidecar.settings import CALLERS_VERIFIED, BrokerAddress, Settings
from sidecar.telemetry import Observers

logger = logging.getLogger("meshwire.runtime")

HEADER_SLACK = 4096
"""Bytes of header beyond `--read-buffer-size` that are still taken, as Dapr's server does."""


def assemble(
    settings: Settings,
    extended: MutableMapping[str, str],
    exit_now: Callable[[], None],
    *,
    clock: Clock | None = None,
    backbone: Backbone | None = None,
) -> Runtime:
    """A sidecar, not started. Raises `ConfigurationError`. To be called inside the event loop.

    `extended` is the part of the metadata that clients write. `exit_now` ends the process on the spot. Tests give a
    clock and a backbone of their own.
    """
    flags = settings.flags
    clock = clock or SystemClock()
    configuration = load_configuration(flags.config, settings.environ)
    folders = FolderWatch(flags.resources_path)

    def load_manifests() -> resources.Resources:
        return resources.load(
            flags.resources_path,
            app_id=flags.app_id,
            namespace=settings.environ.get("NAMESPACE", ""),
            environ=settings.environ,
            denied=configuration.components_deny,
        )

    def check_manifests(found: resources.Resources) -> None:
        components.check(found.components)
        policies = Resiliency(found.resiliency, clock=clock)
        _check_plans(flags.app_id, components, found.components, policies, events.features)
        check_stores(components.preview("state", found.components))
        OutsideWorld(found.http_endpoints)

    manifests = load_manifests()
    tracing = with_environment(configuration.tracing, settings.environ)
    observers = Observers(flags, tracing, configuration.metrics, settings.namespace)
    me = Peer(settings.namespace, flags.app_id)
    backbone = backbone or open_backbone(
        settings.broker,
        me,
        prefix=settings.prefix,
        replicas=settings.replicas,
        requests=settings.requests,
        callers_verified=settings.callers_verified,
    )
    events = backbone.log
    components = _components(settings, configuration, backbone, clock, observers.telemetry.meter)
    components.check(manifests.components)
    components.use_shared(manifests.components)
    pubsubs = components.of("pubsub")
    declared = subscriptions.from_manifests(manifests.subscriptions)
    health = Health(lambda: _problem(backbone, *(component.log for component in pubsubs.values())))
    warnings = [*settings.warnings, *configuration.warnings, *manifests.warnings, *declared.warnings]
    for warning in warnings:
        logger.warning("%s", warning)
    for refusal in declared.refused:
        logger.error("%s", refusal)

    app = _app(settings, clock)
    resiliency = Resiliency(manifests.resiliency, clock=clock)
    for warning in (*resiliency.warnings, *resiliency.without_effect(components.categories(manifests.components))):
        logger.warning("%s", warning)
    _check_plans(flags.app_id, components, manifests.components, resiliency, events.features)
    check_stores(components.preview("state", manifests.components))
    common = Common(
        settings=settings,
        me=me,
        clock=clock,
        backbone=backbone,
        components=components,
        channel=None if app is None else app.channel,
        resiliency=resiliency,
        telemetry=observers.telemetry,
    )
    callee = Callee(
        me,
        common.channel,
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
    invoke_api = InvokeApi(caller, common.body_limit)

    # The API describes the runtime and can stop it, and the runtime serves the API: the one knot to tie here.
    runtime: Runtime
    serves_invoke = configuration.serves(invoke.GROUP, invoke.TEMPLATE)
    starting = WhileStarting(components, lambda: backbone.problem)
    router = Router(invoke_api if serves_invoke else None, permits=configuration.serves, around=starting.around)
    schedules = Schedules(common)
    actors = Actors(common)
    delivery = Delivery(
        common._replace(channel=actors.channel),
        taking_events=lambda: runtime.taking_events,
        play_items=lambda topic, route, headers: bindings.inputs.to_play(topic, route, headers),
        live_items=lambda: bindings.inputs.deliveries(),
        later=schedules.events,
    )
    state = State(
        flags.app_id,
        components.of("state"),
        resiliency=resiliency,
        pubsub=delivery.pubsub,
        clock=clock,
        namespace=settings.namespace,
    )
    bindings = Bindings(common, delivery, state)
    state_extras = StateExtrasApi(state, clock)
    components.upkeep["state"] = Upkeep(state.attach, state.detach)
    components.changed.append(lambda category, name: state.pubsub_changed(name) if category == "pubsub" else None)
    items = AppConfiguration(
        components.of("configuration"),
        channel=common.channel,
        resiliency=resiliency,
        clock=clock,
    )
    components.upkeep["configuration"] = Upkeep(items.attach, items.detach)
    health_api = HealthApi(flags.app_id, health)
    metadata_api = MetadataApi(
        lambda: describe(flags, manifests, components.loaded, runtime.subscriptions) | actors.describe(),
        __version__,
        extended,
    )
    for block in (
        *delivery.apis(),
        *bindings.apis(),
        *actors.apis(),
        *schedules.apis(),
        ExplainApi(lambda: runtime.subscriptions, common.body_limit),
        StateApi(state, common.body_limit),
        state_extras,
        LockApi(Locks(components.of("lock"), resiliency=resiliency), common.body_limit),
        ConfigurationApi(items, common.body_limit),
        SecretsApi(
            SecretAccess(components.of("secretstores"), configuration.secret_scopes, resiliency=resiliency),
        ),
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
        backbone=backbone,
        outside=outside,
        callee=callee,
        clock=clock,
        init_retries=resiliency.built_in(INITIALIZATION_RETRIES),
        components=components,
        manifests=manifests,
        read_again=(
            ReadAgain(folders, load_manifests, check_manifests)
            if configuration.hot_reload and flags.resources_path
            else None
        ),
        health=health,
        servers=_servers(flags, api, CatchErrors(public)),
        observers=observers,
        app=app,
        subscriber=delivery.subscriber,
        inputs=bindings.inputs,
        grace=flags.graceful_shutdown,
        block_shutdown=flags.block_shutdown,
    )
    delivery.join(runtime)
    bindings.join(runtime)
    actors.join(runtime)
    schedules.join(runtime, delivery.pubsub)
    runtime.ending.append(state_extras.close)
    runtime.ending.append(components.give_up)
    return runtime


def pubsubs_of(
    manifests: Sequence[resources.Component],
    app_id: str,
    namespace: str,
    denied: Sequence[str],
    events: EventLog | None = None,
) -> tuple[Mapping[str, Component], Clock]:
    """The pub/sub components of an app: to read, not to use. Those that need a secret are left out. What they can do is
    what the log of `events` can, which needs no start; else what memory can.

    Raises `ConfigurationError`.
    """
    backbone = open_backbone(BrokerAddress(kind="memory"), Peer(namespace, app_id), prefix="")
    clock = SystemClock()
    components = Components(
        Surroundings(
            app_id=app_id,
            namespace=namespace,
            clock=clock,
            tables=backbone.tables,
            alarms=backbone.alarms,
            events=events or backbone.log,
            templates=resources.Templates(app_id, namespace, None),
        ),
        denied=denied,
    )
    return {component.name: component for component in components.preview("pubsub", manifests)}, clock


def _components(
    settings: Settings, configuration: Configuration, backbone: Backbone, clock: Clock, meter: Meter
) -> Components:
    app_id, namespace = settings.flags.app_id, settings.environ.get("NAMESPACE", "")
    return Components(
        Surroundings(
            app_id=app_id,
            namespace=namespace,
            clock=clock,
            tables=backbone.tables,
            alarms=backbone.alarms,
            events=backbone.log,
            templates=resources.Templates(app_id, namespace, settings.environ.get("POD_NAME")),
        ),
        denied=configuration.components_deny,
        meter=meter,
    )


def _check_plans(
    app_id: str,
    components: Components,
    manifests: Sequence[resources.Component],
    resiliency: Resiliency,
    features: frozenset[Feature],
) -> None:
    """Whether what is said of deliveries goes together, and the broker of the mesh, which has these `features`, can do
    it; of pub/sub, where that can be told without secrets.

    Raises `ConfigurationError`, with the place.
    """
    for component in components.preview("pubsub", manifests):
        check_plan(component, resiliency)
    for manifest in manifests:
        if manifest.type.startswith("bindings.") and not manifest.ignore_errors:
            stated, policies = statements_of(manifest, app_id), resiliency.inbound(manifest.name, "bindings")
            if stated:
                compile_plan(stated, {}, policies, features=features)


def _problem(*logs: EventLog | Backbone) -> str | None:
    return next((problem for log in logs if (problem := log.problem)), None)


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
