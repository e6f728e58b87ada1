"""The files of an archive of images, in whatever order they come: blobs go straight into the store, all others wait in one file of no name.

So each is written once, and all that waits is gone with the process. Nobody's names become a file's here: what an archive calls a file is only ever
looked up. docker's archives have links between layers; a link is another name, and leads to a file of the same archive.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, NamedTuple

from kernel_lab.images import archive
from kernel_lab.images.archive import Archive, Entry
from kernel_lab.images.compression import decompressed, recognised
from kernel_lab.images.descriptor import Descriptor
from kernel_lab.images.layout import BLOBS
from kernel_lab.images.reference import wrong_digest
from kernel_lab.images.store import CHUNK, Addition
from kernel_lab.kernel.errors import UsageError

# These bound the memory, since all names are kept, and JSON takes thirty times its size: 15 MB each at most. docker needs four names for a layer, and
# 80 bytes of its document.
MOST_FILES = 30_000
LONGEST_NAME = 255
LARGEST_DOCUMENT = 1 << 19
MOST_LINKS = 40  # one behind another, as the kernel has it (path_resolution(7))


class Waiting(NamedTuple):
    """Where a file's content stands in the one in which all wait."""

    start: int
    size: int


class Parts:
    """The files of one archive, by their names in it."""

    def __init__(self, adding: Addition, waiting: IO[bytes]) -> None:
        self._adding = adding
        self._waiting = waiting
        self._files: dict[str, Waiting | Descriptor] = {}
        self._links: dict[str, str] = {}

    @classmethod
    @contextmanager
    def of(cls, adding: Addition, chunks: Iterable[bytes], most: int | None) -> Iterator["Parts"]:
        """Takes an archive, compressed or not; `most` bytes may it have, without a number as many as the store's disk has left.

        Raises UsageError for what is no archive, is damaged, has names that lead out of it, or is too large.
        """
        with tempfile.TemporaryFile(dir=adding.store.path) as waiting:
            parts = cls(adding, waiting)
            parts._take(chunks, adding.store.free if most is None else most)
            yield parts

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def chunks(self, name: str, where: str) -> Iterator[bytes]:
        """The content of a file that the document `where` names. Raises UsageError when there is none."""
        match self._found(name, where):
            case Descriptor() as blob:
                with self._adding.store.open(blob) as file:
                    yield from iter(partial(file.read, CHUNK), b"")
            case Waiting(start, size):
                for place in range(start, start + size, CHUNK):
                    yield os.pread(self._waiting.fileno(), min(CHUNK, start + size - place), place)

    def size(self, name: str, where: str) -> int:
        """Bytes of a file; raises as `chunks`."""
        return self._found(name, where).size

    def document(self, name: str, where: str) -> bytes:
        """The content of a small file; raises as `chunks`, and for a large one."""
        if (size := self.size(name, where)) > LARGEST_DOCUMENT:
            raise UsageError(f"{name}: {size} bytes are too many for a document; the most is {LARGEST_DOCUMENT}")
        return b"".join(self.chunks(name, where))

    def _take(self, chunks: Iterable[bytes], most: int) -> None:
        entries = Archive(decompressed(*recognised(chunks), most))
        for count, entry in enumerate(entries, 1):
            most -= entry.size
            if most < 0:
                raise UsageError(f"{entry}: a file of {entry.size} bytes is more than what is left of the disk, or of what is allowed")
            if count > MOST_FILES:
                raise UsageError(f"{entry}: an archive of images of more than {MOST_FILES} files; save fewer images at a time")
            self._take_one(entry, entries)

    def _take_one(self, entry: Entry, entries: Archive) -> None:
        name = _name(entry)
        if entry.kind == archive.DIRECTORY:
            return
        if _blob(name) is None and (name in self._files or name in self._links):
            raise UsageError(f"{entry}: is in the archive twice, and which of them is meant, programs see differently")
        if entry.kind == archive.FILE:
            self._files[name] = self._put(name, entry, entries)
        elif entry.kind in (archive.LINK, archive.SYMLINK):
            self._links[name] = _target(entry, name)
        else:
            raise UsageError(f"{entry}: an archive of images has files and links, and no devices or fifos")

    def _put(self, name: str, entry: Entry, entries: Archive) -> Waiting | Descriptor:
        if digest := _blob(name):
            return self._adding.put(_content(entry, entries), digest=digest, size=entry.size)
        start = self._waiting.seek(0, os.SEEK_END)
        for offset, length in entry.segments:
            self._waiting.seek(start + offset)
            for piece in entries.data(length):
                self._waiting.write(piece)
        self._waiting.flush()
        self._waiting.truncate(start + entry.size)  # the end may be a hole
        return Waiting(start, entry.size)

    def _found(self, name: str, where: str) -> Waiting | Descriptor:
        target = name
        for _ in range(MOST_LINKS):
            if target in self._files:
                return self._files[target]
            if target not in self._links:
                raise UsageError(f"{where}: names {name!r}, which the archive does not have: it is not whole; save it again")
            target = self._links[target]
        raise UsageError(f"{name!r}: links of the archive lead in a circle")


def _blob(name: str) -> str | None:
    """The digest in a blob's name (image-layout.md, "Blobs")."""
    folder, _, rest = name.partition("/")
    digest = rest.replace("/", ":", 1)
    return None if folder != BLOBS or wrong_digest(digest) else digest


def _content(entry: Entry, entries: Archive) -> Iterator[bytes]:
    """All bytes of a file, those of its holes too."""
    end = 0
    for offset, length in (*entry.segments, (entry.size, 0)):
        for place in range(end, offset, CHUNK):
            yield bytes(min(CHUNK, offset - place))
        yield from map(bytes, entries.data(length))
        end = offset + length


def _name(entry: Entry) -> str:
    """The name from the archive's root, in which tar may write `./` first."""
    if len(entry.name) > LONGEST_NAME:
        raise UsageError(f"an archive of images has a name of {len(entry.name)} bytes; {LONGEST_NAME} are the most")
    return _normal(entry, "", os.fsdecode(entry.name))


def _target(entry: Entry, name: str) -> str:
    if len(entry.link) > LONGEST_NAME:
        raise UsageError(f"{entry}: links to a name of {len(entry.link)} bytes; {LONGEST_NAME} are the most")
    # A symlink begins where it lies, and a hard link at the archive's root.
    folder = name.rpartition("/")[0] if entry.kind == archive.SYMLINK else ""
    return _normal(entry, folder, os.fsdecode(entry.link))


def _normal(entry: Entry, folder: str, path: str) -> str:
    parts = [] if path.startswith("/") or not folder else folder.split("/")
    for part in path.split("/"):
        if part == "..":
            if not parts:
                raise UsageError(f"{entry}: leads out of the archive, by '..' or through {path!r}")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)
