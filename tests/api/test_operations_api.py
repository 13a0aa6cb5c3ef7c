"""Health, metadata, shutdown, and who may call at all."""

import asyncio

import pytest

from mesh import __version__
from sidecar.runtime import End
from tests.api.conftest import Api
from tests.e2e.mesh import App, call, subscription
from tests.ports import free_port


async def test_health(api):
    for target in ("/v1.0/healthz", "/v1.0/healthz?appid=app1", "/v1.0/healthz/outbound"):
        answer = await api.call("GET", target)
        assert (answer.status, answer.body) == (204, b"")
    answer = await api.call("GET", "/v1.0/healthz?appid=other")
    assert (answer.status, answer.json) == (
        500,
        {"errorCode": "ERR_HEALTH_APPID_NOT_MATCH", "message": "dapr app-id does not match"},
    )


async def test_sidecar_serves_its_app_before_the_app_listens():
    app = App([subscription("A")])
    api = Api(app=app)
    try:
        await api.listening()
        answer = await api.call("GET", "/v1.0/healthz")
        assert (answer.status, answer.json["errorCode"]) == (500, "ERR_HEALTH_NOT_READY")
        assert answer.json["message"] == "dapr is not ready: [app]"
        assert (await api.call("GET", "/v1.0/healthz/outbound")).status == 204
        assert (await api.call("POST", "/v1.0/publish/pubsub/A", (), b"1")).status == 204
        async with app:
            await api.ready()
            await api.stop()
    finally:
        await api.stop()


class Moody(App):
    """Hangs up on the first `left` questions for its subscriptions."""

    left = 8

    async def _reply(self, request):
        if request.path == "/dapr/subscribe" and self.left:
            self.left -= 1
            raise ConnectionError
        return await super()._reply(request)


async def test_the_app_is_asked_under_the_policy_for_that(start, tmp_path):
    (tmp_path / "resiliency.yaml").write_text("""
apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: {name: start}
spec:
  policies:
    retries:
      DaprBuiltInInitializationRetries: {policy: constant, duration: 1ms, maxRetries: 9}
""")
    async with Moody([subscription("A")]) as app:
        api = await start(f"--resources-path={tmp_path}", app=app)
        (known,) = (await api.call("GET", "/v1.0/metadata")).json["subscriptions"]
        assert (known["topic"], app.left) == ("A", 0)


@pytest.mark.parametrize(
    ("flags", "logged"),
    [
        ([], ["GET /v1.0/metadata"]),
        (["--enable-api-logging=false"], []),
    ],
)
async def test_the_configuration_says_which_calls_are_logged_unless_the_flag_does(
    start, tmp_path, caplog, flags, logged
):
    path = tmp_path / "config.yaml"
    path.write_text("spec: {logging: {apiLogging: {enabled: true, omitHealthChecks: true}}}\n")
    api = await start(f"--config={path}", *flags)
    with caplog.at_level("INFO", logger="dapr.runtime.http-info"):
        for target in ("/v1.0/healthz", "/v1.0/healthz/outbound", "/v1.0/metadata"):
            await api.call("GET", target)
    assert [record.fields["method"] for record in caplog.records if hasattr(record, "fields")] == logged


async def test_metadata(start, tmp_path):
    (tmp_path / "more.yaml").write_text("""
{apiVersion: dapr.io/v1alpha1, kind: HTTPEndpoint, metadata: {name: github}, spec: {baseUrl: "https://api.github.com"}}
---
{apiVersion: dapr.io/v1alpha1, kind: Resiliency, metadata: {name: patience}, spec: {policies: {timeouts: {fast: 1s}}}}
""")
    async with App(
        [subscription("A", deadLetterTopic="dead", metadata={"rawPayload": "false"}), subscription("B")]
    ) as app:
        api = await start(
            f"--resources-path={tmp_path}",
            "--app-max-concurrency=3",
            "--enable-app-health-check",
            "--app-health-probe-interval=1",
            app=app,
        )
        async with asyncio.timeout(30):
            while "subscriptions" not in (answer := await api.call("GET", "/v1.0/metadata")).json:
                await asyncio.sleep(0.01)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        described = answer.json
        components = {component.pop("name"): component for component in described.pop("components")}
        actors = described.pop("actorRuntime")
        assert (actors["runtimeStatus"] in ("INITIALIZING", "RUNNING"), actors["hostReady"]) == (True, False)
        assert components["pubsub"] == {
            "type": "pubsub.meshwire",
            "version": "v1",
            "capabilities": ["MESSAGE_TTL", "SUBSCRIBE_WILDCARDS"],
        }
        assert components["statestore"]["type"] == "state.meshwire"
        assert {"ETAG", "TRANSACTIONAL", "ACTOR"} <= set(components["statestore"]["capabilities"])
        assert described == {
            "id": "app1",
            "runtimeVersion": __version__,
            "extended": {"daprRuntimeVersion": __version__},
            "httpEndpoints": [{"name": "github"}],
            "resiliencies": [{"name": "patience"}],
            "subscriptions": [
                {
                    "pubsubname": "pubsub",
                    "topic": "A",
                    "metadata": {"rawPayload": "false"},
                    "rules": [{"path": "/A"}],
                    "deadLetterTopic": "dead",
                    "type": "PROGRAMMATIC",
                },
                {
                    "pubsubname": "pubsub",
                    "topic": "B",
                    "rules": [{"path": "/B"}],
                    "deadLetterTopic": "",
                    "type": "PROGRAMMATIC",
                },
            ],
            "appConnectionProperties": {
                "port": app.port,
                "protocol": "http",
                "channelAddress": "127.0.0.1",
                "maxConcurrency": 3,
                "health": {
                    "healthCheckPath": "/healthz",
                    "healthProbeInterval": "1s",
                    "healthProbeTimeout": "500ms",
                    "healthThreshold": 3,
                },
            },
        }


