"""The command line of the sidecar: every flag of `daprd`, typed and checked.

One table declares them all. Flags without meaning here are still accepted and checked, since Dapr's injector and
command line pass them freely; `ignored` says so for the log.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from mesh.errors import ConfigurationError, clip
from mesh.quantities import boolean, comma_list, duration, quantity

DEFAULT_BODY_SIZE = 4 << 20
DEFAULT_HEADER_SIZE = 4 << 10
LOG_LEVELS = ("debug", "info", "warn", "error", "fatal")


@dataclass(frozen=True, kw_only=True, slots=True)
class SidecarFlags:
    """What the command line says. Times in seconds, sizes in bytes; `None` is "off" or "no limit"."""

    app_id: str
    app_port: int | None = None
    app_protocol: str = "http"
    """`http`, `https` or `h2c`."""
    app_channel_address: str = "127.0.0.1"
    app_max_concurrency: int | None = None
    http_port: int = 3500
    grpc_port: int = 50001
    """Told to the app; nothing listens there yet."""
    public_port: int | None = None
    public_listen_address: str = ""
    """Empty: all addresses."""
    listen_addresses: tuple[str, ...] = ("127.0.0.1",)
    """Loopback only unless told otherwise; Dapr listens everywhere."""
    unix_domain_socket: Path | None = None
    """A folder. Replaces the TCP listener."""
    config: tuple[Path, ...] = ()
    resources_path: tuple[Path, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_body_size: int | None = DEFAULT_BODY_SIZE
    read_buffer_size: int = DEFAULT_HEADER_SIZE
    """Longest header section of a request."""
    graceful_shutdown: float = 5.0
    block_shutdown: float | None = None
    enable_api_logging: bool | None = None
    """`None`: as the configuration says."""
    disable_init_endpoints: frozenset[str] = frozenset()
    """`config`, `subscribe`: not asked of the app."""
    enable_app_health_check: bool = False
    app_health_check_path: str = "/healthz"
    app_health_probe_interval: float = 5.0
    app_health_probe_timeout: float = 0.5
    app_health_threshold: int = 3
    enable_metrics: bool = True
    metrics_port: int | None = 9090
    metrics_listen_address: str = "127.0.0.1"
    """Empty: all addresses. Loopback only unless told otherwise; Dapr listens everywhere."""
    log_level: str = "info"
    log_as_json: bool = False
    log_file: Path | None = None
    wait: bool = False
    """Run no sidecar: wait until the one at `http_port` is healthy."""
    version: bool = False
    build_info: bool = False
    given: frozenset[str] = frozenset()
    """Names of the flags on the command line."""


class _Flag(NamedTuple):
    parse: Callable[[str], Any]
    help: str
    ignored: str | None = None
    """Why the flag has no effect here."""


def _text(text: str) -> str:
    return text


def _integer(text: str) -> int:
    if not re.fullmatch(r"[-+]?[0-9]{1,9}", text):
        raise ValueError(f"must be a whole number (got '{clip(text)}')")
    return int(text)


def _port(text: str) -> int:
    port = int(text) if re.fullmatch(r"[0-9]{1,5}", text) else 0
    if not 1 <= port <= 65535:
        raise ValueError(f"must be a port from 1 to 65535 (got '{clip(text)}')")
    return port


def _optional_port(text: str) -> int | None:
    return None if text in ("", "0") else _port(text)


def _go_duration(text: str) -> float:
    return duration(text, bare_unit=None)


def _choice(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"must be one of {', '.join(words)} (got '{clip(text)}')")
        return text.lower()

    return parse


def _init_endpoints(text: str) -> tuple[str, ...]:
    return tuple(map(_choice("config", "subscribe"), comma_list(text)))


def _app_id(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text):
        raise ValueError(f"must be 1 to 64 letters, digits, '-' or '_', without '.' (got '{clip(text)}')")
    return text


def _address(text: str) -> str:
    """A host name or an IP address, an IPv6 one with or without brackets."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,255}|\[?[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%\w+)?\]?", text):
        raise ValueError(f"must be a host name or an IP address (got '{clip(text)}')")
    return text.strip("[]")


def _optional_address(text: str) -> str:
    return _address(text) if text else ""


def _addresses(text: str) -> tuple[str, ...]:
    return tuple(map(_address, comma_list(text)))


def _protocol(text: str) -> str:
    protocol = _choice("", "http", "https", "h2c", "grpc", "grpcs")(text)
    if protocol in ("grpc", "grpcs"):
        raise ValueError(f"{protocol} is not there yet; http, https and h2c are")
    return protocol or "http"


