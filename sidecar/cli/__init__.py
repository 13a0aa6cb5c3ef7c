"""The command line: `meshwire COMMAND …`.

A command is a module with `configure(parser)`, which declares its flags, and `execute(args) -> int`, which does
the work and returns the exit code. Only the module of the command asked for is imported: `meshwire run` is the
start of every app.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import NamedTuple, NoReturn

from mesh import __version__
from mesh.errors import MeshError, clip

OK, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130


class UsageError(MeshError):
    """The command line itself is wrong: exit code 2 and a hint at `--help`."""


class Command(NamedTuple):
    summary: str
    examples: tuple[str, ...]


COMMANDS = {
    "run": Command(
        "start an app with a sidecar beside it, or all apps of a run file",
        (
            "meshwire run --app-id orders --app-port 6001 -- python app.py",
            "meshwire run --app-id shell --dapr-http-port 3500",
            "meshwire run -f dapr.yaml",
        ),
    ),
    "sidecar": Command("start a sidecar alone; takes every flag of daprd", ()),
    "publish": Command(
        "publish an event through a running sidecar",
        (
            'meshwire publish --topic A --data \'{"status": "completed"}\'',
            "meshwire publish -i orders -p pubsub -t A -f event.json -m '{\"ttlInSeconds\": 60}'",
            "generate | meshwire publish -t A -f -",
        ),
    ),
    "trigger": Command(
        "fire an input binding by hand",
        (
            "meshwire trigger nightly --app-id reports",
            'meshwire trigger github --data \'{"zen": "Keep it logically awesome."}\' -m X-GitHub-Event=ping',
        ),
    ),
    "invoke": Command(
        "call a method of an app through a running sidecar",
        (
            "meshwire invoke --app-id orders --method status --verb GET",
            "meshwire invoke -a orders -m orders/7/pay -d '{\"price\": 40}'",
        ),
    ),
    "explain": Command(
        "show when each subscription tries an event, and what becomes of it",
        (
            "meshwire explain --app-id orders --resources-path components",
            "meshwire explain --topic A",
            "meshwire explain -a orders -o json",
        ),
    ),
    "doctor": Command(
        "look for what is wrong, from the broker to the app's routes",
        ("meshwire doctor", "meshwire doctor --app-id orders -o json", "meshwire doctor --broker nats://host:4222"),
    ),
    "brokers": Command(
        "show what the broker offers, and what is done where it lacks something",
        ("meshwire brokers", "meshwire brokers --broker kafka://host:9092", "meshwire brokers -o json"),
    ),
    "components": Command(
        "show the types of components, with their settings",
        ("meshwire components", "meshwire components state.sqlite", "meshwire components -o json"),
    ),
    "list": Command(
        "show the running sidecars of this user",
        ("meshwire list", "meshwire list -o json"),
    ),
    "stop": Command(
        "stop running apps and their sidecars",
        ("meshwire stop --app-id orders", "meshwire stop -a orders -a billing", "meshwire stop -f dapr.yaml"),
    ),
    "subscriptions": Command(
        "show the subscriptions of an app; pause, resume, drain or slow them down",
        (
            "meshwire subscriptions --app-id orders",
            "meshwire subscriptions pause A",
            "meshwire subscriptions drain A --wait 60",
            "meshwire subscriptions limit A --rate 50 --concurrency 4",
        ),
    ),
    "actors": Command(
        "show the types of actors, who owns which of them, and how many are active",
        ("meshwire actors", "meshwire actors Cart --app-id shop -o json"),
    ),
    "where": Command(
        "tell where an event is, and what became of it on its way",
        ("meshwire where /orders 7", "meshwire where urn:shop 5b6f1b9c -o json"),
    ),
    "dead": Command(
        "look through the dead letters of an app, send them again, or remove them",
        (
            "meshwire dead list --topic orders --since 1h",
            "meshwire dead show pubsub/orders/42",
            "meshwire dead redrive pubsub/orders/42",
            "meshwire dead redrive --topic orders --reason attempts --rate 500 --dry-run",
            "meshwire dead purge --all --app-id orders",
        ),
    ),
    "replay": Command(
        "deliver stored events of a topic once more",
        (
            "meshwire replay --topic orders --from 1h",
            "meshwire replay --topic orders --from 2026-05-04T12:30:00Z --route /again --rate 50 --wait",
            "meshwire replay --topic orders --from position:42 --to-app audit --dry-run",
            "meshwire replay --list",
        ),
    ),
    "jobs": Command(
        "show the jobs of an app, remove them, or run one at once",
        (
            "meshwire jobs list --prefix report-",
            "meshwire jobs get nightly",
            "meshwire jobs run nightly --app-id reports",
            "meshwire jobs delete --prefix report-",
        ),
    ),
    "scheduled": Command(
        "show the events of an app that are to be published later, or cancel them",
        ("meshwire scheduled list --topic orders", "meshwire scheduled cancel pubsub/orders/7"),
    ),
    "acl": Command(
        "print what the broker has to be told, so that each app can act in its own name only",
        (
            "meshwire acl kafka mesh.yaml --servers kafka-1:9092 | sh",
            "meshwire acl nats mesh.yaml > authorization.conf",
            "MESHWIRE_BROKER=nats://admin:secret@host:4222 meshwire acl nats mesh.yaml --prepare",
        ),
    ),
    "unsubscribe": Command(
        "forget a durable subscription, and with it every event that still waits in it",
        (
            "meshwire unsubscribe --app-id orders --topic A",
            "MESHWIRE_BROKER=nats://localhost:4222 meshwire unsubscribe --app-id orders --topic A --namespace prod",
        ),
    ),
    "reset": Command(
        "delete all that the embedded broker of a mesh stores",
        ("meshwire reset", "meshwire reset --mesh tests --yes"),
    ),
    "version": Command("show the version", ("meshwire version -o json",)),
}

EXIT_CODES = """\
exit codes:
  0  done        1  failed        2  wrong use of the command line        130  Ctrl-C"""

HELP = """\
usage: meshwire COMMAND [flags]        meshwire COMMAND --help explains its flags

