"""A directory becomes a layer's archive: bit for bit the same for the same content, so that its digest is the content's.

So names stand in the order of their bytes, each header says what it has to in one way, and nothing of the machine is in it: no inode, no time of
access, no name of a user. A layer may be the upper directory of a container that runs, and changes: no link is followed.

The root of a running container is packed too, as it is seen from inside and while its processes work (`living`). It is no layer, and has no marks.
"""

import errno
import os
import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
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
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # of a name that was there a moment ago, or was no link
KINDS = {
    stat.S_IFREG: archive.FILE,
    stat.S_IFLNK: archive.SYMLINK,
    stat.S_IFDIR: archive.DIRECTORY,
    stat.S_IFCHR: archive.CHARACTER,
    stat.S_IFBLK: archive.BLOCK_DEVICE,
    stat.S_IFIFO: archive.FIFO,
}


def pack(
    directory: Path,
    marks: Notation | None,
    *,
    owner: Owner | None = None,
    mtime: int | None = None,
    skipped: Callable[[str], None] | None = None,
    living: bool = False,
) -> Iterator[bytes]:
    """The archive of a layer whose whiteouts are in the notation `marks`, or of a tree that is no layer and has none; in chunks.

    owner: from a file's uid and gid to those in the archive. mtime: the time of all files, in nanoseconds; without it each keeps its own.
    skipped: is told in words of sockets, which no archive can have and which are left out.
    living: others work in the tree, and go on, as docker lets them. Of what is mounted in it there is an empty directory or file; what vanishes is
        left out; what becomes shorter is filled up with zeros, and `skipped` is told. Otherwise these are errors.
    Raises UsageError for what a layer cannot say, and for a file that changes meanwhile; KernelError for what may not be read.
    """
    root = -1
    try:
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        yield from _Packing(root, marks, owner or (lambda uid, gid: (uid, gid)), mtime, skipped or (lambda word: None), living).directories()
        yield archive.END
    except OSError as error:
        if isinstance(error, KernelError):
            raise
        raise KernelError(error.errno or 0, f"pack {os.path.basename(os.fsdecode(error.filename or ''))!r} of {directory}") from error
    finally:
        if root >= 0:
            os.close(root)


