"""Input bindings in a whole sidecar: asked for, accepted, delivered, exchanged, given up."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import BrokerUnavailable, ConfigurationError
from sidecar import folder_watch
from tests.api.conftest import Api, Start
from tests.e2e.mesh import JSON, Answer, App, Reply, Request, call, exchange
from tests.ports import free_port

COMPONENT = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: {name}}}
spec:
  type: {type}
  version: v1
  metadata: [{metadata}]
"""
SECRET = "It's a Secret to Everybody"


def component(folder: Path, name: str, type_: str, **metadata: str) -> None:
    entries = ", ".join(f'{{name: {key}, value: "{value}"}}' for key, value in metadata.items())
    (folder / f"{name}.yaml").write_text(COMPONENT.format(name=name, type=type_, metadata=entries))


async def trigger(api: Api, name: str, body: bytes = b"{}", query: str = "") -> Answer:
    return await api.call("POST", f"/mesh/v1/bindings/{name}/trigger{query}", [JSON], body)


async def status(api: Api, name: str) -> dict[str, str]:
    listed = (await api.call("GET", "/mesh/v1/bindings")).json["inputs"]
    return next(one for one in listed if one["name"] == name)


async def until(api: Api, name: str, **wanted: str) -> None:
    """Returns when the binding's status begins so."""
    async with asyncio.timeout(30):
        while True:
            found = await status(api, name)
            if all(found[part].startswith(text) for part, text in wanted.items()):
                return
            await asyncio.sleep(0.01)


class Hook:
    """A sender that signs as GitHub does."""

    def __init__(self) -> None:
        self.port = free_port()

    async def post(self, body: bytes, *headers: tuple[str, str], secret: str = SECRET, path: str = "/") -> Answer:
        signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
        signed = ("X-Hub-Signature-256", f"sha256={signature}")
        return await call(self.port, "POST", path, [JSON, signed, *headers], body)

    def component(self, folder: Path, **metadata: str) -> None:
        settings = {"port": str(self.port), "signature": "github", "secret": SECRET, "direction": "input"}
        component(folder, "hook", "bindings.webhook", **settings | metadata)


async def test_a_trigger_reaches_the_app(start: Start, tmp_path: Path) -> None:
    component(tmp_path, "hook", "bindings.webhook", port=str(free_port()), signature="none", route="a/b")
    async with App() as app:
        api = await start(f"--resources-path={tmp_path}", app=app, APP_API_TOKEN="token")
        await until(api, "hook", source="running", delivery="running")
        assert (await trigger(api, "hook", b"\x00\xff", "?metadata.Topic=a%0D%0Ab&metadata.host=evil")).status == 202
        (got,) = await app.got(1)
        assert (got.method, got.path, got.body) == ("POST", "/a/b", b"\x00\xff")
        assert got.headers["content-type"] == "application/json"
        assert got.headers["topic"] == "a%0D%0Ab"
        assert got.headers["host"] == f"127.0.0.1:{app.port}"
        assert got.headers["dapr-api-token"] == "token"
        assert app.requests[-2].method == "OPTIONS"


async def test_an_item_of_one_id_comes_once(start: Start, tmp_path: Path) -> None:
    component(tmp_path, "hook", "bindings.webhook", port=str(free_port()), signature="none")
    async with App() as app:
        api = await start(f"--resources-path={tmp_path}", app=app)
        for number, name in enumerate(("a", "a", "b")):
            assert (await trigger(api, "hook", b"%d" % number, f"?id={name}")).status == 202
        assert [event.body for event in await app.got(2)] == [b"0", b"2"]


