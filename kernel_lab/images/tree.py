"""Files as a process would find them whose root they are, without a mount: one directory, or layers that lie on one another.

A symbolic link leads where it would lead inside, and so never out (path_resolution(7)); and what one layer hides of those below is not there.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

from kernel_lab.images import archive
from kernel_lab.images.archive import Archive, Entry
from kernel_lab.images.compression import decompressed, recognised
from kernel_lab.images.image import Image
from kernel_lab.images.snapshots import FLOOR, MOUNT_POINTS, RATIO
from kernel_lab.images.store import CHUNK
from kernel_lab.images.unpack import OF_THIS_MACHINE
from kernel_lab.kernel.errors import UsageError
from kernel_lab.unionfs import merged
from kernel_lab.unionfs.aufs_copy import list_attributes
from kernel_lab.unionfs.whiteouts import USER

MOST_LINKS = 40  # on one way (path_resolution(7))
Parts = tuple[str, ...]


class Place(NamedTuple):
    """A path without links: the names from the root, its kind and mode as in st_mode, where it leads if it is a link, and where it is on the disk.

    The mode of what is not there is 0. A directory is in several places, the topmost first, where layers are merged.
    """

    parts: Parts
    mode: int = 0
    link: str | None = None
    found: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "/" + "/".join(self.parts)

    @property
    def name(self) -> str:
        """Its last one; of the root, none."""
        return self.parts[-1] if self.parts else ""

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def status(self) -> os.stat_result:
        """Its own, and never that of what a link leads to."""
        return os.lstat(self.found[0])

    @property
    def xattrs(self) -> dict[str, bytes]:
        """Its extended attributes, but for those that say nothing of the content."""
        path = self.found[0]
        names = (name for name in list_attributes(path, follow=False) if not name.startswith(OF_THIS_MACHINE))
        return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


class Tree:
    """The files in directories, the topmost first. visible: the paths that are seen, without it all. All belongs to root."""

    def __init__(self, directories: Iterable[str | Path], visible: frozenset[str] | None = None) -> None:
        self.root = Place((), stat.S_IFDIR | 0o755, None, tuple(map(str, directories)))
        self._visible = visible
        self._known: dict[Parts, Place] = {}  # directories, in which the next path mostly is too

    @property
    def is_filtered(self) -> bool:
        """Whether there may be files that are not seen."""
        return self._visible is not None

    def owner(self, place: Place) -> tuple[int, int]:
        """User and group."""
        return 0, 0

    def inner(self, directory: Place, name: str) -> Place:
        """What a name is in a directory."""
        parts = (*directory.parts, name)
        if known := self._known.get(parts):
            return known
        found = merged.lookup(directory.found, name, USER) if directory.is_directory else ()
        if not found or (self._visible is not None and "/".join(parts) not in self._visible):
            return Place(parts)
        mode = os.lstat(found[0]).st_mode
        place = Place(parts, mode, os.readlink(found[0]) if stat.S_ISLNK(mode) else None, found)
        if place.is_directory:
            self._known[parts] = place
        return place

    def inside(self, directory: Place) -> list[Place]:
        """All in a directory, in the order of their names' bytes."""
        places = (self.inner(directory, name) for name in sorted(merged.names(directory.found, USER), key=os.fsencode))
        return [place for place in places if place.mode]

    def walk(self, place: Place) -> Iterator[Place]:
        """This, and if it is a directory all that is in it, each directory before what is in it; no link is followed."""
        waiting = [place]
        while waiting:
            place = waiting.pop()
            yield place
            if place.is_directory:
                waiting += reversed(self.inside(place))

    def find(self, path: str, follow: bool = True) -> Place:
        """Where a path leads, be something there or not. Without `follow`, a link at its end is what is found.

        Raises UsageError for links that lead in a circle.
        """
        here, left = [self.root], MOST_LINKS
        waiting = path.split("/")[::-1]
        while waiting:
            name = waiting.pop()
            if name == "..":
                here = here[:-1] or here
            elif name not in ("", "."):
                place = self.inner(here[-1], name)
                if place.link is None or not (follow or any(waiting)):
                    here.append(place)
                    continue
                left -= 1
                if left < 0:
                    raise UsageError(f"{path}: leads through more than {MOST_LINKS} links; look whether they lead in a circle")
                here = here[:1] if place.link.startswith("/") else here
                waiting += place.link.split("/")[::-1]
        return here[-1]


class ImageTree(Tree):
    """The files of an image, whose layers are in these directories."""

    def __init__(self, image: Image, directories: Iterable[str | Path]) -> None:
        super().__init__(path for path in map(str, directories) if os.path.basename(path) != MOUNT_POINTS)
        self._image = image

    def owner(self, place: Place) -> tuple[int, int]:
        """As the image says: on the disk of an ordinary user, all is that user's own."""
        if os.geteuid() == 0:
            status = place.status
            return status.st_uid, status.st_gid
        return self._owners.get(place.parts, (0, 0))

    @cached_property
    def _owners(self) -> dict[Parts, tuple[int, int]]:
        """Of what is not root's, from the archives."""
        owners: dict[Parts, tuple[int, int]] = {}
        for layer in self._image.layers:
            with self._image.store.open(layer.blob) as blob:
                compression, chunks = recognised(iter(partial(blob.read, CHUNK), b""))
                for entry in Archive(decompressed(compression, chunks, max(FLOOR, RATIO * layer.blob.size))):
                    _note(owners, entry)
        return owners


def _note(owners: dict[Parts, tuple[int, int]], entry: Entry) -> None:
    parts, owner = _parts(entry.name), (entry.uid, entry.gid)
    if entry.kind == archive.LINK:
        owner = owners.get(_parts(entry.link), (0, 0))
    owners.pop(parts, None)
    if any(owner):
        owners[parts] = owner


def _parts(name: bytes) -> Parts:
    return tuple(part for part in os.fsdecode(name).split("/") if part not in ("", "."))
