"""What COPY and ADD mean: which files of the context, of a stage or of an image, and where in the image they come.

docs.docker.com/reference/dockerfile, "COPY" and "ADD". Of a directory its contents are copied; a file comes under its own name into a destination
that ends with a slash or is a directory.
"""

import hashlib
import os
import posixpath
import re
import stat
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from kernel_lab.command import identity
from kernel_lab.images import archive, dockerignore
from kernel_lab.images.archive import Archive, Entry
from kernel_lab.images.build_layer import Growing, New, content, described
from kernel_lab.images.compression import decompressed, recognised
from kernel_lab.images.dockerignore import WILD, Ignore
from kernel_lab.images.snapshots import FLOOR, RATIO
from kernel_lab.images.store import CHUNK
from kernel_lab.images.tree import Parts, Place, Tree
from kernel_lab.images.unpack import OF_THIS_MACHINE, components
from kernel_lab.kernel.errors import UsageError

Owner = tuple[int, int]
Links = dict[tuple[int, int], bytes]  # of each file that has several names, the first
PIVOT = "/./"  # before it, `--parents` keeps nothing


class Source(NamedTuple):
    """Something to be copied: a file, or a directory's contents.

    name: as it is called. parents: the directories that it keeps (`--parents`). fetched: it comes from an address, and is never unpacked.
    """

    tree: Tree
    place: Place
    name: str
    parents: tuple[Place, ...] | None = None
    fetched: bool = False