@pytest.mark.parametrize(
    ("answer", "source"),
    [
        (200, "running"),
        (204, "running"),
        (405, "running"),
        (404, "not started: the app answered 404 to OPTIONS /hook"),
        (500, "not started: the app answered 500 to OPTIONS /hook"),
    ],
)
async def test_the_app_is_asked(start: Start, tmp_path: Path, answer: int, source: str) -> None:
    component(tmp_path, "hook", "bindings.webhook", port=str(free_port()), signature="none")
    async with App(answer=lambda request: answer if request.method == "OPTIONS" else 200) as app:
        api = await start(f"--resources-path={tmp_path}", app=app)
        await until(api, "hook", source=source)


async def test_with_a_direction_the_app_is_not_asked(start: Start, tmp_path: Path) -> None:
    component(tmp_path, "hook", "bindings.webhook", port=str(free_port()), signature="none", direction="input")
    async with App(answer=lambda request: 404 if request.method == "OPTIONS" else 200) as app:
        api = await start(f"--resources-path={tmp_path}", app=app)
        await trigger(api, "hook")
        await app.got(1)
        assert not [request for request in app.requests if request.method == "OPTIONS"]


async def test_without_an_app_items_are_accepted(start: Start, tmp_path: Path) -> None:
    hook = Hook()
    hook.component(tmp_path)
    component(tmp_path, "asked", "bindings.webhook", port=str(free_port()), signature="none")
    api = await start(f"--resources-path={tmp_path}")
    await until(api, "hook", source="running")
    await until(api, "asked", source="not started: there is no app to ask")
    assert (await hook.post(b"{}")).status == 202


async def test_a_failure_comes_again(start: Start, tmp_path: Path) -> None:
    """404 too (Dapr)."""
    component(
        tmp_path,
        "hook",
        "bindings.webhook",
        port=str(free_port()),
        signature="none",
        backOffPolicy="constant",
        backOffDuration="10ms",
    )
    answers = iter((404, 500, 201))
    async with App(answer=lambda request: next(answers) if request.method == "POST" else 200) as app:
        api = await start(f"--resources-path={tmp_path}", app=app)
        await trigger(api, "hook", b"1")
        got = await app.got(3)
        assert [one.headers["meshwire-attempt"] for one in got] == ["1", "2", "3"]


async def test_what_is_given_up_can_be_sent_again(start: Start, tmp_path: Path) -> None:
    component(tmp_path, "hook", "bindings.webhook", port=str(free_port()), signature="none")
    answers = iter((410, 200))
    async with App(answer=lambda request: next(answers) if request.method == "POST" else 200) as app:
        api = await start(f"--resources-path={tmp_path}", app=app)
        await trigger(api, "hook", b"1", "?metadata.a=b")
        async with asyncio.timeout(30):
            while not (found := (await api.call("GET", "/mesh/v1/dead-letters")).json["deadLetters"]):
                await asyncio.sleep(0.01)
        (letter,) = found
        assert letter["id"].startswith("$bindings/app1.hook/")
        answer = await api.call("POST", "/mesh/v1/dead-letters:redrive", [JSON], b'{"filter": {"reason": "refused"}}')
        assert answer.status == 202, answer
        first, second = await app.got(2)
        assert (second.body, second.headers["a"], second.path) == (b"1", "b", first.path)


async def test_an_answer_that_asks_for_more(start: Start, tmp_path: Path) -> None:
    """`state` and `to`, as Dapr documents them; what fails makes the delivery fail."""
    component(tmp_path, "hook", "bindings.webhook", port=str(free_port()), signature="none")
    component(tmp_path, "files", "bindings.localstorage", rootPath=str(tmp_path / "files"))
    replies: list[Any] = [
        {"to": ["nobody"], "data": 1},
        {"storeName": "statestore", "state": [{"key": "k", "value": {"a": 1}}], "to": ["files"], "data": "x"},
    ]

    def answer(request: Request) -> Reply:
        return (200, json.dumps(replies.pop(0)).encode()) if request.method == "POST" else 200

    async with App(answer=answer) as app:
        api = await start(f"--resources-path={tmp_path}", app=app)
        await trigger(api, "hook")
        await app.got(2)
        async with asyncio.timeout(30):
            while not list((tmp_path / "files").glob("*")):
                await asyncio.sleep(0.01)
        assert [path.read_bytes() for path in (tmp_path / "files").iterdir()] == [b"x"]
        item = await api.runtime._components.of("state")["statestore"].store.get("k")
        assert item.value == b'{"a": 1}', "without the prefix of the app"


