"""What one `meshwire run` starts: its flags, and the commands, environments and ports that they lead to.

The flags are those of `dapr run`. One without a meaning here is accepted, and that is said once; one that would
be needed and is not there yet is refused.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from brokers.nats import embedded
from mesh.errors import ConfigurationError, clip
from sidecar.cli import UsageError
from sidecar.supervisor import Api

DEFAULT_PORT = 3500
ANY_PORT = 0


class Flag(NamedTuple):
    """A flag of `dapr run` that the sidecar has under the same name."""

    name: str
    help: str
    short: str | None = None
    kind: Callable[[str], object] = str
    repeatable: bool = False


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"'{clip(text)}' is neither true nor false; put -- before the app's command")
    return text.lower() in ("true", "1")


PASSED_ON = (
    Flag("app-max-concurrency", "calls to the app under way at once (default -1: any number)", kind=int),
    Flag("app-channel-address", "host of the app (default 127.0.0.1)"),
    Flag("enable-app-health-check", "probe the app, and deliver only while it is healthy", kind=_switch),
    Flag("app-health-check-path", "path of the probe (default /healthz)"),
    Flag("app-health-probe-interval", "seconds between two probes (default 5)", kind=int),
    Flag("app-health-probe-timeout", "milliseconds that a probe may take (default 500)", kind=int),
    Flag("app-health-threshold", "failures in a row that make the app unhealthy (default 3)", kind=int),
    Flag("resources-path", "folder of component and subscription files; may be repeated", repeatable=True),
    Flag("components-path", "deprecated name of --resources-path", "d"),
    Flag("config", "configuration file; may be repeated", "c", repeatable=True),
    Flag("dapr-listen-addresses", "addresses of the sidecar's API, separated by commas"),
    Flag("unix-domain-socket", "folder of a Unix socket for the sidecar's API, in place of the port", "u"),
    Flag("max-body-size", "longest request to the sidecar, such as 8Mi (default 4Mi)"),
    Flag("read-buffer-size", "longest header of a request to the sidecar (default 4Ki)"),
    Flag("enable-api-logging", "log each call of the sidecar's API", kind=_switch),
    Flag("metrics-port", "port of the Prometheus endpoint (default 9090, if that is free)", "M", kind=int),
    Flag("log-level", "debug, info, warn, error or fatal (default info)"),
    Flag("log-as-json", "log in JSON", kind=_switch),
)

WITHOUT_MEANING = {
    "dapr-grpc-port": ("G", "the gRPC API is not served yet"),
    "dapr-internal-grpc-port": ("I", "sidecars talk through the broker"),
    "profile-port": (None, "there is no profiler"),
    "enable-profiling": (None, "there is no profiler"),
    "placement-host-address": (None, "there is no placement service"),
    "scheduler-host-address": (None, "there is no scheduler service"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "meshwire run [flags] [-- COMMAND …]"
    add = parser.add_argument
    add("--app-id", "-a", metavar="ID", help="name of the app in the mesh (default: a random one)")
    add(
        "--app-port",
        "-p",
        type=int,
        default=0,
        metavar="PORT",
        help="where the app listens; without it the app only calls",
    )
    add("--app-protocol", "-P", default="http", metavar="PROTOCOL", help="http, https or h2c (default: http)")
    add("--app-ssl", nargs="?", const=True, type=_switch, help=argparse.SUPPRESS)
    add(
        "--dapr-http-port",
        "-H",
        type=int,
        metavar="PORT",
        help=f"where the sidecar's API listens (default {DEFAULT_PORT}, or any free port when that is taken)",
    )
    add("--mesh", metavar="NAME", help="which embedded broker to share with other runs (default: default)")
    for flag in PASSED_ON:
        switch = {"nargs": "?", "const": True} if flag.kind is _switch else {}
        add(
            f"--{flag.name}",
            *([f"-{flag.short}"] if flag.short else []),
            type=flag.kind,
            action="append" if flag.repeatable else "store",
            metavar="true|false" if flag.kind is _switch else "N" if flag.kind is int else "TEXT",
            help=flag.help,
            **switch,  # type: ignore[arg-type]
        )
    for name, (short, reason) in WITHOUT_MEANING.items():
        add(
            f"--{name}",
            *([f"-{short}"] if short else []),
            nargs="?",
            const="true",
            metavar="…",
            help=f"no effect: {reason}",
        )
    add(
        "--run-file",
        "-f",
        metavar="FILE",
        help="start all apps of a run file (dapr.yaml), of the one in a folder, or -",
    )
    add("--kubernetes", "-k", nargs="?", const=True, type=_switch, help=argparse.SUPPRESS)
    add("command", nargs=argparse.REMAINDER, metavar="-- COMMAND …", help="the app; without it the sidecar runs alone")


class Broker(NamedTuple):
    environment: Mapping[str, str]
    """Of a sidecar that uses it."""
    tend: Callable[[], None] = lambda: None
    hold: embedded.Hold | None = None
    """Keeps an embedded one in use."""


def open_broker(mesh: str | None) -> Broker:
    """The broker that `MESHWIRE_BROKER` names, else the embedded one of `mesh`. Raises `ConfigurationError`."""
    if os.environ.get("MESHWIRE_BROKER"):
        if mesh:
            print("--mesh has no effect: MESHWIRE_BROKER names the broker", file=sys.stderr)
        return Broker(_environment())
    folder = embedded.mesh_folder(mesh or "default")
    hold = embedded.hold(folder)
    embedded.ensure_keeper(folder)
    return Broker(_environment() | {"MESHWIRE_BROKER": f"embedded:{folder}"}, lambda: _tend(folder), hold)


def _environment() -> dict[str, str]:
    """Who develops wants to know what becomes of events; elsewhere a journal is asked for."""
    return {**os.environ, "MESHWIRE_JOURNAL": os.environ.get("MESHWIRE_JOURNAL") or "full"}


def check_program(name: str, folder: Path | None = None) -> None:
    """Raises `ConfigurationError` when there is no program of this name on the PATH, or of this path in `folder`."""
    if not shutil.which(str(folder / name) if folder and os.sep in name else name):
        where = f"in {folder}" if folder and os.sep in name else "on the PATH"
        raise ConfigurationError(f"there is no program '{clip(name)}' {where}")


def check(args: argparse.Namespace) -> None:
    """Raises `UsageError` for a flag that cannot be obeyed."""
    if args.kubernetes:
        raise UsageError("--kubernetes: `meshwire run` starts apps on this machine only")
    if args.app_protocol.lower() not in ("", "http", "https", "h2c"):
        raise UsageError(f"--app-protocol {clip(args.app_protocol)} comes later; so far there are http, https and h2c")
    ports = ("--app-port", args.app_port), ("--dapr-http-port", args.dapr_http_port)
    for flag, port in (*ports, ("--metrics-port", args.metrics_port)):
        if port is not None and port > 65535:
            raise UsageError(f"{flag} {port} is no port: the highest is 65535")
    if args.app_id is not None and not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", args.app_id):
        raise UsageError(f"--app-id '{clip(args.app_id)}' is no app id: 1 to 64 letters, digits, '-' and '_'")


def choose_port(asked: int | None, app_port: int) -> tuple[int, object]:
    """The port for the sidecar's API, and what reserves it for as long as it lives.

    Dapr takes a random one unless it is told; we try 3500 first, for then a `curl` needs no look-up. Raises
    `ConfigurationError` when the port asked for is taken.
    """
    if asked is not None and asked > 0:
        if asked == app_port:
            raise ConfigurationError(f"--app-port and --dapr-http-port are both {asked}; they must differ")
        if not _is_free(asked):
            raise ConfigurationError(f"port {asked} is taken by another program; choose another --dapr-http-port")
        return asked, None
    if asked is None and app_port != DEFAULT_PORT:
        # Runs that start at the same time all see a free port: the lock lets one of them have it.
        reservation = (embedded.home() / f"http-{DEFAULT_PORT}.lock").open("a")
        try:
            fcntl.flock(reservation, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_free(DEFAULT_PORT):
                return DEFAULT_PORT, reservation
        except BlockingIOError:
            pass
        reservation.close()
    with socket.socket() as probe:
        probe.bind(("", ANY_PORT))
        return int(probe.getsockname()[1]), None


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except PermissionError:
            raise ConfigurationError(f"port {port} is reserved for root; choose another --dapr-http-port") from None
        except OSError:
            return False
    return True


def _tend(folder: Path) -> None:
    if reason := embedded.failure(folder):
        raise ConfigurationError(f"the embedded broker cannot run: {reason}")
    embedded.ensure_keeper(folder)


def sidecar_command(args: argparse.Namespace, app_id: str, port: int) -> list[str]:
    command = [sys.executable, "-P", "-m", "sidecar", f"--app-id={app_id}", f"--dapr-http-port={port}"]
    if args.app_port > 0:
        command.append(f"--app-port={args.app_port}")
    if (protocol := _protocol(args)) != "http":
        command.append(f"--app-protocol={protocol}")
    for flag in PASSED_ON:
        given = getattr(args, flag.name.replace("-", "_"))
        values = given if isinstance(given, list) else [] if given is None else [given]
        command += [f"--{flag.name}={_text(value)}" for value in values]
    return command


def _protocol(args: argparse.Namespace) -> str:
    protocol: str = args.app_protocol.lower() or "http"
    return "https" if args.app_ssl and protocol == "http" else protocol


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def app_environment(args: argparse.Namespace, app_id: str, port: int) -> dict[str, str]:
    environment = {
        "PYTHONUNBUFFERED": "1",  # what an app prints is to be seen when it is printed
        **os.environ,
        "APP_ID": app_id,
        "APP_PROTOCOL": _protocol(args),
        "APP_CHANNEL_ADDRESS": args.app_channel_address or "127.0.0.1",
        "DAPR_HTTP_PORT": str(port),
    }
    if args.app_port > 0:
        environment["APP_PORT"] = str(args.app_port)
    return environment


def api_of(args: argparse.Namespace, app_id: str, port: int) -> Api:
    if args.unix_domain_socket:
        return Api("localhost", port, str(Path(args.unix_domain_socket) / f"dapr-{app_id}-http.socket"))
    hosts = [host.strip() for host in (args.dapr_listen_addresses or "").split(",") if host.strip()]
    everywhere = not hosts or {"127.0.0.1", "0.0.0.0", "localhost"} & {*hosts}
    return Api("127.0.0.1" if everywhere else hosts[0], port)
