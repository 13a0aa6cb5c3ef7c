"""compose.yaml and Dockerfile. There is no container engine here: the file is held to the compose specification's
schema, and each service's own command runs as a local process, with nothing changed but ports, hosts and tokens."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.contract.nats_server import BINARY
from tests.ports import free_port
from tests.servers import kafka_jars

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "compose.yaml").read_text()
TOKEN = "a-token-of-the-test"
LOCAL = {"MESHWIRE_LISTEN_HOST": "127.0.0.1", "MESHWIRE_PUBLISH_HOST": "127.0.0.1", "DAPR_API_TOKEN": TOKEN}
LIMIT = 90.0
"""Seconds until every service is healthy, and until an event has arrived."""

FOR_TESTS = ("-XX:+UseSerialGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
"""What spares a small machine, and the log."""

VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^{}]*))?\}")
"""One that holds no other."""


def replaced(text, value):
    """With `value(match)` in place of each variable, those within others first."""
    while VARIABLE.search(text):
        text = VARIABLE.sub(value, text)
    return text


def interpolated(text, environment):
    """Compose's `${NAME}`, `${NAME:-default}` and `${NAME:?error}`; no others are used."""

    def value(match):
        name, operator, rest = match.groups()
        if environment.get(name):
            return environment[name]
        if operator == "?":
            raise LookupError(f"{name} {rest}")
        return rest if operator == "-" else ""

    return replaced(text, value)


def services(environment, profile=""):
    """Those that `docker compose --profile` starts."""
    found = yaml.safe_load(interpolated(COMPOSE, environment))["services"]
    for name in [name for name, service in found.items() if profile not in service.get("profiles", [profile])]:
        del found[name]
    for service in found.values():
        service.setdefault("command", [])
        service["environment"] = {name: str(value) for name, value in service.get("environment", {}).items()}
    return found