@dataclass(frozen=True)
class Copying:
    """What comes where. destination: absolute; with a slash at its end, a directory. owner, mode: in place of the files' own. unpacks: archives."""

    sources: tuple[Source, ...]
    destination: str
    exclude: Ignore = field(default_factory=Ignore)
    owner: Owner | None = None
    mode: int | None = None
    unpacks: bool = False

    def __post_init__(self) -> None:
        if len(self.sources) > 1 and not self.destination.endswith("/"):
            raise UsageError(f"{self.destination}: several files or directories go there, so it is a directory, and ends with a slash")

    @property
    def digest(self) -> str:
        """Of names, modes, owners and contents, and not of times, in docker's form: what kind of source, and a digest."""
        hashed = hashlib.sha256()
        for source in self.sources:
            # Whether names are kept, and which: also that of a directory itself.
            kept = () if source.parents is None else (*(place.name for place in source.parents), source.name)
            for parts, place in self._items(source):
                if stat.S_ISSOCK(place.mode):
                    continue
                said = (kept, "/".join(parts) if source.place.is_directory else source.name, self._entry(source, place)._replace(mtime=0, size=0))
                hashed.update(repr(said).encode("utf-8", "surrogateescape") + _digest(place))
        kind = "multi" if len(self.sources) > 1 else "dir" if self.sources[0].place.is_directory else "file"
        return f"{kind}:{hashed.hexdigest()}"

    def layer(self, image: Tree, skipped: Callable[[str], None]) -> Iterator[bytes]:
        """The archive; `skipped` is told in words what no archive can have. Raises UsageError for what does not fit into the image."""
        growing = Growing(image)
        # As old as what is in them: so the same files make the same layer.
        new = New(max(source.place.status.st_mtime_ns for source in self.sources), self.owner or (0, 0))
        for source in self.sources:
            if self.unpacks and not source.fetched and is_archive(source.place):
                yield from self._unpacked(source.place, growing, new)
            else:
                yield from self._copied(source, growing, new, skipped)
        yield archive.END

    def _copied(self, source: Source, growing: Growing, new: New, skipped: Callable[[str], None]) -> Iterator[bytes]:
        top: Place | None = None
        links: Links = {}
        for parts, place in self._items(source):
            if stat.S_ISSOCK(place.mode):
                skipped(f"{place}: a socket, which no archive can have, is left out")
            elif place is source.place and place.is_directory:
                top = yield from self._top(source, growing, new)
            else:
                directory, name = (growing.at((*top.parts, *parts[:-1])), parts[-1]) if top else (yield from self._target(source, growing, new))
                yield from self._file(source, place, growing, directory, name, links)

    def _items(self, source: Source) -> Iterator[tuple[Parts, Place]]:
        """What there is at a source, with the names from there, and without what is excluded."""
        if not source.place.is_directory:
            yield from [((), source.place)] if not self.exclude.excludes(source.name) else ()
            return
        depth, waiting = len(source.place.parts), [source.place]
        while waiting:
            place = waiting.pop()
            parts = place.parts[depth:]
            if parts and self.exclude.excludes("/".join(parts)):
                continue
            yield parts, place
            if place.is_directory:
                waiting += reversed(source.tree.inside(place))

    def _entry(self, source: Source, place: Place) -> Entry:
        return described(place, self.owner or source.tree.owner(place), self.mode)

    def _top(self, source: Source, growing: Growing, new: New) -> Generator[bytes, None, Place]:
        """The directory that a source's contents go to: that one is not copied itself, unless it is kept with its parents."""
        path = yield from self._kept(source, growing, new)
        if source.parents is None:
            return (yield from growing.directory(path, new))
        return (yield from self._like(source, source.place, growing, f"{path}/{source.name}", new))

    def _kept(self, source: Source, growing: Growing, new: New) -> Generator[bytes, None, str]:
        path = self.destination
        for place in source.parents or ():
            path = f"{path}/{place.name}"
            yield from self._like(source, place, growing, path, new)
        return path

    def _like(self, source: Source, place: Place, growing: Growing, path: str, new: New) -> Generator[bytes, None, Place]:
        there = growing.find(path)
        if there.mode:
            return (yield from growing.directory(path, new))
        above = yield from growing.directory("/".join(there.parts[:-1]), new)
        yield from growing.put(above, there.name, self._entry(source, place))
        return growing.at(there.parts)

    def _target(self, source: Source, growing: Growing, new: New) -> Generator[bytes, None, tuple[Place, str]]:
        """The directory and the name that a file gets."""
        path = yield from self._kept(source, growing, new)
        there = growing.find(path)
        if path.endswith("/") or source.parents is not None or there.is_directory:
            return (yield from growing.directory(path, new)), source.name
        return (yield from growing.directory("/".join(there.parts[:-1]), new)), there.name

    def _file(self, source: Source, place: Place, growing: Growing, directory: Place, name: str, links: Links) -> Iterator[bytes]:
        entry, status = self._entry(source, place), place.status
        if entry.kind == archive.FILE and status.st_nlink > 1:
            here = os.fsencode("/".join((*directory.parts, name)))
            first = links.setdefault((status.st_dev, status.st_ino), here)
            if first != here:
                yield from growing.put(directory, name, entry._replace(kind=archive.LINK, link=first, size=0, xattrs={}))
                return
        yield from growing.put(directory, name, entry, content(place, entry.size) if entry.kind == archive.FILE else ())

    def _unpacked(self, place: Place, growing: Growing, new: New) -> Iterator[bytes]:
        """The files of an archive, each in the directory that its name leads to, be it through a link."""
        top = yield from growing.directory(self.destination, new)
        with _archive(place) as entries:
            for entry in entries:
                *above, name = map(os.fsdecode, components(entry, entry.name) or [b""])
                if name:
                    directory = yield from growing.directory("/".join((*top.parts, *above)), new)
                    yield from growing.put(directory, name, self._own(entry, top, growing), _whole(entry, entries), replaces=True)

    def _own(self, entry: Entry, top: Place, growing: Growing) -> Entry:
        uid, gid = self.owner or (entry.uid, entry.gid)
        mode = entry.mode if self.mode is None or entry.kind == archive.SYMLINK else self.mode
        xattrs = {name: value for name, value in entry.xattrs.items() if not name.startswith(OF_THIS_MACHINE)}
        entry = entry._replace(uid=uid, gid=gid, mode=mode, xattrs=xattrs, segments=())
        if entry.kind != archive.LINK:
            return entry
        target = growing.find("/".join((*top.parts, *map(os.fsdecode, components(entry, entry.link)))), follow=False)
        if not growing.has_put(target):
            raise UsageError(f"{entry}: a hard link to {os.fsdecode(entry.link)!r}, which does not come before it in the archive")
        return entry._replace(link=os.fsencode("/".join(target.parts)))


