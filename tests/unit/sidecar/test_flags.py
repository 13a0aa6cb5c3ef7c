import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ConfigurationError
from sidecar.flags import SidecarFlags, ignored, parse, usage

_NAMES = """
app-id app-port app-protocol app-channel-address app-ssl app-max-concurrency dapr-http-port dapr-grpc-port
dapr-internal-grpc-port dapr-internal-grpc-listen-address dapr-public-port dapr-public-listen-address
dapr-listen-addresses unix-domain-socket mode config resources-path components-path control-plane-address
control-plane-namespace control-plane-trust-domain sentry-address sentry-request-jwt-audiences enable-mtls
placement-host-address actors-service reminders-service scheduler-host-address scheduler-job-streams
actors-disseminate-timeout allowed-origins max-body-size dapr-http-max-request-size read-buffer-size
dapr-http-read-buffer-size dapr-graceful-shutdown-seconds dapr-block-shutdown-duration enable-api-logging
disable-builtin-k8s-secret-store disable-init-endpoints app-binding-options-timeout enable-app-health-check
app-health-check-path app-health-probe-interval app-health-probe-timeout app-health-threshold
hot-reload-reconcile-interval enable-metrics metrics-port metrics-listen-address enable-profiling profile-port
log-level log-as-json log-file wait version build-info
"""
DAPR_FLAGS = _NAMES.split()


def test_defaults() -> None:
    assert parse(["--app-id", "a"]) == SidecarFlags(app_id="a", given=frozenset({"app-id"}))


