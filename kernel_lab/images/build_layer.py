"""Files that come into an image without a container, as the archive of a layer: what COPY, ADD and WORKDIR write.

No mount and no privilege is needed, and a file may be anybody's: what an ordinary user copies is what root would. Every directory that leads to a new
file stands in the archive as it is in the image, since not every engine looks it up there; so the same files make the same layer.
"""

import os
import stat
from collections.abc import Generator, Iterable, Iterator
from typing import NamedTuple

from kernel_lab.images import archive
from kernel_lab.images.archive import Entry, encode
from kernel_lab.images.pack import CHUNK, KINDS
from kernel_lab.images.tree import Parts, Place, Tree
from kernel_lab.kernel.errors import UsageError
from kernel_lab.unionfs.whiteouts import AUFS_WHITEOUT

_MODES = {kind: mode for mode, kind in KINDS.items()}


class New(NamedTuple):
    """What a directory is like that is missing; its time in nanoseconds."""

    mtime: int
    owner: tuple[int, int] = (0, 0)
    mode: int = 0o755


class Growing(Tree):
    """The files of an image, in `below`, and those that are put into it: what `put` gives are the pieces of an archive, in this order."""

    def __init__(self, below: Tree) -> None:
        super().__init__(below.root.found)
        self._below = below
        self._made: dict[Parts, Place] = {}
        self._written: set[Parts] = {()}

    def owner(self, place: Place) -> tuple[int, int]:
        return self._below.owner(place)

    def inner(self, directory: Place, name: str) -> Place:
        return self._made.get((*directory.parts, name)) or super().inner(directory, name)

    def directory(self, path: str, new: New) -> Generator[bytes, None, Place]:
        """The directory that a path leads to, which is made if it is missing, with those above it.

        Raises UsageError where something else is in the way.
        """
        place = self.root
        for name in self.find(path).parts:
            place = self.inner(place, name)
            if not place.mode:
                entry = Entry(b"", archive.DIRECTORY, mode=new.mode, uid=new.owner[0], gid=new.owner[1], mtime=new.mtime)
                yield self._add(place.parts, entry)
                place = self._made[place.parts]
            elif not place.is_directory:
                raise UsageError(f"{place}: is no directory in the image, and one is needed there")
            elif place.parts not in self._written:
                self._written.add(place.parts)
                yield encode(described(place, self.owner(place))._replace(name=_name(place.parts) + b"/"))
        return place

    def put(self, directory: Place, name: str, entry: Entry, content: Iterable[bytes] = (), replaces: bool = False) -> Iterator[bytes]:
        """What the entry says under this name, in a directory that has been written.

        Raises UsageError for a file where the image has a directory, and the other way round, unless it `replaces` that.
        """
        there = self.inner(directory, name)
        is_directory = entry.kind == archive.DIRECTORY
        if there.mode and there.is_directory != is_directory and not replaces:
            what = ("a directory", "no directory") if is_directory else ("no directory", "one")
            raise UsageError(f"{there}: what is copied there is {what[0]}, and in the image it is {what[1]}")
        if name.startswith(AUFS_WHITEOUT):
            raise UsageError(f"{there}: no file of a layer can have a name that begins with {AUFS_WHITEOUT!r}: it says that another is gone")
        yield self._add(there.parts, entry)
        yield from content
        yield bytes(-entry.size % archive.BLOCK)

    def has_put(self, place: Place) -> bool:
        """Whether it is new, so that another name may be a link to it."""
        return place.parts in self._made

    def _add(self, parts: Parts, entry: Entry) -> bytes:
        mode = _MODES.get(entry.kind, stat.S_IFREG) | entry.mode
        link = os.fsdecode(entry.link) if entry.kind == archive.SYMLINK else None
        before = self.at(parts)
        # Of a directory that has been there, what is in it still is.
        found = before.found if entry.kind == archive.DIRECTORY and before.is_directory else ()
        self._made[parts] = Place(parts, mode, link, found)
        self._written.add(parts)
        return encode(entry._replace(name=_name(parts) + (b"/" if entry.kind == archive.DIRECTORY else b"")))

    def at(self, parts: Parts) -> Place:
        """What is at a path without links."""
        place = self.root
        for name in parts:
            place = self.inner(place, name)
        return place


def described(place: Place, owner: tuple[int, int], mode: int | None = None) -> Entry:
    """What an archive says of a file, but for its name; `mode` in place of its own."""
    status = place.status
    return Entry(
        b"",
        KINDS[stat.S_IFMT(status.st_mode)],
        status.st_size if stat.S_ISREG(status.st_mode) else 0,
        stat.S_IMODE(status.st_mode) if mode is None or place.link is not None else mode,
        *owner,
        status.st_mtime_ns,
        os.fsencode(place.link or ""),
        status.st_rdev,
        place.xattrs,
    )


def content(place: Place, size: int) -> Iterator[bytes]:
    """So many bytes of a regular file. Raises UsageError when it has become shorter."""
    # It may be something else by now: no link is followed, and no fifo waited for.
    file = os.open(place.found[0], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        while size:
            chunk = os.read(file, min(CHUNK, size))
            if not chunk:
                raise UsageError(f"{place}: has become shorter while it was copied; try again when nobody writes it")
            size -= len(chunk)
            yield chunk
    finally:
        os.close(file)


def _name(parts: Parts) -> bytes:
    return os.fsencode("/".join(parts))
