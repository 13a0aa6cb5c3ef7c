"""Jobs: Dapr's routes, `/v1.0/jobs/{name}` and the same under `v1.0-alpha1`; and Meshwire's own under `/mesh/v1/jobs`,
which list them, remove many, and fire one by hand.

Guarded by `benchmarks/schedule.py`.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from starlette.types import Receive, Scope, Send

from mesh.envelope import hop_headers
from mesh.errors import ApiError, BrokerError, BrokerUnavailable, Code, MessageTooLarge, clip
from mesh.jobs.block import Found, Jobs
from mesh.jobs.job import DROP, FailurePolicy, InvalidJob, Job
from mesh.ports import Peer
from mesh.ports.tables import InvalidKey
from mesh.quantities import duration
from mesh.scheduling.scheduler import AlreadyScheduled
from mesh.trace import InvalidBaggage
from sidecar.api import proto_json
from sidecar.api.request import context
from sidecar.api.state import send_json
from sidecar.api.strict import invalid, query, shown_time, whole
from sidecar.http.body import read_body
from sidecar.http.responses import send_response, send_text
from sidecar.http.routing import Router

DEFAULT_LIMIT, MOST = 100, 1000
"""Jobs of a page."""

_NOTHING = msgspec.Raw(b"")
_REFUSED = (InvalidJob, InvalidKey, BrokerError)

Uint32 = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


class _Job(msgspec.Struct):
    name: str = ""
    schedule: str = ""
    dueTime: str = ""
    repeats: Uint32 | None = None
    ttl: str = ""
    data: msgspec.Raw = _NOTHING
    overwrite: bool = False
    failurePolicy: msgspec.Raw = _NOTHING


class _Policy(msgspec.Struct):
    drop: dict[str, Any] | None = None
    constant: msgspec.Raw = _NOTHING


class _Constant(msgspec.Struct):
    interval: str = ""
    maxRetries: Uint32 | None = None


class JobsApi:
    def __init__(self, me: Peer, jobs: Jobs, max_body_size: int) -> None:
        """`max_body_size` in bytes; 0 is no limit."""
        self._me = me
        self._jobs = jobs
        self._max_body_size = max_body_size

    def add_to(self, router: Router) -> None:
        for version in ("v1.0", "v1.0-alpha1"):
            template, group = f"/{version}/jobs/{{name}}", f"{version.replace('.0', '').replace('-', '')}/jobs"
            router.add(("POST",), template, self.schedule, group=group)
            router.add(("GET",), template, self.get, group=group)
            router.add(("DELETE",), template, self.delete, group=group)
        router.add(("GET",), "/mesh/v1/jobs", self.list_jobs, group="mesh/v1/jobs")
        router.add(("DELETE",), "/mesh/v1/jobs", self.delete_jobs, group="mesh/v1/jobs")
        router.add(("POST",), "/mesh/v1/jobs/{name}/run", self.run, group="mesh/v1/jobs")

    async def schedule(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            asked = context(scope)
        except InvalidBaggage as error:
            await send_text(send, 400, str(error))
            return
        name = scope["path_params"]["name"].strip()
        body = proto_json.decode(_Job, await read_body(receive, self._max_body_size, scope))
        if not name:
            raise self._fault(Code.JOB_NAME_EMPTY, "Name is empty")
        if body.name:
            raise ApiError(Code.JOB_NAME, "Set the job name in the url only", metadata={"appID": self._me.app_id})
        if not (body.schedule or body.dueTime):
            raise self._fault(Code.JOB_SCHEDULE_EMPTY, "Schedule is empty")
        data = bytes(body.data)
        try:
            job = Job(
                schedule=body.schedule,
                due_time=body.dueTime,
                repeats=body.repeats,
                ttl=body.ttl,
                policy=_policy(bytes(body.failurePolicy)),
            )
            await self._jobs.schedule(
                name,
                job,
                msgspec.json.format(data, indent=-1) if data else b"",
                overwrite=body.overwrite,
                trace=hop_headers(asked.trace, None),
            )
        except AlreadyScheduled as error:
            raise self._refused(name, error, 409) from None
        except MessageTooLarge as error:
            raise self._refused(name, error, 413) from None
        except _REFUSED as error:
            raise self._refused(name, error, 503 if isinstance(error, BrokerUnavailable) else 500) from error
        await send_response(send, 204, asked.echo(), b"")

    async def get(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path_params"]["name"]
        try:
            found = await self._jobs.get(name)
        except _REFUSED as error:
            raise self._fault(Code.JOB_GET, f"failed to get job due to: {error}") from error
        if found is None:
            raise self._fault(Code.JOB_GET, f"failed to get job due to: there is no job '{clip(name)}'")
        await send_json(send, _shown(found))

    async def delete(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._jobs.delete(scope["path_params"]["name"])
        except _REFUSED as error:
            raise self._fault(Code.JOB_DELETE, f"failed to delete job due to: {error}") from error
        await send_response(send, 204, [], b"")

    async def list_jobs(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = query(scope, "prefix", "limit", "cursor")
        limit, cursor = whole(asked, "limit", DEFAULT_LIMIT, MOST), asked.get("cursor")
        try:
            page = await self._jobs.scan(asked.get("prefix", ""), limit=limit, cursor=cursor)
        except ValueError as error:
            raise invalid(f"cursor: {error}") from None
        except _REFUSED as error:
            raise self._fault(Code.JOB_LIST, f"failed to list jobs due to: {error}") from error
        rows = [{**_shown(one), "due": shown_time(one.due), "tick": one.number} for one in page.jobs]
        await send_json(send, {"jobs": rows} | ({"cursor": page.cursor} if page.cursor else {}))

    async def delete_jobs(self, scope: Scope, receive: Receive, send: Send) -> None:
        prefix = query(scope, "prefix").get("prefix")
        if not prefix:
            raise invalid("prefix: say how the names of the jobs begin that are to be removed")
        try:
            await send_json(send, {"deleted": await self._jobs.delete_all(prefix)})
        except _REFUSED as error:
            raise self._fault(Code.JOB_DELETE, f"failed to delete jobs due to: {error}") from error

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """202 once the broker holds the tick; the app is called as for any other."""
        name = scope["path_params"]["name"]
        try:
            there = await self._jobs.run(name)
        except InvalidJob as error:
            raise invalid(str(error)) from None
        except _REFUSED as error:
            raise ApiError(Code.JOB_RUN, f"job '{clip(name)}' does not run: {error}") from error
        if not there:
            raise ApiError(Code.JOB_NOT_FOUND, f"there is no job '{clip(name)}'")
        await send_response(send, 202, [(b"content-length", b"0")], b"")

    def _refused(self, name: str, error: Exception, status: int) -> ApiError:
        reason = f"job '{clip(name)}' exists; set overwrite" if isinstance(error, AlreadyScheduled) else str(error)
        return self._fault(Code.JOB_SCHEDULE, f"failed to schedule job due to: {reason}", status)

    def _fault(self, code: Code, message: str, status: int | None = None) -> ApiError:
        namespace, app_id = self._me
        return ApiError(code, message, metadata={"appID": app_id, "namespace": namespace}, status=status)


def _policy(text: bytes) -> FailurePolicy:
    """Raises `ApiError`, `InvalidJob`."""
    if not text:
        return FailurePolicy()
    policy = proto_json.decode(_Policy, text)
    constant = bytes(policy.constant)
    if policy.drop is not None and constant:
        raise InvalidJob("failurePolicy: must be drop or constant, not both")
    if not constant:
        return FailurePolicy() if policy.drop is None else DROP
    stated = proto_json.decode(_Constant, constant)
    try:
        interval = duration(stated.interval, bare_unit=None) if stated.interval else FailurePolicy().interval
    except ValueError as error:
        raise InvalidJob(f"failurePolicy: interval {error}") from None
    return FailurePolicy(interval=interval, retries=stated.maxRetries)


def _shown(found: Found) -> dict[str, Any]:
    """As Dapr's proto JSON has it: the data in an `Any`."""
    job, policy = found.job, found.job.policy
    shown: dict[str, Any] = {
        "name": found.name,
        "schedule": job.schedule,
        "repeats": job.repeats,
        "dueTime": job.due_time,
        "ttl": job.ttl,
    }
    shown = {name: value for name, value in shown.items() if value}
    if found.data:
        shown["data"] = {"@type": "type.googleapis.com/google.protobuf.Value", "value": msgspec.Raw(found.data)}
    retries = {} if policy.retries is None else {"maxRetries": policy.retries}
    constant = {"constant": {"interval": f"{policy.interval:g}s", **retries}}
    return shown | {"failurePolicy": {"drop": {}} if policy == DROP else constant}
