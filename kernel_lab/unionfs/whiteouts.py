"""How a layer says that something below it is gone, in overlay's notation and in AUFS's.

A *whiteout* hides one name of the layers below, and an *opaque* directory all that they have in it. Overlay keeps both where no name can meet
them: as a device of a number that no device has, and as an extended attribute (Documentation/filesystems/overlayfs.rst). AUFS keeps them as files
with names of their own (aufs(5)), and so do docker's and OCI's image layers, since an archive holds names on every system.
"""

import errno
import os
import shutil
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kernel_lab.kernel.errors import UsageError

AUFS_WHITEOUT = ".wh."
AUFS_OWN = ".wh..wh."  # what AUFS keeps for itself in a branch, and no whiteout of anybody's name
AUFS_OPAQUE = ".wh..wh..opq"
ABSENT = (errno.ENODATA, errno.EOPNOTSUPP)  # of an extended attribute (getxattr(2))


class Listing(NamedTuple):
    """A directory of one layer: the names that it has, those that it hides of the layers below, and whether it hides all of theirs.

    A name may be among both: then it is new, and shows nothing of what it hides.
    """

    names: frozenset[str]
    whiteouts: frozenset[str]
    opaque: bool


class Notation(ABC):
    """The marks in a layer's directories."""

    @abstractmethod
    def read(self, directory: str) -> Listing:
        """What the directory has and hides."""

    @abstractmethod
    def has(self, directory: str, name: str) -> bool:
        """Whether the directory has the name itself."""

    @abstractmethod
    def hides(self, directory: str, name: str) -> bool:
        """Whether there is a whiteout of the name."""

    @abstractmethod
    def is_opaque(self, directory: str) -> bool:
        """Whether it hides all that the layers below have in it."""

    @abstractmethod
    def hide(self, directory: str, name: str) -> None:
        """Makes a whiteout."""

    @abstractmethod
    def reveal(self, directory: str, name: str) -> None:
        """Takes a whiteout away."""

    @abstractmethod
    def make_opaque(self, directory: str) -> None:
        """Hides all that the layers below have in it."""

    @abstractmethod
    def clean(self, directory: str, listing: Listing) -> None:
        """Takes all marks of a directory away, which `read` has found."""

    @abstractmethod
    def check(self, directory: str, listing: Listing) -> None:
        """Raises UsageError for what a layer in this notation cannot have, or another one could not say."""


@dataclass(frozen=True)
class OverlayNotation(Notation):
    """Overlay's, with extended attributes that begin with `prefix`."""

    prefix: str

    def read(self, directory: str) -> Listing:
        mark = self._attribute(directory, "opaque")
        with os.scandir(directory) as entries:
            hidden = {entry.name: not entry.is_dir(follow_symlinks=False) and self._is_whiteout(entry.path, mark) for entry in entries}
        whiteouts = frozenset(name for name, is_whiteout in hidden.items() if is_whiteout)
        return Listing(frozenset(hidden) - whiteouts, whiteouts, mark == b"y")

    def has(self, directory: str, name: str) -> bool:
        return os.path.lexists(f"{directory}/{name}") and not self.hides(directory, name)

    def hides(self, directory: str, name: str) -> bool:
        return self._is_whiteout(f"{directory}/{name}", self._attribute(directory, "opaque"))

    def is_opaque(self, directory: str) -> bool:
        return self._attribute(directory, "opaque") == b"y"

    def hide(self, directory: str, name: str) -> None:
        # Nobody needs a privilege for this one device (mknod(2), Linux 5.8).
        os.mknod(f"{directory}/{name}", stat.S_IFCHR, os.makedev(0, 0))

    def reveal(self, directory: str, name: str) -> None:
        os.unlink(f"{directory}/{name}")

    def make_opaque(self, directory: str) -> None:
        os.setxattr(directory, f"{self.prefix}opaque", b"y", follow_symlinks=False)

    def clean(self, directory: str, listing: Listing) -> None:
        for name in listing.whiteouts:
            self.reveal(directory, name)
        if self._attribute(directory, "opaque"):
            os.removexattr(directory, f"{self.prefix}opaque", follow_symlinks=False)

    def check(self, directory: str, listing: Listing) -> None:
        for name in sorted(listing.names):
            for meaning in ("redirect", "metacopy"):
                if self._attribute(f"{directory}/{name}", meaning) is not None:
                    why = "only overlay can say that it is found in another place; make the layer with redirect_dir=off and metacopy=off"
                    raise UsageError(f"{directory}/{name}: has {self.prefix}{meaning}: {why}")

    def _is_whiteout(self, path: str, mark: bytes | None) -> bool:
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return False
        if stat.S_ISCHR(status.st_mode):
            return status.st_rdev == os.makedev(0, 0)
        # An overlay on an overlay would not see the device: there it is an empty file, and the directory says that it may have such (Linux 6.7).
        return mark == b"x" and stat.S_ISREG(status.st_mode) and not status.st_size and self._attribute(path, "whiteout") is not None

    def _attribute(self, path: str, name: str) -> bytes | None:
        try:
            return os.getxattr(path, f"{self.prefix}{name}", follow_symlinks=False)
        except OSError as error:
            if error.errno in ABSENT:
                return None
            raise


