"""The line between `meshwire run` and its sidecar, by which the sidecar learns that the other was killed.

A pipe: the supervisor writes `app <process group>` once the app runs and `bye` before it ends; the kernel closes
the pipe when it dies without a word.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mesh.errors import ConfigurationError, clip

if TYPE_CHECKING:
    import asyncio

DESCRIPTOR = "MESHWIRE_LIFELINE_FD"
"""The environment variable that tells the sidecar its end of the pipe."""
GRACE = 5.0
"""Seconds that an app has between SIGTERM and SIGKILL when its supervisor was killed."""


def watch(loop: asyncio.AbstractEventLoop, on_orphaned: Callable[[], None]) -> None:
    """Call `on_orphaned` in the loop when the supervisor dies; its app is ended first.

    The app's process group gets SIGTERM, and SIGKILL after `GRACE`, even if the sidecar is done sooner: the
    interpreter waits for that before it exits (`os._exit` would not). Does nothing in a sidecar without a
    supervisor. Raises `ConfigurationError` when the environment names no pipe.
    """
    text = os.environ.pop(DESCRIPTOR, None)
    if text is None:
        return
    try:
        descriptor = int(text)
        os.set_blocking(descriptor, False)
        os.set_inheritable(descriptor, False)
        _Line(loop, descriptor, on_orphaned)
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"{DESCRIPTOR}={clip(text)} names no open pipe ({error})") from None


class _Line:
    def __init__(self, loop: asyncio.AbstractEventLoop, descriptor: int, on_orphaned: Callable[[], None]) -> None:
        self.loop = loop
        self.descriptor = descriptor
        self.on_orphaned = on_orphaned
        self.unread = b""
        self.app: int | None = None
        loop.add_reader(descriptor, self.read)

    def read(self) -> None:
        try:
            received = os.read(self.descriptor, 4096)
        except BlockingIOError:
            return
        *lines, self.unread = (self.unread + received).split(b"\n")
        for line in lines:
            word, _, rest = line.partition(b" ")
            if word == b"app":
                self.app = int(rest)
        if not received or b"bye" in lines:
            self.loop.remove_reader(self.descriptor)
            os.close(self.descriptor)
            if b"bye" not in lines:
                self.orphaned()

    def orphaned(self) -> None:
        if self.app is not None:
            threading.Thread(target=end_group, args=(self.app, GRACE), name="end-app").start()
        self.on_orphaned()


def end_group(group: int, grace: float) -> None:
    """Send SIGTERM to a process group, and SIGKILL to what is left of it after `grace` seconds."""
    deadline = time.monotonic() + grace
    running = signal_group(group, signal.SIGTERM)
    while running and time.monotonic() < deadline:
        time.sleep(0.05)
        running = signal_group(group, 0)
    if running:
        signal_group(group, signal.SIGKILL)


def signal_group(group: int, number: int) -> bool:
    """False when there is no such process group (any more), or none that is ours."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True
