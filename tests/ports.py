"""Ports for the servers that tests start: no two tests that run at the same time are given the same one."""

from __future__ import annotations

import random
import socket
from collections import deque

RANGE = range(12_000, 32_000)
"""Below those that the system gives to outgoing connections, of which one would otherwise take the port of a server
that a test has stopped for a while."""
KEPT = 200
"""How many claims a process holds, the newest ones: more than any test needs, fewer than it may open files."""

_choice = random.Random()
_claims: deque[socket.socket] = deque()


def free_port() -> int:
    """A TCP port on which nobody listens, and which nobody else gets from here, in this process or another.

    The claim is the UDP port of the same number: only one process can hold it, and with the process it ends.
    """
    for _ in range(1000):
        port = _choice.choice(RANGE)
        claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            claim.bind(("127.0.0.1", port))
            with socket.socket() as probe:
                probe.bind(("0.0.0.0", port))
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        if len(_claims) > KEPT:
            _claims.popleft().close()
        return port
    raise RuntimeError("no port is free")
