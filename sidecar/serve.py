"""The sidecar process: flags in, exit code out."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

from brokers.nats.embedded import mesh_folder
from mesh import __version__
from mesh.errors import ConfigurationError
from sidecar import flags as command_line
from sidecar import lifeline, logs, registry
from sidecar.flags import SidecarFlags
from sidecar.http.server import socket_path
from sidecar.settings import Settings

logger = logging.getLogger("meshwire.runtime")

OK, FAILED, WRONG_USE = 0, 1, 2
WAIT_LIMIT = 60.0
"""Seconds that `--wait` waits for a sidecar (Dapr)."""
WAIT_PAUSE = 0.1
OPEN_FILES = 16_384
COLLECT_AFTER = 5_000
"""Containers that are made and not yet gone before cycles among them are looked for (Python: 700)."""
FORCED_EXIT_DELAY = 0.1
"""Seconds for the answer to a forced shutdown to leave."""


def main(argv: Sequence[str]) -> int:
    """Run a sidecar until it is told to stop. Returns its exit code: 0; 1 when it could not start, or not stop in time;
    2 for bad flags. Flags that are none of daprd's end the process with 2.
    """
    try:
        flags = command_line.parse(argv)
    except ConfigurationError as error:
        return _complain(error, WRONG_USE)
    try:
        return _run(flags)
    except ConfigurationError as error:
        return _complain(error, FAILED)


def _complain(error: ConfigurationError, code: int) -> int:
    print(f"meshwire sidecar: {error}", file=sys.stderr)
    return code


def _run(flags: SidecarFlags) -> int:
    if flags.version or flags.build_info:
        print(f"meshwire {__version__}")
        return OK
    if flags.wait:
        return _wait(flags.http_port)
    settings = Settings.from_environment(flags, os.environ)
    try:
        logs.configure(flags.app_id, flags.log_level, as_json=flags.log_as_json, file=flags.log_file)
    except OSError as error:
        raise ConfigurationError(f"--log-file {flags.log_file}: {error.strerror}") from error
    for line in command_line.ignored(flags):
        logger.warning("%s", line)
    _raise_open_files()
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings))


def _raise_open_files() -> None:
    """A connection is an open file, and many systems allow 1,024 unless asked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _wait(port: int) -> int:
    """Dapr's `--wait`: until the sidecar on `port` can be used, or for `WAIT_LIMIT`; 0 either way."""
    import http.client  # it brings in the whole email package

    deadline = time.monotonic() + WAIT_LIMIT
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("localhost", port, timeout=0.5)
        try:
            connection.request("GET", "/v1.0/healthz/outbound")
            if connection.getresponse().status == 204:
                break
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(WAIT_PAUSE)
    return OK


async def _serve(settings: Settings) -> int:
    from sidecar.assembly import assemble
    from sidecar.runtime import End, Runtime

    loop = asyncio.get_running_loop()
    runtime: Runtime | None = None
    extended: dict[str, str] = {}  # outlives a reload: `meshwire run` tells it once
    signalled = False

    def stop() -> None:
        """The first signal drains, the second ends the process."""
        nonlocal signalled
        if signalled:
            os._exit(FAILED)
        signalled = True
        if runtime is not None:
            runtime.stop()

    def reload() -> None:
        if runtime is not None:
            logger.info("SIGHUP: starting anew, with the files read again")
            runtime.stop(End.RELOAD)

    def exit_now() -> None:
        loop.call_later(FORCED_EXIT_DELAY, os._exit, FAILED)

    for number, react in ((signal.SIGTERM, stop), (signal.SIGINT, stop), (signal.SIGHUP, reload)):
        loop.add_signal_handler(number, react)
    supervised = lifeline.DESCRIPTOR in os.environ
    lifeline.watch(loop, lambda: None if runtime is None else runtime.stop())
    with ExitStack() as held:
        if settings.broker.folder is not None:
            from brokers.nats import embedded

            held.callback(embedded.hold(settings.broker.folder).close)
            embedded.ensure_keeper(settings.broker.folder)
        end = End.RELOAD
        while end is End.RELOAD and not signalled:
            with ExitStack() as run:
                try:
                    runtime = assemble(settings, extended, exit_now)
                    runtime.on_ready = lambda run=run: _announce(settings, supervised, run)  # type: ignore[misc]
                    end = await runtime.run()
                except ConfigurationError as error:
                    logger.critical("%s", error)
                    return _complain(error, FAILED)
    return FAILED if end is End.OVERDUE else OK


def _announce(settings: Settings, supervised: bool, run: ExitStack) -> None:
    """The API listens: tell the log, and whoever looks for running sidecars."""
    flags = settings.flags
    socket = flags.unix_domain_socket and socket_path(flags.unix_domain_socket, flags.app_id)
    logger.info("HTTP server is running on %s", f"port {flags.http_port}" if socket is None else socket)
    if not {"127.0.0.1", "::1", "localhost"}.issuperset(flags.listen_addresses) and settings.api_token is None:
        logger.warning("the API listens beyond this machine, and DAPR_API_TOKEN is not set: anybody there may use it")
    entry = registry.Entry(
        app_id=flags.app_id,
        http_port=None if socket else flags.http_port,
        app_port=flags.app_port,
        daprd_pid=os.getpid(),
        cli_pid=os.getppid() if supervised else None,
        socket=None if socket is None else str(socket),
        created=time.time(),
    )
    try:
        folder = settings.broker.folder or mesh_folder()
        run.callback(registry.register(folder, entry).close)
    except (OSError, ConfigurationError) as error:
        logger.info("this sidecar will not be listed: %s", error)
    tune_collector()


def tune_collector() -> None:
    """What was made until now stays as long as this run: leave it out of every later collection. These come rarely,
    too: what a request makes is gone, by its counts of references, when the request is."""
    gc.unfreeze()  # what an earlier run left is garbage by now
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
