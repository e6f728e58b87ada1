"""Overlay: a root of several directories, one on another, of which only the topmost is written (Documentation/filesystems/overlayfs.rst)."""

import os
import platform
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from kernel_lab.kernel import procfs
from kernel_lab.kernel.errors import UsageError
from kernel_lab.kernel.evidence import EVERY_ID
from kernel_lab.kernel.flags import AT_FD, FSCONFIG, FSMOUNT, FSOPEN, MOVE_MOUNT
from kernel_lab.kernel.program import Buffer, Handle, Row, call
from kernel_lab.namespaces.part import Plan, Starting
from kernel_lab.namespaces.root import Origin
from kernel_lab.namespaces.user import Map, User
from kernel_lab.unionfs import layers, writable
from kernel_lab.unionfs.whiteouts import TRUSTED, USER, Notation
from kernel_lab.unionfs.writable import Owner, Writable

LONGEST = 255  # bytes of a value that fsconfig(2) takes
PAGE = 4096  # of the options of mount(2)
ONE_BY_ONE = (6, 8)  # from this Linux on, layers are added one by one (`lowerdir+`)

PLACE = Buffer("place", 4096)
UPPER, WORK = Buffer("upper", 256), Buffer("work", 256)
OVERLAY, MERGED = Handle("overlay"), Handle("merged")


class Overlay:
    """What `Mount` takes for a root of layers: Mount(Overlay(app, base)). `lower`: directories, the topmost first, as docker has them.

    They are only read, and may be shared by any number of containers. Without `upper` what a container changes is gone when it has ended; with it,
    a directory of the caller's, it stays there, to be looked at (`changes`), given again, or to be a layer of another. One container at a time
    writes there.
    """

    handles: tuple[Handle, ...] = ()
    prepares = True
    image: Origin | None = None

    def __init__(self, *lower: str | Path, upper: str | Path | None = None) -> None:
        self.lower = tuple(map(_absolute, lower))
        # The kernel's own directory lies beside the real one.
        self.upper = None if upper is None else os.path.realpath(_absolute(upper))

    def __repr__(self) -> str:
        upper = () if self.upper is None else (f"upper={self.upper!r}",)
        return f"Overlay({', '.join((*map(repr, self.lower), *upper))})"

    @property
    def layers(self) -> tuple[str, ...]:
        """The directories in which a path is looked up before there is a mount, the topmost first."""
        return self.lower if self.upper is None else (self.upper, *self.lower)

    def check(self, plan: Plan) -> None:
        """Raises UsageError for layers that do not go together, and for ids that could not write there."""
        layers.check(self.lower)
        if self.upper is None:
            layers.check_writable("the kit's directory", writable.home(), self.lower)
        else:
            layers.check_kept(self.upper, writable.beside(self.upper), self.lower)
        owner = _owner(plan)
        if owner and os.geteuid() and owner != (os.geteuid(), os.getegid()):
            raise UsageError("Overlay: root inside must be you, so that it may write into your directories: take User() or User.subordinate()")

    def rows(self, plan: Plan) -> Iterable[Row]:
        """In the child: the union is mounted on the container's own directory, and is the working directory."""
        yield call("chdir", PLACE, why="the directories of this one container")
        yield from self._added(plan) if _one_by_one() else self._mounted(plan)
        yield call("chdir", PLACE, why="the union, now that it lies there")

    @contextmanager
    def prepare(self, start: Starting) -> Iterator[Writable]:
        """Upper and work directory. Raises UsageError when another container writes into this upper one."""
        given = self.lower, _notation(start.plan), _owner(start.plan)
        with writable.fresh(*given) if self.upper is None else writable.kept(self.upper, *given) as made:
            start.fill(PLACE, os.fsencode(made.place))
            if _one_by_one():
                start.fill(UPPER, os.fsencode(_told(made.upper) or "upper"))
                start.fill(WORK, os.fsencode(_told(made.work) or "work"))
            elif self._named_by_links(start.plan):
                for number, layer in enumerate(self.lower):
                    os.symlink(layer, f"{made.place}/{number}")
            yield made

    def _options(self, plan: Plan) -> Iterator[tuple[str, str]]:
        """The options besides the directories, and what for."""
        yield "redirect_dir=nofollow", "a name in a layer leads to no other name"
        yield "index=off", "the upper directory may be given again with other layers"
        if _notation(plan) == USER:
            yield "userxattr", "in a user namespace there are no trusted attributes"
        if self.upper is None:
            yield "volatile", "nobody waits for the disk: what is written goes with the container"

    def _added(self, plan: Plan) -> Iterator[Row]:
        yield call("fsopen", "overlay", FSOPEN.CLOEXEC, into=OVERLAY, why="a file system, to be configured")
        yield _set("source", "overlay", "what df shows")
        # Before the layers: a name that is told in place of a path is one in the working directory.
        yield _set("upperdir", UPPER, "what is written goes here")
        yield _set("workdir", WORK, "and is made ready here")
        for layer in self.lower:
            if _told(layer) is None:
                yield call("chdir", layer, why="a path that is too long to be told")
            yield _set("lowerdir+", _told(layer) or ".", "below it, the next layer")
        for option, why in self._options(plan):
            name, _, value = option.partition("=")
            yield _set(name, value, why) if value else call("fsconfig", OVERLAY, FSCONFIG.SET_FLAG, name, None, 0, why=why)
        yield call("fsconfig", OVERLAY, FSCONFIG.CMD_CREATE, None, None, 0, why="put together")
        yield call("fsmount", OVERLAY, FSMOUNT.CLOEXEC, 0, into=MERGED, why="a mount of it, in nobody's tree yet")
        yield call("move_mount", MERGED, "", AT_FD.FDCWD, PLACE, MOVE_MOUNT.F_EMPTY_PATH, why="on top of its own directories, and here alone")

    def _mounted(self, plan: Plan) -> Iterator[Row]:
        yield call("mount", "overlay", PLACE, "overlay", 0, self._mount_options(plan), why="the layers as one, on top of its own directories")

    def _mount_options(self, plan: Plan) -> str:
        lower = ":".join(map(str, range(len(self.lower)))) if self._named_by_links(plan) else self._paths()
        return ",".join((f"lowerdir={lower}", *self._other_options(plan)))

    def _paths(self) -> str:
        return ":".join(re.sub(r"([\\:,])", r"\\\1", layer) for layer in self.lower)

    def _other_options(self, plan: Plan) -> tuple[str, ...]:
        return "upperdir=upper", "workdir=work", *(option for option, _ in self._options(plan))

    def _named_by_links(self, plan: Plan) -> bool:
        """Whether all paths together are more than mount(2) takes. Then each layer is found by a link in the working directory (so does docker)."""
        return len(os.fsencode(",".join((f"lowerdir={self._paths()}", *self._other_options(plan))))) >= PAGE


