"""How a bridge comes and goes, in steps that a crash may cut anywhere: what is written down first says what has to be taken away.

Whoever calls holds the lock of the ledger.
"""

import errno
from contextlib import ExitStack
from functools import lru_cache
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import NamedTuple

from kernel_lab.networks import addresses, ledger, messages, nat
from kernel_lab.networks.ledger import Ledger
from kernel_lab.networks.netlink import ask, index_of


class Settings(NamedTuple):
    """What a bridge is made with."""

    subnet: IPv4Network
    nat: bool

    def __str__(self) -> str:
        return f"{self.subnet} {'with' if self.nat else 'without'} nat"


def settings(name: str) -> Settings | None:
    """Of a bridge that is recorded."""
    text = Ledger(name).settings()
    return _parsed(text) if text else None


@lru_cache
def _parsed(text: str) -> Settings:
    subnet, with_or_without, _ = text.split()
    return Settings(IPv4Network(subnet), with_or_without == "with")


def standing(name: str) -> bool:
    """Whether the bridge is there, all of it."""
    return Ledger(name).whole() and index_of(name) > 0


def make(name: str, wanted: Settings) -> None:
    """Raises KernelError for what the kernel refuses, and then nothing is left."""
    record = Ledger(name)
    address = addresses.gateway(wanted.subnet)
    with ExitStack() as undo:
        undo.callback(record.erase)
        record.begin(str(wanted))
        addresses.begin(wanted.subnet)
        ask(*messages.bridge(name, address, f"kernel-lab {ledger.me().stamp}"))
        undo.callback(ask, messages.remove(name))
        ask(messages.address(index_of(name), IPv4Interface(f"{address}/{wanted.subnet.prefixlen}")))
        if wanted.nat:
            undo.callback(_forwarding_back, name)
            nat.forwarding_on(forward_memory())
            nat.make(name, wanted.subnet)
        record.complete()
        undo.pop_all()


def take_down(name: str) -> None:
    """The bridge goes with all that belongs to it, as far as it is there: its table, what is still plugged into it, its records."""
    record, made = Ledger(name), settings(name)
    record.crumble()
    if made:
        if made.nat:
            nat.remove(name)
        ask(*map(messages.remove, (*addresses.links_in(made.subnet), name)), tolerate=errno.ENODEV)
        _forwarding_back(name)
    record.erase()


def leave(name: str, key: str) -> None:
    """One user less; the last one takes the bridge down."""
    record = Ledger(name)
    record.drop(key)
    if record.begun() and not record.in_use():
        take_down(name)


def forward_memory() -> Path:
    """Where it is kept whether the host passed packets on before the first bridge."""
    return ledger.root() / "ip_forward"


def _forwarding_back(leaving: str) -> None:
    others = (settings(name) for name in ledger.networks() if name != leaving)
    if not any(made and made.nat for made in others):
        nat.forwarding_back(forward_memory())
