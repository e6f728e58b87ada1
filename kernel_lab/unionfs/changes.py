"""What a layer changes of those below it: added, changed, deleted, as `docker diff` lists it."""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

from kernel_lab.unionfs import layers
from kernel_lab.unionfs.merged import lookup, names
from kernel_lab.unionfs.whiteouts import TRUSTED, USER, Notation, is_directory

ADDED, CHANGED, DELETED = "A", "C", "D"
KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
CHUNK = 1 << 20


class Change(NamedTuple):
    """One path of the container, what has become of it (A, C or D), and of what: its kind, or of a changed one what is different."""

    path: str
    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind} {self.path}"


class Changes(tuple[Change, ...]):
    """Changes in the order of their paths, which print as a table."""

    def _table(self, form: str) -> str:
        return tabulate([(change.kind, change.path, change.what) for change in self], ("", "path", "what"), tablefmt=form, disable_numparse=True)

    def __repr__(self) -> str:
        return self._table("simple")

    def _repr_html_(self) -> str:
        return self._table("html")


def changes(upper: str | Path, lower: Sequence[str | Path], notation: Notation | None = None) -> Changes:
    """What the layer `upper` changes of what those below it show, `lower` the topmost first.

    A directory counts as changed when a name in it is added or deleted, or it differs itself; what is inside a deleted one is not listed. The top
    directory is not listed either. `notation`: of all these layers; without it, the one that overlay uses for this user.
    Raises UsageError when one of them is no directory.
    """
    paths = [str(path) for path in (upper, *lower)]
    for path in paths:
        layers.check_directory("layer", path)
    found: list[Change] = []
    waiting = [_Directory(paths[0], tuple(paths[1:]), "", False, notation or (USER if os.geteuid() else TRUSTED))]
    while waiting:
        directory = waiting.pop()
        found += directory.changes()
        waiting += directory.directories()
    return Changes(sorted(found))


@dataclass
class _Directory:
    """A directory of the upper layer; `below`: those that it lies on, the topmost first; `in_their_place`: it shows nothing of them."""

    mine: str
    below: tuple[str, ...]
    path: str
    in_their_place: bool
    notation: Notation

    def __post_init__(self) -> None:
        self.listing = self.notation.read(self.mine)
        self.in_their_place |= self.listing.opaque
        self.before = {name: lookup(self.below, name, self.notation) for name in sorted(self.listing.names | self._gone())}

    def changes(self) -> Iterator[Change]:
        """What it adds and deletes, which of its files it changes, and whether it is another itself."""
        names = list(self._names())
        yield from names
        yield from self._files()
        if self.below and self.path and (what := _differences(self.mine, self.below[0], bool(names))):
            yield Change(self.path, CHANGED, what)

    def directories(self) -> Iterator["_Directory"]:
        """The directories in it."""
        for name in filter(lambda name: is_directory(f"{self.mine}/{name}"), self.listing.names):
            below = tuple(filter(is_directory, self.before[name]))
            in_their_place = self.in_their_place or name in self.listing.whiteouts
            yield _Directory(f"{self.mine}/{name}", below, f"{self.path}/{name}", in_their_place, self.notation)

    def _gone(self) -> set[str]:
        hidden = names(self.below, self.notation) if self.in_their_place else self.listing.whiteouts
        return set(hidden - self.listing.names)

    def _names(self) -> Iterator[Change]:
        for name, before in self.before.items():
            if name not in self.listing.names and before:
                yield Change(f"{self.path}/{name}", DELETED, _kind(before[0]))
            if name in self.listing.names and not before:
                yield Change(f"{self.path}/{name}", ADDED, _kind(f"{self.mine}/{name}"))

    def _files(self) -> Iterator[Change]:
        for name in self.listing.names:
            mine, before = f"{self.mine}/{name}", self.before[name]
            # Of two directories, the one in it says whether it is another.
            if before and not (is_directory(mine) and is_directory(before[0])) and (what := _differences(mine, before[0], False)):
                yield Change(f"{self.path}/{name}", CHANGED, what)


def _kind(path: str) -> str:
    return KINDS[stat.S_IFMT(os.lstat(path).st_mode)]


def _differences(mine: str, before: str, names_differ: bool) -> str:
    """In what the two differ, in words; empty when in nothing."""
    new, old = os.lstat(mine), os.lstat(before)
    if stat.S_IFMT(new.st_mode) != stat.S_IFMT(old.st_mode):
        return f"{_kind(before)} → {_kind(mine)}"
    aspects = {
        "names": names_differ,
        "content": _contents_differ(mine, before, new, old),
        f"mode {_mode(old)} → {_mode(new)}": new.st_mode != old.st_mode,
        f"owner {_owner(old)} → {_owner(new)}": _owner(new) != _owner(old),
        "attributes": _attributes(mine) != _attributes(before),
    }
    found = [aspect for aspect, differs in aspects.items() if differs]
    # A new content or name brings a new time along, of which nothing need be said.
    if not found and new.st_mtime_ns != old.st_mtime_ns:
        found.append("time")
    return ", ".join(found)


def _contents_differ(mine: str, before: str, new: os.stat_result, old: os.stat_result) -> bool:
    if stat.S_ISLNK(new.st_mode):
        return os.readlink(mine) != os.readlink(before)
    if stat.S_ISREG(new.st_mode):
        return new.st_size != old.st_size or not _same_bytes(mine, before)
    return new.st_rdev != old.st_rdev


def _same_bytes(mine: str, before: str) -> bool:
    with open(mine, "rb") as new, open(before, "rb") as old:
        while block := new.read(CHUNK):
            if block != old.read(CHUNK):
                return False
    return True


def _mode(status: os.stat_result) -> str:
    return f"{stat.S_IMODE(status.st_mode):o}"


def _owner(status: os.stat_result) -> str:
    return f"{status.st_uid}:{status.st_gid}"


def _attributes(path: str) -> dict[str, bytes]:
    """The extended attributes but for overlay's own."""
    try:
        listed = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return {}
    found = (name for name in listed if not name.startswith((TRUSTED.prefix, USER.prefix)))
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in found}
