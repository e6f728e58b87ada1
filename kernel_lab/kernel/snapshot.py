"""What a container could leave behind in the kernel, before and after: the audit of every test, and the last cell of a lab.

    before = snapshot()
    ...
    print(before.leaks(patience=5))

A machine also runs other people's processes, and a false alarm is worse than none. So a thing is a leak only if it is *ours* and stays during the
whole patience. A process that was not there before is ours when

1. it descends from this process;
2. or its environment carries our KERNEL_LAB_RUN: what a child of ours started, whoever its parent is now;
3. or it is in a session, process group or namespace of one that is ours, which did not exist before;
4. or it carries the kit's `container=kernel-lab` and is in a namespace which did not exist before: a container that has lost its creator.

A namespace is ours when this process or one that is ours is in it. Mounts, links, rules, cgroups and IPC objects have no owner that the kernel
would name, and the kit's mark in rule 4 is everybody's who uses the kit. So these count only while no other run of the kit is at work on the machine
(`others`), except where they carry the name of our run directory.
"""

import os
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tabulate import tabulate

from kernel_lab.kernel import inventory, procfs
from kernel_lab.kernel.procfs import Process

PREFIX = "klab"
SIGN = "@kernel-lab-run:"
JANITOR = "klab-janitor"
# Whose disappearance harms the host. A process or a file of somebody else's may end at any time.
GUARDED = frozenset({"mount", "link", "nft table"})


@dataclass(frozen=True, order=True)
class Leak:
    """One difference: what kind of thing, whether it `appeared` or `vanished`, and which. Two looks at the same thing are equal;
    the note is for the reader, and a process may change its name between the looks."""

    what: str
    change: str
    which: str
    note: str = field(default="", compare=False)


@dataclass(frozen=True, repr=False)
class Leaks:
    """What is different and ours; false when nothing is. `unsure` names the other runs of the kit because of which some kinds were not judged."""

    found: tuple[Leak, ...] = ()
    unsure: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.found)

    def _table(self, form: str) -> str:
        if not self.found:
            return "nothing is left behind"
        rows = [(leak.what, leak.change, leak.which, leak.note) for leak in self.found]
        table = tabulate(rows, headers=("what", "change", "which", "by"), tablefmt=form, disable_numparse=True)
        # A path need not be text, and a table that cannot be printed would hide what it is about.
        return table.encode(errors="replace").decode()

    def __repr__(self) -> str:
        return self._table("simple") + "".join(f"\nnot judged what has no owner: also at work is {other}" for other in self.unsure)

    def _repr_html_(self) -> str:
        return self._table("html")


@dataclass(frozen=True)
class Snapshot:
    """The kernel at one moment. `held`: each namespace and the processes in it; `things`: the names of everything else, by kind."""

    processes: Mapping[int, Process]
    held: Mapping[str, frozenset[int]]
    things: Mapping[str, frozenset[str]]
    run: str | None
    me: int = field(default_factory=os.getpid)

    @cached_property
    def identities(self) -> frozenset[tuple[int, int]]:
        return frozenset(one.identity for one in self.processes.values())

    def leaks(self, patience: float = 0.0, *, but: Collection[str] = ()) -> Leaks:
        """What has changed since, is ours, and does not go within `patience` seconds: what goes by itself a little later is no leak.
        `but` names kinds of things that do not count."""
        end = time.monotonic() + patience
        pause = 0.005
        left = self._changes(but)
        while left.found and time.monotonic() < end:
            time.sleep(pause)
            pause = min(pause * 1.5, 0.2)
            now = self._changes(but)
            left = Leaks(tuple(leak for leak in left.found if leak in now.found), left.unsure or now.unsure)
        return left

    def _changes(self, but: Collection[str]) -> Leaks:
        now = snapshot(self.run)
        if now.held == self.held and now.things == self.things and now.identities <= self.identities:
            return Leaks()
        unsure = others(now, self.run)
        found = differences(self, now, ours(self, now, alone=not unsure), alone=not unsure)
        return Leaks(tuple(sorted(leak for leak in found if leak.what not in but)), unsure)


def environ(pid: int) -> Mapping[str, str]:
    """The environment of `pid`, empty where it cannot be read: then it says nothing about whose the process is."""
    try:
        return procfs.environ(pid)
    except (ProcessLookupError, PermissionError):
        return {}


def _is_run(value: str | None, run: str | None) -> bool:
    return bool(run and value) and (value == run or str(value).startswith(f"{run}/"))


def _line(processes: Mapping[int, Process], pid: int) -> Iterator[int]:
    """`pid`, its parent, and so on up to the first process."""
    while pid in processes:
        yield pid
        pid = processes[pid].parent


