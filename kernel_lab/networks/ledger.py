"""Who uses which network: a directory for each network, and in it a symbolic link for each user.

A symbolic link is made and read by one system call each, so an entry is whole or not there, even after `kill -9`; and `ls -l` shows
them all. One lock keeps processes and threads apart while they decide. Every container that starts comes by here: hence plain strings.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from kernel_lab import state
from kernel_lab.state import Creator

_SETTINGS, _WHOLE = "settings", "whole"


class Entry(NamedTuple):
    """One user: a container's address, or a name for who keeps the network up. `pid`: the container's first process, or 0."""

    key: str
    creator: Creator
    pid: int = 0

    def alive(self) -> bool:
        return self.creator == me() or self.creator.alive()


def me() -> Creator:
    """This process; its start is read from /proc once."""
    return _creator(os.getpid())


@cache
def _creator(pid: int) -> Creator:
    return Creator.of(pid)


def root() -> Path:
    """Where all networks of this user are recorded, whether or not there are any."""
    return state.run_path() / "networks"


def locked() -> AbstractContextManager[None]:
    """Alone among all threads and processes that share the records."""
    directory = root()
    if not os.path.isdir(directory):
        state.folder("networks")
    return state.locked(directory / "lock")


class Ledger:
    """The records of one network. Whoever changes them holds the lock."""

    def __init__(self, name: str, where: str | None = None) -> None:
        self.name = name
        self.directory = f"{where or root()}/{name}"

    def begin(self, settings: str) -> None:
        """From here on something of this network may be in the kernel."""
        os.makedirs(self.directory, 0o700, exist_ok=True)
        self._link(_SETTINGS, settings)

    def complete(self) -> None:
        """All of it is there."""
        self._link(_WHOLE, "yes")

    def crumble(self) -> None:
        """From here on some of it may be missing."""
        self.drop(_WHOLE)

    def begun(self) -> bool:
        return os.path.isdir(self.directory)

    def whole(self) -> bool:
        return os.path.lexists(f"{self.directory}/{_WHOLE}")

    def settings(self) -> str | None:
        """What the network was made with, or was to be made with."""
        return self._read(_SETTINGS)

    def add(self, entry: Entry) -> None:
        """A new user, in the place of a dead one if need be."""
        self._link(entry.key, f"{entry.creator.pid} {entry.creator.start} {entry.pid}")

    def entry(self, key: str) -> Entry | None:
        text = self._read(key)
        if text is None:
            return None
        pid, start, child = map(int, text.split())
        return Entry(key, Creator(pid, start), child)

    def entries(self) -> Iterator[Entry]:
        try:
            keys = os.listdir(self.directory)
        except FileNotFoundError:
            return
        yield from (entry for key in keys if key not in (_SETTINGS, _WHOLE) and (entry := self.entry(key)))

    def in_use(self) -> bool:
        return any(entry.alive() for entry in self.entries())

    def drop(self, key: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(f"{self.directory}/{key}")

    def erase(self) -> None:
        """Nothing of the network is in the kernel any more. It counts as whole no longer, so a half-erased record does no harm."""
        with suppress(FileNotFoundError):
            for key in os.listdir(self.directory):
                self.drop(key)
            os.rmdir(self.directory)

    def _read(self, key: str) -> str | None:
        try:
            return os.readlink(f"{self.directory}/{key}")
        except FileNotFoundError:
            return None

    def _link(self, key: str, text: str) -> None:
        try:
            os.symlink(text, f"{self.directory}/{key}")
        except FileExistsError:
            self.drop(key)
            os.symlink(text, f"{self.directory}/{key}")


def ledgers() -> list[Ledger]:
    """Of every recorded network, whole or half."""
    try:
        return [Ledger(name) for name in sorted(entry.name for entry in os.scandir(root()) if entry.is_dir(follow_symlinks=False))]
    except FileNotFoundError:
        return []