async def test_what_cannot_be_fired(start: Start) -> None:
    api = await start()
    answer = await trigger(api, "none")
    assert (answer.status, answer.json["errorCode"]) == (404, "ERR_BINDING_NOT_FOUND")


async def test_webhooks_are_checked(start: Start, tmp_path: Path) -> None:
    hook = Hook()
    hook.component(tmp_path)
    async with App() as app:
        api = await start(f"--resources-path={tmp_path}", app=app)
        await until(api, "hook", source="running", delivery="running")
        headers = [("X-GitHub-Event", "push"), ("Authorization", "Bearer secret"), ("X-Evil", "\x7f")]
        assert (await hook.post(b'{"n": 1}', *headers[:2])).status == 202
        assert (await hook.post(b'{"n": 1}', ("X-GitHub-Delivery", "again"))).status == 202  # replayed
        assert (await hook.post(b'{"n": 2}', secret="wrong")).status == 401
        assert (await call(hook.port, "POST", "/", [JSON], b"{}")).status == 401
        assert (await hook.post(b"{}", path="/v1.0/metadata")).status == 404
        assert (await call(hook.port, "GET", "/")).status == 405
        assert (await hook.post(b"x" * (1 << 20) + b"x")).status == 413
        assert (await hook.post(b'{"n": 3}')).status == 202
        got = await app.got(2)
        assert [one.body for one in got] == [b'{"n": 1}', b'{"n": 3}']
        assert got[0].headers["x-github-event"] == "push"
        assert "authorization" not in got[0].headers


