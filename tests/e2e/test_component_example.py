"""The example of a component in a package of its own: installed as its README says, found, and used."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.mesh import MESHWIRE, Sidecar

EXAMPLE = Path(__file__).parents[2] / "examples" / "component"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, as `pip` installs it."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(EXAMPLE, folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(folder / "target")]
    subprocess.run([*pip, *offline, str(folder / "source")], check=True, timeout=60)
    return folder / "target"


def test_it_is_listed(installed: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [*MESHWIRE, "components", "secretstores.dotenv"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=True).stdout
    assert "secretstores.dotenv v1: A .env file" in told
    assert "text, .env if not given" in told


async def test_it_works(installed: Path, tmp_path: Path) -> None:
    """Another component takes a setting from it."""
    (tmp_path / "shop.env").write_text("# Topics\nTOPICS='paid,shipped'\n")
    (tmp_path / "resources").mkdir()
    (tmp_path / "resources" / "all.yaml").write_text(f"""
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: bus}}
spec:
  type: pubsub.in-memory
  version: v1
  metadata: [{{name: allowedTopics, secretKeyRef: {{name: TOPICS}}}}]
auth: {{secretStore: dotenv}}
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: dotenv}}
spec:
  type: secretstores.dotenv
  version: v1
  metadata: [{{name: path, value: {tmp_path}/shop.env}}]
""")
    flags = ["--resources-path", str(tmp_path / "resources")]
    sidecar = Sidecar(tmp_path, "app", *flags, broker="memory", PYTHONPATH=str(installed)).start()
    try:
        await sidecar.ready()
        statuses = [(await sidecar.call("POST", f"/v1.0/publish/bus/{t}", body=b"1")).status for t in ("paid", "lost")]
        assert statuses == [204, 403]
    finally:
        sidecar.kill()
    assert "Component loaded: dotenv (secretstores.dotenv/v1)" in sidecar.log
    assert "shipped" not in sidecar.log