def sources(tree: Tree, words: Iterable[str], parents: bool = False) -> tuple[Source, ...]:
    """What the words of a COPY mean in a tree. Raises UsageError for one that means nothing there."""
    return tuple(source for word in words for source in _sources(tree, word, parents))


def destination(text: str, workdir: str) -> str:
    """The path in the image, with a slash at its end for what is to be a directory."""
    path = posixpath.normpath(posixpath.join("/", workdir, text))
    return f"{path.rstrip('/')}/" if text.rpartition("/")[2] in ("", ".", "..") else path


def owner(chown: str, tree: Tree) -> Owner:
    """The numbers that `--chown` means in an image. A number without a group is the group's, too. Raises UsageError for a name that is not there."""
    name, colon, group = chown.partition(":")
    if not name or (colon and not group):
        raise UsageError(f"--chown={chown}: it is written USER or USER:GROUP, with names of the image or numbers")
    found = identity(f"{name}:{name}" if name.isdecimal() and not colon else chown, tree.root.found)
    assert found
    return found.uid, found.gid


def mode(chmod: str) -> int:
    """Raises UsageError for what is no octal number."""
    if not re.fullmatch("[0-7]{1,5}", chmod) or int(chmod, 8) > 0o7777:
        raise UsageError(f"--chmod={chmod}: it is an octal number, as in --chmod=755")
    return int(chmod, 8)


def is_archive(place: Place) -> bool:
    """Whether a file is an archive that ADD unpacks: by what is in it, and not by its name."""
    if not stat.S_ISREG(place.mode):
        return False
    try:
        with _archive(place) as entries:
            return next(iter(entries), None) is not None
    except UsageError:
        return False


def _sources(tree: Tree, word: str, parents: bool) -> Iterator[Source]:
    wild = any(char in word for char in WILD)
    found = list(_matching(tree, word)) if wild else [tree.find(word, follow=False)]
    # docker looks for a path from the root of the context, and no further up.
    if not found or not found[0].mode:
        raise UsageError(f"{word}: there is no such file" + ("; see whether .dockerignore excludes it" if tree.is_filtered else ""))
    kept = len(_parts(word.partition(PIVOT)[0])) if PIVOT in word else 0
    for place in found:
        real = tree.find(str(place))
        if not real.mode:
            raise UsageError(f"{place}: a link to {place.link}; it is followed from where COPY takes its files, and there is nothing")
        above = (tree.find("/".join(place.parts[:count])) for count in range(kept + 1, len(place.parts)))
        # What begins at the pivot itself has no directory to keep, nor has the whole context.
        yield Source(tree, real, place.name or real.name, tuple(above) if parents and len(place.parts) > kept else None)


def _matching(tree: Tree, word: str) -> Iterator[Place]:
    """Go's patterns: a star matches no slash."""
    (pattern,) = dockerignore.patterns([f"\\{word}" if word.startswith("!") else word], "a source").patterns
    waiting = [tree.root]
    while waiting:
        place = waiting.pop()
        path = "/".join(place.parts)
        if path and pattern.expression.fullmatch(path):
            yield place
        elif place.is_directory and (not path or pattern.may_match_in(path)):
            waiting += reversed(tree.inside(place))


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _digest(place: Place) -> bytes:
    if not stat.S_ISREG(place.mode):
        return b""
    with open(place.found[0], "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@contextmanager
def _archive(place: Place) -> Iterator[Archive]:
    with open(place.found[0], "rb") as file:
        compression, chunks = recognised(iter(partial(file.read, CHUNK), b""))
        yield Archive(decompressed(compression, chunks, max(FLOOR, RATIO * place.status.st_size)))


def _whole(entry: Entry, entries: Archive) -> Iterator[bytes]:
    """A file's content, with zeros for its holes."""
    here = 0
    for offset, length in entry.segments:
        yield from _zeros(offset - here)
        yield from map(bytes, entries.data(length))
        here = offset + length
    if entry.kind == archive.FILE:
        yield from _zeros(entry.size - here)


def _zeros(count: int) -> Iterator[bytes]:
    for start in range(0, count, CHUNK):
        yield bytes(min(CHUNK, count - start))