The Dapr API on one moving part: the broker you already have.

commands:
{commands}

examples:
  meshwire run --app-id sub --app-port 6001 -- python app.py    an app that subscribes
  meshwire run --app-id pub --dapr-http-port 3500               a sidecar to publish through
  meshwire publish -i pub --topic A --data '{{"status": "completed"}}'
  meshwire list

flags:
  -h, --help     show this text
  --version      show the version
  --debug        on an unexpected error show where it happened

{exit_codes}

environment:
  MESHWIRE_BROKER   the broker, such as nats://host:4222; without it `run` brings one of its own
  MESHWIRE_HOME     where embedded brokers keep their data (default ~/.meshwire)
  MESHWIRE_DEBUG    1 is --debug for every command
  DAPR_API_TOKEN    the token that the sidecar asks for, if it asks for one
  DAPR_HTTP_PORT    the port of the sidecar to publish through
  NAMESPACE         the namespace of the apps within the broker (default `default`)
"""


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 wrong use, 130 interrupted.

    What fails is told in one line on stderr. Only `meshwire sidecar` may leave by `SystemExit`.
    """
    words = [*(sys.argv[1:] if argv is None else argv)]  # once its command ran, `list` here is a module
    own = words[: words.index("--")] if "--" in words else words  # what follows is the app's
    debug = "--debug" in own or _truthy(os.environ.get("MESHWIRE_DEBUG"))
    while words and words[0] == "--debug":
        del words[0]
    _survive_narrow_encodings()
    try:
        code = _dispatch(words)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has seen enough. The interpreter flushes once more at exit: let that find a sink.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        _complain(words[0] if words and words[0] in COMMANDS else None, error)
        return WRONG_USE if isinstance(error, UsageError) else FAILED
    return code


def _dispatch(words: list[str]) -> int:
    name, *rest = words or ["--help"]
    if name == "help":
        name, rest = (rest[0], ["--help"]) if rest else ("--help", [])
    if name in ("-h", "--help"):
        listed = "\n".join(f"  {name:<12} {command.summary}" for name, command in COMMANDS.items())
        print(HELP.format(commands=listed, exit_codes=EXIT_CODES), end="")
        return OK if words else WRONG_USE
    if name == "--version":
        print(f"meshwire {__version__}")
        return OK
    if name == "sidecar":
        from sidecar.serve import main as serve

        return serve(rest)
    if name not in COMMANDS:
        raise UsageError(_unknown(name))
    command, module = COMMANDS[name], importlib.import_module(f"sidecar.cli.{name}")
    parser = Parser(
        prog=f"meshwire {name}",
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        epilog="\n".join(["examples:", *(f"  {example}" for example in command.examples), "", EXIT_CODES]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="on an unexpected error show where it happened")
    module.configure(parser)
    try:
        args = parser.parse_args(rest)
    except SystemExit as shown:  # --help
        return int(shown.code or OK)
    import logging

    # a command says by itself what went wrong: no warnings of the brokers' clients in between
    logging.getLogger().addHandler(logging.NullHandler())
    code: int = module.execute(args)
    return code


def _unknown(name: str) -> str:
    import difflib

    if name.startswith("-"):
        return f"there is no flag {clip(name)} before the command"
    near = difflib.get_close_matches(name.lower(), COMMANDS, n=1, cutoff=0.5)
    return f"there is no command '{clip(name)}'" + (f"; did you mean '{near[0]}'?" if near else "")


def _complain(command: str | None, error: Exception) -> None:
    program = f"meshwire {command}" if command else "meshwire"
    text = " ".join(str(error).split())
    if isinstance(error, UsageError):
        text += f" (see {program} --help)"
    elif isinstance(error, OSError):
        text = f"{error.strerror}: {error.filename}" if error.filename else text
    elif not isinstance(error, MeshError):
        text = f"unexpected {type(error).__name__}: {text} (a bug; --debug shows where)"
    print(f"{program}: {text}", file=sys.stderr)


def _truthy(value: str | None) -> bool:
    return (value or "").lower() not in ("", "0", "false", "no", "off")


def _survive_narrow_encodings() -> None:
    """In a Latin-1 or ASCII terminal a ✅ becomes an escape, not an error."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
