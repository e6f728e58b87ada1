"""Which address a container gets, and the name of its link, which is made of the address."""

import socket
from collections.abc import Iterator
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import NamedTuple

from kernel_lab.kernel.errors import UsageError
from kernel_lab.networks.ledger import Ledger
from kernel_lab.networks.netlink import index_of

PREFIX = "klab"
_given: dict[IPv4Network, str] = {}


class Endpoint(NamedTuple):
    """Where a container is in its network."""

    address: str
    netmask: str
    gateway: str


def gateway(subnet: IPv4Network) -> str:
    """The bridge's own address: the first one."""
    return str(subnet.network_address + 1)


def endpoint(subnet: IPv4Network, address: str) -> Endpoint:
    return Endpoint(address, str(subnet.netmask), gateway(subnet))


def link_name(address: str) -> str:
    """The host's end of a container's link. The address is unique on the host, so its name is, and it tells whose link it is."""
    return PREFIX + socket.inet_aton(address).hex()


def address_in(link: str) -> str | None:
    """The address that a link's name tells; None where it is no container's link."""
    digits = link.removeprefix(PREFIX)
    if len(link) != len(PREFIX) + 8 or len(digits) != 8 or digits.strip("0123456789abcdef"):
        return None
    return socket.inet_ntoa(bytes.fromhex(digits))


def links_in(subnet: IPv4Network) -> list[str]:
    """The links of containers that have an address in `subnet`."""
    return [name for _, name in socket.if_nameindex() if (address := address_in(name)) and IPv4Address(address) in subnet]


def check_inside(address: str, subnet: IPv4Network) -> str:
    """The address as the kernel writes it; UsageError when no container in `subnet` can have it."""
    try:
        asked = IPv4Address(address)
    except AddressValueError:
        raise UsageError(f"address {address!r} is not an IPv4 address such as {subnet.network_address + 2}") from None
    if asked not in subnet:
        raise UsageError(f"address {asked} is outside the bridge's subnet {subnet}")
    if asked in (subnet.network_address, subnet.broadcast_address):
        raise UsageError(f"address {asked} is the first or the last of {subnet}: these two mean the subnet itself and all of its hosts")
    if str(asked) == gateway(subnet):
        raise UsageError(f"address {asked} is the bridge's own, the first of {subnet}")
    return str(asked)


def choose(subnet: IPv4Network, ledger: Ledger) -> str:
    """The address after the one that this process gave out last, so that who has just ended is not mistaken for who begins."""
    left_over = None
    for address in _round(subnet, _given.get(subnet)):
        if _held(address, ledger):
            continue
        # The kernel takes a network namespace apart some time after its last process, and until then answers for its address.
        if not index_of(link_name(address)):
            break
        left_over = left_over or address
    else:
        if not left_over:
            raise UsageError(f"every address of {subnet} is taken: end a container, or make a bridge with a larger subnet")
        address = left_over
    _given[subnet] = address
    return address


def begin(subnet: IPv4Network) -> None:
    """A new bridge begins with the first address again."""
    _given.pop(subnet, None)


def check_free(address: str, ledger: Ledger) -> None:
    if _held(address, ledger):
        raise UsageError(f"address {address} is taken by another container: choose another, or end that one")


def _held(address: str, ledger: Ledger) -> bool:
    entry = ledger.entry(address)
    return entry is not None and entry.alive()


def _round(subnet: IPv4Network, last: str | None) -> Iterator[str]:
    """The addresses for containers, once each, from the one after `last` on."""
    base, count = int(subnet.network_address) + 2, subnet.num_addresses - 3
    after = int(IPv4Address(last)) + 1 - base if last else 0
    for step in range(count):
        yield str(IPv4Address(base + (after + step) % count))
