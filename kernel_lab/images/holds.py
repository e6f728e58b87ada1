"""What a process needs for a while and nobody may remove: written into a file of its own, in the folder where it lies.

So a removal never waits for a long download or a container, and what the dead have held is free.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kernel_lab import state


class Holds:
    """The files of this kind in a folder. Who notes something, or removes what is not held, has the folder's lock."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.kind = kind

    @contextmanager
    def hold(self) -> Iterator[Path]:
        """A file for the names of what is needed until the block ends."""
        path = self.folder / f"{self.kind}.{state.Creator.this().stamp}.{os.urandom(4).hex()}"
        try:
            path.touch()
            yield path
        finally:
            path.unlink(missing_ok=True)

    def note(self, hold: Path, names: Iterable[str]) -> None:
        """Holds these too."""
        with open(hold, "a") as file:
            file.writelines(f"{name}\n" for name in names)

    def release(self, hold: Path) -> set[str]:
        """Holds none of its names any more: those that it had."""
        names = _noted(hold)
        os.truncate(hold, 0)
        return names

    def held(self) -> set[str]:
        """The names that somebody holds who lives."""
        holds = (path for path in self.folder.glob(f"{self.kind}.*") if (maker := state.Creator.in_name(path.name)) and maker.alive())
        return set().union(*map(_noted, holds))


def _noted(hold: Path) -> set[str]:
    # Its maker may just have come to the end.
    with suppress(FileNotFoundError):
        return set(hold.read_text().split())
    return set()
