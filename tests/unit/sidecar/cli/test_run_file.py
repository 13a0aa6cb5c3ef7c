from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from mesh.errors import ConfigurationError
from sidecar.cli import launch, run_file
from sidecar.cli.run_file import Template, load


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHWIRE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)
    for name in ("orders", "billing"):
        (tmp_path / name).mkdir()


def write(text: str, path: str = "dapr.yaml") -> Template:
    Path(path).write_text(text)
    return load(path)


def one(keys: str, common: str = "") -> list[str]:
    """The flags of the sidecar of one app with these keys, but for its id and port."""
    lines = "".join(f"  {line}\n" for line in common.splitlines())
    keys = "".join(f"    {line}\n" for line in keys.splitlines())
    (app,) = write(f"version: 1\ncommon:\n{lines}apps:\n  - appDirPath: orders\n{keys}").apps
    return launch.sidecar_command(app.args, app.args.app_id, 1)[6:]


def test_the_example_of_dapr() -> None:
    template = write(
        """
        version: 1
        name: shop
        common:
          resourcesPaths: [./components]
          env: { LOG: debug, N: 1 }
        apps:
          - appID: buying
            appDirPath: ./orders
            appPort: 8080
            command: ["python3", "app.py"]
            env: { LOG: info, FLAG: true, NOTHING: }
          - appDirPath: ./billing/
        """
    )
    here = Path.cwd()
    assert (template.path, template.name, template.without_meaning) == (str(here / "dapr.yaml"), "shop", [])
    buying, billing = template.apps
    assert (buying.args.app_id, buying.args.app_port, buying.folder) == ("buying", 8080, here / "orders")
    assert buying.command == ("python3", "app.py")
    assert buying.env == {"LOG": "info", "N": "1", "FLAG": "true", "NOTHING": ""}
    assert billing.env == {"LOG": "debug", "N": "1"}
    assert (billing.args.app_id, billing.args.app_port, billing.command) == ("billing", 0, ())
    assert [app.args.resources_path for app in template.apps] == [[str(here / "components")]] * 2
    assert (buying.app_log, buying.sidecar_log) == ((True, True), (False, True))


def test_a_folder_stands_for_its_file_and_a_dash_for_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "version: 1\napps: [{appDirPath: ../orders}]"
    write(text, "billing/dapr.yaml")
    assert load("billing").path == str(Path.cwd() / "billing/dapr.yaml")
    monkeypatch.setattr("sys.stdin", io.StringIO(text.replace("../", "")))
    template = load("-")
    assert (template.path, template.apps[0].folder) == ("", Path.cwd() / "orders")


def test_each_key_becomes_the_flag_of_the_sidecar() -> None:
    given = {
        "appProtocol": ("h2c", "app-protocol"),
        "apiListenAddresses": ("10.0.0.1", "dapr-listen-addresses"),
        "logLevel": ("debug", "log-level"),
        "appHealthCheckPath": ("/x", "app-health-check-path"),
        "enableAppHealthCheck": ("true", "enable-app-health-check"),
        "enableApiLogging": ("false", "enable-api-logging"),
        "appMaxConcurrency": ("7", "app-max-concurrency"),
        "appHealthProbeInterval": ("6", "app-health-probe-interval"),
        "appHealthProbeTimeout": ("400", "app-health-probe-timeout"),
        "appHealthThreshold": ("2", "app-health-threshold"),
        "maxBodySize": ("8Mi", "max-body-size"),
        "readBufferSize": ("8Ki", "read-buffer-size"),
        "appChannelAddress": ("10.0.0.2", "app-channel-address"),
        "metricsPort": ("9091", "metrics-port"),
    }
    flags = one("".join(f"{key}: {value}\n" for key, (value, _) in given.items()))
    assert sorted(flags) == sorted(f"--{flag}={value}" for value, flag in given.values())
    assert one("appSSL: true") == ["--app-protocol=https"]
    assert one("unixDomainSocket: run") == [f"--unix-domain-socket={Path.cwd()}/orders/run"]


def test_the_key_of_the_app_wins_and_null_is_none() -> None:
    common = "logLevel: warn\nmaxBodySize: 1Mi\nenableApiLogging: true"
    assert one("logLevel: debug\nmaxBodySize:\nenableApiLogging: false", common) == [
        *("--max-body-size=1Mi", "--enable-api-logging=false", "--log-level=debug")
    ]