def _standalone(text: str) -> str:
    if _choice("standalone", "kubernetes")(text) == "kubernetes":
        raise ValueError("kubernetes mode is not there: the sidecar reads files; use standalone (the default)")
    return text


def _body_size(text: str) -> int | None:
    return _limit(quantity(text), DEFAULT_BODY_SIZE)


def _body_megabytes(text: str) -> int | None:
    megabytes = _integer(text)
    return _limit(megabytes if megabytes < 0 else megabytes << 20, DEFAULT_BODY_SIZE)


def _header_size(text: str) -> int:
    return _positive(_limit(quantity(text), DEFAULT_HEADER_SIZE))


def _header_kilobytes(text: str) -> int:
    kilobytes = _integer(text)
    return _positive(_limit(kilobytes if kilobytes < 0 else kilobytes << 10, DEFAULT_HEADER_SIZE))


def _limit(size: int, default: int) -> int | None:
    """Dapr: -1 is the default, 0 no limit."""
    if size < -1:
        raise ValueError(f"must be a size, 0 or -1 (got {size})")
    return default if size == -1 else size or None


def _positive(size: int | None) -> int:
    if size is None:
        raise ValueError("must be more than 0")
    return size


def _probe_path(text: str) -> str:
    if not text.isprintable() or not text.isascii() or " " in text or "#" in text:
        raise ValueError(f"must be a path of visible ASCII characters (got '{clip(text)}')")
    return text if text.startswith("/") else f"/{text}"


_ACTORS = "actors need no service of their own"
_JOBS = "jobs and reminders are not there yet"
_NO_INTERNAL = "sidecars talk through the broker, not to each other"
_IDENTITY = "the broker knows who is who; there is no certificate authority"
_PROFILING = "there is no profiling endpoint"
_KUBERNETES = "kubernetes mode is not there"
_RELOAD = "manifests are read once, at start"

_FLAGS: dict[str, _Flag] = {
    "app-id": _Flag(_app_id, "name of the app; required"),
    "app-port": _Flag(_optional_port, "port of the app; without it nothing is sent to the app"),
    "app-protocol": _Flag(_protocol, "http, https (any certificate will do) or h2c (http)"),
    "app-channel-address": _Flag(_address, "host of the app (127.0.0.1)"),
    "app-ssl": _Flag(boolean, "deprecated: --app-protocol https"),
    "app-max-concurrency": _Flag(_integer, "most calls into the app at once; -1: no limit (-1)"),
    "dapr-http-port": _Flag(_port, "port of the HTTP API (3500)"),
    "dapr-grpc-port": _Flag(_port, "port of the gRPC API (50001)", "the gRPC API is not there yet"),
    "dapr-internal-grpc-port": _Flag(_optional_port, "without effect", _NO_INTERNAL),
    "dapr-internal-grpc-listen-address": _Flag(_text, "without effect", _NO_INTERNAL),
    "dapr-public-port": _Flag(_optional_port, "port of a second listener with health and metadata only (off)"),
    "dapr-public-listen-address": _Flag(_optional_address, "address of that listener (all)"),
    "dapr-listen-addresses": _Flag(_addresses, "comma list of addresses of the API (127.0.0.1)"),
    "unix-domain-socket": _Flag(_text, "folder for a socket that replaces the TCP port of the API"),
    "mode": _Flag(_standalone, "standalone"),
    "config": _Flag(comma_list, "Configuration manifest; may be repeated"),
    "resources-path": _Flag(comma_list, "folder of manifests; may be repeated"),
    "components-path": _Flag(comma_list, "deprecated: --resources-path"),
    "control-plane-address": _Flag(_text, "without effect", _KUBERNETES),
    "control-plane-namespace": _Flag(_text, "without effect", _KUBERNETES),
    "control-plane-trust-domain": _Flag(_text, "without effect", _IDENTITY),
    "sentry-address": _Flag(_text, "without effect", _IDENTITY),
    "sentry-request-jwt-audiences": _Flag(_text, "without effect", _IDENTITY),
    "enable-mtls": _Flag(boolean, "without effect", f"{_NO_INTERNAL}: encrypt with a tls:// broker address"),
    "placement-host-address": _Flag(_text, "without effect", _ACTORS),
    "actors-service": _Flag(_text, "without effect", _ACTORS),
    "reminders-service": _Flag(_text, "without effect", _ACTORS),
    "scheduler-host-address": _Flag(_text, "without effect", _JOBS),
    "scheduler-job-streams": _Flag(_integer, "without effect", _JOBS),
    "actors-disseminate-timeout": _Flag(_go_duration, "without effect", _ACTORS),
    "allowed-origins": _Flag(comma_list, "comma list of origins for CORS, * is any (none)"),
    "max-body-size": _Flag(_body_size, "largest request body, as in 4Mi; 0: no limit (4Mi)"),
    "dapr-http-max-request-size": _Flag(_body_megabytes, "deprecated: the same in MB"),
    "read-buffer-size": _Flag(_header_size, "longest header of a request, as in 4Ki (4Ki)"),
    "dapr-http-read-buffer-size": _Flag(_header_kilobytes, "deprecated: the same in KB"),
    "dapr-graceful-shutdown-seconds": _Flag(_integer, "time for a clean end (5)"),
    "dapr-block-shutdown-duration": _Flag(_go_duration, "time to go on after the signal to end, as in 10s (none)"),
    "enable-api-logging": _Flag(boolean, "log each API call (as the configuration says)"),
    "disable-builtin-k8s-secret-store": _Flag(boolean, "without effect", _KUBERNETES),
    "disable-init-endpoints": _Flag(_init_endpoints, "what not to ask the app: config, subscribe"),
    "app-binding-options-timeout": _Flag(_go_duration, "without effect", "bindings are not there yet"),
    "enable-app-health-check": _Flag(boolean, "probe the app (false)"),
    "app-health-check-path": _Flag(_probe_path, "path of the probe (/healthz)"),
    "app-health-probe-interval": _Flag(_integer, "seconds between probes (5)"),
    "app-health-probe-timeout": _Flag(_integer, "milliseconds for a probe (500)"),
    "app-health-threshold": _Flag(_integer, "failures in a row that make the app unhealthy (3)"),
    "hot-reload-reconcile-interval": _Flag(_go_duration, "without effect", _RELOAD),
    "enable-metrics": _Flag(boolean, "count and time what the sidecar does (true)"),
    "metrics-port": _Flag(_optional_port, "port of the Prometheus endpoint, 0: none (9090, if that is free)"),
    "metrics-listen-address": _Flag(_optional_address, "address of that endpoint (127.0.0.1)"),
    "enable-profiling": _Flag(boolean, "without effect", _PROFILING),
    "profile-port": _Flag(_optional_port, "without effect", _PROFILING),
    "log-level": _Flag(_choice(*LOG_LEVELS), f"{' '.join(LOG_LEVELS)} (info)"),
    "log-as-json": _Flag(boolean, "log lines as JSON (false)"),
    "log-file": _Flag(_text, "log to this file instead of stdout"),
    "wait": _Flag(boolean, "run no sidecar: wait until the one at --dapr-http-port is healthy"),
    "version": _Flag(boolean, "print the version"),
    "build-info": _Flag(boolean, "print the version and what it was built with"),
}
_REPEATABLE = frozenset({"config", "resources-path", "components-path", "allowed-origins"})


