"""Which address a container gets, and the name of its link, which is made of the address."""

import socket
from functools import cache
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import NamedTuple

from kernel_lab.kernel.errors import UsageError
from kernel_lab.networks.ledger import Ledger
from kernel_lab.networks.netlink import index_of

PREFIX = "klab"
_given: dict[str, int] = {}  # how many addresses after the first one the last one was, by network


class Endpoint(NamedTuple):
    """Where a container is in its network."""

    address: str
    netmask: str
    gateway: str


@cache
def gateway(subnet: IPv4Network) -> str:
    """The bridge's own address: the first one."""
    return str(subnet.network_address + 1)


def endpoint(subnet: IPv4Network, address: str) -> Endpoint:
    return Endpoint(address, _netmask(subnet), gateway(subnet))


@cache
def _netmask(subnet: IPv4Network) -> str:
    return str(subnet.netmask)


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
    users = {entry.key: entry for entry in ledger.entries()}
    first, count = _span(subnet)
    last, left_over = _given.get(ledger.directory, -1), None
    for step in range(last + 1, last + 1 + count):
        address = _text(first + step % count)
        if address in users and users[address].alive():
            continue
        # The kernel takes a network namespace apart some time after its last process, and until then answers for its address.
        if index_of(link_name(address)):
            left_over = left_over or (step, address)
            continue
        break
    else:
        if not left_over:
            raise UsageError(f"every address of {subnet} is taken: end a container, or make a bridge with a larger subnet")
        step, address = left_over
    _given[ledger.directory] = step % count
    return address


@cache
def _span(subnet: IPv4Network) -> tuple[int, int]:
    """The first address for a container, as a number, and how many there are: all but the subnet's own, the bridge's, and the broadcast."""
    return int(subnet.network_address) + 2, subnet.num_addresses - 3


def _text(address: int) -> str:
    return socket.inet_ntoa(address.to_bytes(4, "big"))


def begin(ledger: Ledger) -> None:
    """A new bridge begins with the first address again."""
    _given.pop(ledger.directory, None)


def check_free(address: str, ledger: Ledger) -> None:
    entry = ledger.entry(address)
    if entry and entry.alive():
        raise UsageError(f"address {address} is taken by another container: choose another, or end that one")
