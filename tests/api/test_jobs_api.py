"""Jobs in a whole sidecar: made, shown, fired, tried again, given up."""

from __future__ import annotations

import asyncio
import json
from itertools import count
from typing import Any

import pytest

from tests.api.conftest import Api, Start
from tests.e2e.mesh import JSON, Answer, App, Request
from tests.ports import free_port

DEFAULT_POLICY = {"constant": {"interval": "1s", "maxRetries": 3}}


async def make(api: Api, name: str, /, **job: Any) -> Answer:
    return await api.call("POST", f"/v1.0/jobs/{name}", [JSON], json.dumps(job).encode())


async def gone(api: Api, name: str) -> None:
    """Returns when the job is not scheduled any more."""
    async with asyncio.timeout(10):
        while (await api.call("GET", f"/v1.0/jobs/{name}")).status == 200:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("root", ["/v1.0/jobs", "/v1.0-alpha1/jobs"])
async def test_a_job_calls_the_app_with_its_data_and_is_gone(start: Start, root: str) -> None:
    async with App() as app:
        api = await start(app=app, APP_API_TOKEN="token")
        trace = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        body = b'{"dueTime": "100ms", "data": {"a" : [1, "\xc3\xa9"],  "b": 12345678901234567890}}'
        assert (await api.call("POST", f"{root}/a%7C%7Cb@c", [JSON, trace], body)).status == 204
        (got,) = await app.got(1)
        assert (got.method, got.path) == ("POST", "/job/a%7C%7Cb%40c")
        assert got.body == '{"a":[1,"é"],"b":12345678901234567890}'.encode()
        assert got.headers["content-type"] == "application/json"
        assert got.headers["dapr-api-token"] == "token"
        assert got.headers["traceparent"][3:35] == trace[1][3:35]
        await gone(api, "a%7C%7Cb@c")


@pytest.mark.parametrize(("sent", "got"), [(None, b""), ("text", b'"text"'), (0, b"0"), (False, b"false")])
async def test_data_is_any_json_or_none(start: Start, sent: Any, got: bytes) -> None:
    async with App() as app:
        api = await start(app=app)
        assert (await make(api, "j", dueTime="0s", data=sent)).status == 204
        (request,) = await app.got(1)
        assert request.body == got


async def test_a_job_is_shown_as_it_was_made(api: Api) -> None:
    job = {
        "schedule": "CRON_TZ=Europe/Rome 0 30 3 * * *",
        "dueTime": "2099-01-01T00:00:00Z",
        "repeats": 4,
        "ttl": "9000h",
        "data": {"@type": "x", "value": 1},
        "failurePolicy": {"constant": {"interval": "1m30s", "maxRetries": 7}},
    }
    assert (await make(api, "%20j%20", **job)).status == 204
    shown = (await api.call("GET", "/v1.0/jobs/j")).json
    wrapped = {"@type": "type.googleapis.com/google.protobuf.Value", "value": job["data"]}
    policy = {"constant": {"interval": "90s", "maxRetries": 7}}
    assert shown == {"name": "j", **job, "data": wrapped, "failurePolicy": policy}
    assert (await make(api, "k", due_time="1h", failure_policy={"constant": {"max_retries": 0}})).status == 204
    assert (await api.call("GET", "/v1.0-alpha1/jobs/k")).json == {
        "name": "k",
        "dueTime": "1h",
        "failurePolicy": {"constant": {"interval": "1s", "maxRetries": 0}},
    }
    assert (await make(api, "d", dueTime="PT1H", failurePolicy={"drop": {}})).status == 204
    assert (await api.call("GET", "/v1.0/jobs/d")).json["failurePolicy"] == {"drop": {}}
    assert (await make(api, "e", schedule="@every 5s")).status == 204
    assert (await api.call("GET", "/v1.0/jobs/e")).json["failurePolicy"] == DEFAULT_POLICY


