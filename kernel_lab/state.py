"""Where the kit keeps its state, how its files change, and whose a thing on disk is.

What a process makes in these directories for itself alone carries its stamp in the name, `p` and its number, `t` and its start: so that
`klab cleanup` can see whether the one that made it still lives. A number alone says nothing, since numbers are given again.
"""

import errno
import fcntl
import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from kernel_lab.kernel import mountinfo, procfs
from kernel_lab.kernel.calls import syscall
from kernel_lab.kernel.errors import KernelError, UsageError
from kernel_lab.kernel.flags import MNT

UNMOUNT_TRIES = 20


class Creator(NamedTuple):
    """A process that made something: its number, and its start in clock ticks after boot."""

    pid: int
    start: int

    @classmethod
    def this(cls) -> "Creator":
        """This process; its start is read from /proc once."""
        return _creator(os.getpid())

    @classmethod
    def of(cls, pid: int) -> "Creator":
        return cls(pid, procfs.process(pid).started)

    @classmethod
    def in_name(cls, name: str) -> "Creator | None":
        """The creator whose stamp `name` carries."""
        found = re.search(r"(?<![0-9A-Za-z])p(\d+)t(\d+)(?![0-9A-Za-z])", name)
        return cls(int(found[1]), int(found[2])) if found else None

    @property
    def stamp(self) -> str:
        return f"p{self.pid}t{self.start}"

    def alive(self) -> bool:
        return procfs.alive(self.pid, self.start)


@cache  # by number: after a fork it is another
def _creator(pid: int) -> Creator:
    return Creator.of(pid)


@dataclass(frozen=True)
class Leftover:
    """Something of the kit whose creator is dead: what it is, why it counts as left over, and how it is taken away."""

    kind: str
    name: str
    why: str
    remove: Callable[[], None]


def run_dir() -> Path:
    """Where the state of what runs now is kept: nobody else may look inside."""
    return ours(run_path(), 0o700)


def data_dir() -> Path:
    """Where what is worth keeping is kept: a container's other users must be able to walk through to their root."""
    return ours(data_path(), 0o755)


def run_path() -> Path:
    """The path of `run_dir()`, whether or not it exists."""
    if named := os.environ.get("KERNEL_LAB_RUN"):
        return Path(named)
    if os.geteuid() == 0:
        return Path("/run/kernel-lab")
    session = os.environ.get("XDG_RUNTIME_DIR")
    # After `su` the variable may still name the directory of the user before.
    if session and os.path.isdir(session) and os.stat(session).st_uid == os.geteuid():
        return Path(session, "kernel-lab")
    return Path(f"/tmp/kernel-lab-{os.geteuid()}")


def data_path() -> Path:
    """The path of `data_dir()`, whether or not it exists."""
    if named := os.environ.get("KERNEL_LAB_DATA"):
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/kernel-lab")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share", "kernel-lab")


def ours(path: Path, mode: int) -> Path:
    """A directory of this user's, which is made unless it is there. Raises UsageError for anybody else's, and where others may write."""
    if not path.is_absolute():
        raise UsageError(f"{path}: the directory for the kit's state must be an absolute path")
    if not os.path.lexists(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.mkdir(path, mode)
            # The umask may have taken away what a container's users need.
            os.chmod(path, mode)
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise UsageError(f"{path}: the kit's state needs a directory here, and this is none")
    # In /tmp anyone could have been faster, and would then own what we trust.
    if status.st_uid != os.geteuid():
        raise UsageError(f"{path}: belongs to user {status.st_uid}; the kit keeps its state only in a directory of its own user, {os.geteuid()}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UsageError(f"{path}: others may write here; take that away with: chmod go-w {path}")
    return path


def folder(name: str) -> Path:
    """The directory `name` in `run_dir()`."""
    path = run_dir() / name
    path.mkdir(mode=0o700, exist_ok=True)
    return path


@contextmanager
def locked(path: Path | str) -> Iterator[None]:
    """The file at `path`, which is made, for us alone among all processes and threads."""
    # A file object and not os.open: an interrupt between two steps would lose a bare number, and with it the descriptor.
    with open(path, "ab", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Not left to the close: a child that is just being made holds the same open file, and with it the lock.
            fcntl.flock(file, fcntl.LOCK_UN)


def write_atomically(path: Path, text: str) -> None:
    """Replace the file at `path`: a reader sees all of the old text or all of the new one."""
    # No fsync: a file that a power cut has halved is ignored by its readers, and waiting for the disk would cost more than a container's start.
    temporary = path.with_name(f".{path.name}.{Creator.this().stamp}.{os.urandom(4).hex()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def discard(path: Path) -> None:
    """Remove a file, or a directory with all that is in it, unless it is gone already."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    # Through a bind mount, all that could be deleted would be the host's.
    inside = f"{os.path.realpath(path)}/"
    if mounted := [mount.point for mount in mountinfo.mounts() if f"{mount.point}/".startswith(inside)]:
        raise RuntimeError(f"{path}: not removed, since {mounted[0]} is mounted there")
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    # A container can make directories for ids that are this user's only in a user namespace, and deeper than Python's stack, or than a file
    # for each level can be open.
    except (RecursionError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EACCES, errno.EPERM, errno.EMFILE):
            raise
        subprocess.run([*as_their_root(), "rm", "-rf", "--one-file-system", str(path)], check=True, capture_output=True)


def unmount(point: str) -> None:
    """Takes a mount of the kit's away, if it is still there, without waiting for those who use it."""
    for tries_left in reversed(range(UNMOUNT_TRIES)):
        if all(mount.point != point for mount in mountinfo.mounts()):
            return
        try:
            _unmount(point)
            return
        except (KernelError, subprocess.CalledProcessError):
            # Another cleanup, at the end of another creator, may be at it: two fusermount3 of one mount are in each other's way.
            if not tries_left:
                raise
            time.sleep(0.05)


def _unmount(point: str) -> None:
    if os.geteuid() == 0:
        # Without following a link that has taken its place.
        syscall("umount2", os.fsencode(point), MNT.DETACH | MNT.UMOUNT_NOFOLLOW)
    else:
        # What an ordinary user has mounted for all to see is a file system in user space (fusermount3(1)).
        subprocess.run(["fusermount3", "-u", "-z", "--", point], check=True, capture_output=True)


def as_their_root() -> list[str]:
    """The beginning of a command that may read and remove what an ordinary user's containers have made, as their root; none for root."""
    if os.geteuid() == 0:
        return []
    every = subprocess.run(["unshare", "--user", "--map-root-user", "--map-auto", "true"], capture_output=True).returncode == 0
    return ["unshare", "--user", "--map-root-user", *(["--map-auto"] if every else [])]