class FoundNotation(OverlayNotation):
    """Overlay's, to be read where it is not known which attributes a mount has used: where there are none, the user's."""

    def _attribute(self, path: str, name: str) -> bytes | None:
        trusted = super()._attribute(path, name)
        return USER._attribute(path, name) if trusted is None else trusted


class AufsNotation(Notation):
    """AUFS's, docker's and OCI's: `.wh.NAME` hides NAME, and `.wh..wh..opq` all (OCI image specification, layer.md)."""

    def read(self, directory: str) -> Listing:
        found = os.listdir(directory)
        names = frozenset(name for name in found if not name.startswith(AUFS_WHITEOUT))
        marks = (name for name in found if name.startswith(AUFS_WHITEOUT) and not name.startswith(AUFS_OWN))
        return Listing(names, frozenset(name.removeprefix(AUFS_WHITEOUT) for name in marks), AUFS_OPAQUE in found)

    def has(self, directory: str, name: str) -> bool:
        return not name.startswith(AUFS_WHITEOUT) and os.path.lexists(f"{directory}/{name}")

    def hides(self, directory: str, name: str) -> bool:
        return os.path.lexists(f"{directory}/{AUFS_WHITEOUT}{name}")

    def is_opaque(self, directory: str) -> bool:
        return os.path.lexists(f"{directory}/{AUFS_OPAQUE}")

    def hide(self, directory: str, name: str) -> None:
        self._mark(f"{directory}/{AUFS_WHITEOUT}{name}")

    def reveal(self, directory: str, name: str) -> None:
        os.unlink(f"{directory}/{AUFS_WHITEOUT}{name}")

    def make_opaque(self, directory: str) -> None:
        self._mark(f"{directory}/{AUFS_OPAQUE}")

    def clean(self, directory: str, listing: Listing) -> None:
        for name in os.listdir(directory):
            if name.startswith(AUFS_WHITEOUT):
                path = f"{directory}/{name}"
                # AUFS has directories of its own at the top of a branch: names of hard links, and of files that are open and deleted.
                shutil.rmtree(path) if is_directory(path) else os.unlink(path)

    def check(self, directory: str, listing: Listing) -> None:
        for name in sorted(listing.names | listing.whiteouts):
            if name.startswith(AUFS_WHITEOUT):
                raise UsageError(f"{directory}/{name}: no file of a layer can have a name that begins with {AUFS_WHITEOUT!r}: it is AUFS's mark")
            if name in ("", ".", ".."):
                raise UsageError(f"{directory}/{AUFS_WHITEOUT}{name}: a whiteout of {name!r}, which is the name of no file")

    def _mark(self, path: str) -> None:
        with suppress(FileExistsError):
            os.mknod(path, stat.S_IFREG | 0o444)


TRUSTED = OverlayNotation("trusted.overlay.")  # root's
USER = OverlayNotation("user.overlay.")  # of a mount with the option userxattr: in a user namespace, trusted attributes are out of reach
FOUND = FoundNotation("trusted.overlay.")
AUFS = AufsNotation()


def is_directory(path: str) -> bool:
    """Whether it is one itself, and no link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def convert(layer: str | Path, source: Notation, target: Notation) -> None:
    """Writes a layer's marks in another notation, in place: what it shows and hides stays the same, and so do its directories' times.

    Raises UsageError, and has changed nothing, when the layer has what `target` cannot say.
    """
    directories = list(_directories(str(layer), source))
    for directory, listing in directories:
        for notation in (source, target):
            notation.check(directory, listing)
    for directory, listing in directories:
        with _times_kept(directory):
            _write(directory, listing, target)
            source.clean(directory, listing)


def _directories(layer: str, notation: Notation) -> Iterator[tuple[str, Listing]]:
    waiting = [layer]
    while waiting:
        directory = waiting.pop()
        listing = notation.read(directory)
        yield directory, listing
        waiting += filter(is_directory, (f"{directory}/{name}" for name in sorted(listing.names)))


def _write(directory: str, listing: Listing, notation: Notation) -> None:
    for name in listing.whiteouts - listing.names:
        notation.hide(directory, name)
    # A name stands once in overlay's directories: what is there and hidden below is a directory that shows nothing of it, or no directory anyway.
    for name in filter(lambda name: is_directory(f"{directory}/{name}"), listing.whiteouts & listing.names):
        notation.make_opaque(f"{directory}/{name}")
    if listing.opaque:
        notation.make_opaque(directory)


@contextmanager
def _times_kept(directory: str) -> Iterator[None]:
    before = os.stat(directory)
    yield
    os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))