async def test_a_webhook_that_cannot_be_stored(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = Hook()
    hook.component(tmp_path)
    async with App() as app:
        api = await start(f"--resources-path={tmp_path}", app=app)
        await until(api, "hook", source="running")
        log = api.runtime._backbone.log

        async def unavailable(*_: object) -> str:
            raise BrokerUnavailable("gone")

        with monkeypatch.context() as patch:
            patch.setattr(log, "publish", unavailable)
            answer = await hook.post(b"{}")
            assert (answer.status, answer.headers["retry-after"]) == (503, "5")
            assert (await trigger(api, "hook")).status == 503
        assert (await hook.post(b"{}")).status == 202, "what was not stored was not seen"
        await app.got(1)


async def test_a_port_that_is_taken(start: Start, tmp_path: Path) -> None:
    hook = Hook()
    hook.component(tmp_path)
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", hook.port)
    api = await start(f"--resources-path={tmp_path}")
    await until(api, "hook", source="failed, runs again after 0.5 s: ")
    server.close()
    await server.wait_closed()
    await until(api, "hook", source="running")


async def test_items_wait_for_an_app_that_was_never_there(start: Start, tmp_path: Path) -> None:
    hook = Hook()
    hook.component(tmp_path)
    app = App()
    api = Api(f"--resources-path={tmp_path}", app=app)
    await api.listening()
    await until(api, "hook", source="running", delivery="not running")
    for body in (b"1", b"2"):
        assert (await hook.post(body)).status == 202
    async with app:
        assert sorted(one.body for one in await app.got(2)) == [b"1", b"2"]
        await api.stop()


async def test_a_component_that_is_changed_takes_over_its_port(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(folder_watch, "PERIOD", 0.02)
    monkeypatch.setattr(folder_watch, "QUIET", 0.02)
    hook = Hook()
    hook.component(tmp_path)
    async with App() as app:
        api = await start(f"--resources-path={tmp_path}", app=app)
        await until(api, "hook", source="running")
        hook.component(tmp_path, route="elsewhere")
        async with asyncio.timeout(30):
            while (await status(api, "hook"))["route"] != "/elsewhere":
                await asyncio.sleep(0.01)
        await until(api, "hook", source="running", delivery="running")
        assert (await hook.post(b"1")).status == 202
        await app.got(1, "/elsewhere")
        assert "runs again" not in caplog.text, "it was free when the successor began"
        (tmp_path / "hook.yaml").unlink()
        async with asyncio.timeout(30):
            while (await api.call("GET", "/mesh/v1/bindings")).json["inputs"]:
                await asyncio.sleep(0.01)
            while True:
                try:
                    await exchange(hook.port, b"")
                except OSError:
                    break
                await asyncio.sleep(0.01)


async def test_cron(start: Start, tmp_path: Path) -> None:
    component(tmp_path, "tick", "bindings.cron", schedule="@every 1s")
    async with App() as app:
        await start(f"--resources-path={tmp_path}", app=app)
        first, second = await app.got(2)
        assert first.path == "/tick"
        assert first.body == b""
        assert first.headers["timezone"] == "UTC"
        assert first.headers["readtimeutc"].endswith("+0000 UTC")
        assert first.headers["scheduledtime"] != second.headers["scheduledtime"]


# Watched and replayed like any topic


def hooked(tmp_path: Path, **metadata: str) -> str:
    settings = {"port": str(free_port()), "signature": "none", "direction": "input"}
    component(tmp_path, "hook", "bindings.webhook", **settings | metadata)
    return f"--resources-path={tmp_path}"


async def replay(api: Api, **order: Any) -> Answer:
    body = {"pubsubname": "$bindings", "topic": "app1.hook", "from": {"time": "2020-01-01T00:00:00Z"}} | order
    return await api.call("POST", "/mesh/v1/replays", [JSON], json.dumps(body).encode())


async def replayed(api: Api, answer: Answer) -> dict[str, Any]:
    """The run, once it is over."""
    assert answer.status == 202, answer
    async with asyncio.timeout(30):
        while True:
            run = (await api.call("GET", f"/mesh/v1/replays/{answer.json['id']}")).json
            if run["state"] != "running":
                return dict(run)
            await asyncio.sleep(0.02)


async def test_items_are_replayed(start: Start, tmp_path: Path) -> None:
    async with App() as app:
        api = await start(hooked(tmp_path, route="in"), app=app)
        for number in range(3):
            await trigger(api, "hook", b"%d" % number, "?metadata.a=b&metadata.meshwire-replay=forged")
        live = await app.got(3)
        assert "meshwire-replay" not in live[0].headers, "what outside systems say does not pose as ours"
        assert (await replay(api, dryRun=True)).json == {"matching": 3, "complete": True}
        run = await replayed(api, await replay(api))
        assert (run["state"], run["handled"]) == ("done", 3)
        again = (await app.got(6))[3:]
        assert sorted((one.path, one.body, one.headers["a"]) for one in again) == [
            ("/in", b"%d" % number, "b") for number in range(3)
        ]
        assert {one.headers["meshwire-replay"] for one in again} == {run["id"]}
        await replayed(api, await replay(api, route="/elsewhere"))
        assert len(await app.got(3, "/elsewhere")) == 3


async def test_a_replay_fails_by_the_plan(start: Start, tmp_path: Path) -> None:
    """Any 2xx is success, 404 a failure: a binding's rules, not those of subscriptions."""
    answers = iter((200, 404, 201))
    async with App(answer=lambda request: next(answers)) as app:
        api = await start(hooked(tmp_path, backOffPolicy="constant", backOffDuration="10ms"), app=app)
        await trigger(api, "hook")
        await app.got(1)
        run = await replayed(api, await replay(api))
        assert (run["state"], run["handled"]) == ("done", 1)
        assert [one.headers["meshwire-attempt"] for one in await app.got(3)] == ["1", "1", "2"]


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ({"topic": "app1.none"}, "the app has no input binding none: name a route for the items to go to"),
        ({"topic": "app2.hook"}, "topic app2.hook has no items of app app1: they are replayed to their own app only"),
        ({"topic": "hook"}, "topic hook has no items of app app1: they are replayed to their own app only"),
        ({"appId": "app2"}, "topic app1.hook has no items of app app2: they are replayed to their own app only"),
    ],
)
async def test_what_cannot_be_replayed(start: Start, tmp_path: Path, order: dict[str, str], message: str) -> None:
    async with App() as app:
        api = await start(hooked(tmp_path), app=app)
        answer = await replay(api, **order)
        assert (answer.status, answer.json["message"]) == (400, message)