def texts(value):
    """All strings in a piece of YAML."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for member in value.values() if isinstance(value, dict) else value:
            yield from texts(member)


def host_and_port_variables():
    """Values that make every service reachable on this machine: a free port for each, loopback for each host."""
    names = {name for name, _, _ in VARIABLE.findall(COMPOSE)}
    ports = {name: str(free_port()) for name in names if name.endswith("_PORT")}
    assert len(set(ports.values())) == len(ports)
    return LOCAL | ports | {name: "127.0.0.1" for name in names if name.endswith("_HOST")}


def test_follows_the_compose_specification():
    schema = json.loads(
        resources.files("check_jsonschema.builtin_schemas.vendor").joinpath("compose-spec.json").read_text()
    )
    jsonschema.validate(yaml.safe_load(COMPOSE), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(COMPOSE.replace("healthcheck:", "health_check:")), schema)


def test_every_port_and_every_host_is_a_variable_with_a_default():
    for name, service in yaml.safe_load(COMPOSE)["services"].items():
        for text in texts({key: service.get(key) for key in ("command", "environment", "ports", "healthcheck")}):
            fixed = replaced(text, "").replace("127.0.0.1", "")  # a container's own
            assert not re.search(r"\d{4}|\d+\.\d+\.\d+|localhost", fixed), f"{name}: {text}"
    for name, operator, default in VARIABLE.findall(COMPOSE):
        if name.endswith(("_PORT", "_HOST")):
            assert (operator, bool(default)) == ("-", True), name


def test_no_two_services_share_a_port():
    used = {}
    for name, service in services({"DAPR_API_TOKEN": TOKEN}, "kafka").items():
        own = set(re.findall(r"-port=(\d+)|--(?:http_)?port=(\d+)", " ".join(service["command"])))
        own = {first or second for first, second in own} | {service["environment"].get("APP_PORT")} - {None}
        own |= set(re.findall(r":(\d+)", service["environment"].get("KAFKA_LISTENERS", "")))
        if name.endswith("-sidecar"):  # where its app listens is not its own
            own -= set(re.findall(r"--app-port=(\d+)", " ".join(service["command"])))
        assert own, name
        for port in own:
            assert used.setdefault(port, name) == name, f"{port} is used by {used[port]} and {name}"
    assert len(used) == 8


def test_containers_listen_everywhere_and_ask_for_a_token():
    found = services({"DAPR_API_TOKEN": TOKEN}, "kafka")
    for name, service in found.items():
        assert "0.0.0.0" in " ".join(texts([service["command"], service["environment"]])), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
    for name in ("orders-sidecar", "inventory-sidecar"):
        assert found[name]["environment"]["DAPR_API_TOKEN"] == TOKEN
    with pytest.raises(LookupError, match="DAPR_API_TOKEN must be set"):
        services({})


def test_the_mesh_is_on_the_broker_that_is_named():
    """Kafka is there with its profile only, and what is named is what all sidecars get."""
    plain = services({"DAPR_API_TOKEN": TOKEN})
    assert "kafka" not in plain
    told, *_ = re.findall(r"(MESHWIRE_BROKER=\S+) docker compose --profile kafka", COMPOSE)
    name, _, broker = told.partition("=")
    beside = services({"DAPR_API_TOKEN": TOKEN, name: broker}, "kafka")
    for sidecar in ("orders-sidecar", "inventory-sidecar"):
        assert plain[sidecar]["environment"][name] == "nats://nats:4222"
        assert beside[sidecar]["environment"][name] == broker
        assert beside[sidecar]["depends_on"]["kafka"] == {"condition": "service_healthy", "required": False}
    kafka = beside["kafka"]
    assert kafka["environment"]["KAFKA_ADVERTISED_LISTENERS"] == broker.replace("kafka://", "CLIENTS://")
    assert kafka["image"] == f"apache/kafka:{kafka_jars.VERSION}"  # what is tested


def kafka_here(service, folder):
    """As the image does it: variables become properties, and the folder is formatted before the first start."""
    folder.mkdir()
    own = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in service["environment"].items()
        if name not in ("CLUSTER_ID", "KAFKA_HEAP_OPTS")
    }
    properties = folder / "server.properties"
    own["log.dirs"] = str(folder / "data")
    properties.write_text("".join(f"{name}={value}\n" for name, value in own.items()))
    heap = service["environment"]["KAFKA_HEAP_OPTS"]
    java = [str(kafka_jars.java()), heap, *FOR_TESTS, "-cp", f"{kafka_jars.folder()}/*"]
    identity = ["-t", service["environment"]["CLUSTER_ID"]]
    subprocess.run([*java, "kafka.tools.StorageTool", "format", *identity, "-c", properties], check=True, timeout=60)
    return [*java, "kafka.Kafka", str(properties)]


def local_command(name, service, folder):
    """The command of a container, as a process of this machine: the entry point of its image, and its mounts."""
    first, *rest = service["command"] or [""]
    if name == "kafka":
        words = kafka_here(service, folder / name)
    elif name == "nats":
        words = [str(BINARY), first, *rest]
    elif first in ("./daprd", "/daprd"):
        words = [sys.executable, "-P", "-m", "sidecar", *rest]
    else:
        assert first == "python"
        words = [sys.executable, *rest]
    for mount in service.get("volumes", []):
        source, target, *_ = mount.split(":")
        here = ROOT / source if source.startswith("./") else folder / source
        words = [re.sub(rf"(^|=){target}(?=/|$)", lambda match, here=here: f"{match[1]}{here}", word) for word in words]
    return words


def is_healthy(service):
    """The service's own health check; the one of the NATS image is made by a program that may be missing here."""
    kind, *words = service["healthcheck"]["test"]
    assert kind == "CMD"
    if words[0] == "nc":
        option, host, port = words[1:]
        assert option == "-z"
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0
    if words[0] == "wget":
        words = [
            sys.executable,
            "-P",
            "-c",
            "import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=3)",
            words[-1],
        ]
    assert words[0] in ("python", sys.executable)
    return subprocess.run([sys.executable, *words[1:]], capture_output=True, timeout=10).returncode == 0


def wait_for(condition, what):
    limit = time.monotonic() + LIMIT
    while not (result := condition()):
        assert time.monotonic() < limit, what()
        time.sleep(0.05)
    return result


