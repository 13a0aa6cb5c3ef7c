"""What happens later: jobs, and events that are published later. The broker holds both."""

from __future__ import annotations

from mesh.jobs.block import Jobs
from mesh.jobs.runner import JobRunner
from sidecar.api.jobs import JobsApi
from sidecar.blocks.common import Api, Common
from sidecar.runtime import Runtime


class Schedules:
    def __init__(self, common: Common) -> None:
        self._common = common
        self._jobs = Jobs(common.app_id, common.backbone.alarms, common.clock)
        self._runner = (
            None
            if common.channel is None
            else JobRunner(
                common.app_id,
                self._jobs,
                common.channel,
                common.clock,
                log=common.backbone.log,
                telemetry=common.telemetry,
            )
        )

    def apis(self) -> list[Api]:
        return [JobsApi(self._common.me, self._jobs, self._common.body_limit)]

    def join(self, runtime: Runtime) -> None:
        """Begin and end with the app."""
        if self._runner is not None:
            runtime.followers.append(self._runner)