def parse(argv: Sequence[str]) -> SidecarFlags:
    """The flags in `argv` (without the command itself), GNU style; a single dash is as good as two.

    Ends the process with a line on stderr and status 2 for what is no flag, and with status 0 for `--help`.
    Raises `ConfigurationError`, naming flag, value and rule, for a bad value and for flags that contradict each
    other. With `--wait`, `--version` and `--build-info` no app id is needed.
    """
    texts = _split(argv)
    values: dict[str, Any] = {}
    for name, given in texts.items():
        try:
            parsed = [_FLAGS[name].parse(text) for text in given]
        except ValueError as error:
            raise ConfigurationError(f"--{name}: {error}") from None
        values[name] = tuple(member for part in parsed for member in part) if name in _REPEATABLE else parsed[-1]
    flags = _typed(values)
    if not (flags.wait or flags.version or flags.build_info):
        _check(flags)
    return flags


def ignored(flags: SidecarFlags) -> list[str]:
    """One line for each flag that was given and has no effect here, for the log."""
    return [
        f"--{name} has no effect: {flag.ignored}"
        for name, flag in _FLAGS.items()
        if name in flags.given and flag.ignored
    ]


def usage() -> str:
    lines = [f"  --{name:<34} {flag.help}" for name, flag in _FLAGS.items()]
    return "\n".join(["usage: meshwire sidecar --app-id NAME [flag ...]", "", *lines, ""])


def _split(argv: Sequence[str]) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {}
    arguments = iter(argv)
    for argument in arguments:
        if not argument.startswith("-") or argument in ("-", "--"):
            _refuse(f"unexpected argument '{clip(argument)}'; a boolean needs '=', as in --log-as-json=false")
        name, equals, text = argument.removeprefix("-").removeprefix("-").partition("=")
        if name in ("h", "help"):
            sys.stdout.write(usage())
            raise SystemExit(0)
        flag = _FLAGS.get(name)
        if flag is None:
            import difflib

            near = difflib.get_close_matches(name.lower(), _FLAGS, n=1)
            _refuse(f"unknown flag '--{clip(name)}'" + (f", did you mean '--{near[0]}'?" if near else ""))
        if not equals:
            text = "true" if flag.parse is boolean else next(arguments, "\0")
            if text == "\0":
                _refuse(f"--{name} needs a value")
        texts.setdefault(name, []).append(text)
    return texts


