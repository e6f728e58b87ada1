"""Cgroup: limits for a container, whatever the machine's version of cgroups, and an account of what it uses (cgroups(7))."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Unpack

from kernel_lab import janitor
from kernel_lab.cgroups.device_program import DeviceProgram
from kernel_lab.cgroups.group import Group
from kernel_lab.cgroups.hierarchies import V1, Controller, controllers
from kernel_lab.cgroups.layout import Directory, layout
from kernel_lab.cgroups.limits import Limits, Words
from kernel_lab.cgroups.making import made
from kernel_lab.cgroups.writes import Write
from kernel_lab.kernel.program import Handle, Row, call
from kernel_lab.kernel.table import Table
from kernel_lab.namespaces.part import Part, Plan, Starting


class Cgroup(Part):
    """A control group in every hierarchy whose controller has a limit, in which the container begins. Without a limit it only holds it together.

    The limits: memory, swap, cpus, cpu_weight, cpuset, pids, read_bps, write_bps, read_iops, write_iops, io_weight, devices, hugetlb; what each
    may be says `limits.Words`. `accounting`: be also where memory, cpu, pids and io are counted, limited or not. What is made for a container is a
    `Group`: `container.made(part)`. Raises UsageError for a value that is out of range; `check` does for what this machine cannot limit.
    """

    order = 5  # before all others: whatever they make is charged to the group
    prepares = True

    def __init__(self, *, accounting: bool = False, **limits: Unpack[Words]) -> None:
        self._words = {name: value for name, value in limits.items() if value is not None}
        self._limits = Limits.of(limits)
        self._accounting = accounting

    def __repr__(self) -> str:
        said = [f"{name}={value!r}" for name, value in self._words.items()]
        return f"Cgroup({', '.join([*said, *(['accounting=True'] if self._accounting else [])])})"

    def check(self, plan: Plan) -> None:
        # Where a controller is does not change while a part is used: what was found for the first container holds for the others.
        self.directories  # noqa: B018 -- looked up here for the errors

    @cached_property
    def directories(self) -> tuple[Directory, ...]:
        """Where this machine has the controllers. Raises UsageError for one that it has not, or that this user may not use."""
        return layout(self._limits, self._accounting)

    def writes(self) -> Table[Write]:
        """What is written where, before a process comes in. Nothing is made."""
        return Table(write for directory in self.directories for write in directory.writes)

    @property
    def device_program(self) -> DeviceProgram | None:
        """The program that limits devices, where no v1 controller does."""
        return next((directory.program for directory in self.directories if directory.program), None)

    @staticmethod
    def controllers() -> Table[Controller]:
        """Which controller this machine has, in which version, and where."""
        return controllers()

    @cached_property
    def handles(self) -> tuple[Handle, ...]:  # type: ignore[override]
        return tuple(Handle(f"{'+'.join(one.controllers)} group") for one in self.directories if one.hierarchy.version == V1)

    def rows(self, plan: Plan) -> Iterable[Row]:
        return enter(self.handles)

    @contextmanager
    def prepare(self, start: Starting) -> Iterator[Group]:
        janitor.watch_leftovers()
        with made(self.directories) as group:
            doors = start.until_cloned(group.doors())
            for handle, file in zip(self.handles, doors.procs, strict=True):
                start.give(handle, file)
            if doors.directory is not None:
                start.enter_cgroup(doors.directory)
            yield group


def enter(handles: Iterable[Handle]) -> Iterator[Row]:
    """The rows by which a process enters groups of version 1: these are their cgroup.procs, and 0 is who writes (cgroups(7))."""
    for handle in handles:
        yield call("write", handle, "0", 1, why="into its group, before it does anything else")
