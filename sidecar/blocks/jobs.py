"""What happens later: jobs, and events that are published later. The broker holds both."""

from __future__ import annotations

from mesh.delayed.events import DelayedEvents
from mesh.delayed.publisher import DelayedPublisher
from mesh.jobs.block import Jobs
from mesh.jobs.runner import JobRunner
from mesh.pubsub import PubSub
from sidecar.api.jobs import JobsApi
from sidecar.api.scheduled import ScheduledApi
from sidecar.blocks.common import Api, Common
from sidecar.runtime import Runtime


class Schedules:
    def __init__(self, common: Common) -> None:
        app_id, alarms, clock = common.app_id, common.backbone.alarms, common.clock
        self._common = common
        self._jobs = Jobs(app_id, alarms, clock)
        self.events = DelayedEvents(app_id, alarms, clock)

    def apis(self) -> list[Api]:
        return [JobsApi(self._common.me, self._jobs, self._common.body_limit), ScheduledApi(self.events)]

    def join(self, runtime: Runtime, pubsub: PubSub) -> None:
        """Begin and end with the app, which jobs call, and with the sidecar, which publishes through `pubsub`."""
        common = self._common
        runtime.companions.append(DelayedPublisher(self.events, pubsub.send, common.clock))
        if common.channel is not None:
            runtime.followers.append(
                JobRunner(
                    common.app_id,
                    self._jobs,
                    common.channel,
                    common.clock,
                    log=common.backbone.log,
                    telemetry=common.telemetry,
                )
            )
