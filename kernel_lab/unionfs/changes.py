"""What a layer changes of those below it, or one stack of layers of another: added, changed, deleted, as `docker diff` lists it."""

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
from kernel_lab.unionfs.whiteouts import FOUND, TRUSTED, USER, Notation, is_directory

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
    """What the layer `upper` changes of what those below it show, `lower` the topmost first; otherwise as `difference`."""
    return difference((upper, *lower), lower, notation)


def difference(new: Sequence[str | Path], old: Sequence[str | Path], notation: Notation | None = None) -> Changes:
    """What the layers `new` show that `old` do not, and the other way round, each the topmost first.

    A directory counts as changed when a name in it is added or deleted, or it differs itself; what is inside a deleted one is not listed. The top
    directory is not listed either. `notation`: of all these layers; without it, overlay's.
    Raises UsageError when one of them is no directory.
    """
    for path in (*new, *old):
        layers.check_directory("layer", str(path))
    found: list[Change] = []
    waiting = [_Pair("", tuple(map(str, new)), tuple(map(str, old)), notation or FOUND)]
    while waiting:
        pair = waiting.pop()
        found += pair.changes()
        waiting += pair.directories()
    return Changes(sorted(found))


@dataclass
class _Pair:
    """A directory as the new layers show it and as the old ones do: those that it is merged from, the topmost first, or none."""

    path: str
    new: tuple[str, ...]
    old: tuple[str, ...]
    notation: Notation

    def __post_init__(self) -> None:
        every = sorted(names(self.new, self.notation) | names(self.old, self.notation))
        seen = {name: (lookup(self.new, name, self.notation), lookup(self.old, name, self.notation)) for name in every}
        # What comes from the same places in both is the same, with all that is in it.
        self.others = {name: (new, old) for name, (new, old) in seen.items() if new != old}

    def changes(self) -> Iterator[Change]:
        """What is added and deleted in it, which of its files are changed, and whether it is another itself."""
        turned_up = [self._one_sided(name, new, old) for name, (new, old) in self.others.items() if not (new and old)]
        yield from turned_up
        for name, (new, old) in self.others.items():
            # Of two directories, the one in it says whether it is another.
            if new and old and not (is_directory(new[0]) and is_directory(old[0])) and (what := _differences(new[0], old[0], False)):
                yield Change(f"{self.path}/{name}", CHANGED, what)
        if self.path and self.old and (what := _differences(self.new[0], self.old[0], bool(turned_up))):
            yield Change(self.path, CHANGED, what)

    def directories(self) -> Iterator["_Pair"]:
        """The directories in it."""
        for name, (new, old) in self.others.items():
            if new and is_directory(new[0]):
                yield _Pair(f"{self.path}/{name}", new, tuple(filter(is_directory, old)), self.notation)

    def _one_sided(self, name: str, new: tuple[str, ...], old: tuple[str, ...]) -> Change:
        return Change(f"{self.path}/{name}", ADDED if new else DELETED, _kind((new or old)[0]))


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
