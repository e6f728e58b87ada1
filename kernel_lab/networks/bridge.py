"""A bridge: the switch that containers are plugged into, with the host on a port of its own (man ip-link(8), bridge and veth)."""

import atexit
import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from ipaddress import IPv4Network
from types import TracebackType
from typing import Self

from kernel_lab import janitor
from kernel_lab.kernel.errors import UsageError
from kernel_lab.kernel.interrupts import Deferred
from kernel_lab.networks import addresses, ledger, lifetime, messages, nat, routes
from kernel_lab.networks.addresses import Endpoint, link_name
from kernel_lab.networks.ledger import Entry, Ledger
from kernel_lab.networks.lifetime import Settings
from kernel_lab.networks.netlink import ask, index_of
from kernel_lab.state import Creator

LONGEST_NAME = 15  # IFNAMSIZ in linux/if.h, without the NUL
_NAME = re.compile(rf"{addresses.PREFIX}[A-Za-z0-9_.-]*")


class Bridge:
    """A bridge in the host's network. It is made on first use and goes with its last user, in whichever process that is.

    A user is a container that is attached, or whoever has it open: `with Bridge() as bridge: …`, or `open()` and `close()`.
    `subnet`: its first address is the bridge's. Without one it is the bridge's as it stands, or the first private /24 that the host does not use.
    `nat`: whether containers reach what the host reaches, under the host's address. Without a word it is as the bridge stands, or yes.
    """

    def __init__(self, name: str = "klab0", subnet: str | None = None, nat: bool | None = None) -> None:
        self.name = _checked_name(name)
        self.nat = nat
        self._asked = routes.network(subnet) if subnet is not None else None
        self._ledger = Ledger(name)
        self._open: list[str] = []
        self.check()

    @property
    def subnet(self) -> IPv4Network:
        """Of the bridge that is there, else the one that it would be made with."""
        if self._ledger.whole() and (made := lifetime.settings(self._ledger)) and self._fits(made):
            return made.subnet
        return self._asked or routes.first_free(self._known())

    @property
    def address(self) -> str:
        """The host's address on the bridge: the containers' default gateway."""
        return addresses.gateway(self.subnet)

    def containers(self) -> dict[str, int]:
        """The addresses of the attached containers, each with the first process that has it."""
        return {entry.key: entry.pid for entry in self._ledger.entries() if entry.pid and entry.alive()}

    def address_of(self, pid: int) -> str:
        """The address of the container whose first process is `pid`."""
        for address, process in self.containers().items():
            if process == pid:
                return address
        raise UsageError(f"process {pid} is no container's first process on bridge {self.name}")

    def check(self, address: str | None = None) -> None:
        """Raises UsageError for what can be known to be wrong before anything is made."""
        made = lifetime.settings(self._ledger)
        if not made or not self._fits(made):
            self._check_makeable(made)
        if address is not None:
            addresses.check_inside(address, self.subnet)

    def open(self) -> Self:
        """Keeps the bridge up until `close()`, or until this process ends."""
        key = f"open.{secrets.token_hex(4)}"
        _watch(os.getpid(), self._ledger.directory)
        with Deferred(), self._ledger.locked():
            self._ensure()
            self._ledger.add(Entry(key, Creator.this()))
            _opened[key] = self._ledger
            self._open.append(key)
        return self

    def close(self) -> None:
        """Takes one `open()` back; the bridge goes if nobody else uses it."""
        if self._open:
            _close(self._ledger, self._open.pop())

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def attached(self, pid: int, address: str | None = None) -> Iterator[Endpoint]:
        """The network namespace of `pid` has a link `eth0` into the bridge, and an address is reserved for it.

        The link goes with the namespace, which the kernel takes apart by itself once nobody is in it.
        """
        _watch(os.getpid(), self._ledger.directory)
        with self._ledger.locked():
            link, place = self._reserve(pid, address)
        try:
            ask(messages.veth(link_name(place.address), link, pid, place.address))
            yield place
        finally:
            with self._ledger.locked():
                lifetime.leave(self._ledger, place.address)

    def __repr__(self) -> str:
        subnet = f", subnet={str(self._asked)!r}" if self._asked else ""
        return f"Bridge({self.name!r}{subnet}{f', nat={self.nat}' if self.nat is not None else ''})"

    def _reserve(self, pid: int, address: str | None) -> tuple[int, Endpoint]:
        link, subnet = self._ensure()
        if address is None:
            address = addresses.choose(subnet, self._ledger)
        else:
            address = addresses.check_inside(address, subnet)
            addresses.check_free(address, self._ledger)
        if index_of(link_name(address)):
            # A predecessor's, whose namespace is still there and goes on answering for the address.
            ask(messages.remove(link_name(address)), tolerate=errno.ENODEV)
        self._ledger.add(Entry(address, Creator.this(), pid))
        return link, addresses.endpoint(subnet, address)

    def _ensure(self) -> tuple[int, IPv4Network]:
        """The bridge stands as it is asked for: the number of its link, and its subnet. Whoever calls holds the lock."""
        made = lifetime.settings(self._ledger)
        if made and self._fits(made) and (link := lifetime.standing(self._ledger)):
            return link, made.subnet
        self._check_makeable(made)
        made = lifetime.make(self._ledger, self._choice)
        return index_of(self.name), made.subnet

    def _choice(self) -> Settings:
        known = self._known()
        if self._asked:
            routes.check_free(self._asked, known)
        return Settings(self._asked or routes.first_free(known), self.nat is not False)

    def _fits(self, made: Settings) -> bool:
        return self._asked in (None, made.subnet) and self.nat in (None, made.nat)

    def _check_makeable(self, made: Settings | None) -> None:
        if made and self._ledger.in_use():
            if self._fits(made):
                raise UsageError(f"{self!r}: {self.name} is in use, and somebody has removed its link: end its containers, and close it")
            raise UsageError(f"{self!r}: {self.name} is in use as {made}: choose another name, or leave subnet and nat out")
        if not self._ledger.begun() and index_of(self.name):
            raise UsageError(f"{self!r}: there is a link {self.name} that {ledger.root()} does not know: choose another name, or klab cleanup")
        if self.nat is not False:
            nat.check_installed()
        if self._asked:
            routes.check_free(self._asked, self._known())

    def _known(self) -> list[routes.Route]:
        return [route for route in routes.routes() if route.link != self.name]


