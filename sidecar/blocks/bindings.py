"""Bindings: outputs, here and at other apps, and inputs, whose items are delivered like events."""

from __future__ import annotations

import logging

from mesh.bindings.component import BindingComponent
from mesh.bindings.hosting import Guest, Host
from mesh.bindings.input import Inputs
from mesh.bindings.output import Outputs
from mesh.bindings.reply import Replies
from mesh.bindings.running import Surroundings
from mesh.control.setting import Name
from mesh.state.block import State
from sidecar.api.bindings import BindingsApi
from sidecar.api.triggers import TriggersApi
from sidecar.blocks.common import Api, Common
from sidecar.blocks.delivery import Delivery
from sidecar.components import Upkeep
from sidecar.runtime import Runtime
from sidecar.settings import CALLERS_VERIFIED

logger = logging.getLogger("meshwire.runtime")


class Bindings:
    def __init__(self, common: Common, delivery: Delivery, state: State) -> None:
        backbone, clock = common.backbone, common.clock
        components = common.components.of("bindings")
        control = delivery.control
        self._common = common
        self._outputs = Outputs(
            components, resiliency=common.resiliency, elsewhere=Guest(common.me, backbone.requests).call
        )
        self._host = Host(common.me, components, backbone.requests, clock, max_body_size=common.body_limit)
        self.inputs = Inputs(
            components,
            Surroundings(
                app_id=common.app_id,
                log=backbone.log,
                tables=backbone.tables,
                clock=clock,
                channel=common.channel,
                resiliency=common.resiliency,
                follow=Replies(self._outputs, state).follow,
                dead_letters=delivery.letters,
                watch=delivery.watch,
                accepted=delivery.recorder,
                telemetry=common.telemetry,
                began=lambda live: control.steer(Name(*live.group.topic), live.gate),
                ended=lambda live: control.let_go(Name(*live.group.topic), live.gate),
            ),
        )
        common.components.upkeep["bindings"] = Upkeep(self._attach, self.inputs.detach)

    def _attach(self, component: BindingComponent) -> None:
        self.inputs.attach(component)
        self._host.attach(component)
        if component.hosted_for and not self._common.settings.callers_verified:
            logger.warning(
                "the broker does not vouch for callers (%s): any app may call binding %s under a name of its hostedFor",
                CALLERS_VERIFIED,
                component.name,
            )

    def apis(self) -> list[Api]:
        limit = self._common.body_limit
        return [BindingsApi(self._outputs, limit), TriggersApi(self.inputs, limit)]

    def join(self, runtime: Runtime) -> None:
        """Begin and end with the sidecar."""
        runtime.companions.append(self._host)
