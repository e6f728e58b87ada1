"""What AUFS shows of several directories, its branches: one tree, in which an upper branch hides what is below (aufs(5)).

A name is looked up from the top down. The first branch that has it decides: a file is shown as it is; a directory is merged with those of the same
name below. A *whiteout*, `.wh.NAME`, ends the search: below it the name is gone. `.wh..wh..opq` in a directory, which is then *opaque*, hides all
that the branches below have in it. Where a name and its whiteout stand side by side, the name is shown: it is what has come last, and a change that
was cut off between two steps then loses nothing.
"""

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

from kernel_lab.kernel.errors import UsageError
from kernel_lab.unionfs.whiteouts import AUFS_OPAQUE, AUFS_WHITEOUT

# Only rw is written to. In ro, files that begin with .wh. say nothing: it is a directory as it was found.
MODES = ("rw", "ro", "ro+wh")
LONGEST = 255 - len(AUFS_WHITEOUT)  # bytes of a name: its whiteout is a name too


@dataclass(frozen=True)
class Branch:
    """A directory, and what may be done with it: `rw`, `ro`, or `ro+wh`, which is read only and was a rw branch once, with whiteouts."""

    path: str
    mode: str = "rw"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"branch {self.path!r}: mode {self.mode!r}; a branch is {', '.join(MODES)}")

    @property
    def writable(self) -> bool:
        return self.mode == "rw"

    @property
    def has_whiteouts(self) -> bool:
        return self.mode != "ro"

    def __str__(self) -> str:
        return f"{self.path}={self.mode}"


def parse(text: str, default: str = "rw") -> tuple[Branch, ...]:
    """The branches of a mount option of AUFS, `br:/upper=rw:/base=ro+wh`; without a mode, the first has the default one, and the others are ro.

    Raises UsageError for anything else.
    """
    words = text.removeprefix("br:").removeprefix("br=").split(":")
    if not all(word.startswith("/") for word in words):
        raise UsageError(f"branches {text!r}: they are written br:/PATH=MODE:/PATH=MODE, the topmost first, with absolute paths")
    pairs = (word.partition("=") for word in words)
    return tuple(Branch(path, mode or ("ro" if number else default)) for number, (path, _, mode) in enumerate(pairs))


class Place(NamedTuple):
    """Where a branch has something of the union. `ends`: it hides whatever the branches below have under the same name."""

    branch: Branch
    path: str
    status: os.stat_result
    ends: bool

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)


def roots(branches: Sequence[Branch]) -> list[Place]:
    """The places of the union's top directory."""
    places = [_place(branch, branch.path) for branch in branches]
    end = next((number for number, place in enumerate(places, 1) if place.ends), len(places))
    return places[:end]


def find(directory: Sequence[Place], name: str) -> list[Place]:
    """The places of a name in a directory that has these places, the topmost first: one of a file, any number of a directory, none of no file."""
    found: list[Place] = []
    for above in directory:
        try:
            place = _place(above.branch, f"{above.path}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            if is_hidden(above, name):
                break
            continue
        if found and not place.is_directory:
            break  # under a directory, a file shows as little as under anything else
        found.append(place)
        if place.ends or is_hidden(above, name):
            break
    return found


def walk(branches: Sequence[Branch], path: str) -> list[Place]:
    """The places of an absolute path of the union."""
    return reduce(find, filter(None, path.split("/")), roots(branches))


def names(directory: Sequence[Place]) -> list[str]:
    """The names in a directory that has these places."""
    shown: dict[str, None] = {}
    hidden: set[str] = set()
    for place in directory:
        here = os.listdir(place.path)
        shown |= dict.fromkeys(name for name in here if not is_reserved(name) and name not in hidden)
        if place.branch.has_whiteouts:
            hidden |= {name.removeprefix(AUFS_WHITEOUT) for name in here if is_reserved(name)}
    return list(shown)


def is_reserved(name: str) -> bool:
    """Whether AUFS keeps the name for itself: no file of the union has it."""
    return name.startswith(AUFS_WHITEOUT)


def is_hidden(place: Place, name: str) -> bool:
    """Whether a directory of a branch has a whiteout of the name."""
    return place.branch.has_whiteouts and os.path.lexists(f"{place.path}/{AUFS_WHITEOUT}{name}")


def hide(directory: str, name: str) -> None:
    """Makes a whiteout."""
    with suppress(FileExistsError):
        os.mknod(f"{directory}/{AUFS_WHITEOUT}{name}", stat.S_IFREG | 0o444)


def reveal(directory: str, name: str) -> None:
    """Takes a whiteout away, if there is one."""
    with suppress(FileNotFoundError):
        os.unlink(f"{directory}/{AUFS_WHITEOUT}{name}")


def close_off(directory: str) -> None:
    """Makes a directory opaque."""
    with suppress(FileExistsError):
        os.mknod(f"{directory}/{AUFS_OPAQUE}", stat.S_IFREG | 0o444)


def _place(branch: Branch, path: str) -> Place:
    status = os.lstat(path)
    is_directory = stat.S_ISDIR(status.st_mode)
    return Place(branch, path, status, not is_directory or (branch.has_whiteouts and os.path.lexists(f"{path}/{AUFS_OPAQUE}")))
