"""Components of a whole sidecar: secrets in other manifests, and starts that fail."""

import asyncio
import json

import pytest

from mesh.errors import ConfigurationError
from tests.api.conftest import Api
from tests.e2e.mesh import App

STORE = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: vault}}
spec:
  type: secretstores.local.file
  version: v1
  metadata: [{{name: secretsFile, value: {folder}/secrets.json}}]
"""
ENDPOINT = """\
apiVersion: dapr.io/v1alpha1
kind: HTTPEndpoint
metadata: {{name: outside}}
spec:
  baseUrl: http://127.0.0.1:{port}
  headers: [{{name: X-Key, secretKeyRef: {{name: shop, key: {key}}}}}]
auth: {{secretStore: vault}}
"""
BUS = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: bus}}
spec:
  type: pubsub.in-memory
  version: v1
  ignoreErrors: {ignore}
  metadata: [{{name: allowedTopics, secretKeyRef: {{name: topics}}}}]
auth: {{secretStore: {store}}}
"""


@pytest.fixture
def folder(tmp_path):
    resources = tmp_path / "resources"
    resources.mkdir()
    (resources / "vault.yaml").write_text(STORE.format(folder=tmp_path))
    (tmp_path / "secrets.json").write_text(json.dumps({"shop": "s3cret", "topics": "A,B"}))
    return resources


async def test_an_endpoint_has_its_secrets(start, folder):
    async with App() as outside:
        (folder / "endpoint.yaml").write_text(ENDPOINT.format(port=outside.port, key="shop"))
        api = await start(f"--resources-path={folder}")
        answer = await api.call("POST", "/v1.0/invoke/outside/method/orders", body=b"1")
        assert answer.status == 200
        [request] = outside.events
        assert (request.path, request.headers["x-key"]) == ("/orders", "s3cret")
        described = (await api.call("GET", "/v1.0/metadata")).json
        assert described["httpEndpoints"] == [{"name": "outside"}]
        assert "s3cret" not in json.dumps(described)


async def test_a_component_has_its_secrets(start, folder):
    (folder / "bus.yaml").write_text(BUS.format(ignore="false", store="vault"))
    api = await start(f"--resources-path={folder}")
    statuses = [(await api.call("POST", f"/v1.0/publish/bus/{topic}", body=b"1")).status for topic in "ABC"]
    assert statuses == [204, 204, 403]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            ENDPOINT.format(port=1, key="door"),
            r"e\.yaml:6: secretKeyRef: the secret 'shop' of 'vault' has no key 'door'",
        ),
        (
            BUS.format(ignore="false", store="safe"),
            r"INIT_COMPONENT_FAILURE.* bus .*e\.yaml:8: .*no secret store 'safe'.*\(there is: vault\)",
        ),
    ],
)
async def test_a_secret_that_is_not_there_ends_the_start(folder, text, message):
    (folder / "e.yaml").write_text(text)
    api = Api(f"--resources-path={folder}")
    with pytest.raises(ConfigurationError, match=message):
        await api.running


async def test_a_component_without_its_secret_may_be_left_out(start, folder):
    (folder / "bus.yaml").write_text(BUS.format(ignore="true", store="safe"))
    api = await start(f"--resources-path={folder}")
    assert (await api.call("POST", "/v1.0/publish/bus/A", body=b"1")).status == 404
    assert (await api.call("POST", "/v1.0/publish/pubsub/A", body=b"1")).status == 204


async def test_a_store_file_that_is_not_there_ends_the_start(folder, tmp_path):
    (tmp_path / "secrets.json").unlink()
    api = Api(f"--resources-path={folder}")
    with pytest.raises(
        ConfigurationError, match=r"vault\.yaml:1: metadata\.secretsFile: .* cannot be read: No such file"
    ):
        await api.running


async def test_a_default_store_may_be_denied(start, tmp_path):
    configuration = tmp_path / "configuration.yaml"
    configuration.write_text("spec: {components: {deny: [state.meshwire]}}\n")
    api = await start(f"--config={configuration}")
    names = {component["name"] for component in (await api.call("GET", "/v1.0/metadata")).json["components"]}
    assert "pubsub" in names
    assert "statestore" not in names


ENCRYPTED = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: statestore}
spec:
  type: state.meshwire
  version: v1
  metadata: [{name: primaryEncryptionKey, secretKeyRef: {name: STATE_KEY}}]
auth: {secretStore: variables}
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: variables}
spec: {type: secretstores.local.env, version: v1}
"""


async def test_without_its_key_nothing_is_written_in_the_clear(tmp_path, monkeypatch):
    monkeypatch.delenv("STATE_KEY", raising=False)
    (tmp_path / "state.yaml").write_text(ENCRYPTED)
    api = Api(f"--resources-path={tmp_path}")
    with pytest.raises(ConfigurationError, match=r"state\.yaml:8: secretKeyRef: the secret 'STATE_KEY' .* is empty"):
        async with asyncio.timeout(30):
            await api.running


async def test_a_file_that_is_no_yaml_ends_the_start(tmp_path):
    """Else the default store would take the place of the user's, and the data."""
    (tmp_path / "state.yaml").write_text(ENCRYPTED.replace("version: v1\n  metadata: [", "version: v1\n  metadata: [["))
    with pytest.raises(ConfigurationError, match=r"state\.yaml:9: did not find expected"):
        Api(f"--resources-path={tmp_path}")
