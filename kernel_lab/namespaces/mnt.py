"""Mount: a file system of its own, with a directory as its root (mount_namespaces(7), pivot_root(2))."""

import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from errno import EEXIST, EROFS
from pathlib import Path

from kernel_lab.kernel import executables
from kernel_lab.kernel.errors import UsageError
from kernel_lab.kernel.flags import AT, AT_FD, CLONE, MNT, MOVE_MOUNT, MS, OPEN_TREE
from kernel_lab.kernel.program import Handle, Row, Words, call
from kernel_lab.namespaces import dev
from kernel_lab.namespaces.net import Net
from kernel_lab.namespaces.part import Part, Plan, Starting
from kernel_lab.namespaces.pid import PID
from kernel_lab.namespaces.root import Directory, Root

READ_ONLY = Words((1, 0, 0, 0), "{set MOUNT_ATTR_RDONLY}")  # struct mount_attr (mount_setattr(2))
# What docker hides and freezes: /proc and /sys are windows on the one kernel, and some panes are the host's alone.
MASKED = ("/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/sys/firmware")
FROZEN = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True)
class Bind:
    """A file or directory of the host at a place in the container."""

    source: str
    target: str
    readonly: bool = False

    @classmethod
    def parse(cls, text: str) -> "Bind":
        """`SOURCE:TARGET[:ro]`, as docker's -v has it. Raises UsageError for anything else."""
        source, _, rest = text.partition(":")
        target, _, mode = rest.partition(":")
        if not source or not target or mode not in ("", "ro", "rw"):
            raise UsageError(f"bind {text!r}: it is written SOURCE:TARGET or SOURCE:TARGET:ro")
        return cls(os.path.abspath(source), target, mode == "ro")


