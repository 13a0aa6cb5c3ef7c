import argparse
import socket
import sys

import pytest

from brokers.nats import embedded
from mesh.errors import ConfigurationError
from sidecar.cli import UsageError, launch, run
from sidecar.supervisor import Api


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MESHWIRE_HOME", str(tmp_path))
    return tmp_path


def parse(*words):
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    launch.configure(parser)
    return parser.parse_args(words)


def sidecar_flags(*words):
    command = launch.sidecar_command(parse(*words), "orders", 3500)
    assert command[:4] == [sys.executable, "-P", "-m", "sidecar"]
    return command[4:]


def listener(port=0):
    return socket.create_server(("127.0.0.1", port))


def test_sidecar_gets_only_what_was_said():
    assert sidecar_flags() == ["--app-id=orders", "--dapr-http-port=3500"]


def test_sidecar_gets_each_flag_under_its_long_name():
    given = sidecar_flags(
        *("-p", "6001", "-c", "a.yaml", "--config", "b.yaml", "--resources-path=x", "--resources-path", "y,z"),
        *("-d", "old", "-u", "/tmp", "--enable-app-health-check", "--enable-api-logging=false", "--log-as-json=TRUE"),
        *("--app-max-concurrency", "-1", "--max-body-size", "-1", "--app-channel-address", "10.0.0.1"),
    )
    assert given[2:] == [
        "--app-port=6001",
        "--app-max-concurrency=-1",
        "--app-channel-address=10.0.0.1",
        "--enable-app-health-check=true",
        "--resources-path=x",
        "--resources-path=y,z",
        "--components-path=old",
        "--config=a.yaml",
        "--config=b.yaml",
        "--unix-domain-socket=/tmp",
        "--max-body-size=-1",
        "--enable-api-logging=false",
        "--log-as-json=true",
    ]


@pytest.mark.parametrize("name", launch.WITHOUT_MEANING)
def test_flag_without_meaning_is_taken_and_not_passed_on(name):
    assert sidecar_flags(f"--{name}=1") == sidecar_flags()
    assert getattr(parse(f"--{name}="), name.replace("-", "_")) == ""


def test_flags_of_the_app_stay_with_the_app():
    assert parse("-a", "x", "--", "app", "--app-id", "y", "-p", "1", "--", "z").command[-7:] == [
        *("app", "--app-id", "y", "-p", "1", "--", "z")
    ]
    assert parse("-a", "x", "app", "-f", "y").command == ["app", "-f", "y"]


def test_command_taken_for_the_value_of_a_switch():
    with pytest.raises(argparse.ArgumentError, match="put -- before"):
        parse("--enable-api-logging", "python", "app.py")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["-k"], "this machine only"),
        (["-M", "70000"], "--metrics-port 70000 is no port"),
        (["--app-protocol", "grpc"], "--app-protocol grpc comes later"),
        (["--app-port", "65536"], "--app-port 65536 is no port"),
        (["--dapr-http-port", "70000"], "--dapr-http-port 70000 is no port"),
        (["--app-id", ""], "--app-id '' is no app id"),
        (["--app-id", "a.b"], "--app-id 'a.b'"),
        (["--app-id", "a>"], "--app-id 'a>'"),
        (["--app-id", "x\r\ny"], "no app id"),
        (["--app-id", "x" * 65], "no app id"),
    ],
)
def test_wrong_use_is_refused_before_anything_starts(words, problem, home):
    with pytest.raises(UsageError, match=problem):
        run.execute(parse(*words))
    assert list(home.iterdir()) == []


def test_program_that_does_not_exist(home):
    with pytest.raises(ConfigurationError, match="no program 'no-such-program'"):
        run.execute(parse("--", "no-such-program", "x"))
    assert list(home.iterdir()) == []


def test_port_that_is_taken_is_named_with_its_flag():
    with listener() as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} is taken .* --dapr-http-port"):
            launch.choose_port(port, 0)


def test_ports_of_app_and_sidecar_must_differ():
    with pytest.raises(ConfigurationError, match="--app-port and --dapr-http-port are both 6001"):
        launch.choose_port(6001, 6001)


def test_default_port_goes_to_one_run_at_a_time(monkeypatch):
    with listener() as other:
        monkeypatch.setattr(launch, "DEFAULT_PORT", other.getsockname()[1])
    first, reservation = launch.choose_port(None, 0)
    second, _ = launch.choose_port(None, 0)
    assert first == launch.DEFAULT_PORT
    assert second != first
    reservation.close()
    with listener(first):
        assert launch.choose_port(None, 0)[0] != first
    assert launch.choose_port(None, app_port=first)[0] != first
    port, reservation = launch.choose_port(None, 0)
    reservation.close()
    assert port == first


@pytest.mark.parametrize("asked", [0, -1])
def test_port_that_is_not_positive_means_any(asked):
    port, _ = launch.choose_port(asked, 0)
    assert port not in (0, launch.DEFAULT_PORT)
    assert launch._is_free(port)


def test_environment_of_the_app(monkeypatch):
    monkeypatch.setenv("OF_THE_USER", "1")
    monkeypatch.setenv("APP_ID", "outer")
    monkeypatch.setenv("PYTHONUNBUFFERED", "")
    found = launch.app_environment(parse("-p", "6001"), "orders", 3501)
    names = ("APP_ID", "APP_PORT", "APP_PROTOCOL", "APP_CHANNEL_ADDRESS", "DAPR_HTTP_PORT", "OF_THE_USER")
    assert [found[name] for name in names] == ["orders", "6001", "http", "127.0.0.1", "3501", "1"]
    assert found["PYTHONUNBUFFERED"] == ""
    assert "APP_PORT" not in launch.app_environment(parse(), "orders", 3501)


@pytest.mark.parametrize(
    ("words", "api"),
    [
        ([], Api("127.0.0.1", 3500)),
        (["--dapr-listen-addresses", "10.0.0.9, 0.0.0.0"], Api("127.0.0.1", 3500)),
        (["--dapr-listen-addresses", "10.0.0.9"], Api("10.0.0.9", 3500)),
        (["-u", "/tmp/x"], Api("localhost", 3500, "/tmp/x/dapr-orders-http.socket")),
    ],
)
def test_where_the_sidecar_is_asked(words, api):
    assert launch.api_of(parse(*words), "orders", 3500) == api


def test_broker_that_cannot_run_ends_the_run(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(embedded, "ensure_keeper", asked.append)
    launch._tend(tmp_path)
    assert asked == [tmp_path]
    (tmp_path / "keeper.error").write_text("disk full")
    with pytest.raises(ConfigurationError, match="the embedded broker cannot run: disk full"):
        launch._tend(tmp_path)
    assert asked == [tmp_path]
