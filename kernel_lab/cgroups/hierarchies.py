"""Which controller is in which hierarchy of this machine, and where that is mounted: v1, v2, or on a hybrid machine some here and some there.

A v1 hierarchy has the controllers that it was mounted with, often two of them (cpu,cpuacct). The one v2 hierarchy has what no v1 hierarchy has
taken. A group of the one is no group of the other: a process is in one group of each (/proc/PID/cgroup).
"""

import os
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from kernel_lab.kernel import mountinfo, procfs
from kernel_lab.kernel.errors import UsageError
from kernel_lab.kernel.procfs import CgroupLine
from kernel_lab.kernel.table import Table

KNOWN = Path("/proc/cgroups")
V1, V2 = 1, 2


@dataclass(frozen=True)
class Hierarchy:
    """A tree of groups as a file system. `root`: the group that is seen at `point`, which need not be the topmost."""

    version: int
    point: str
    root: str
    controllers: tuple[str, ...]

    def directory(self, group: str) -> str | None:
        """Where a group is, as /proc/PID/cgroup names it; None if it is outside of what is mounted."""
        inside = posixpath.relpath(group, self.root)
        return None if inside.startswith("..") else posixpath.normpath(posixpath.join(self.point, inside))

    def line(self, pid: int) -> CgroupLine | None:
        """The line of /proc/PID/cgroup that is about this hierarchy."""
        wanted = () if self.version == V2 else self.controllers
        return next((line for line in procfs.cgroups(pid) if line.v2 == (self.version == V2) and set(line.controllers) == set(wanted)), None)

    def own(self) -> str:
        """The directory of the group that this process is in. Raises UsageError if it cannot be seen."""
        line = self.line(os.getpid())
        directory = self.directory(line.path) if line else None
        if directory is None:
            where = f"in {line.path}, of which nothing is seen at {self.point}" if line else f"in no group of {self.point}"
            what = "+".join(self.controllers) or "cgroup v2"
            raise UsageError(f"{what}: this process is {where}; mount the whole hierarchy, or leave the limit out")
        return directory

    def __str__(self) -> str:
        return f"v{self.version} {self.point}"


class Controller(NamedTuple):
    """A controller of this kernel, and where it is."""

    controller: str
    version: str
    mounted_at: str


@cache
def hierarchies() -> tuple[Hierarchy, ...]:
    """The hierarchies that are mounted where this process can see them, v1 first."""
    kernels = _known()
    found = {_named(mount, kernels): mount for mount in reversed(mountinfo.mounts()) if mount.kind in ("cgroup", "cgroup2")}
    return tuple(
        sorted((Hierarchy(version, mount.point, mount.root, names) for (version, names), mount in found.items()), key=lambda one: one.version)
    )


def _named(mount: mountinfo.Mount, kernels: Iterable[str]) -> tuple[int, tuple[str, ...]]:
    if mount.kind == "cgroup2":
        return V2, tuple(Path(mount.point, "cgroup.controllers").read_text().split())
    options = mount.super_options.split(",")
    return V1, tuple(option for option in options if option in kernels or option.startswith("name="))


def _known() -> dict[str, bool]:
    """The controllers of this kernel that may be mounted as v1, and whether they are switched on (cgroup_disable= on the kernel's command line)."""
    try:
        lines = KNOWN.read_text().splitlines()[1:]
    except FileNotFoundError:  # a kernel without v1
        return {}
    return {fields[0]: fields[3] == "1" for fields in map(str.split, lines)}


def find(controller: str) -> Hierarchy | None:
    """The hierarchy of a controller."""
    return next((one for one in hierarchies() if controller in one.controllers), None)


def need(*controllers: str, of: str) -> Hierarchy:
    """The hierarchy of the first of `controllers` that is mounted; `of` says in the error what needs it. Raises UsageError.

    A controller may have one name in v1 and another in v2, as blkio and io.
    """
    for _ in range(2):
        if found := next(filter(None, map(find, controllers)), None):
            return found
        hierarchies.cache_clear()  # it may have been mounted meanwhile
    raise UsageError(f"{of}: it needs the controller {' or '.join(controllers)}, and {missing(controllers[0])}")


def missing(controller: str) -> str:
    """Why a controller is in no hierarchy."""
    known = _known()
    if controller not in known:
        return f"this kernel has no {controller}, or it has been switched off (/proc/cgroups)"
    if not known[controller]:
        return f"{controller} has been switched off: see cgroup_disable in /proc/cmdline"
    return f"{controller} is mounted nowhere: as root, mount -t cgroup -o {controller} none SOME_DIRECTORY"


def unified() -> Hierarchy | None:
    """The v2 hierarchy, if it is mounted."""
    return next((one for one in hierarchies() if one.version == V2), None)


def controllers() -> Table[Controller]:
    """Every controller of this kernel, and where it is."""
    names = sorted({*_known(), *(name for one in hierarchies() for name in one.controllers if "=" not in name)})
    found = ((name, find(name)) for name in names)
    return Table(Controller(name, f"v{one.version}" if one else "", one.point if one else "nowhere") for name, one in found)