def _absolute(path: str | Path) -> str:
    if not isinstance(path, str | Path):
        raise UsageError(f"Overlay({path!r}): a layer is a path, and several are given one by one: Overlay(top, base)")
    if not os.fspath(path):
        raise UsageError("Overlay(''): an empty path is no directory")
    return os.path.abspath(path)


def _set(name: str, value: str | Buffer, why: str) -> Row:
    return call("fsconfig", OVERLAY, FSCONFIG.SET_STRING, name, value, 0, why=why)


def _told(path: str) -> str | None:
    """The path as the kernel can be told it, if it can be: overlay takes a backslash for the beginning of an escape."""
    return path if len(os.fsencode(path)) <= LONGEST and "\\" not in path else None


def _one_by_one() -> bool:
    """Whether layers can be added one by one, as many as there are."""
    numbers = re.findall(r"\d+", platform.release())
    return tuple(map(int, numbers[:2])) >= ONE_BY_ONE


def _notation(plan: Plan) -> Notation:
    """The attributes that overlay uses: in a user namespace, the new one or the creator's own, those that any user may set."""
    return USER if plan.has(User) or _is_mapped() else TRUSTED


@cache
def _is_mapped() -> bool:
    return procfs.uid_map(os.getpid()) != EVERY_ID


def _owner(plan: Plan) -> Owner | None:
    """Who is root in the container's user namespace, if it has one. Raises UsageError when nobody is."""
    user = plan.part(User)
    return (_outside(user.uids), _outside(user.gids)) if user else None


def _outside(ranges: Map) -> int:
    for inside, outside, _ in ranges:
        if inside == 0:
            return outside
    raise UsageError(f"Overlay: no id is root in a user namespace with the map {ranges}, and so nobody who may mount and write; map 0 to one")
