"""Who uses which network: a directory for each network, and in it a file for each user, whose name says everything.

All these files are one, of no bytes, by many names: a hard link is made by one system call, so an entry is whole or not there, even after
`kill -9`; it takes a tenth of a new file's time where /run is on a disk; and `ls` shows them all. One lock keeps processes and threads apart
while they decide. Every container that starts comes by here: hence plain strings.
"""

import os
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import NamedTuple

from kernel_lab import state
from kernel_lab.state import Creator

_SETTINGS, _WHOLE, _USER = "settings", "whole", "user"


class Entry(NamedTuple):
    """One user: a container's address, or a name for who keeps the network up. `pid`: the container's first process, or 0."""

    key: str
    creator: Creator
    pid: int = 0

    @classmethod
    def named(cls, file: str) -> "Entry":
        key, pid, start, child = file.split(",")
        return cls(key, Creator(int(pid), int(start)), int(child))

    @property
    def file(self) -> str:
        return f"{self.key},{self.creator.pid},{self.creator.start},{self.pid}"

    def alive(self) -> bool:
        return self.creator == Creator.this() or self.creator.alive()


def root() -> Path:
    """Where all networks of this user are recorded, whether or not there are any."""
    return state.run_path() / "networks"


def locked() -> AbstractContextManager[None]:
    """Alone among all threads and processes that share the records."""
    return state.locked(state.folder("networks") / "lock")


class Ledger:
    """The records of one network. Whoever changes them holds the lock."""

    def __init__(self, name: str, where: str | None = None) -> None:
        self.name = name
        self._root = where or str(root())
        self.directory = f"{self._root}/{name}"

    def locked(self) -> AbstractContextManager[None]:
        """Alone among all threads and processes that share the records."""
        return state.locked(f"{self._root}/lock") if os.path.isdir(self._root) else locked()

    def begin(self, settings: str) -> None:
        """From here on something of this network may be in the kernel."""
        os.makedirs(self.directory, 0o700, exist_ok=True)
        os.close(os.open(f"{self.directory}/{_USER}", os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._mark(_SETTINGS, settings)

    def complete(self) -> None:
        """All of it is there."""
        self._mark(_WHOLE, "yes")

    def crumble(self) -> None:
        """From here on some of it may be missing."""
        self._remove(_WHOLE)

    def begun(self) -> bool:
        return os.path.isdir(self.directory)

    def whole(self) -> bool:
        return os.path.lexists(f"{self.directory}/{_WHOLE}")

    def settings(self) -> str | None:
        """What the network was made with, or was to be made with."""
        try:
            return os.readlink(f"{self.directory}/{_SETTINGS}")
        except FileNotFoundError:
            return None

    def add(self, entry: Entry) -> None:
        """A new user, in the place of a dead one if need be."""
        self.drop(entry.key)
        os.link(f"{self.directory}/{_USER}", f"{self.directory}/{entry.file}")

    def entry(self, key: str) -> Entry | None:
        return next((Entry.named(file) for file in self._files() if file.startswith(f"{key},")), None)

    def entries(self) -> list[Entry]:
        return [Entry.named(file) for file in self._files() if "," in file]

    def in_use(self) -> bool:
        return any(entry.alive() for entry in self.entries())

    def drop(self, key: str) -> list[Entry]:
        """One user less, if it is one; returns those that are left."""
        entries = self.entries()
        for entry in entries:
            if entry.key == key:
                self._remove(entry.file)
        return [entry for entry in entries if entry.key != key]

    def erase(self) -> None:
        """Nothing of the network is in the kernel any more. It counts as whole no longer, so a half-erased record does no harm."""
        for file in self._files():
            self._remove(file)
        with suppress(FileNotFoundError):
            os.rmdir(self.directory)

    def _files(self) -> list[str]:
        try:
            return os.listdir(self.directory)
        except FileNotFoundError:
            return []

    def _remove(self, file: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(f"{self.directory}/{file}")

    def _mark(self, name: str, text: str) -> None:
        self._remove(name)
        os.symlink(text, f"{self.directory}/{name}")


def ledgers() -> list[Ledger]:
    """Of every recorded network, whole or half."""
    try:
        return [Ledger(name) for name in sorted(entry.name for entry in os.scandir(root()) if entry.is_dir(follow_symlinks=False))]
    except FileNotFoundError:
        return []
