"""A build's context: the directory that COPY finds its files in, without what .dockerignore excludes; or an archive of one."""

import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from kernel_lab import state
from kernel_lab.images.archive import BLOCK
from kernel_lab.images.compression import Compression, recognise
from kernel_lab.images.dockerfile import NAME, Dockerfile
from kernel_lab.images.dockerignore import NAME as IGNORE
from kernel_lab.images.dockerignore import Ignore
from kernel_lab.images.snapshots import FLOOR, MOST_FILES
from kernel_lab.images.store import CHUNK, Store
from kernel_lab.images.tree import Tree
from kernel_lab.images.unpack import Rules, unpack
from kernel_lab.kernel.errors import UsageError

MOST = 16 * FLOOR  # bytes of a context that comes as an archive


@dataclass(frozen=True)
class Context:
    """The directory, if there is one, and the Dockerfile."""

    directory: Path | None
    dockerfile: Dockerfile
    ignore: Ignore = field(default_factory=Ignore)

    @classmethod
    def read(cls, directory: str | Path | None, dockerfile: str | Path | Dockerfile | None = None) -> "Context":
        """Of a directory; the Dockerfile in it unless another is given, by its path or read already. Raises UsageError."""
        place = None if directory is None else Path(directory)
        if place is not None and not place.is_dir():
            raise UsageError(f"context {str(directory)!r}: it is a directory, whose files COPY finds; there is no such directory")
        if isinstance(dockerfile, Dockerfile):
            return cls(place, dockerfile, Ignore.read(place) if place else Ignore())
        if place is None:
            raise UsageError("no context, and no Dockerfile: give one of them")
        path = place / NAME if dockerfile is None else Path(dockerfile)
        return cls(place, Dockerfile.read(path), Ignore.read(place, path))

    def tree(self) -> Tree:
        """The files that COPY sees, all of them root's."""
        if self.directory is None:
            return Tree(())
        # Whoever is inside must not be told of a link that the context is reached by.
        top = Path(os.path.realpath(self.directory))
        return Tree([top], frozenset(self.ignore.walk(top)) if self.ignore.patterns else None)


def workplace(store: Store) -> Path:
    """A directory for what one build needs meanwhile, yet to be made. It carries this process's stamp, by which `cleanup` finds it."""
    # Nobody else comes in: there may be programs with their owner's rights, and secrets.
    return state.ours(store.path.absolute().parent / "builds", 0o700) / f"{state.Creator.this().stamp}.{os.urandom(4).hex()}"


def from_stream(stream: BinaryIO, directory: Path, dockerfile: str | Path | None = None) -> Context:
    """What `klab build -` reads: a Dockerfile, and then there is no context; or an archive of a context, which comes into a new directory."""
    head = stream.read(BLOCK)
    if not _is_archive(head):
        if dockerfile is not None:
            raise UsageError("a Dockerfile comes from the standard input, and another one is named with -f: leave one of the two away")
        return Context(None, Dockerfile.parse((head + stream.read()).decode("utf-8", "surrogateescape")))
    directory.mkdir()
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        chunks: Iterable[bytes] = chain([head], iter(partial(stream.read, CHUNK), b""))
        unpack(chunks, root, Rules(MOST, owner=lambda uid, gid: (os.geteuid(), os.getegid()), skipped=lambda why: None, most_entries=MOST_FILES))
    finally:
        os.close(root)
    return Context.read(directory, _in_it(directory, str(dockerfile or NAME)))


def _in_it(directory: Path, name: str) -> Path:
    """The path of a Dockerfile that somebody else has sent, as what lies beside it: no link of theirs leads to a file of this machine's."""
    top = os.path.realpath(directory)
    for beside in (name, f"{name}.dockerignore", IGNORE):
        path = Path(os.path.realpath(directory / beside))
        if not path.is_relative_to(top) or (os.path.lexists(directory / beside) and not path.is_file()):
            raise UsageError(f"{beside}: is no file of this context, which came from the standard input")
    return directory / name


def _is_archive(head: bytes) -> bool:
    if recognise(head) is not Compression.NONE:
        return True
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True
