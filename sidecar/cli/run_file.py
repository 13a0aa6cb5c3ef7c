"""`meshwire run -f FILE`: all apps of a run file, under one supervisor (Dapr: multi-app run).

Each app of the file is what a `meshwire run` with the same flags would start; the keys are a table of those flags.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mesh import documents
from mesh.documents import Fields
from mesh.errors import ConfigurationError, clip
from sidecar.cli import FAILED, OK, Parser, UsageError, launch
from sidecar.supervisor import App, Output, Plan, complain, say, supervise

DEFAULT_NAME = "dapr.yaml"
LONGEST = 1 << 20
"""Characters that are read from stdin."""
KINDS = "app", "daprd"
"""What prefixes and log files call an app and its sidecar (Dapr)."""
COLOURS = (36, 35, 33, 32, 34, 96, 95, 93, 92, 94)
"""Of the prefixes, by turns."""

FLAGS = {
    "appProtocol": "app-protocol",
    "apiListenAddresses": "dapr-listen-addresses",
    "logLevel": "log-level",
    "appHealthCheckPath": "app-health-check-path",
    "appSSL": "app-ssl",
    "enableAppHealthCheck": "enable-app-health-check",
    "enableApiLogging": "enable-api-logging",
    "appMaxConcurrency": "app-max-concurrency",
    "appHealthProbeInterval": "app-health-probe-interval",
    "appHealthProbeTimeout": "app-health-probe-timeout",
    "appHealthThreshold": "app-health-threshold",
    "maxBodySize": "max-body-size",
    "readBufferSize": "read-buffer-size",
    "appID": "app-id",
    "appPort": "app-port",
    "appChannelAddress": "app-channel-address",
    "daprHTTPPort": "dapr-http-port",
    "metricsPort": "metrics-port",
    "unixDomainSocket": "unix-domain-socket",
}
"""The flags of `meshwire run` that keys stand for."""
SWITCHES = ("appSSL", "enableAppHealthCheck", "enableApiLogging")
PATHS = ("unixDomainSocket",)
OF_THE_APP = ("appID", "appPort", "appChannelAddress", "daprHTTPPort", "metricsPort", "unixDomainSocket")

WITHOUT_MEANING = {
    "enableProfiling": "there is no profiler",
    "placementHostAddress": "there is no placement service",
    "schedulerHostAddress": "there is no scheduler service",
}
WITHOUT_MEANING_OF_THE_APP = {
    "daprGRPCPort": "the gRPC API is not served yet",
    "daprInternalGRPCPort": "sidecars talk through the broker",
    "profilePort": "there is no profiler",
    "containerImage": "it is for Kubernetes",
    "containerImagePullPolicy": "it is for Kubernetes",
    "createService": "it is for Kubernetes",
}
ANYWHERE = (
    *(key for key in FLAGS if key not in OF_THE_APP),
    *(
        "configFilePath",
        "resourcesPaths",
        "resourcesPath",
        "runtimePath",
        "env",
        "appLogDestination",
        "daprdLogDestination",
    ),
    *WITHOUT_MEANING,
)
APP_KEYS = (*ANYWHERE, *OF_THE_APP, *WITHOUT_MEANING_OF_THE_APP, "appDirPath", "command")
DESTINATIONS = {"file": (False, True), "console": (True, False), "fileAndConsole": (True, True)}
"""Whether lines go to the console, and to a file."""


class AppRun(NamedTuple):
    """One app of the file: the `meshwire run` that it stands for, and what that has no flags for."""

    args: argparse.Namespace
    folder: Path
    command: Sequence[str]
    env: Mapping[str, str]
    app_log: tuple[bool, bool]
    sidecar_log: tuple[bool, bool]
    """Where output goes: one of `DESTINATIONS`."""


class Template(NamedTuple):
    path: str
    """Absolute; empty for stdin."""
    name: str
    apps: Sequence[AppRun]
    without_meaning: Sequence[str]
    """What to tell the user, once."""


def locate(given: str) -> Path:
    """The file that `-f` means: a folder stands for its `dapr.yaml` (Dapr)."""
    path = Path(given).expanduser().absolute()
    return Path(os.path.normpath(path / DEFAULT_NAME if path.is_dir() else path))


def load(given: str) -> Template:
    """Read a run file. Raises `ConfigurationError` with file, line and key for anything that it must not say."""
    if given == "-":
        found, folder, path = list(documents.parse(sys.stdin.read(LONGEST + 1), "<stdin>")), Path.cwd(), ""
    else:
        file = locate(given)
        found, folder, path = documents.read(file), file.parent, str(file)
    source = path or "<stdin>"
    if len(found) != 1:
        raise ConfigurationError(f"{source}: must be one YAML document (there are {len(found)})")
    if isinstance(found[0], documents.Unreadable):
        raise ConfigurationError(found[0].reason)
    fields = found[0].closed("version", "name", "common", "apps")
    version = fields.get("version")
    if type(version) is not int or version == 0:
        raise fields.fault("version", "must be a number other than 0, such as 1")
    common = fields.fields("common").closed(*ANYWHERE)
    apps = [entry.closed(*APP_KEYS) for entry in fields.entries("apps")]
    if not apps:
        raise fields.fault("apps", "must have at least one app")
    return Template(
        path,
        fields.text("name"),
        [_app(app, common, folder) for app in apps],
        list(dict.fromkeys(_without_meaning([common, *apps]))),
    )


def execute(args: argparse.Namespace) -> int:
    """Returns 1 when an app or a sidecar failed, or could not be started; the others run on all the same.

    Raises `UsageError` and `ConfigurationError` before anything has been started.
    """
    if args.kubernetes:
        raise UsageError("--kubernetes: `meshwire run` starts apps on this machine only")
    template = load(args.run_file)
    for told in (*_unused_flags(args), *template.without_meaning):
        print(told, file=sys.stderr)
    plans = []
    broker = launch.open_broker(args.mesh)
    ports = {app.args.app_port for app in template.apps} | {app.args.dapr_http_port for app in template.apps}
    for number, app in enumerate(template.apps):
        if args.log_as_json is not None:
            app.args.log_as_json = args.log_as_json
        try:
            plans.append(_plan(app, number, template, broker.environment, ports))
        except ConfigurationError as error:
            complain(f"{app.args.app_id}: {error}")
    code = supervise(plans, tend=broker.tend) if plans else FAILED
    return OK if code == OK and len(plans) == len(template.apps) else FAILED


class _Scope(NamedTuple):
    """The keys of one app, or those for all of them, and the folder that their paths start from."""

    fields: Fields
    base: Path

    def path(self, key: str) -> Path | None:
        text = self.fields.text(key)
        return _absolute(text, self.base) if text else None

    def resources(self) -> list[Path]:
        listed = [_absolute(text, self.base) for text in self.fields.texts("resourcesPaths")]
        deprecated = self.path("resourcesPath")
        return [*listed, deprecated] if deprecated else listed

    def word(self, key: str) -> str:
        """`key` as the flag of `meshwire run` that it stands for."""
        if key in SWITCHES:
            value = "true" if self.fields.flag(key) else "false"
        else:
            value = str(self.path(key) or "") if key in PATHS else self.fields.text(key)
        word = f"--{FLAGS[key]}={value}"
        try:
            _parse([word])
        except UsageError as error:
            raise self.fields.fault(key, str(error)) from None
        return word


def _app(app: Fields, common: Fields, base: Path) -> AppRun:
    folder = _Scope(app, base).path("appDirPath")
    if folder is None:
        raise app.fault("appDirPath", "must be given: the folder of the app")
    if not folder.is_dir():
        raise app.fault("appDirPath", f"there is no folder {folder}")
    own, shared = _Scope(app, folder), _Scope(common, base)
    words = []
    for key in FLAGS:
        scope = own if app.get(key) is not None else shared
        if scope.fields.get(key) is not None:
            words.append(scope.word(key))
    runtime = own.path("runtimePath") or shared.path("runtimePath")
    configs = own.path("configFilePath"), shared.path("configFilePath")
    config = _first([configs[0]], folder / ".dapr/config.yaml", [configs[1]], runtime and runtime / ".dapr/config.yaml")
    resources = _first(
        own.resources(), folder / ".dapr/resources", shared.resources(), runtime and runtime / ".dapr/components"
    )
    words += [f"--config={path}" for path in config] + [f"--resources-path={path}" for path in resources]
    app_id = app.text("appID") or folder.name
    try:
        args = _parse([*words, f"--app-id={app_id}"])
    except UsageError as error:  # of the folder's name; the keys have been tried one by one
        raise app.fault("appID" if "appID" in app else "appDirPath", str(error)) from None
    return AppRun(
        args,
        folder,
        app.texts("command"),
        {**_env(common), **_env(app)},
        _destination(app, common, "appLogDestination", "fileAndConsole"),
        _destination(app, common, "daprdLogDestination", "file"),
    )


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = Parser(allow_abbrev=False, add_help=False)
    launch.configure(parser)
    args = parser.parse_args(words)
    launch.check(args)
    return args


def _absolute(text: str, base: Path) -> Path:
    return Path(os.path.normpath(base / Path(text).expanduser()))


def _first(
    own: Sequence[Path | None], conventional: Path, shared: Sequence[Path | None], default: Path | None
) -> list[Path]:
    """Dapr's order: what the app's keys name, what lies in its folder, what the common keys name, the default."""
    for named in (own, [conventional] if conventional.exists() else [], shared):
        if found := [path for path in named if path]:
            return found
    return [default] if default and default.exists() else []


def _env(fields: Fields) -> dict[str, str]:
    variables = fields.fields("env")
    return {name: variables.text(name) for name in variables}


def _destination(app: Fields, common: Fields, key: str, default: str) -> tuple[bool, bool]:
    place = app if app.get(key) is not None else common
    name = place.text(key) or default
    if name not in DESTINATIONS:
        raise place.fault(key, f"must be {', '.join(DESTINATIONS)} (got '{clip(name)}')")
    return DESTINATIONS[name]


def _without_meaning(scopes: Sequence[Fields]) -> Iterator[str]:
    for fields in scopes:
        for key, reason in (WITHOUT_MEANING | WITHOUT_MEANING_OF_THE_APP).items():
            if fields.get(key) not in (None, False):
                yield f"{key} has no effect: {reason}"


def _unused_flags(args: argparse.Namespace) -> Iterator[str]:
    """What was said beside the file. Dapr ignores it, too, but without a word."""
    meant = {"run_file", "mesh", "log_as_json", "kubernetes", "debug"}
    unset = {"app_port": 0, "app_protocol": "http", "command": []}
    for name, value in vars(args).items():
        if name not in meant and value != unset.get(name):
            flag = "the command" if name == "command" else f"--{name.replace('_', '-')}"
            yield f"{flag} has no effect with -f: the run file says it for each app"


def _plan(app: AppRun, number: int, template: Template, broker: Mapping[str, str], ports: set[int | None]) -> Plan:
    """Raises `ConfigurationError` when the app cannot be started. `ports` are taken, and so is then the app's."""
    args, app_id = app.args, app.args.app_id
    if app.command:
        launch.check_program(app.command[0], app.folder)
    port, _ = launch.choose_port(args.dapr_http_port or 0, args.app_port)
    while port in ports and port != args.dapr_http_port:
        port, _ = launch.choose_port(0, args.app_port)
    ports.add(port)
    outputs: dict[str, Output] = {}
    logs: dict[str, str] = {}
    for kind, (console, to_file), key in zip(
        KINDS, (app.app_log, app.sidecar_log), ("appLogPath", "daprdLogPath"), strict=True
    ):
        file = _open_log(app.folder, f"{app_id}_{kind}") if to_file else None
        outputs[kind] = Output(_prefix(kind, app_id, number), console, file)
        logs |= {key: file.name} if file else {}
    say(f"{app_id}: ℹ️  HTTP Port: {port}.{''.join(f' Log: {path}.' for path in logs.values())}")
    origin = {"runTemplatePath": template.path, "runTemplateName": template.name}
    environment = {**launch.app_environment(args, app_id, port), **app.env}
    return Plan(
        launch.sidecar_command(args, app_id, port),
        App(app.command, environment, args.app_port <= 0, str(app.folder), outputs["app"]) if app.command else None,
        launch.api_of(args, app_id, port),
        broker,
        outputs["daprd"],
        f"{app_id}: ",
        {key: value for key, value in (origin | logs).items() if value},
    )


def _open_log(folder: Path, name: str) -> BinaryIO:
    path = folder / ".dapr" / "logs" / f"{name}_{time.strftime('%Y%m%d%H%M%S')}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab", buffering=0)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written to: {error.strerror}") from None


def _prefix(kind: str, app_id: str, number: int) -> bytes:
    text = f"== {kind.upper()} - {app_id} =="
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        text = f"\x1b[{COLOURS[number % len(COLOURS)]}m{text}\x1b[0m"
    return f"{text} ".encode()