async def test_metadata_that_callers_add(api):
    answer = await api.call("PUT", "/v1.0/metadata/cliPID", (), b'"1234"')
    assert (answer.status, answer.body) == (204, b"")
    extended = (await api.call("GET", "/v1.0/metadata")).json["extended"]
    assert extended == {"cliPID": '"1234"', "daprRuntimeVersion": __version__}
    answer = await api.call("PUT", "/v1.0/metadata/long", (), b"x" * 65537)
    assert (answer.status, answer.json["errorCode"]) == (400, "ERR_BODY_READ")
    assert answer.json["message"].endswith("stream too large: the body is longer than 65536 bytes")
    for number in range(254):
        assert (await api.call("PUT", f"/v1.0/metadata/k{number}", (), b"")).status == 204
    assert (await api.call("PUT", "/v1.0/metadata/one-too-many", (), b"")).status == 400
    assert (await api.call("PUT", "/v1.0/metadata/k1", (), b"again")).status == 204


async def test_shutdown(api):
    answer = await api.call("POST", "/v1.0/shutdown")
    assert (answer.status, answer.body) == (204, b"")
    async with asyncio.timeout(30):
        assert await api.running is End.STOPPED
    assert api.exits == 0


async def test_forced_shutdown(api):
    assert (await api.call("POST", "/v1.0/shutdown", [("dapr-force-shutdown", "true")])).status == 204
    async with asyncio.timeout(30):
        while not api.exits:
            await asyncio.sleep(0.005)


async def test_token(start):
    api = await start(DAPR_API_TOKEN="the token")
    for headers in (
        (),
        [("dapr-api-token", "")],
        [("dapr-api-token", "The token")],
        [("dapr-api-token", "the tokenn")],
    ):
        for method, target in [
            ("GET", "/v1.0/metadata"),
            ("POST", "/v1.0/publish/pubsub/A"),
            ("OPTIONS", "/mesh/v1/events/pubsub/A"),
            ("POST", "/v1.0/shutdown"),
            ("POST", "/v1.0/healthz"),
            ("GET", "/nothing"),
        ]:
            answer = await api.call(method, target, headers)
            assert (answer.status, answer.body) == (401, b"invalid api token\n"), (method, target)
            assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    for target in ("/v1.0/healthz", "/v1.0/healthz/outbound"):
        assert (await api.call("GET", target)).status == 204
    assert (await api.call("GET", "/v1.0/metadata", [("dapr-api-token", "the token")])).status == 200
    # With a token, the name under which a client reaches us does not matter.
    answer = await api.call("GET", "/v1.0/metadata", [("dapr-api-token", "the token")], host="example.com")
    assert answer.status == 200


@pytest.mark.parametrize(
    ("host", "headers", "code"),
    [
        ("evil.example", (), "ERR_HOST_REFUSED"),
        ("127.0.0.1.evil.example", (), "ERR_HOST_REFUSED"),
        ("localhost", [("origin", "https://evil.example")], "ERR_ORIGIN_REFUSED"),
        ("localhost", [("origin", "null")], "ERR_ORIGIN_REFUSED"),
        ("localhost", [("sec-fetch-site", "cross-site")], "ERR_ORIGIN_REFUSED"),
    ],
)
async def test_web_pages_are_refused_without_a_token(api, host, headers, code):
    for method, target in [("POST", "/v1.0/publish/pubsub/A"), ("OPTIONS", "/mesh/v1/events/pubsub/A")]:
        answer = await api.call(method, target, headers, host=host)
        assert (answer.status, answer.json["errorCode"]) == (403, code)
        assert "access-control-allow-origin" not in answer.headers


async def test_unknown_paths_and_methods(api):
    for method, target in [("GET", "/"), ("GET", "/v1.0/publish/pubsub/A"), ("POST", "/v1.0/metadata"), ("PUT", "/v2")]:
        answer = await api.call(method, target)
        assert (answer.status, answer.json["errorCode"]) == (404, "ERR_DIRECT_INVOKE")


async def test_public_port_has_health_and_metadata_only(start):
    public = free_port()
    await start(f"--dapr-public-port={public}", "--dapr-public-listen-address=127.0.0.1", DAPR_API_TOKEN="token")
    assert (await call(public, "GET", "/v1.0/healthz")).status == 204
    assert (await call(public, "GET", "/v1.0/metadata")).status == 200
    answer = await call(public, "POST", "/v1.0/publish/pubsub/A", (), b"1")
    assert (answer.status, answer.body) == (404, b"404 page not found\n")
    answer = await call(public, "POST", "/v1.0/healthz")
    assert (answer.status, answer.headers["allow"]) == (405, "GET")
