"""The way to the app beside this sidecar, and to servers outside the mesh.

Plain HTTP/1.1 to the app is our own: `guard` decides what may be written, `call` is what is asked, `streaming` has
bodies in pieces, `connection` speaks HTTP over one socket, `pool` shares the sockets out among the calls, `http` is the
port. `library` speaks https and h2c to the app, `external` calls the outside; `choice` imports them when a
configuration asks for them.
"""

from sidecar.channel.choice import OutsideWorld, open_app_channel
from sidecar.channel.connection import Limits
from sidecar.channel.guard import UnsafeRequest
from sidecar.channel.http import HttpAppChannel, HttpRoute

__all__ = ["HttpAppChannel", "HttpRoute", "Limits", "OutsideWorld", "UnsafeRequest", "open_app_channel"]
