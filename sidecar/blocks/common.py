"""What all building blocks of a sidecar are made with."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from mesh.ports import AppChannel, Clock, Peer
from mesh.resiliency.targets import Resiliency
from mesh.telemetry import Telemetry
from sidecar.backbone import Backbone
from sidecar.components import Components
from sidecar.http.routing import Router
from sidecar.settings import Settings


class Common(NamedTuple):
    settings: Settings
    me: Peer
    clock: Clock
    backbone: Backbone
    components: Components
    channel: AppChannel | None
    """To the app beside this sidecar, if there is one."""
    resiliency: Resiliency
    telemetry: Telemetry

    @property
    def app_id(self) -> str:
        return self.me.app_id

    @property
    def body_limit(self) -> int:
        """Bytes of a request's body; 0 is no limit."""
        return self.settings.flags.max_body_size or 0


class Api(Protocol):
    """Routes of the HTTP API."""

    def add_to(self, router: Router) -> None: ...