def ours(before: Snapshot, now: Snapshot, *, alone: bool, environ: Callable[[int], Mapping[str, str]] = environ) -> frozenset[int]:
    """The processes of `now` that are ours by the rules at the top of this page, other than this one; the old ones by descent alone."""
    new = {pid: one for pid, one in now.processes.items() if one.identity not in before.identities}
    fresh = {pid: {name for name, inside in now.held.items() if pid in inside and name not in before.held} for pid in new}
    old_sessions = {one.session for one in before.processes.values()}
    old_groups = {one.group for one in before.processes.values()}
    mine = {pid for pid in now.processes if pid != before.me and before.me in _line(now.processes, pid)}
    for pid in new.keys() - mine:
        variables = environ(pid)
        if _is_run(variables.get("KERNEL_LAB_RUN"), before.run) or (alone and fresh[pid] and variables.get("container") == "kernel-lab"):
            mine.add(pid)
    grew = True
    while grew:
        sessions = {now.processes[pid].session for pid in mine} - old_sessions
        groups = {now.processes[pid].group for pid in mine} - old_groups
        shared = set().union(*(fresh.get(pid, set()) for pid in mine))
        joined = {pid for pid, one in new.items() if one.session in sessions or one.group in groups or fresh[pid] & shared} - mine - {before.me}
        grew = bool(joined)
        mine |= joined
    return frozenset(mine)


def differences(before: Snapshot, now: Snapshot, mine: frozenset[int], *, alone: bool) -> Iterator[Leak]:
    """What of `now` was not in `before`, and what of the guarded kinds is no longer, as far as it is ours."""
    for pid in mine:
        one = now.processes[pid]
        # A zombie that has another parent has ended, and is that one's to wait for.
        waited_for = one.state != "Z" or one.parent in mine | {before.me}
        if one.identity not in before.identities and waited_for:
            yield Leak("process", "appeared", f"{pid}, started {one.started}", f"{one.name}, child of {one.parent}, state {one.state}")
    for name in now.held.keys() - before.held.keys():
        holders = now.held[name] & (mine | {before.me})
        if holders:
            yield Leak("namespace", "appeared", name, ", ".join(sorted(now.processes[pid].name for pid in holders)))
    for what, names in now.things.items():
        known = before.things.get(what, frozenset())
        changes = [("appeared", which) for which in names - known]
        if what in GUARDED:
            changes += [("vanished", which) for which in known - names]
        for change, which in changes:
            if alone or what in ("descriptor", "own namespace", "record") or (before.run and before.run in which):
                yield Leak(what, change, which)


@contextmanager
def at_work() -> Iterator[None]:
    """Tell the other runs of the kit on this machine that this one is at work, so that they do not take our links and rules for their leaks.

    The sign is an abstract socket: everyone may read its name in /proc/net/unix, and it goes with its process, however that ends.
    """
    with socket.socket(socket.AF_UNIX) as sign:
        sign.bind(f"\0{SIGN[1:]}{os.getpid()}")
        yield


def others(now: Snapshot, run: str | None) -> tuple[str, ...]:
    """The other runs of the kit: processes outside our own line of descent, and without our KERNEL_LAB_RUN, that have hung out the sign, that carry
    another KERNEL_LAB_RUN, or that a janitor watches: every creator of containers has one."""
    me = os.getpid()
    family = {pid for pid in now.processes if me in _line(now.processes, pid)} | set(_line(now.processes, me))
    runs = {pid: environ(pid).get("KERNEL_LAB_RUN") for pid in now.processes.keys() - family}
    signs = Path("/proc/net/unix").read_text().split(SIGN)[1:]
    found = {int(sign.split()[0]) for sign in signs} | {pid for pid, value in runs.items() if value}
    for pid in runs:
        if now.processes[pid].name == JANITOR:
            found.add(_watched(pid))
    strangers = sorted(pid for pid in found if pid in runs and not _is_run(runs[pid], run))
    return tuple(f"process {pid} ({now.processes[pid].name})" for pid in strangers)


def _watched(janitor: int) -> int:
    """The process that a janitor holds a pidfd of: -1 when that has ended, the janitor itself when we may not look."""
    try:
        for name in os.listdir(f"/proc/{janitor}/fdinfo"):
            _, found, pid = Path(f"/proc/{janitor}/fdinfo/{name}").read_text().partition("\nPid:")
            if found:
                return int(pid.split()[0])
    except PermissionError:
        return janitor
    except (FileNotFoundError, ProcessLookupError):
        pass
    return -1


def snapshot(run: str | os.PathLike[str] | None = None) -> Snapshot:
    """The kernel now. `run`: the run directory whose records count; without it the one that KERNEL_LAB_RUN names."""
    place = os.fspath(run) if run is not None else os.environ.get("KERNEL_LAB_RUN")
    processes = procfs.processes()
    things = {
        "own namespace": inventory.own_namespaces(),
        "mount": frozenset(inventory.mounts()),
        "link": frozenset(inventory.links(PREFIX, "veth")),
        "nft table": frozenset(inventory.tables(PREFIX)),
        "cgroup": frozenset(inventory.cgroups(PREFIX)),
        "ipc": frozenset(inventory.ipc(processes)),
        "queue": frozenset(inventory.names("/dev/mqueue")) | frozenset(inventory.names("/dev/shm", PREFIX)),
        "descriptor": frozenset(inventory.descriptors()),
        "record": frozenset(inventory.records(place)) if place else frozenset(),
    }
    return Snapshot(processes, inventory.held(processes.values()), things, place)