def test_where_resources_and_configuration_come_from() -> None:
    """Dapr's order, from the last to the first."""
    here = Path.cwd()

    def found() -> list[str]:
        return [flag.partition("=")[2].replace(f"{here}/", "") for flag in one(keys, common)]

    keys = common = ""
    assert found() == []
    common = "runtimePath: rt"
    assert found() == []
    (here / "rt/.dapr/components").mkdir(parents=True)
    (here / "rt/.dapr/config.yaml").touch()
    assert found() == ["rt/.dapr/components", "rt/.dapr/config.yaml"]
    common += "\nresourcesPaths: [a, ~/b, /c]\nconfigFilePath: d.yaml"
    assert found() == ["a", "user/b", "/c", "d.yaml"]
    (here / "orders/.dapr/resources").mkdir(parents=True)
    (here / "orders/.dapr/config.yaml").touch()
    assert found() == ["orders/.dapr/resources", "orders/.dapr/config.yaml"]
    keys = "resourcesPaths: [x, ../y]\nresourcesPath: z\nconfigFilePath: c.yaml"
    assert found() == ["orders/x", "y", "orders/z", "orders/c.yaml"]


def test_what_has_no_meaning_is_told_once() -> None:
    keys = "daprGRPCPort: 1, containerImage: x, createService: true, enableProfiling: false"
    template = write(
        f"version: 1\ncommon: {{placementHostAddress: ''}}\napps: [{{appDirPath: orders, {keys}}}, "
        f"{{appDirPath: billing, {keys}}}]"
    )
    told = ["placementHostAddress", "daprGRPCPort", "containerImage", "createService"]
    assert [line.split(" ")[0] for line in template.without_meaning] == told


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("apps: [{appDirPath: orders}]", "dapr.yaml:1: version: must be a number other than 0"),
        ("version: 0\napps: [{appDirPath: orders}]", "dapr.yaml:1: version: must be"),
        ("version: true\napps: [{appDirPath: orders}]", "dapr.yaml:1: version: must be"),
        ("version: 1", "dapr.yaml:1: apps: must have at least one app"),
        ("version: 1\nappps: []", "dapr.yaml:2: appps: unknown field, did you mean 'apps'?"),
        ("version: 1\napps:\n- appID: x", "dapr.yaml:3: apps[0].appDirPath: must be given"),
        ("version: 1\napps:\n- appDirPath: nowhere", "dapr.yaml:3: apps[0].appDirPath: there is no folder"),
        (
            "version: 1\napps:\n- appDirPath: orders\n  appport: 1\n  prot: 2",
            "dapr.yaml:5: apps[0].prot: unknown field",
        ),
        ("version: 1\ncommon:\n  appPort: 5", "dapr.yaml:3: common.appPort: unknown field"),
        ("version: 1\napps:\n- appDirPath: orders\n  appPort: x", "dapr.yaml:4: apps[0].appPort: argument --app-port"),
        ("version: 1\napps:\n- appDirPath: orders\n  appPort: 65536", "dapr.yaml:4: apps[0].appPort: --app-port 65536"),
        ("version: 1\napps:\n- appDirPath: orders\n  appID: a b", "dapr.yaml:4: apps[0].appID: --app-id 'a b'"),
        (
            "version: 1\napps:\n- appDirPath: orders\n  command: python x",
            "dapr.yaml:4: apps[0].command: must be a list",
        ),
        ("version: 1\napps:\n- appDirPath: orders\n  appSSL: maybe", "dapr.yaml:4: apps[0].appSSL: must be true or"),
        ("version: 1\napps:\n- appDirPath: orders\n  env: [A]", "dapr.yaml:4: apps[0].env: must be a mapping"),
        (
            "version: 1\ncommon: {daprdLogDestination: screen}\napps: [{appDirPath: orders}]",
            "dapr.yaml:2: common.daprdLogDestination: must be file, console, fileAndConsole (got 'screen')",
        ),
        ("version: 1\n---\nversion: 1", "dapr.yaml: must be one YAML document (there are 2)"),
        ("", "dapr.yaml: must be one YAML document (there are 0)"),
        ("version: [", "dapr.yaml:2: did not find"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(text: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(problem)):
        write(text)


def test_the_name_of_a_folder_may_be_no_app_id() -> None:
    Path("my orders").mkdir()
    with pytest.raises(ConfigurationError, match=r"apps\[0\].appDirPath: --app-id 'my orders' is no app id"):
        write("version: 1\napps: [{appDirPath: my orders}]")


def test_prefixes_are_coloured_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert run_file._prefix("app", "orders", 0) == b"== APP - orders == "
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    first, second = (run_file._prefix("daprd", "orders", number) for number in (0, 1))
    assert first == b"\x1b[36m== DAPRD - orders ==\x1b[0m "
    assert second != first
    monkeypatch.setenv("NO_COLOR", "1")
    assert run_file._prefix("daprd", "orders", 0) == b"== DAPRD - orders == "
