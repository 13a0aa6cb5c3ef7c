"""Every building block can be reached in a whole sidecar, by the components that need no file and by those of one."""

import json

from tests.e2e.mesh import JSON


async def test_the_default_stores(start):
    api = await start()
    names = {one["name"]: one["type"] for one in (await api.call("GET", "/v1.0/metadata")).json["components"]}
    assert names == {
        "pubsub": "pubsub.meshwire",
        "statestore": "state.meshwire",
        "lockstore": "lock.meshwire",
        "configstore": "configuration.meshwire",
    }
    body = b'[{"key": "k", "value": 1}]'
    assert (await api.call("POST", "/v1.0/state/statestore", [JSON], body)).status == 204
    assert (await api.call("GET", "/v1.0/state/statestore/k")).body == b"1"
    lock = b'{"resourceId": "r", "lockOwner": "me", "expiryInSeconds": 60}'
    taken = [(await api.call("POST", "/v1.0-alpha1/lock/lockstore", [JSON], lock)).json["success"] for _ in range(2)]
    assert taken == [True, False]
    assert (await api.call("PUT", "/mesh/v1/configuration/configstore/colour", body=b"red")).status in (200, 201, 204)
    assert (await api.call("GET", "/v1.0/configuration/configstore?key=colour")).json["colour"]["value"] == "red"


async def test_secrets_within_their_scopes(start, tmp_path):
    (tmp_path / "secrets.json").write_text(json.dumps({"open": "1", "closed": "2"}))
    (tmp_path / "configuration.yaml").write_text(
        "spec: {secrets: {scopes: [{storeName: vault, deniedSecrets: [closed]}]}}\n"
    )
    (tmp_path / "resources").mkdir()
    (tmp_path / "resources" / "vault.yaml").write_text(f"""
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: vault}}
spec:
  type: secretstores.local.file
  version: v1
  metadata: [{{name: secretsFile, value: {tmp_path}/secrets.json}}]
""")
    api = await start(f"--resources-path={tmp_path}/resources", f"--config={tmp_path}/configuration.yaml")
    assert (await api.call("GET", "/v1.0/secrets/vault/open")).json == {"open": "1"}
    assert (await api.call("GET", "/v1.0/secrets/vault/closed")).status == 403
    assert (await api.call("GET", "/v1.0/secrets/vault/bulk")).json == {"open": {"open": "1"}}
