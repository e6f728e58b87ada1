"""A file with all that belongs to it in another place: what copy-up does before a file of a lower branch is changed."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

CHUNK = 1 << 30


def copy(source: str, target: str, content: bool = True) -> None:
    """A new file of the same kind, with the same owner, mode, extended attributes and times. Raises OSError where this user may not make such a one.

    Of a directory, not what is in it; without `content`, of a regular file neither. Holes stay holes.
    """
    status = os.lstat(source)
    match stat.S_IFMT(status.st_mode):
        case stat.S_IFREG:
            _copy_regular(source, target, content)
        case stat.S_IFDIR:
            os.mkdir(target)
        case stat.S_IFLNK:
            os.symlink(os.readlink(source), target)
        case _:
            os.mknod(target, status.st_mode, status.st_rdev)
    _copy_attributes(source, status, target)


@contextmanager
def times_kept(directory: str) -> Iterator[None]:
    """A name that comes into the directory meanwhile leaves no trace in its times: to the union, it has been there before."""
    before = os.stat(directory)
    yield
    os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))


def _copy_regular(source: str, target: str, content: bool) -> None:
    with open(target, "xb", buffering=0) as new:
        if content:
            with open(source, "rb", buffering=0) as old:
                size = os.fstat(old.fileno()).st_size
                new.truncate(size)
                for start, end in _extents(old.fileno(), size):
                    _copy_range(old.fileno(), new.fileno(), start, end)


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where there is data (lseek(2), SEEK_DATA)."""
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    os.lseek(target, start, os.SEEK_SET)
    while start < end:
        copied = os.sendfile(target, source, start, min(end - start, CHUNK))
        if not copied:  # somebody has made it shorter
            return
        start += copied


def _copy_attributes(source: str, status: os.stat_result, target: str) -> None:
    mine = os.lstat(target)
    # In this order: a change of owner takes the set-user-ID bit and capabilities away (chown(2), capabilities(7)).
    if (status.st_uid, status.st_gid) != (mine.st_uid, mine.st_gid):
        os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    for name in list_attributes(source):
        os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def list_attributes(path: str | int, follow: bool = False) -> list[str]:
    """The names of a file's extended attributes, none on a file system that has no such things."""
    try:
        return os.listxattr(path, follow_symlinks=follow)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return []
