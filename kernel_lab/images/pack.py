"""A directory becomes a layer's archive: bit for bit the same for the same content, so that its digest is the content's.

So names stand in the order of their bytes, each header says what it has to in one way, and nothing of the machine is in it: no inode, no time of
access, no name of a user. A layer may be the upper directory of a container that runs, and changes: no link is followed.
"""

import os
import stat
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from kernel_lab.images import archive
from kernel_lab.images.archive import Entry, encode
from kernel_lab.images.beneath import open_inside, place
from kernel_lab.images.unpack import OF_THIS_MACHINE, Owner
from kernel_lab.kernel.errors import KernelError, UsageError
from kernel_lab.kernel.flags import RESOLVE, O
from kernel_lab.unionfs.aufs_copy import list_attributes
from kernel_lab.unionfs.whiteouts import AUFS, AUFS_OPAQUE, AUFS_WHITEOUT, Listing, Notation

CHUNK = 1 << 18
NO_LINKS = RESOLVE.BENEATH | RESOLVE.NO_SYMLINKS | RESOLVE.NO_XDEV
_KINDS = {
    stat.S_IFREG: archive.FILE,
    stat.S_IFLNK: archive.SYMLINK,
    stat.S_IFDIR: archive.DIRECTORY,
    stat.S_IFCHR: archive.CHARACTER,
    stat.S_IFBLK: archive.BLOCK_DEVICE,
    stat.S_IFIFO: archive.FIFO,
}


def pack(
    directory: Path,
    marks: Notation,
    *,
    owner: Owner | None = None,
    mtime: int | None = None,
    skipped: Callable[[str], None] | None = None,
) -> Iterator[bytes]:
    """The archive of a layer whose whiteouts are in the notation `marks`, in chunks.

    owner: from a file's uid and gid to those in the archive. mtime: the time of all files, in nanoseconds; without it each keeps its own.
    skipped: is told in words of sockets, which no archive can have and which are left out.
    Raises UsageError for what a layer cannot say, and for a file that changes meanwhile; KernelError for what may not be read.
    """
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield from _Packing(root, marks, owner or (lambda uid, gid: (uid, gid)), mtime, skipped or (lambda word: None)).directories()
        yield archive.END
    except OSError as error:
        if isinstance(error, KernelError):
            raise
        raise KernelError(error.errno or 0, f"pack {os.path.basename(os.fsdecode(error.filename or ''))!r} of {directory}") from error
    finally:
        os.close(root)


class _Packing:
    def __init__(self, root: int, marks: Notation, owner: Owner, mtime: int | None, skipped: Callable[[str], None]) -> None:
        self._root = root
        self._marks = marks
        self._owner = owner
        self._mtime = mtime
        self._skipped = skipped
        self._links: dict[tuple[int, int], bytes] = {}  # the first name of each file that has several

    def directories(self) -> Iterator[bytes]:
        waiting = [b"."]
        while waiting:
            path = waiting.pop()
            here = open_inside(self._root, path, O.RDONLY | O.DIRECTORY | O.NOFOLLOW, NO_LINKS)
            try:
                waiting += reversed((yield from self._directory(here, path)))
            finally:
                os.close(here)

    def _directory(self, here: int, path: bytes) -> Generator[bytes, None, list[bytes]]:
        """A directory's own entry and those of its names; the directories in it are returned."""
        itself = place(here, b".")
        listing = self._marks.read(itself)
        self._check(itself, listing, path)
        yield encode(self._entry(path + b"/", os.fstat(here), itself))
        inner, prefix = [], b"" if path == b"." else path + b"/"
        # Before what stands beside them (layer.md, "Whiteouts").
        hidden = [AUFS_OPAQUE] * listing.opaque + [AUFS_WHITEOUT + name for name in listing.whiteouts]
        for name in sorted(map(os.fsencode, hidden)):
            yield encode(Entry(prefix + name, mode=0))
        for name in sorted(map(os.fsencode, listing.names)):
            status = os.lstat(name, dir_fd=here)
            if stat.S_ISDIR(status.st_mode):
                inner.append(prefix + name)
            elif stat.S_ISSOCK(status.st_mode):
                self._skipped(f"{os.fsdecode(prefix + name)}: a socket, which lives with the process that listens, and which no archive can have")
            else:
                yield from self._name(here, name, prefix + name, status)
        return inner

    def _check(self, itself: str, listing: Listing, path: bytes) -> None:
        try:
            for notation in (self._marks, AUFS):  # an archive's notation is AUFS's
                notation.check(itself, listing)
        except UsageError as error:
            raise UsageError(str(error).replace(itself, os.fsdecode(path))) from None

    def _name(self, here: int, name: bytes, path: bytes, status: os.stat_result) -> Iterator[bytes]:
        """The entry of what is no directory."""
        if status.st_nlink > 1:
            first = self._links.setdefault((status.st_dev, status.st_ino), path)
            if first != path:
                entry = self._entry(path, status, None)
                yield encode(entry._replace(kind=archive.LINK, link=first))
                return
        if stat.S_ISREG(status.st_mode):
            yield from self._file(here, name, path)
            return
        entry = self._entry(path, status, place(here, name))
        yield encode(entry._replace(link=os.readlink(name, dir_fd=here) if stat.S_ISLNK(status.st_mode) else b""))

    def _file(self, here: int, name: bytes, path: bytes) -> Iterator[bytes]:
        # It may be a fifo by now, which would be waited for.
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=here)
        try:
            status = os.fstat(file)
            yield encode(self._entry(path, status, file)._replace(size=status.st_size))
            left = status.st_size
            while left:
                chunk = os.read(file, min(CHUNK, left))
                left -= len(chunk)
                if not chunk:
                    raise UsageError(f"{os.fsdecode(path)}: has become shorter while it was packed; stop or pause who writes it")
                yield chunk
            yield bytes(-status.st_size % archive.BLOCK)
        finally:
            os.close(file)

    def _entry(self, path: bytes, status: os.stat_result, where: int | str | None) -> Entry:
        """What an archive says of every kind of file; `where` its extended attributes are."""
        uid, gid = self._owner(status.st_uid, status.st_gid)
        return Entry(
            path,
            _KINDS[stat.S_IFMT(status.st_mode)],
            mode=stat.S_IMODE(status.st_mode),
            uid=uid,
            gid=gid,
            mtime=status.st_mtime_ns if self._mtime is None else self._mtime,
            device=status.st_rdev,
            xattrs={} if where is None else _xattrs(where),
        )


def _xattrs(where: int | str) -> dict[str, bytes]:
    follow = isinstance(where, int)  # a path's last component may be a link, whose own they are
    path = f"/proc/self/fd/{where}" if isinstance(where, int) else where
    names = (name for name in list_attributes(path, follow) if not name.startswith(OF_THIS_MACHINE))
    return {name: os.getxattr(path, name, follow_symlinks=follow) for name in names}