def _refuse(problem: str) -> NoReturn:
    sys.stderr.write(f"meshwire sidecar: {problem} (see meshwire sidecar --help)\n")
    raise SystemExit(2)


def _typed(values: dict[str, Any]) -> SidecarFlags:
    def path(name: str) -> Path | None:
        return Path(values[name]) if values.get(name) else None

    def positive(name: str, default: int) -> int:
        number: int = values.get(name, default)
        return number if number > 0 else default

    size = values.get("dapr-http-max-request-size", DEFAULT_BODY_SIZE)
    header = values.get("dapr-http-read-buffer-size", DEFAULT_HEADER_SIZE)
    shutdown = values.get("dapr-graceful-shutdown-seconds", 5)
    protocol = values.get("app-protocol", "http")
    return SidecarFlags(
        app_id=values.get("app-id", ""),
        app_port=values.get("app-port"),
        app_protocol="https" if protocol == "http" and values.get("app-ssl") else protocol,
        app_channel_address=values.get("app-channel-address", "127.0.0.1"),
        app_max_concurrency=positive("app-max-concurrency", 0) or None,
        http_port=values.get("dapr-http-port", 3500),
        grpc_port=values.get("dapr-grpc-port", 50001),
        public_port=values.get("dapr-public-port"),
        public_listen_address=values.get("dapr-public-listen-address", ""),
        listen_addresses=values.get("dapr-listen-addresses") or ("127.0.0.1",),
        unix_domain_socket=path("unix-domain-socket"),
        config=tuple(map(Path, values.get("config", ()))),
        resources_path=tuple(map(Path, values.get("resources-path") or values.get("components-path", ()))),
        allowed_origins=values.get("allowed-origins", ()),
        max_body_size=values.get("max-body-size", size),
        read_buffer_size=values.get("read-buffer-size", header),
        graceful_shutdown=float(shutdown if shutdown >= 0 else 5),
        block_shutdown=values.get("dapr-block-shutdown-duration"),
        enable_api_logging=values.get("enable-api-logging"),
        disable_init_endpoints=frozenset(values.get("disable-init-endpoints", ())),
        enable_app_health_check=values.get("enable-app-health-check", False),
        app_health_check_path=values.get("app-health-check-path", "/healthz"),
        app_health_probe_interval=float(positive("app-health-probe-interval", 5)),
        app_health_probe_timeout=positive("app-health-probe-timeout", 500) / 1000,
        app_health_threshold=positive("app-health-threshold", 3),
        enable_metrics=values.get("enable-metrics", True),
        metrics_port=values.get("metrics-port", 9090),
        metrics_listen_address=values.get("metrics-listen-address", "127.0.0.1"),
        log_level=values.get("log-level", "info"),
        log_as_json=values.get("log-as-json", False),
        log_file=path("log-file"),
        wait=values.get("wait", False),
        version=values.get("version", False),
        build_info=values.get("build-info", False),
        given=frozenset(values),
    )


def _check(flags: SidecarFlags) -> None:
    if not flags.app_id:
        raise ConfigurationError("--app-id: is required: the name under which other apps know this one")
    if flags.app_port == flags.http_port:
        raise ConfigurationError(f"--app-port: must differ from --dapr-http-port (both are {flags.http_port})")
    if flags.public_port is not None and flags.public_port in (flags.http_port, flags.app_port):
        raise ConfigurationError(
            f"--dapr-public-port: must differ from --dapr-http-port and --app-port (got {flags.public_port})"
        )
    others = {flags.http_port, flags.app_port, flags.public_port} - {None}
    if "metrics-port" in flags.given and flags.metrics_port in others:
        raise ConfigurationError(
            "--metrics-port: must differ from --dapr-http-port, --app-port and --dapr-public-port "
            f"(got {flags.metrics_port})"
        )
    if flags.app_health_probe_timeout > flags.app_health_probe_interval:
        raise ConfigurationError(
            f"--app-health-probe-timeout: must not exceed --app-health-probe-interval "
            f"(got {flags.app_health_probe_timeout * 1000:g} ms and {flags.app_health_probe_interval:g} s)"
        )
    if flags.block_shutdown is not None and flags.block_shutdown < 0:
        raise ConfigurationError(
            f"--dapr-block-shutdown-duration: must not be negative (got {flags.block_shutdown:g} s)"
        )