class Mount(Part):
    """A mount namespace whose changes reach nobody else; with `root`, that directory is all there is.

    With a root it has /proc, /sys (read-only) and /dev, and hides what docker hides; each can be left out. Without a root it keeps the host's
    tree, with a /proc of its own when there is a PID namespace. `binds`: Bind objects or `SOURCE:TARGET[:ro]`; `tmpfs`: places for an empty one,
    or `PLACE:OPTIONS` as docker has it (`/cache:size=64m,mode=0700`, tmpfs(5)); `directories`: made in the root where they are missing.
    """

    flags = CLONE.NEWNS
    order = 80

    def __init__(
        self,
        root: str | Path | Root | None = None,
        *,
        readonly: bool = False,
        binds: Sequence[Bind | str] = (),
        tmpfs: Sequence[str] = (),
        directories: Sequence[str] = (),
        proc: bool | None = None,
        sys: bool | None = None,
        dev: bool | None = None,
        masked: Sequence[str] | None = None,
        frozen: Sequence[str] | None = None,
    ) -> None:
        self.root = Directory(str(root)) if isinstance(root, (str, Path)) else root
        self.readonly = readonly
        self.binds = tuple(Bind.parse(bind) if isinstance(bind, str) else bind for bind in binds)
        self._options = {place: options or "mode=1777" for place, _, options in (text.partition(":") for text in tmpfs)}
        self.tmpfs = tuple(self._options)
        self.directories = tuple(directories)
        own = self.root is not None
        self.proc, self.sys, self.dev = proc, own if sys is None else sys, own if dev is None else dev
        self.masked = tuple(MASKED if self.dev else ()) if masked is None else tuple(masked)
        self.frozen = tuple(FROZEN if self.dev else ()) if frozen is None else tuple(frozen)

    def check(self, plan: Plan) -> None:
        if self.root is not None:
            self.root.check(plan)
        if self.root is None and self.readonly:
            raise UsageError("Mount(readonly=True): the host's own root is not made read-only; give a root")
        for bind in self.binds:
            if not os.path.exists(bind.source):
                raise UsageError(f"bind {bind.source!r}: there is no such file or directory on the host")
        places = [posixpath.normpath(place) for place in (*(bind.target for bind in self.binds), *self.tmpfs)]
        if twice := next((place for place in places if places.count(place) > 1), None):
            raise UsageError(f"mount point {twice!r}: it is given twice, and the second would hide the first")
        for target in (*(bind.target for bind in self.binds), *self.tmpfs, *self.directories, *self.masked, *self.frozen):
            if not target.startswith("/") or ".." in target.split("/") or target == "/":
                raise UsageError(f"mount point {target!r}: it must be an absolute path below the root, without '..'")
            if self.root is None and not os.path.exists(target):
                raise UsageError(f"mount point {target!r}: it does not exist, and the kit makes no directories in the host's own root")

    @property
    def handles(self) -> tuple[Handle, ...]:  # type: ignore[override]
        return self.root.handles if self.root else ()

    @property
    def prepares(self) -> bool:  # type: ignore[override]
        return self.root is not None and self.root.prepares

    def prepare(self, start: Starting) -> AbstractContextManager[object]:
        return self.root.prepare(start) if self.root else nullcontext()

    def rows(self, plan: Plan) -> Iterable[Row]:
        yield call("mount", None, "/", None, MS.REC | MS.PRIVATE, why="what is mounted from here on stays here")
        for number, bind in enumerate(self.binds):
            yield from _take(f"bind{number}", bind.source, bind.readonly)
        nodes = dev.Nodes(plan) if self.dev else None
        yield from nodes.before() if nodes else ()
        yield from self._take_kernel_file_systems(plan)
        if self.root is not None:
            yield from self.root.rows(plan)
            yield call("pivot_root", ".", ".", why="the directory becomes the root; the old root now lies on top of it, out of the way of every path")
        yield from self._kernel_file_systems(plan)
        yield from nodes.after() if nodes else ()
        yield from self._callers_mounts()
        yield from self._hidden()
        if self.root is not None:
            yield call("umount2", ".", MNT.DETACH, why="let go of the old root")
            yield call("chdir", "/")
        if self.readonly:
            yield call("mount_setattr", AT_FD.FDCWD, "/", 0, READ_ONLY, 32, why="the root can only be read; what is mounted in it is not touched")

    def _own_proc(self, plan: Plan) -> bool:
        return plan.has(PID) if self.proc is None else self.proc and plan.has(PID)

    def _hosts_proc(self, plan: Plan) -> bool:
        return self.root is not None and self.proc is not False and not plan.has(PID)

    def _take_kernel_file_systems(self, plan: Plan) -> Iterator[Row]:
        # Only who owns the PID or network namespace may mount its proc or sysfs anew (mount_namespaces(7)): without one, the host's is shared.
        if self._hosts_proc(plan):
            yield from _take("proc", "/proc", readonly=False)
        if self.sys and self.root is not None and not plan.has(Net):
            yield from _take("sys", "/sys", readonly=True)

    def _kernel_file_systems(self, plan: Plan) -> Iterator[Row]:
        if self._hosts_proc(plan):
            yield from self._place("proc", "/proc")
        elif self._own_proc(plan):
            yield from self._directory("/proc")
            yield call("mount", "proc", "/proc", "proc", MS.NOSUID | MS.NODEV | MS.NOEXEC, why="the new PID namespace as files")
        if self.sys and plan.has(Net):
            yield from self._directory("/sys")
            yield call("mount", "sysfs", "/sys", "sysfs", MS.RDONLY | MS.NOSUID | MS.NODEV | MS.NOEXEC, why="devices, with the new namespace's links")
        elif self.sys and self.root is not None:
            yield from self._place("sys", "/sys")

    def _place(self, name: str, target: str) -> Iterator[Row]:
        yield from self._directory(target)
        yield from place(name, target)

    def _directory(self, target: str) -> Iterator[Row]:
        if self.root is not None and not any(os.path.isdir(layer + target) for layer in self.root.layers):
            yield from make_directories(target)

    def _callers_mounts(self) -> Iterator[Row]:
        for target in self.tmpfs:
            yield from make_directories(target) if self.root is not None else ()
            yield call("mount", "tmpfs", target, "tmpfs", MS.NOSUID | MS.NODEV, self._options[target], why="memory to write into")
        for number, bind in enumerate(self.binds):
            if self.root is not None:
                yield from make_directories(bind.target) if os.path.isdir(bind.source) else _make_file(bind.target)
            yield from place(f"bind{number}", bind.target)
        for path in self.directories:
            yield from make_directories(path, "a directory that is asked for")

    def _is_there(self, path: str) -> bool:
        """Whether the container will have it: what the kernel shows in /proc and /sys is the same everywhere, all else is the root's."""
        for place, mounted in (("/proc/", self.proc is not False), ("/sys/", self.sys)):
            if path.startswith(place):
                return bool(mounted) and os.path.exists(path)
        return any(executables.exists(path, layer) for layer in (self.root.layers if self.root else "/"))

    def _hidden(self) -> Iterator[Row]:
        for path in filter(self._is_there, self.masked):
            if self._is_there(path + "/."):
                yield call("mount", "tmpfs", path, "tmpfs", MS.RDONLY, "size=4k", why="hidden: an empty directory lies on top")
            else:
                yield call("mount", "/dev/null", path, None, MS.BIND, why="hidden: nothing lies on top")
        for path in filter(self._is_there, self.frozen):
            yield call("mount", path, path, None, MS.BIND | MS.REC, why="a mount of its own,")
            yield call("mount_setattr", AT_FD.FDCWD, path, AT.RECURSIVE, READ_ONLY, 32, why="to be read only")


def _take(name: str, source: str, readonly: bool) -> Iterator[Row]:
    """A copy of a mount, in nobody's tree yet: the host's paths are gone once the root has been changed (open_tree(2))."""
    flags = OPEN_TREE.CLONE | OPEN_TREE.CLOEXEC | AT.RECURSIVE
    yield call("open_tree", AT_FD.FDCWD, source, flags, into=Handle(name), why="hold a copy of it, while the host's paths can be seen")
    if readonly:
        yield call("mount_setattr", Handle(name), "", AT.EMPTY_PATH | AT.RECURSIVE, READ_ONLY, 32, why="to be read only")


def place(name: str, target: str) -> Iterator[Row]:
    """Attaches what was taken (move_mount(2))."""
    yield call("move_mount", Handle(name), "", AT_FD.FDCWD, target, MOVE_MOUNT.F_EMPTY_PATH, why="put it into the container's tree")
    yield call("close", Handle(name))


def make_directories(path: str, why: str = "a place to mount on") -> Iterator[Row]:
    """A directory and those above it, where they are missing."""
    parts = path.strip("/").split("/")
    for depth in range(1, len(parts) + 1):
        yield call("mkdirat", AT_FD.FDCWD, "/" + "/".join(parts[:depth]), 0o755, tolerate={EEXIST, EROFS}, why=why)


def _make_file(path: str) -> Iterator[Row]:
    parent = os.path.dirname(path)
    yield from make_directories(parent) if parent != "/" else ()
    yield call("mknodat", AT_FD.FDCWD, path, 0o100644, 0, tolerate={EEXIST, EROFS}, why="a file to mount on")
