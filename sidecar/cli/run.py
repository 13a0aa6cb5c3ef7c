"""`meshwire run`: an app with a sidecar beside it, and a broker if there is none."""

from __future__ import annotations

import argparse
import os
import sys

from sidecar.cli import launch
from sidecar.cli.launch import configure
from sidecar.supervisor import App, Plan, say, supervise

__all__ = ["configure", "execute"]


def execute(args: argparse.Namespace) -> int:
    """Returns the app's exit code, 128 + n when signal n ended it; 1 when the sidecar or the broker failed.

    Raises `UsageError` and `ConfigurationError` before anything has been started.
    """
    if args.run_file is not None:
        from sidecar.cli import run_file

        return run_file.execute(args)
    launch.check(args)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    app_id = args.app_id if args.app_id is not None else f"app-{os.urandom(3).hex()}"
    if command:
        launch.check_program(command[0])
    port, _reservation = launch.choose_port(args.dapr_http_port, args.app_port)
    for name, (_, reason) in launch.WITHOUT_MEANING.items():
        if getattr(args, name.replace("-", "_")) is not None:
            print(f"--{name} has no effect: {reason}", file=sys.stderr)
    broker = launch.open_broker(args.mesh)
    say(f"ℹ️  Starting Meshwire with id {app_id}. HTTP Port: {port}.")
    app = App(command, launch.app_environment(args, app_id, port), waits=args.app_port <= 0) if command else None
    plan = Plan(launch.sidecar_command(args, app_id, port), app, launch.api_of(args, app_id, port), broker.environment)
    return supervise([plan], tend=broker.tend)
