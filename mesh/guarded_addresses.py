"""Addresses that an app's request must not lead the sidecar to: those that would give away the machine's own identity.

They are link-local ones, and those of the clouds' metadata services. A name is resolved once, and what was checked is
what is connected to.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from mesh.errors import MeshError

_METADATA = frozenset(
    map(
        ip_address,
        (
            *("100.100.100.200", "168.63.129.16", "192.0.0.192"),
            *("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:42::42"),
        ),
    )
)
_EMBEDDING = tuple(map(ip_network, ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")))
"""Where the last 32 bits are an IPv4 address (RFC 4291, 2.5.5; RFC 2765; RFC 6052; RFC 8215)."""


class Forbidden(MeshError):
    """The address is none that may be called."""


def check_address(text: str) -> None:
    """Raise `Forbidden` for a link-local address, one of a metadata service, and one of a group or of nobody."""
    address: IPv4Address | IPv6Address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address):
        if address.sixtofour is not None:
            address = address.sixtofour
        elif any(address in network for network in _EMBEDDING):
            address = IPv4Address(int(address) & 0xFFFFFFFF)
    if address.is_link_local or address.is_multicast or address.is_unspecified or address in _METADATA:
        raise Forbidden(f"{address} is an address that may not be called (link-local, metadata service or group)")


async def resolve(host: str, port: int, timeout: float | None) -> Sequence[str]:
    """The addresses of `host`, each of which may be called. Raises `Forbidden`; `OSError`, `UnicodeError` when there
    are none, or not within `timeout` seconds."""
    async with asyncio.timeout(timeout):
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        check_address(address)
    return addresses
