"""Which networks the host reaches already, and which one a bridge may take."""

import ipaddress
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Network
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from kernel_lab.kernel.errors import UsageError

# Private networks (RFC 1918) of which a bridge takes a /24 when none is asked for, in this order.
POOLS = ("10.213.0.0/16", "172.29.0.0/16", "192.168.192.0/18")
LONGEST_PREFIX = 30  # leaves an address for the bridge and one for a container


class Route(NamedTuple):
    link: str
    network: IPv4Network


def routes() -> list[Route]:
    """The IPv4 routes of this thread's network namespace, without default routes."""
    lines = Path("/proc/thread-self/net/route").read_text().splitlines()[1:]
    found = (_route(line.split()) for line in lines)
    # A default route may be written as two halves, 0.0.0.0/1 and 128.0.0.0/1, as VPNs do.
    return [route for route in found if route.network.prefixlen > 1]


def _route(fields: list[str]) -> Route:
    link, destination, mask = fields[0], fields[1], fields[7]
    return Route(link, IPv4Network((_address(destination), _address(mask))))


def _address(hexadecimal: str) -> str:
    # /proc/net/route prints the four bytes, which are in network order, as one number of the machine.
    return socket.inet_ntoa(struct.pack("=I", int(hexadecimal, 16)))


def network(text: str) -> IPv4Network:
    """A subnet as the caller wrote it; UsageError when it is none, or has no room for a container."""
    try:
        asked = IPv4Network(text)
    except ValueError as error:
        raise UsageError(f"subnet {text!r} is not an IPv4 network such as 10.213.0.0/24: {error}") from None
    if asked.prefixlen > LONGEST_PREFIX:
        raise UsageError(f"subnet {text}: a bridge and a container need two addresses, which a /{LONGEST_PREFIX} has")
    return asked


def check_free(asked: IPv4Network, taken: Iterable[Route]) -> None:
    """UsageError when the host would lose its way to a network that it reaches otherwise."""
    for link, known in taken:
        if asked.overlaps(known):
            raise UsageError(f"subnet {asked} overlaps {known}, which the host reaches through {link}: choose another, or leave subnet out")


def first_free(taken: Iterable[Route]) -> IPv4Network:
    """The first /24 of the pools that overlaps nothing."""
    known = [route.network for route in taken]
    for candidate in chain.from_iterable(ipaddress.IPv4Network(pool).subnets(new_prefix=24) for pool in POOLS):
        if not any(candidate.overlaps(other) for other in known):
            return candidate
    raise UsageError(f"every /24 of {', '.join(POOLS)} overlaps a route of the host: name a subnet that it does not use")
