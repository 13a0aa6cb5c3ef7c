"""The way to the app beside this sidecar, over plain HTTP/1.1.

`guard` decides what may be written, `connection` speaks HTTP over one socket, `http` shares the sockets out
among the calls.
"""

from sidecar.channel.connection import Limits
from sidecar.channel.guard import UnsafeRequest
from sidecar.channel.http import HttpAppChannel, HttpRoute

__all__ = ["HttpAppChannel", "HttpRoute", "Limits", "UnsafeRequest"]
