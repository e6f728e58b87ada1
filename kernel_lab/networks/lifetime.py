"""How a bridge comes and goes, in steps that a crash may cut anywhere: what is written down first says what has to be taken away.

Whoever calls holds the lock of the ledger.
"""

import errno
from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache
from ipaddress import IPv4Interface, IPv4Network
from typing import NamedTuple

from kernel_lab.networks import addresses, ledger, messages, nat
from kernel_lab.networks.ledger import Ledger
from kernel_lab.networks.netlink import ask, index_of
from kernel_lab.state import Creator

ALIAS = "kernel-lab"


class Settings(NamedTuple):
    """What a bridge is made with."""

    subnet: IPv4Network
    nat: bool

    def __str__(self) -> str:
        return f"{self.subnet} {'with' if self.nat else 'without'} nat"


def settings(record: Ledger) -> Settings | None:
    """Of a bridge that is recorded."""
    text = record.settings()
    return _parsed(text) if text else None


@lru_cache
def _parsed(text: str) -> Settings:
    subnet, with_or_without, _ = text.split()
    return Settings(IPv4Network(subnet), with_or_without == "with")


def standing(record: Ledger) -> int:
    """The number of the bridge's link, if all of the bridge is there, and otherwise 0."""
    return index_of(record.name) if record.whole() else 0


def alias() -> str:
    """What `ip link` shows beside a bridge: who made it, and where it is recorded."""
    return f"{ALIAS} {Creator.this().stamp} {ledger.root()}"


def make(record: Ledger, choose: Callable[[], Settings]) -> Settings:
    """The bridge as `choose` says, in the place of what may be left of it. Raises KernelError for what is refused, and then nothing is left."""
    with nat.alone(), ExitStack() as undo:
        if record.begun():
            _take_down(record)
        wanted = choose()
        undo.callback(record.erase)
        record.begin(str(wanted))
        _make(record.name, wanted, undo)
        record.complete()
        addresses.begin(record)
        undo.pop_all()
    return wanted


def _make(name: str, wanted: Settings, undo: ExitStack) -> None:
    address = addresses.gateway(wanted.subnet)
    ask(messages.bridge(name, address))
    undo.callback(ask, messages.remove(name))
    ask(messages.alias(name, alias()), messages.address(index_of(name), IPv4Interface(f"{address}/{wanted.subnet.prefixlen}")))
    if wanted.nat:
        nat.make(name, wanted.subnet)
        undo.callback(nat.remove, name)


def take_down(record: Ledger) -> None:
    """The bridge goes with all that belongs to it, as far as it is there: its table, what is still plugged into it, its records."""
    with nat.alone():
        _take_down(record)


def _take_down(record: Ledger) -> None:
    record.crumble()
    if made := settings(record):
        if made.nat:
            nat.remove(record.name)
        ask(*map(messages.remove, (*addresses.links_in(made.subnet), record.name)), tolerate=errno.ENODEV)
    record.erase()


def leave(record: Ledger, key: str) -> None:
    """One user less; the last one takes the bridge down."""
    if not any(entry.alive() for entry in record.drop(key)) and record.begun():
        take_down(record)