def ask(port, path, body=None, headers=None):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.fixture(params=["", pytest.param("kafka", marks=[pytest.mark.servers, pytest.mark.timeout(240)])])
def system(request, tmp_path):
    """All services of a profile, healthy and subscribed, as local processes; gives the variables that they were started
    with."""
    environment = host_and_port_variables()
    if request.param == "kafka":
        if reason := kafka_jars.missing():
            pytest.skip(reason)
        environment["MESHWIRE_BROKER"] = f"kafka://127.0.0.1:{environment['MESHWIRE_KAFKA_PORT']}"
    found = services(environment, request.param)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DAPR_", "APP_", "MESHWIRE_"))}
    with ExitStack() as stack:
        for name, service in found.items():
            log = stack.enter_context((tmp_path / f"{name}.log").open("wb"))
            process = subprocess.Popen(
                local_command(name, service, tmp_path),
                env=kept | {"MESHWIRE_HOME": str(tmp_path / "home")} | service["environment"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            stack.callback(process.wait, 20)
            stack.callback(process.terminate)
        for name, service in found.items():

            def logs(name=name):
                return f"{name} is not healthy:\n{(tmp_path / f'{name}.log').read_text()}"

            wait_for(lambda service=service: is_healthy(service), logs)
        inventory = tmp_path / "inventory-sidecar.log"
        wait_for(
            lambda: "app is subscribed to the following topics: [orders]" in inventory.read_text(), inventory.read_text
        )
        yield environment


def test_an_order_travels_through_all_services(system):
    orders, inventory = system["MESHWIRE_ORDERS_APP_PORT"], system["MESHWIRE_INVENTORY_APP_PORT"]
    assert ask(orders, "/orders", b'{"item": "apple", "quantity": 3}')[0] == 202

    def stock():
        return json.loads(ask(inventory, "/stock")[1])

    wait_for(lambda: stock() == {"reserved": {"apple": 3}}, stock)

    # Whoever comes without the token gets nowhere, at a sidecar as at the app.
    sidecar = system["MESHWIRE_ORDERS_HTTP_PORT"]
    publish, event = "/v1.0/publish/pubsub/orders", b'{"item": "apple", "quantity": 1}'
    assert ask(sidecar, publish, event) == (401, b"invalid api token\n")
    known = {"dapr-api-token": TOKEN}
    assert ask(sidecar, publish, b"no order", known | {"content-type": "text/plain"})[0] == 204
    assert ask(sidecar, publish, event, known | {"content-type": "application/json"})[0] == 204
    assert ask(inventory, "/ordered", b'{"data": {"item": "apple", "quantity": 99}}')[0] == 401
    wait_for(lambda: stock() == {"reserved": {"apple": 4}}, stock)


def test_the_image_is_made_of_files_that_are_there():
    dockerfile = (ROOT / "Dockerfile").read_text()
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {word for line in re.findall(r"^COPY ([^-].*) \S+$", dockerfile, re.MULTILINE) for word in line.split()}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_the_entry_of_the_image_is_the_sidecar(tmp_path):
    dockerfile = (ROOT / "Dockerfile").read_text()
    written = re.search(r"printf '%s\\n' (.*) > /daprd", dockerfile)[1]
    shebang, *lines = re.findall(r"'([^']*)'", written)
    assert shebang == "#!/opt/meshwire/bin/python -P"
    daprd = tmp_path / "daprd"
    daprd.write_text("\n".join([f"#!{sys.executable} -P", *lines, ""]))
    daprd.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MESHWIRE_")}
    shown = subprocess.run(["./daprd", "--version"], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert re.fullmatch(r"meshwire \d+\.\d+\.\d+\S*\n", shown.stdout), shown.stderr
    # A container without a broker would silently be a mesh of its own.
    alone = subprocess.run(
        ["./daprd", "--app-id", "x"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=20
    )
    assert alone.returncode == 1
    assert "MESHWIRE_BROKER is not set" in alone.stderr


def engine():
    """Docker's command line, when there is an engine behind it."""
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "info"], capture_output=True, timeout=60).returncode == 0:
        return docker
    return None


@pytest.mark.servers
@pytest.mark.timeout(900)
def test_the_image_can_be_built():
    docker = engine()
    if docker is None:
        pytest.skip("there is no container engine")
    subprocess.run([docker, "build", "--tag", "meshwire:test", ROOT], check=True, timeout=800)
    run = [docker, "run", "--rm", "meshwire:test"]
    for entry in ("./daprd", "/daprd"):
        shown = subprocess.run([*run, entry, "--version"], capture_output=True, text=True, timeout=60)
        assert shown.stdout.startswith("meshwire "), shown.stderr
    user = subprocess.run([*run, "id", "-u"], capture_output=True, text=True, timeout=60)
    assert user.stdout.strip() == "65532"
