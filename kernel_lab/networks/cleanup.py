"""What dead processes have left of networks. What a living one uses, in whatever directory it is recorded, is never touched."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from kernel_lab.networks import addresses, ledger, lifetime, messages, nat
from kernel_lab.networks.ledger import Entry, Ledger, locked
from kernel_lab.networks.netlink import ask, index_of
from kernel_lab.state import Creator, Leftover

LINKS = Path("/sys/class/net")


def leftovers() -> list[Leftover]:
    """Bridges, leases, tables and the host's forwarding, in the order in which they are to be removed."""
    # Half-made things of the living are seen by nobody who has the lock.
    with locked() if ledger.root().is_dir() else nullcontext(), nat.alone():
        tables = nat.tables()
        return [*_bridges(), *_leases(), *_unrecorded(), *_tables(tables), *_forwarding(tables)]


def _bridges() -> Iterator[Leftover]:
    for record in ledger.ledgers():
        if not record.in_use():
            users = [_dead(entry.creator) for entry in record.entries()]
            yield Leftover("bridge", record.name, users[0] if users else "nobody uses it", partial(_take_down, record))


def _take_down(record: Ledger) -> None:
    with locked():
        if record.begun() and not record.in_use():
            lifetime.take_down(record)


def _leases() -> Iterator[Leftover]:
    for record in ledger.ledgers():
        if record.in_use():
            for entry in record.entries():
                if not entry.alive():
                    yield Leftover("lease", f"{entry.key} on {record.name}", _dead(entry.creator), partial(_end_lease, record, entry))


def _end_lease(record: Ledger, lease: Entry) -> None:
    with locked():
        if record.entry(lease.key) == lease:
            if lease.pid and index_of(link := addresses.link_name(lease.key)):
                ask(messages.remove(link), tolerate=errno.ENODEV)
            lifetime.leave(record, lease.key)


def _unrecorded() -> Iterator[Leftover]:
    """Bridges whose records have been deleted. Their alias tells who made them, and where they would be recorded."""
    for _, name in socket.if_nameindex():
        word, _, rest = _alias(name).partition(" ")
        stamp, _, root = rest.partition(" ")
        creator = Creator.in_name(stamp) if word == lifetime.ALIAS else None
        if creator and not creator.alive() and not Ledger(name, root).begun():
            yield Leftover("bridge", name, f"{_dead(creator)}, and its records are gone", partial(_remove_unrecorded, name))


def _alias(name: str) -> str:
    try:
        return (LINKS / name / "ifalias").read_text().strip()
    except OSError:
        return ""


def _remove_unrecorded(name: str) -> None:
    plugged = os.listdir(LINKS / name / "brif") if (LINKS / name / "brif").is_dir() else []
    with nat.alone():
        if nat.table(name) in nat.tables():
            nat.remove(name)
    ask(*map(messages.remove, (*filter(addresses.address_in, plugged), name)), tolerate=errno.ENODEV)


def _tables(tables: list[str]) -> Iterator[Leftover]:
    recorded = [record.name for record in ledger.ledgers()]
    for name in (table.removeprefix(nat.PREFIX) for table in tables if table != nat.WAS_OFF):
        # A table is made after its bridge and removed before it.
        if not index_of(name) and name not in recorded:
            yield Leftover("nft table", nat.table(name), f"there is no bridge {name}", partial(_remove_table, name))


def _forwarding(tables: list[str]) -> Iterator[Leftover]:
    if tables == [nat.WAS_OFF]:
        yield Leftover("setting", "net.ipv4.ip_forward", "it was off before the first bridge, and none is left", _restore)


def _remove_table(bridge: str) -> None:
    with nat.alone():
        if not index_of(bridge):
            nat.remove(bridge)


def _restore() -> None:
    with nat.alone():
        if nat.tables() == [nat.WAS_OFF]:
            nat.restore()


def _dead(creator: Creator) -> str:
    return f"its creator, process {creator.pid}, has ended"
