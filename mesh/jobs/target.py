"""A job's tick: to the app by Dapr's rules, `POST /job/<name>` with the job's data."""

from __future__ import annotations

from urllib.parse import quote

from mesh.delivery.event_target import refusal
from mesh.delivery.target import Judgement, Prepared, Verdict
from mesh.event import Attributes
from mesh.ids import utc_time
from mesh.jobs.job import from_notes, trace_of
from mesh.ports import AppChannel, AppResponse, Delivery, Mode
from mesh.scheduling.scheduler import Tick

TOPIC = "jobs"
"""What ticks are a topic of, in logs and metrics."""


class JobDelivery:
    """A tick as a `Delivery`: what it carries is the job's data, where it is stored the name and the moment."""

    mode = Mode.RAW
    content_type = "application/json"
    topic = TOPIC
    key = None

    def __init__(self, tick: Tick) -> None:
        self.tick = tick
        self.name = tick.key[1]
        self.position = f"{self.name}@{utc_time(tick.due)}"
        self.payload: bytes | None = tick.payload
        self.attributes: Attributes = {}
        self.headers = trace_of(tick.notes)
        self.time = tick.due
        self.attempt = tick.attempt

    def ack(self) -> None:
        self.tick.done()

    def retry(self, delay: float) -> None:
        self.tick.retry(delay)

    def release(self) -> None:
        self.tick.release()


class JobTarget:
    """A `Target`."""

    def __init__(self, channel: AppChannel) -> None:
        self._channel = channel

    def prepare(self, delivery: Delivery, now: float) -> Prepared:
        """Raises `MeshError` for a job that another version made, and this one cannot read."""
        assert isinstance(delivery, JobDelivery)  # noqa: S101 - what our own runner hands over
        path = f"/job/{quote(delivery.name, safe='')}"
        route = self._channel.prepare("POST", path, [("content-type", "application/json")])
        plan = from_notes(delivery.tick.notes).policy.plan()
        return Prepared(route, path, delivery.payload or b"", delivery.headers, plan=plan)

    def judge(self, response: AppResponse, now: float) -> Judgement:
        """2xx is success, 404 gives the tick up, all else is left to the failure policy (Dapr)."""
        if 200 <= response.status < 300:
            return Judgement(Verdict.SUCCESS, status=response.status)
        return refusal(response, now)._replace(final=False)