def test_every_flag_of_daprd_is_known() -> None:
    assert [line.split()[0] for line in usage().splitlines() if line.startswith("  --")] == [
        f"--{f}" for f in DAPR_FLAGS
    ]


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        ("--app-port 8080", "app_port", 8080),
        ("--app-port=0", "app_port", None),
        ("--app-port=", "app_port", None),
        ("-app-port 8080", "app_port", 8080),
        ("-app-port=8080", "app_port", 8080),
        ("--app-port 1 --app-port 2", "app_port", 2),
        ("--app-max-concurrency -1", "app_max_concurrency", None),
        ("--app-max-concurrency 7", "app_max_concurrency", 7),
        ("--dapr-http-port 3600", "http_port", 3600),
        ("--dapr-grpc-port 1", "grpc_port", 1),
        ("--dapr-public-port 3501", "public_port", 3501),
        ("--dapr-listen-addresses 0.0.0.0,[::1]", "listen_addresses", ("0.0.0.0", "::1")),
        ("--dapr-listen-addresses=", "listen_addresses", ("127.0.0.1",)),
        ("--unix-domain-socket /run/x", "unix_domain_socket", Path("/run/x")),
        ("--unix-domain-socket=", "unix_domain_socket", None),
        ("--config a,b --config c", "config", (Path("a"), Path("b"), Path("c"))),
        ("--components-path old", "resources_path", (Path("old"),)),
        ("--components-path old --resources-path new", "resources_path", (Path("new"),)),
        ("--allowed-origins http://a,*", "allowed_origins", ("http://a", "*")),
        ("--max-body-size 16Mi", "max_body_size", 16 << 20),
        ("--max-body-size -1", "max_body_size", 4 << 20),
        ("--max-body-size 0", "max_body_size", None),
        ("--dapr-http-max-request-size 8", "max_body_size", 8 << 20),
        ("--dapr-http-max-request-size 8 --max-body-size 1Ki", "max_body_size", 1024),
        ("--dapr-http-max-request-size -1", "max_body_size", 4 << 20),
        ("--read-buffer-size 8Ki", "read_buffer_size", 8192),
        ("--dapr-http-read-buffer-size 16", "read_buffer_size", 16384),
        ("--dapr-graceful-shutdown-seconds 0", "graceful_shutdown", 0.0),
        ("--dapr-graceful-shutdown-seconds -1", "graceful_shutdown", 5.0),
        ("--dapr-block-shutdown-duration 1m", "block_shutdown", 60.0),
        ("--enable-api-logging", "enable_api_logging", True),
        ("--enable-api-logging=false", "enable_api_logging", False),
        ("--disable-init-endpoints config,subscribe", "disable_init_endpoints", frozenset({"config", "subscribe"})),
        ("--enable-app-health-check", "enable_app_health_check", True),
        ("--app-health-check-path ready", "app_health_check_path", "/ready"),
        ("--app-health-probe-interval 0", "app_health_probe_interval", 5.0),
        ("--app-health-probe-timeout 250", "app_health_probe_timeout", 0.25),
        ("--app-health-threshold -3", "app_health_threshold", 3),
        ("--log-level WARN", "log_level", "warn"),
        ("--log-as-json", "log_as_json", True),
        ("--log-file /x.log", "log_file", Path("/x.log")),
        ("--app-protocol HTTP", "app_protocol", "http"),
        ("--app-protocol=", "app_protocol", "http"),
        ("--app-protocol H2C", "app_protocol", "h2c"),
        ("--app-protocol https", "app_protocol", "https"),
        ("--app-ssl=false", "app_protocol", "http"),
        ("--app-ssl", "app_protocol", "https"),
        ("--app-ssl --app-protocol h2c", "app_protocol", "h2c"),
        ("--mode standalone", "app_id", "a"),
    ],
)
def test_values(arguments: str, field: str, value: Any) -> None:
    assert getattr(parse(["--app-id", "a", *arguments.split()]), field) == value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", r"--app-id: is required"),
        ("--app-id a.b", r"--app-id: must be 1 to 64 .* \(got 'a\.b'\)"),
        ("--app-id=", "--app-id: must be 1 to 64"),
        ("--app-id é", "--app-id: must be"),
        ("--app-id " + "a" * 65, "--app-id: must be"),
        ("--app-port 65536", r"--app-port: must be a port from 1 to 65535 \(got '65536'\)"),
        ("--app-port -5", "--app-port: must be a port"),
        ("--dapr-http-port 0", "--dapr-http-port: must be a port"),
        ("--dapr-http-port=", "--dapr-http-port: must be a port"),
        ("--metrics-port x", "--metrics-port: must be a port"),
        ("--app-port 3500", r"--app-port: must differ from --dapr-http-port \(both are 3500\)"),
        ("--dapr-public-port 3500", "--dapr-public-port: must differ"),
        ("--app-protocol grpc", "--app-protocol: grpc is not there yet"),
        ("--app-protocol tcp", "--app-protocol: must be one of"),
        ("--mode kubernetes", "--mode: kubernetes mode is not there"),
        ("--mode x", "--mode: must be one of standalone, kubernetes"),
        ("--enable-mtls=maybe", "--enable-mtls: must be true or false"),
        ("--max-body-size 4MB", "--max-body-size: must be a quantity"),
        ("--max-body-size -2", "--max-body-size: must be a size, 0 or -1"),
        ("--read-buffer-size 0", "--read-buffer-size: must be more than 0"),
        (
            "--disable-init-endpoints config,x",
            r"--disable-init-endpoints: must be one of config, subscribe \(got 'x'\)",
        ),
        ("--dapr-block-shutdown-duration 5", "--dapr-block-shutdown-duration: must be a duration"),
        ("--dapr-block-shutdown-duration=-5s", "must not be negative"),
        ("--app-health-probe-timeout 5001", r"--app-health-probe-timeout: must not exceed .* \(got 5001 ms and 5 s\)"),
        ("--app-health-check-path /a#b", "--app-health-check-path: must be a path"),
        ("--log-level loud", "--log-level: must be one of debug, info, warn, error, fatal"),
        ("--dapr-listen-addresses a/b", "--dapr-listen-addresses: must be a host name"),
        ("--app-channel-address http://x", "--app-channel-address: must be a host name"),
    ],
)
def test_bad_values_name_flag_value_and_rule(arguments: str, message: str) -> None:
    base = [] if "--app-id" in arguments or not arguments else ["--app-id", "a"]
    with pytest.raises(ConfigurationError, match=f"^{message}|{message}"):
        parse([*base, *arguments.split()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nonsense"], "unknown flag '--nonsense' (see"),
        (["--app_id=a"], "unknown flag '--app_id', did you mean '--app-id'? (see"),
        (["-x"], "unknown flag '--x'"),
        (["---app-id=a"], "unknown flag '---app-id'"),
        (["--enable-mtls", "false"], "unexpected argument 'false'; a boolean needs '='"),
        (["--"], "unexpected argument"),
        (["--app-id"], "--app-id needs a value"),
    ],
)
def test_what_is_no_flag_is_wrong_use(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"meshwire sidecar: {message}")
    assert line.endswith(" (see meshwire sidecar --help)")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--help"])
    assert ended.value.code == 0
    assert "--app-id" in capsys.readouterr().out


def test_commands_that_run_no_sidecar_need_no_app_id() -> None:
    assert parse(["--wait", "--dapr-http-port", "3600"]).wait
    assert parse(["--version"]).version
    assert parse(["-build-info"]).build_info


def test_ignored_flags_are_listed_with_the_reason() -> None:
    arguments = "--placement-host-address x:50005 --enable-mtls=false --dapr-grpc-port 5 --log-level info"
    flags = parse(["--app-id", "a", *arguments.split()])
    assert ignored(flags) == [
        "--dapr-grpc-port has no effect: the gRPC API is not there yet",
        "--enable-mtls has no effect: sidecars talk through the broker, not to each other: "
        "encrypt with a tls:// broker address",
        "--placement-host-address has no effect: actors need no service of their own",
    ]
    assert ignored(parse(["--app-id", "a"])) == []


@given(st.sampled_from(DAPR_FLAGS), st.text())
def test_no_value_crashes(flag: str, value: str) -> None:
    try:
        parse(["--app-id=a", f"--{flag}={value}"])
    except ConfigurationError as error:
        assert str(error).startswith("--")


def test_importing_the_flags_costs_neither_argparse_nor_yaml() -> None:
    code = "import sys, sidecar.flags; sys.exit(bool({'argparse', 'yaml', 'asyncio'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-P", "-c", code], timeout=30, check=False).returncode == 0
