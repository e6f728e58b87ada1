"""Directories beneath a root whose links somebody else has made: each is reached so that none leads out, and what is in one is removed through none.

Nothing is reached by a path alone: a directory is opened beneath the root by openat2(2), and what is in it has one name more, which no call follows.
"""

import os
import stat
import struct

from kernel_lab.kernel.calls import syscall
from kernel_lab.kernel.errors import KernelError
from kernel_lab.kernel.flags import RESOLVE, O

# A link leads where it would in a container. No mount inside the root is entered either: it would be somebody else's file system.
INSIDE = RESOLVE.IN_ROOT | RESOLVE.NO_XDEV | RESOLVE.NO_MAGICLINKS
MOST_OPEN = 32


def open_inside(root: int, path: bytes, flags: int, resolve: int = INSIDE) -> int:
    """A descriptor of `path`, found beneath the directory `root` whatever links lie there. Raises KernelError."""
    try:
        return syscall("openat2", root, path or b".", struct.pack("<QQQ", flags | O.CLOEXEC, 0, resolve), 24)
    except KernelError as error:
        raise KernelError(error.errno or 0, f"openat2({os.fsdecode(path)!r})") from None


def place(directory: int, name: bytes) -> str:
    """A path for what takes no descriptor: /proc leads to the very directory, whatever its name is now (proc(5))."""
    return f"/proc/self/fd/{directory}/{os.fsdecode(name)}"


class Directories:
    """Descriptors of directories beneath `root`; the latest ones stay open, as what comes next is mostly in the same."""

    def __init__(self, root: int) -> None:
        self.root = root
        self._open: dict[bytes, int] = {}  # the latest last
        self._moved = False

    def opened(self, path: bytes) -> int:
        """A descriptor of a directory that is there; it stays open at least until one more is opened after it. Raises KernelError."""
        here = self._open.pop(path, None)
        if here is None:
            here = open_inside(self.root, path, O.PATH | O.DIRECTORY)
            if len(self._open) >= MOST_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
        self._open[path] = here
        return here

    def remove(self, parent: int, name: bytes) -> None:
        """Removes a file, or a directory with all that is in it: deeper than Python's stack and than any path, and through no link."""
        mode = os.lstat(name, dir_fd=parent).st_mode
        # What is a directory, or leads to one, may be the way to one that is open.
        self._moved = self._moved or not stat.S_ISREG(mode)
        if stat.S_ISDIR(mode):
            _remove_tree(parent, name)
        else:
            os.unlink(name, dir_fd=parent)

    def renew(self) -> None:
        """Closes all, once the same paths may lead to something else."""
        if self._moved:
            self.close()

    def close(self) -> None:
        """Closes all."""
        while self._open:
            os.close(self._open.popitem()[1])
        self._moved = False


def _remove_tree(parent: int, name: bytes) -> None:
    """With one descriptor, which goes down to an empty directory and up again."""
    down = [name]
    here = _enter(parent, name)
    try:
        while down:
            inner = _emptied(here)
            left, here = here, _enter(here, inner) if inner else os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
            os.close(left)
            if inner:
                down.append(inner)
            else:
                os.rmdir(down.pop(), dir_fd=here)
    finally:
        os.close(here)


def _enter(parent: int, name: bytes) -> int:
    os.chmod(name, 0o700, dir_fd=parent)  # an ordinary user may not have been let in
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)


def _emptied(directory: int) -> bytes | None:
    """Removes files until there is a directory, and gives its name."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                return os.fsencode(entry.name)
            os.unlink(entry.name, dir_fd=directory)
    return None
