"""`meshwire list`: the sidecars that run for this user, with what each tells about itself."""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec

from brokers.nats.embedded import mesh_folder
from mesh.errors import MeshError
from sidecar import registry
from sidecar.cli import OK
from sidecar.cli.api import address_of, call

TIMEOUT = 1.0
"""Seconds that each sidecar may take to tell its metadata."""
AT_ONCE = 8


class Row(msgspec.Struct, rename="camel", omit_defaults=True):
    """One sidecar. The names are those of `dapr list -o json`, but for `status`."""

    app_id: str
    http_port: int
    grpc_port: int
    app_port: int
    command: str
    age: str
    created: str
    daprd_pid: int
    cli_pid: int
    app_pid: int
    status: str
    run_template_path: str = ""
    run_template_name: str = ""
    app_log_path: str = ""
    daprd_log_path: str = ""


class _Metadata(msgspec.Struct):
    extended: dict[str, str] = {}


COLUMNS = {
    "APP ID": "app_id",
    "HTTP PORT": "http_port",
    "GRPC PORT": "grpc_port",
    "APP PORT": "app_port",
    "COMMAND": "command",
    "AGE": "age",
    "CREATED": "created",
    "DAPRD PID": "daprd_pid",
    "CLI PID": "cli_pid",
    "APP PID": "app_pid",
    "STATUS": "status",
}
OF_A_RUN_FILE = {"RUN TEMPLATE": "run_template_name", "RUN TEMPLATE PATH": "run_template_path"}
"""Shown when a listed app was started from one."""
WIDEST = 40
"""Characters of a cell in the table."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", "-o", choices=("table", "json", "yaml"), default="table", help="default: table")
    parser.add_argument("--mesh", default="default", help="the mesh to look at (default: default)")


def execute(args: argparse.Namespace) -> int:
    """Sidecars that do not answer are listed too; their status says why."""
    running = registry.entries(mesh_folder(args.mesh))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        rows = list(pool.map(_row, running))
    if args.output == "json":
        print(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode())
    elif args.output == "yaml":
        print(msgspec.yaml.encode(rows).decode(), end="")
    elif rows:
        print(_table(rows))
    else:
        print(f"No sidecar runs in mesh '{args.mesh}'.", file=sys.stderr)
    return OK


def ask(entry: registry.Entry) -> tuple[dict[str, str], str]:
    """What the sidecar was told to tell (`extended` of its metadata), and its status: `running`, or why not."""
    try:
        answer = call(address_of(entry), "GET", "/v1.0/metadata", timeout=TIMEOUT)
        if answer.status == 200:
            return msgspec.json.decode(answer.body, type=_Metadata).extended, "running"
        return {}, f"refuses: {answer.problem}"
    except msgspec.DecodeError:
        return {}, "answers, but not as a sidecar does"
    except MeshError as error:
        return {}, f"does not answer: {error}"


def _row(entry: registry.Entry) -> Row:
    extended, status = ask(entry)
    return Row(
        app_id=entry.app_id,
        http_port=entry.http_port or 0,
        grpc_port=0,
        app_port=entry.app_port or 0,
        command=extended.get("appCommand", ""),
        age=age(time.time() - entry.created),
        created=time.strftime("%Y-%m-%d %H:%M.%S", time.localtime(entry.created)),
        daprd_pid=entry.daprd_pid,
        cli_pid=entry.cli_pid or _number(extended.get("cliPID")),
        app_pid=_number(extended.get("appPID")),
        status=status,
        run_template_path=extended.get("runTemplatePath", ""),
        run_template_name=extended.get("runTemplateName", ""),
        app_log_path=extended.get("appLogPath", ""),
        daprd_log_path=extended.get("daprdLogPath", ""),
    )


def age(seconds: float) -> str:
    """In the largest unit that fits (Dapr: `12s`, `5m`, `3h`, `2d`)."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(0, int(seconds))}s"


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else 0


def _table(rows: list[Row]) -> str:
    columns = COLUMNS | OF_A_RUN_FILE if any(row.run_template_path for row in rows) else COLUMNS
    cells = [[_cell(getattr(row, field)) for field in columns.values()] for row in rows]
    lines = [list(columns), *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cell(value: str | int) -> str:
    text = str(value or "")
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"
