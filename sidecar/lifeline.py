"""How a sidecar learns that the `meshwire run` above it was killed: by the end of a pipe.

The supervisor holds one end and never writes to it; whoever reads the other one meets its end when the supervisor
has died, by whatever signal.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING

from mesh.errors import ConfigurationError, clip

if TYPE_CHECKING:
    import asyncio

DESCRIPTOR = "MESHWIRE_LIFELINE_FD"
"""The environment variable that tells the sidecar its end of the pipe."""


def watch(loop: asyncio.AbstractEventLoop, on_orphaned: Callable[[], None]) -> None:
    """Call `on_orphaned` in the loop, once, when the supervisor has died. Never in a sidecar without one.

    Raises `ConfigurationError` when the environment names no pipe.
    """
    text = os.environ.pop(DESCRIPTOR, None)
    if text is None:
        return
    try:
        descriptor = int(text)
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            raise ValueError("something else is open there")
    except (ValueError, OverflowError, OSError) as error:
        raise ConfigurationError(f"{DESCRIPTOR}={clip(text)} names no pipe: {error}") from None
    os.set_inheritable(descriptor, False)

    def on_end() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        on_orphaned()

    loop.add_reader(descriptor, on_end)