def _checked_name(name: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(f"bridge {name!r}: its name begins with klab, so that klab cleanup knows it; then letters, digits, '_', '.' and '-'")
    if len(name) > LONGEST_NAME:
        raise UsageError(f"bridge {name!r}: {len(name)} bytes long; the kernel takes at most {LONGEST_NAME} (IFNAMSIZ in linux/if.h)")
    if addresses.address_in(name):
        raise UsageError(f"bridge {name!r}: klab and eight hexadecimal digits is the name of a container's link")
    if Creator.in_name(name):
        raise UsageError(f"bridge {name!r}: it looks like the mark of a process, by which klab cleanup tells what that has left behind")
    return name


@cache
def _watch(pid: int, records: str) -> None:
    """Should this process be killed, its janitor takes away what these records tell of."""
    janitor.watch_leftovers()


# What this process keeps up. Not left to the objects' own end: a garbage collection can come while its thread holds the ledger's lock.
_opened: dict[str, Ledger] = {}


def _close(record: Ledger, key: str) -> None:
    with Deferred(), record.locked():
        _opened.pop(key, None)
        lifetime.leave(record, key)


@atexit.register
def _close_all() -> None:
    for key, record in list(_opened.items()):
        entry = record.entry(key)
        # After a fork the child has a copy of the list, and the bridges are still its parent's.
        if entry and entry.creator == Creator.this():
            _close(record, key)