async def test_the_journal_tells_of_items(start: Start, tmp_path: Path) -> None:
    async with App() as app:
        api = await start(hooked(tmp_path), app=app, MESHWIRE_JOURNAL="full")
        await trigger(api, "hook", b"1", "?id=7")
        await app.got(1)
        async with asyncio.timeout(30):
            while True:
                story = (await api.call("GET", "/mesh/v1/events/%2Fbindings%2Fhook/7")).json
                if "acked" in str(story):
                    break
                await asyncio.sleep(0.01)
        assert [step["what"] for step in story["steps"]] == ["accepted", "stored", "attempt", "acked"]
        assert {(step["pubsubname"], step["topic"]) for step in story["steps"]} == {("$bindings", "app1.hook")}


async def test_deliveries_are_listed_and_steered(start: Start, tmp_path: Path) -> None:
    async with App() as app:
        api = await start(hooked(tmp_path), app=app)
        await until(api, "hook", delivery="running")
        path = "/mesh/v1/subscriptions/$bindings/app1.hook"
        assert (await api.call("POST", path, [JSON], b'{"action": "pause"}')).json["state"] == "paused"
        for number in range(3):
            await trigger(api, "hook", b"%d" % number)
        (listed,) = (await api.call("GET", "/mesh/v1/subscriptions")).json["subscriptions"]
        assert (listed["pubsubname"], listed["topic"]) == ("$bindings", "app1.hook")
        assert (listed["state"], listed["backlog"]) == ("paused", {"waiting": 3, "unsettled": 0})
        assert app.events == []
        limit = b'{"action": "limit", "rate": 50, "concurrency": 1}'
        assert (await api.call("POST", path, [JSON], limit)).json["concurrency"] == 1
        assert (await api.call("POST", path, [JSON], b'{"action": "resume"}')).json["state"] == "running"
        await app.got(3)
        unknown = await api.call("POST", "/mesh/v1/subscriptions/$bindings/app1.none", [JSON], b'{"action": "pause"}')
        assert (unknown.status, unknown.json["errorCode"]) == (404, "ERR_SUBSCRIPTION_NOT_FOUND")


POLICY = """
apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: {name: r}
spec:
  policies: {retries: {few: {policy: constant, duration: 1s, maxRetries: 2}}}
  targets: {components: {hook: {inbound: {retry: few}}}}
"""


@pytest.mark.parametrize("secret", ["", "auth: {secretStore: none}\n"])
async def test_a_plan_that_contradicts_a_policy_ends_the_start(tmp_path: Path, secret: str) -> None:
    """Also that of a component whose secret is not known yet."""
    (tmp_path / "r.yaml").write_text(POLICY)
    flag = hooked(tmp_path, maxAttempts="3")
    if secret:
        file = tmp_path / "hook.yaml"
        settings = file.read_text().replace("metadata: [", "metadata: [{name: secret, secretKeyRef: {name: s}}, ")
        file.write_text(settings + secret)
    with pytest.raises(ConfigurationError, match=r"hook\.yaml:7: metadata\.maxAttempts: contradicts .*r\.yaml"):
        await Api(flag).running
