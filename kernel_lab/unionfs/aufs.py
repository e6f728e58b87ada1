"""Aufs: a root of several directories, its branches, of which any may be written, and which may come and go meanwhile (aufs(5)).

Where the kernel has AUFS, it does the work; elsewhere a process in user space does, on FUSE (fuse(4)).
"""

import importlib.util
import itertools
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from kernel_lab import state
from kernel_lab.kernel.errors import UsageError
from kernel_lab.kernel.flags import MS
from kernel_lab.kernel.program import Handle, Row, call
from kernel_lab.namespaces.part import Plan, Starting
from kernel_lab.namespaces.root import Origin
from kernel_lab.state import Creator
from kernel_lab.unionfs import aufs_kernel, layers
from kernel_lab.unionfs.aufs_mounts import InKernel, InUserSpace
from kernel_lab.unionfs.branches import Branch, parse, walk
from kernel_lab.unionfs.policies import POLICIES

FUSE = "/dev/fuse"
HOME = "aufs"  # in the data directory
NEEDS = "apt-get install fuse3 libfuse3-dev pkg-config gcc python3-dev; then rm -r .venv and ./lab up"

_numbers = itertools.count(1)


class Aufs:
    """A union for Mount(…), and by itself: `with Aufs("/upper=rw", "/base=ro") as tree:` keeps it mounted at `tree.path`.

    `branches`: the topmost first, as Branch objects or in AUFS's own words, `br:/upper=rw:/base=ro`; without a mode, the first is rw, the others ro.
    `create`: the branch for new files where several are rw: `tdp`, `mfs` or `rr` (see policies.py). Raises UsageError for what is none of these.
    """

    handles: tuple[Handle, ...] = ()
    prepares = True
    image: Origin | None = None

    def __init__(self, *branches: Branch | str | Path, create: str = "tdp") -> None:
        given: list[Branch] = []
        for branch in branches:
            given += [branch] if isinstance(branch, Branch) else parse(str(branch), "ro" if given else "rw")
        if create not in POLICIES:
            raise UsageError(f"Aufs(create={create!r}): there is {', '.join(POLICIES)}")
        self.branches = _absolute(given)
        self.create = create
        self.path = f"{os.path.realpath(state.data_path())}/{HOME}/{Creator.this().stamp}-{next(_numbers)}"
        self._mounted: InUserSpace | InKernel | None = None
        self._users = 0
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"Aufs({', '.join(repr(str(branch)) for branch in self.branches)}, create={self.create!r})"

    @property
    def layers(self) -> tuple[str, ...]:
        """The directories in which a path is looked up before there is a mount, the topmost first."""
        return tuple(branch.path for branch in self.branches)

    def check(self, plan: Plan | None = None) -> None:
        """Raises UsageError for branches that do not go together, and where the machine cannot mount them."""
        _check(self.branches, self.path)
        if why := lacking():
            raise UsageError(f"Aufs: this kernel has no AUFS, and to make one in user space {why[0]}: {why[1]}")

    def rows(self, plan: Plan) -> Iterable[Row]:
        """In the child: the union is the working directory."""
        yield call("mount", self.path, self.path, None, MS.BIND | MS.REC, why="a mount of the container's own: it may not move its creator's")
        yield call("chdir", self.path)

    @contextmanager
    def prepare(self, start: Starting) -> Iterator["Aufs"]:
        """Mounts it, unless it is mounted already."""
        with self:
            yield self

    def __enter__(self) -> "Aufs":
        with self._lock:
            if not self._users:
                self.check()
                _make_home()
                self._mounted = (InKernel if aufs_kernel.is_there() else InUserSpace)(self.path, self.branches, self.create)
            self._users += 1
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._mounted:
                self._mounted.close()
                self._mounted = None

    def change(self, *branches: Branch | str) -> None:
        """Other branches in place of these, the topmost first; seen at once by all who use the union.

        Raises UsageError for branches that do not go together, KernelError (EBUSY) while a file is open for writing in one that goes.
        """
        new = _absolute([branch for given in branches for branch in ([given] if isinstance(given, Branch) else parse(given, "ro"))])
        with self._lock:
            _check(new, self.path)
            if self._mounted:
                self._mounted.change(self.branches, new)
            self.branches = new

    def insert(self, number: int, branch: Branch | str) -> None:
        """A new branch, above the one that has had this number (0: the topmost)."""
        self.change(*self.branches[:number], branch, *self.branches[number:])

    def append(self, branch: Branch | str) -> None:
        """A new branch below all others."""
        self.change(*self.branches, branch)

    def remove(self, path: str) -> None:
        """Takes the branch with this path away; what it has stays where it is."""
        gone = self._branch(path)
        self.change(*(branch for branch in self.branches if branch != gone))

    def move(self, path: str, number: int) -> None:
        """Puts the branch with this path at another place."""
        moved = self._branch(path)
        others = [branch for branch in self.branches if branch != moved]
        self.change(*others[:number], moved, *others[number:])

    def refresh(self) -> None:
        """Makes the kernel look again: somebody has changed files in a branch, past the union."""
        self.change(*self.branches)

    def where(self, path: str) -> Branch | None:
        """The branch whose file the union shows, of a merged directory the topmost; None where there is nothing."""
        return next((place.branch for place in walk(self.branches, path)), None)

    def _branch(self, path: str) -> Branch:
        for branch in self.branches:
            if branch.path == os.path.realpath(path):
                return branch
        raise UsageError(f"branch {path!r}: it is none of {', '.join(self.layers)}")


def lacking() -> tuple[str, str] | None:
    """What this machine has not for a union to be mounted, and what mends it; None if it has everything."""
    if aufs_kernel.is_there():
        return None
    if importlib.util.find_spec("pyfuse3") is None:
        return "pyfuse3 is not installed", NEEDS
    if not os.path.exists(FUSE):
        return f"there is no {FUSE}", "as root, modprobe fuse"
    if not os.access(FUSE, os.R_OK | os.W_OK):
        return f"{FUSE} may not be opened", f"as root, chmod 666 {FUSE}"
    if os.geteuid() and shutil.which("fusermount3") is None:
        return "an ordinary user needs fusermount3", "apt-get install fuse3"
    return None


def _make_home() -> None:
    """Where unions are mounted. Others must be able to walk through: in a user namespace, root is another user."""
    path = state.data_dir() / HOME
    with suppress(FileExistsError):
        path.mkdir()
        path.chmod(0o711)


def _absolute(branches: Iterable[Branch]) -> tuple[Branch, ...]:
    return tuple(Branch(os.path.realpath(branch.path), branch.mode) for branch in branches)


def _check(branches: Sequence[Branch], path: str) -> None:
    if not branches:
        raise UsageError("Aufs: no branches; a union is made of at least one directory")
    layers.check([branch.path for branch in branches])
    if os.geteuid():
        # Root's process sees each branch without what is mounted in it; an ordinary user's would wait for itself.
        for branch in branches:
            if path.startswith(branch.path.rstrip("/") + "/"):
                raise UsageError(
                    f"branch {branch.path!r}: the union would be mounted in its own branch, at {path}; take a directory that is elsewhere"
                )