class _Packing:
    def __init__(self, root: int, marks: Notation | None, owner: Owner, mtime: int | None, skipped: Callable[[str], None], living: bool) -> None:
        self._root = root
        self._marks = marks
        self._owner = owner
        self._mtime = mtime
        self._skipped = skipped
        self._living = living
        self._links: dict[tuple[int, int], bytes] = {}  # the first name of each file that has several

    def directories(self) -> Iterator[bytes]:
        waiting = [b"."]
        while waiting:
            path = waiting.pop()
            with self._vanishing():
                if self._living and path != b"." and self._is_mounted(self._root, path):
                    yield encode(Entry(path + b"/", archive.DIRECTORY, mode=0o755))
                    continue
                here = open_inside(self._root, path, O.RDONLY | O.DIRECTORY | O.NOFOLLOW, NO_LINKS)
                try:
                    waiting += reversed((yield from self._directory(here, path)))
                finally:
                    os.close(here)

    def _directory(self, here: int, path: bytes) -> Generator[bytes, None, list[bytes]]:
        """A directory's own entry and those of its names; the directories in it are returned."""
        itself = place(here, b".")
        listing = self._listing(itself, path)
        yield encode(self._entry(path + b"/", os.fstat(here), itself))
        inner, prefix = [], b"" if path == b"." else path + b"/"
        # Before what stands beside them (layer.md, "Whiteouts").
        hidden = [AUFS_OPAQUE] * listing.opaque + [AUFS_WHITEOUT + name for name in listing.whiteouts]
        for name in sorted(map(os.fsencode, hidden)):
            yield encode(Entry(prefix + name, mode=0))
        for name in sorted(map(os.fsencode, listing.names)):
            with self._vanishing():
                status = os.lstat(name, dir_fd=here)
                if stat.S_ISDIR(status.st_mode):
                    inner.append(prefix + name)
                elif self._living and self._is_mounted(here, name):
                    yield encode(Entry(prefix + name))
                elif stat.S_ISSOCK(status.st_mode):
                    self._skipped(f"{os.fsdecode(prefix + name)}: a socket, which lives with the process that listens, and which no archive can have")
                else:
                    yield from self._name(here, name, prefix + name, status)
        return inner

    @contextmanager
    def _vanishing(self) -> Iterator[None]:
        """Of what is gone nothing has been said yet: its status, link and attributes are read before its header is written."""
        try:
            yield
        except OSError as error:
            if not self._living or error.errno not in GONE:
                raise

    def _is_mounted(self, here: int, name: bytes) -> bool:
        """Whether another file system, or another part of one, lies over this name: to go there would cross a mount."""
        try:
            os.close(open_inside(here, name, O.PATH | O.NOFOLLOW, NO_LINKS))
        except KernelError as error:
            if error.errno == errno.EXDEV:
                return True
            raise
        return False

    def _listing(self, itself: str, path: bytes) -> Listing:
        if self._marks is None:
            return Listing(frozenset(os.listdir(itself)), frozenset(), False)
        listing = self._marks.read(itself)
        try:
            for notation in (self._marks, AUFS):  # an archive's notation is AUFS's
                notation.check(itself, listing)
        except UsageError as error:
            raise UsageError(str(error).replace(itself, os.fsdecode(path))) from None
        return listing

    def _name(self, here: int, name: bytes, path: bytes, status: os.stat_result) -> Iterator[bytes]:
        """The entry of what is no directory."""
        if status.st_nlink > 1 and (first := self._links.get((status.st_dev, status.st_ino))):
            yield encode(self._entry(path, status, None)._replace(kind=archive.LINK, link=first))
            return
        if stat.S_ISREG(status.st_mode):
            yield from self._file(here, name, path)
            return
        entry = self._entry(path, status, place(here, name))
        yield encode(entry._replace(link=os.readlink(name, dir_fd=here) if stat.S_ISLNK(status.st_mode) else b""))
        self._remember(path, status)

    def _remember(self, path: bytes, status: os.stat_result) -> None:
        """Other names may link to this one, which the archive has now; it could have vanished before."""
        if status.st_nlink > 1:
            self._links[status.st_dev, status.st_ino] = path

    def _file(self, here: int, name: bytes, path: bytes) -> Iterator[bytes]:
        # It may be a fifo by now, which would be waited for.
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=here)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                self._changed(path, "has become something else")
                return
            yield encode(self._entry(path, status, file)._replace(size=status.st_size))
            self._remember(path, status)
            yield from self._content(file, status.st_size, path)
            yield bytes(-status.st_size % archive.BLOCK)
        finally:
            os.close(file)

    def _content(self, file: int, left: int, path: bytes) -> Iterator[bytes]:
        """So many bytes, as the header has said: what comes behind them is newer."""
        while left:
            chunk = os.read(file, min(CHUNK, left))
            if not chunk:
                self._changed(path, "has become shorter")
                break
            left -= len(chunk)
            yield chunk
        for start in range(0, left, CHUNK):
            yield bytes(min(CHUNK, left - start))

    def _changed(self, path: bytes, how: str) -> None:
        if not self._living:
            raise UsageError(f"{os.fsdecode(path)}: {how} while it was packed; stop or pause who writes it")
        self._skipped(f"{os.fsdecode(path)}: {how} while it was packed")

    def _entry(self, path: bytes, status: os.stat_result, where: int | str | None) -> Entry:
        """What an archive says of every kind of file; `where` its extended attributes are."""
        uid, gid = self._owner(status.st_uid, status.st_gid)
        return Entry(
            path,
            KINDS[stat.S_IFMT(status.st_mode)],
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
