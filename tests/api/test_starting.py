"""Requests that come before their component has started."""

import asyncio
import json

import pytest

from bindings.state.in_memory import MemoryStateStore
from sidecar.api import starting
from sidecar.api.bindings import BindingsApi
from sidecar.api.configuration import ConfigurationApi
from sidecar.api.lock import LockApi
from sidecar.api.secrets import SecretsApi
from sidecar.api.state import StateApi
from sidecar.api.state_extras import StateExtrasApi
from sidecar.api.triggers import TriggersApi
from sidecar.http.routing import Router
from tests.api.conftest import Api
from tests.ports import free_port

STORE = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: slow}
spec: {type: state.in-memory, version: v1, initTimeout: 30s}
"""
SAVE = json.dumps([{"key": "a", "value": 1}]).encode()
STATE, EXTRAS = "/v1.0/state/s", "/mesh/v1/state/s"
LOCK = b'{"resourceId": "r", "lockOwner": "o", "expiryInSeconds": 1}'
CONFIGURATION = "/v1.0/configuration/s"


@pytest.fixture
async def gate(monkeypatch):
    """No `state.in-memory` starts before it is set."""
    gate = asyncio.Event()

    async def start(_store: MemoryStateStore) -> None:
        await gate.wait()

    monkeypatch.setattr(MemoryStateStore, "start", start)
    return gate


@pytest.fixture
async def slow(gate, tmp_path):
    (tmp_path / "slow.yaml").write_text(STORE)
    api = Api(f"--resources-path={tmp_path}")
    await api.listening()
    yield api
    if not api.running.done():
        await api.stop()


async def still_waits(request: asyncio.Task) -> bool:
    return not (await asyncio.wait([request], timeout=0.1))[0]


async def test_a_request_waits_for_its_component(slow, gate):
    save = asyncio.create_task(slow.call("POST", "/v1.0/state/slow", body=SAVE))
    missing = asyncio.create_task(slow.call("GET", "/v1.0/state/none/a"))
    assert await still_waits(save)
    assert await still_waits(missing)
    gate.set()
    assert (await save).status == 204
    assert (await slow.call("GET", "/v1.0/state/slow/a")).body == b"1"
    answer = await missing
    assert (answer.status, answer.json["errorCode"]) == (400, "ERR_STATE_STORE_NOT_FOUND")


async def test_a_start_that_takes_too_long(slow, monkeypatch):
    monkeypatch.setattr(starting, "PATIENCE", 0.05)
    answer = await slow.call("POST", "/v1.0/state/slow", body=SAVE)
    assert (answer.status, answer.json["errorCode"]) == (500, "ERR_STATE_SAVE")
    assert answer.json["message"] == "state store slow has not started yet: the sidecar is still starting; try again"


async def test_nobody_waits_for_a_sidecar_that_ends(slow):
    save = asyncio.create_task(slow.call("POST", "/v1.0/state/slow", body=SAVE))
    assert await still_waits(save)
    await slow.stop()
    answer = await save
    assert answer.status == 500
    assert answer.json["message"] == "state store slow has not started yet: the sidecar ends"


@pytest.mark.parametrize(
    ("method", "target", "body", "code", "noun"),
    [
        ("GET", f"{STATE}/a", b"", "ERR_STATE_GET", "state store s"),
        ("POST", STATE, SAVE, "ERR_STATE_SAVE", "state store s"),
        ("POST", "/v1.0/state", SAVE, "ERR_STATE_SAVE", "state store statestore"),
        ("DELETE", f"{STATE}/a", b"", "ERR_STATE_DELETE", "state store s"),
        ("POST", f"{STATE}/bulk", b'{"keys": ["a"]}', "ERR_STATE_BULK_GET", "state store s"),
        ("POST", f"{STATE}/transaction", b"{}", "ERR_STATE_TRANSACTION", "state store s"),
        ("POST", f"{STATE}/query", b"{}", "ERR_STATE_QUERY", "state store s"),
        ("GET", EXTRAS, b"", "ERR_STATE_READ", "state store s"),
        ("GET", f"{EXTRAS}/a/history", b"", "ERR_STATE_READ", "state store s"),
        ("POST", "/v1.0-alpha1/lock/s", LOCK, "ERR_TRY_LOCK", "lock store s"),
        ("POST", "/v1.0-alpha1/unlock/s", LOCK, "ERR_UNLOCK", "lock store s"),
        ("GET", CONFIGURATION, b"", "ERR_CONFIGURATION_GET", "configuration store s"),
        ("GET", f"{CONFIGURATION}/subscribe", b"", "ERR_CONFIGURATION_SUBSCRIBE", "configuration store s"),
        ("PUT", "/mesh/v1/configuration/s/k", b"v", "ERR_CONFIGURATION_WRITE", "configuration store s"),
        ("GET", "/v1.0/secrets/s/k", b"", "ERR_SECRET_GET", "secret store s"),
        ("GET", "/v1.0/secrets/s/bulk", b"", "ERR_SECRET_GET", "secret store s"),
    ],
)
async def test_without_its_broker_a_request_names_it(unreached, method, target, body, code, noun):
    api, port = unreached
    answer = await api.call(method, target, body=body)
    assert (answer.status, answer.json["errorCode"]) == (500, code)
    beginning = f"{noun} has not started yet: no connection to the broker: cannot connect to 127.0.0.1:{port}: "
    assert answer.json["message"].startswith(beginning)


@pytest.fixture
async def unreached(monkeypatch):
    """A sidecar, and the port on which its broker does not listen."""
    monkeypatch.setattr(starting, "PATIENCE", 0.2)
    port = free_port()
    api = Api(environ={"MESHWIRE_BROKER": f"nats://127.0.0.1:{port}"})
    await api.listening()
    yield api, port
    await api.stop()


def test_every_route_that_needs_a_component_is_known() -> None:
    """A new one would answer at once that there is no such component."""
    found = set()

    def note(app):
        found.add(app.__func__)
        return app

    router = Router(around=note)
    for api in (
        StateApi(None, 0),
        StateExtrasApi(None, None),
        LockApi(None, 0),
        BindingsApi(None, 0),
        TriggersApi(None, 0),
        ConfigurationApi(None, 0),
        SecretsApi(None),
    ):
        api.add_to(router)
    assert found - {TriggersApi.statuses} == set(starting._ROUTES)