@pytest.mark.parametrize(
    ("name", "job", "status", "code", "text"),
    [
        ("j", {}, 400, "SCHEDULE_EMPTY", "Schedule is empty"),
        ("%20", {"schedule": "@daily"}, 400, "JOB_NAME_EMPTY", "Name is empty"),
        ("j", {"name": "j", "schedule": "@daily"}, 400, "JOB_NAME", "Set the job name in the url only"),
        ("a%2Fb", {"schedule": "@daily"}, 500, "SCHEDULE_JOB", "must not have '/' in it"),
        ("a%0Ab", {"schedule": "@daily"}, 500, "SCHEDULE_JOB", r"must not have '\n' in it"),
        ("n" * 600, {"schedule": "@daily"}, 500, "SCHEDULE_JOB", "from 1 to 512 bytes (got 600)"),
        ("j", {"schedule": "every day"}, 500, "SCHEDULE_JOB", "schedule: must have six fields"),
        ("j", {"schedule": "61 * * * * *"}, 500, "SCHEDULE_JOB", "schedule: must be a cron pattern"),
        ("j", {"schedule": "0 0 0 30 2 *"}, 500, "SCHEDULE_JOB", "must be a cron pattern"),
        ("j", {"schedule": "TZ=Mars/Base @daily"}, 500, "SCHEDULE_JOB", "name of a time zone"),
        ("j", {"schedule": "@every 100ms"}, 500, "SCHEDULE_JOB", "every 1 s at most"),
        ("j", {"dueTime": "tomorrow"}, 500, "SCHEDULE_JOB", "dueTime: must be a time such as"),
        ("j", {"dueTime": "1h", "repeats": 2}, 500, "SCHEDULE_JOB", "repeats: 2 needs a schedule"),
        ("j", {"schedule": "@daily", "repeats": 0}, 500, "SCHEDULE_JOB", "repeats: must be 1 at least"),
        ("j", {"dueTime": "1h", "ttl": "2h"}, 500, "SCHEDULE_JOB", "ttl: needs a schedule"),
        ("j", {"schedule": "@daily", "ttl": "2000-01-01T00:00:00Z"}, 500, "SCHEDULE_JOB", "ttl: is over before"),
        ("j", {"schedule": "@every 2h", "ttl": "1h"}, 500, "SCHEDULE_JOB", "ends before it fires"),
        ("j", {"dueTime": "1h", "failurePolicy": {"drop": {}, "constant": {}}}, 500, "SCHEDULE_JOB", "not both"),
        ("j", {"dueTime": "1h", "failurePolicy": {"constant": {"interval": "0s"}}}, 500, "SCHEDULE_JOB", "0.1s"),
        ("j", {"dueTime": "1h", "failurePolicy": {"constant": {"interval": "x"}}}, 500, "SCHEDULE_JOB", "interval"),
    ],
)
async def test_what_cannot_be_a_job(
    api: Api, name: str, job: dict[str, Any], status: int, code: str, text: str
) -> None:
    answer = await make(api, name, **job)
    error = answer.json
    assert (answer.status, error["errorCode"]) == (status, f"DAPR_SCHEDULER_{code}")
    assert text in error["message"]
    (detail,) = error["details"]
    assert detail["reason"] == error["errorCode"]
    known = {"appID": "app1"} if code == "JOB_NAME" else {"appID": "app1", "namespace": "default"}
    assert detail["metadata"] == known
    assert (await api.call("GET", "/mesh/v1/jobs")).json == {"jobs": []}


async def test_bodies_that_are_none(api: Api) -> None:
    for body in (b"{", b"[]", b'{"repeats": -1, "schedule": "@daily"}', b'{"dueTime": "1h", "due_time": "2h"}'):
        answer = await api.call("POST", "/v1.0/jobs/j", [JSON], body)
        assert (answer.status, answer.json["errorCode"]) == (400, "ERR_MALFORMED_REQUEST")


async def test_a_job_that_exists_is_overwritten_only_on_request(api: Api) -> None:
    assert (await make(api, "j", dueTime="1h")).status == 204
    refused = await make(api, "j", dueTime="2h")
    assert (refused.status, refused.json["errorCode"]) == (409, "DAPR_SCHEDULER_SCHEDULE_JOB")
    assert "failed to schedule job due to: job 'j' exists" in refused.json["message"]
    assert (await make(api, "j", dueTime="2h", overwrite=True)).status == 204
    assert (await api.call("GET", "/v1.0/jobs/j")).json["dueTime"] == "2h"


async def test_what_is_not_there(api: Api) -> None:
    missing = await api.call("GET", "/v1.0/jobs/none")
    assert (missing.status, missing.json["errorCode"]) == (500, "DAPR_SCHEDULER_GET_JOB")
    assert "failed to get job due to: " in missing.json["message"]
    assert (await api.call("DELETE", "/v1.0/jobs/none")).status == 204
    run = await api.call("POST", "/mesh/v1/jobs/none/run")
    assert (run.status, run.json["errorCode"]) == (404, "ERR_JOB_NOT_FOUND")


async def test_list_and_delete_by_prefix(api: Api) -> None:
    for name in ("a-1", "a-2", "b-1"):
        await make(api, name, dueTime="2099-01-01T00:00:00Z", data=name)
    jobs = (await api.call("GET", "/mesh/v1/jobs?prefix=a-")).json["jobs"]
    assert [(job["name"], job["due"], job["tick"], job["data"]["value"]) for job in jobs] == [
        ("a-1", "2099-01-01T00:00:00.000Z", 1, "a-1"),
        ("a-2", "2099-01-01T00:00:00.000Z", 1, "a-2"),
    ]
    seen, cursor = [], ""
    while cursor is not None:
        page = (await api.call("GET", f"/mesh/v1/jobs?limit=1&cursor={cursor}")).json
        assert len(page["jobs"]) <= 1
        seen += [job["name"] for job in page["jobs"]]
        cursor = page.get("cursor")
    assert seen == ["a-1", "a-2", "b-1"]
    assert (await api.call("DELETE", "/mesh/v1/jobs")).status == 400
    assert (await api.call("DELETE", "/mesh/v1/jobs?prefix=a-")).json == {"deleted": 2}
    assert [job["name"] for job in (await api.call("GET", "/mesh/v1/jobs")).json["jobs"]] == ["b-1"]
    assert (await api.call("DELETE", "/v1.0/jobs/b-1")).status == 204
    assert (await api.call("GET", "/mesh/v1/jobs")).json == {"jobs": []}


