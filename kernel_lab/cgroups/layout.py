"""What a container's group will be: a directory in each hierarchy that it needs, and what gives each its limits. Nothing is made here."""

import os
from dataclasses import dataclass

from kernel_lab.cgroups import delegation, files, v1, v2
from kernel_lab.cgroups.device_program import DeviceProgram, program
from kernel_lab.cgroups.hierarchies import V1, Hierarchy, find, need, unified
from kernel_lab.cgroups.limits import Limits, cpu_list
from kernel_lab.cgroups.writes import Write
from kernel_lab.kernel.errors import UsageError

# The controller of each word; where version 2 has given it another name, that one second.
CONTROLLERS: dict[str, tuple[str, ...]] = {
    "memory": ("memory",),
    "swap": ("memory",),
    "cpus": ("cpu",),
    "cpu_weight": ("cpu",),
    "cpuset": ("cpuset",),
    "pids": ("pids",),
    "devices": ("devices",),
    "hugetlb": ("hugetlb",),
    **dict.fromkeys(("read_bps", "write_bps", "read_iops", "write_iops", "io_weight"), ("blkio", "io")),
}
COUNTING = ("memory", "cpu", "pids", "blkio", "io")
# The topmost group of a v1 hierarchy lacks two files of the others; that these are there tells of them.
TOLD_BY = {"blkio.bfq.weight": "blkio.bfq.io_serviced", "pids.max": "cgroup.procs"}


@dataclass(frozen=True)
class Directory:
    """A directory to be made in `parent`, what is written into it, and the program that it gets."""

    hierarchy: Hierarchy
    parent: str
    controllers: tuple[str, ...]
    writes: tuple[Write, ...]
    program: DeviceProgram | None = None


def layout(limits: Limits, accounting: bool = False) -> tuple[Directory, ...]:
    """The directories of a group with these limits; `accounting`: in every controller that counts, too. One of them can freeze and kill.

    Raises UsageError for what this machine cannot limit, or this user may not.
    """
    wanted: dict[Hierarchy, list[str]] = {}
    for word in limits.given:
        if word != "devices" or find("devices") or not unified():  # in v2 a program limits them, and no controller
            _add(wanted, need(*CONTROLLERS[word], of=word), CONTROLLERS[word])
    for name in COUNTING if accounting else ():
        if hierarchy := find(name):
            _add(wanted, hierarchy, (name,))
    if hierarchy := unified():
        wanted.setdefault(hierarchy, [])
    else:
        for name in ("freezer", "cpuacct"):
            _add(wanted, need(name, of="Cgroup() without cgroup v2"), (name,))
    return tuple(_directory(hierarchy, tuple(names), limits) for hierarchy, names in wanted.items())


def _add(wanted: dict[Hierarchy, list[str]], hierarchy: Hierarchy, names: tuple[str, ...]) -> None:
    name = next(name for name in names if name in hierarchy.controllers)
    chosen = wanted.setdefault(hierarchy, [])
    if name not in chosen:
        chosen.append(name)


def _directory(hierarchy: Hierarchy, controllers: tuple[str, ...], limits: Limits) -> Directory:
    # A group of v1 is one of every controller that its hierarchy was mounted with.
    return _in_v1(hierarchy, hierarchy.controllers, limits) if hierarchy.version == V1 else _in_v2(hierarchy, controllers, limits)


def _in_v1(hierarchy: Hierarchy, controllers: tuple[str, ...], limits: Limits) -> Directory:
    parent = hierarchy.own()
    if not os.access(parent, os.W_OK):
        raise UsageError(f"{', '.join(controllers)}: in v1 at {hierarchy.point}, where user {os.geteuid()} may not make groups: only root may")
    if "cpuset" in controllers:
        _check_cpuset(limits, f"{parent}/cpuset.cpus")
    writes = [write for name in controllers for write in (*v1.inherited(parent, name), *v1.writes(limits, name))]
    for write in writes:
        if not os.path.exists(f"{parent}/{TOLD_BY.get(write.file, write.file)}"):
            raise UsageError(f"{write.controller}: {hierarchy.point} is v1, and this kernel has no {write.file} in it")
    return Directory(hierarchy, parent, controllers, tuple(writes))


def _in_v2(hierarchy: Hierarchy, controllers: tuple[str, ...], limits: Limits) -> Directory:
    parent = delegation.base(hierarchy)
    delegation.check(parent, controllers)
    if "cpuset" in controllers:
        _check_cpuset(limits, f"{parent}/cpuset.cpus.effective")
    writes = tuple(write for name in controllers for write in v2.writes(limits, name))
    sample = _sample(parent)
    known = delegation.handed_to(sample) if sample else []
    for write in writes:
        if write.controller in known and not os.path.exists(f"{sample}/{write.file}"):
            raise UsageError(f"{write.controller}: {hierarchy.point} is v2, and this kernel has no {write.file} in it")
    return Directory(hierarchy, parent, controllers, writes, _program(limits))


def _sample(parent: str) -> str | None:
    """A group that has the files of limits: the topmost one has none, but perhaps there is another below it."""
    if os.path.exists(f"{parent}/cgroup.type"):
        return parent
    return next((entry.path for entry in os.scandir(parent) if entry.is_dir(follow_symlinks=False)), None)


def _check_cpuset(limits: Limits, file: str) -> None:
    allowed = files.read(file)
    if limits.cpuset is not None and cpu_list(limits.cpuset) - cpu_list(allowed):
        raise UsageError(f"cpuset={limits.cpuset!r}: the group above it may use only {allowed} ({file})")


def _program(limits: Limits) -> DeviceProgram | None:
    if limits.devices is None or find("devices"):
        return None
    if os.geteuid():
        raise UsageError("devices: in v2 they are limited by an eBPF program, which only root of the machine may load (capabilities(7), CAP_BPF)")
    return program(limits.devices)