async def test_a_cursor_of_something_else(api: Api) -> None:
    assert (await api.call("GET", "/mesh/v1/jobs?cursor=nonsense")).status == 400
    assert (await api.call("GET", "/mesh/v1/jobs?limit=0")).status == 400


async def test_fired_by_hand_beside_the_schedule(start: Start) -> None:
    async with App() as app:
        api = await start(app=app)
        await make(api, "nightly", schedule="@daily", data={"a": 1})
        assert (await api.call("POST", "/mesh/v1/jobs/nightly/run")).status == 202
        (got,) = await app.got(1)
        assert (got.path, got.body) == ("/job/nightly", b'{"a":1}')
        (job,) = (await api.call("GET", "/mesh/v1/jobs")).json["jobs"]
        assert (job["name"], job["tick"]) == ("nightly", 1)


async def test_a_recurring_job_fires_as_often_as_it_says(start: Start) -> None:
    async with App() as app:
        api = await start(app=app)
        await make(api, "twice", schedule="@every 1s", dueTime="0s", repeats=2)
        await app.got(2)
        await gone(api, "twice")
        assert len(app.events) == 2


@pytest.mark.parametrize(
    ("policy", "status", "attempts"),
    [
        ({"drop": {}}, 500, 1),
        ({"constant": {"interval": "10ms", "maxRetries": 2}}, 500, 3),
        ({"constant": {"interval": "10ms", "maxRetries": 2}}, 410, 3),
        ({"constant": {"interval": "10ms", "maxRetries": 2}}, 404, 1),
        ({"constant": {"interval": "10ms", "maxRetries": 2}}, 201, 1),
    ],
)
async def test_attempts(start: Start, policy: dict[str, Any], status: int, attempts: int) -> None:
    """Exhausted, the tick is dropped, and the series goes on."""
    async with App(answer=lambda _: status) as app:
        api = await start(app=app)
        await make(api, "j", schedule="@every 1s", dueTime="0s", repeats=2, failurePolicy=policy)
        got = await app.got(2 * attempts)
        assert [int(one.headers["meshwire-attempt"]) for one in got] == [*range(1, attempts + 1)] * 2
        await gone(api, "j")
        assert len(app.events) == 2 * attempts


async def test_without_a_limit_until_it_succeeds(start: Start) -> None:
    numbers = count(1)

    def answer(_: Request) -> int:
        return 500 if next(numbers) < 8 else 200

    async with App(answer=answer) as app:
        api = await start(app=app)
        await make(api, "j", dueTime="0s", failurePolicy={"constant": {"interval": "100ms"}})
        await app.got(8)
        await gone(api, "j")


async def test_an_app_that_is_not_there_has_not_failed(start: Start) -> None:
    """The job has one attempt, and it is not spent on a port that nobody listens at."""
    port = free_port()
    app = App(port=port)
    async with app:
        api = await start(app=app)
    await make(api, "j", dueTime="0s", failurePolicy={"drop": {}})
    await asyncio.sleep(0.5)
    assert (await api.call("GET", "/v1.0/jobs/j")).status == 200
    async with app:
        (got,) = await app.got(1)
        assert (got.path, got.headers["meshwire-attempt"]) == ("/job/j", "1")
        await gone(api, "j")


async def test_a_job_that_is_removed_while_the_app_has_it_does_not_go_on(start: Start) -> None:
    async with App(answer=lambda _: 500) as app:
        api = await start(app=app)
        await make(api, "j", dueTime="0s", failurePolicy={"constant": {"interval": "300ms"}})
        await app.got(1)
        assert (await api.call("DELETE", "/v1.0/jobs/j")).status == 204
        before = len(app.events)
        await asyncio.sleep(1)
        assert len(app.events) == before


async def test_a_job_that_the_broker_cannot_take(start: Start) -> None:
    api = await start("--max-body-size=4Mi")
    answer = await make(api, "j", dueTime="1h", data="x" * (2 << 20))
    assert (answer.status, answer.json["errorCode"]) == (413, "DAPR_SCHEDULER_SCHEDULE_JOB")
    assert "bytes" in answer.json["message"]


async def test_the_sidecar_ends_while_a_job_is_in_the_apps_hands(start: Start) -> None:
    async with App(answer=lambda _: 500) as app:
        api = await start(app=app)
        await make(api, "j", dueTime="0s")
        await app.got(1)
        await api.stop()
        assert not [task for task in asyncio.all_tasks() if "job" in task.get_name() or "alarm" in task.get_name()]
