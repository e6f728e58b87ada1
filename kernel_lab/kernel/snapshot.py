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
import struct
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tabulate import tabulate

from kernel_lab.kernel import procfs
from kernel_lab.kernel.procfs import Process

PREFIX = "klab"
CGROUP_DEPTH = 4
# Whose disappearance harms the host. A process or a file of somebody else's may end at any time.
GUARDED = frozenset({"mount", "link", "nft table"})
KINDS = (*procfs.NAMESPACES, "pid_for_children", "time_for_children")


@dataclass(frozen=True, order=True)
class Leak:
    """One difference: what kind of thing, whether it `appeared` or `vanished`, and which. Two looks at the same thing are equal;
    the note is for the reader, and a process may change its name between the looks."""

    what: str
    change: str
    which: str
    note: str = field(default="", compare=False)


@dataclass(frozen=True)
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
        return tabulate(rows, headers=("what", "change", "which", "by"), tablefmt=form, disable_numparse=True)

    def __str__(self) -> str:
        return self._table("plain") + "".join(f"\nnot judged what has no owner: also at work is {other}" for other in self.unsure)

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
        if one.identity not in before.identities:
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
        sign.bind(f"\0kernel-lab-run:{os.getpid()}")
        yield


def others(now: Snapshot, run: str | None) -> tuple[str, ...]:
    """The other runs of the kit: processes outside our own line of descent that have hung out the sign, or that carry another KERNEL_LAB_RUN."""
    me = os.getpid()
    family = {pid for pid in now.processes if me in _line(now.processes, pid)} | set(_line(now.processes, me))
    signs = Path("/proc/net/unix").read_text().partition("@kernel-lab-run:")[2].split("@kernel-lab-run:")
    found = {int(sign.split()[0]) for sign in signs if sign}
    for pid in now.processes.keys() - family:
        value = environ(pid).get("KERNEL_LAB_RUN")
        if value and not _is_run(value, run):
            found.add(pid)
    return tuple(f"process {pid} ({now.processes[pid].name})" for pid in sorted(found - family) if pid in now.processes)


def snapshot(run: str | os.PathLike[str] | None = None) -> Snapshot:
    """The kernel now. `run`: the run directory whose records count; without it the one that KERNEL_LAB_RUN names."""
    place = os.fspath(run) if run is not None else os.environ.get("KERNEL_LAB_RUN")
    processes = procfs.processes()
    things = {
        "own namespace": _own_namespaces(),
        "mount": frozenset(Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()),
        "link": frozenset(f"{name} ({index})" for index, name in socket.if_nameindex() if name.startswith((PREFIX, "veth"))),
        "nft table": frozenset(_tables()),
        "cgroup": frozenset(_cgroups("/sys/fs/cgroup", CGROUP_DEPTH)),
        "ipc": frozenset(_ipc(processes)),
        "queue": frozenset(_names("/dev/mqueue", "")) | frozenset(_names("/dev/shm", PREFIX)),
        "descriptor": frozenset(f"{number} on {target}" for number, target in procfs.open_files(os.getpid()).items()),
        "record": frozenset(_records(place)) if place else frozenset(),
    }
    return Snapshot(processes, _held(processes.values()), things, place)


def _namespaces(directory: str) -> Iterator[str]:
    for kind in KINDS:
        try:
            yield os.readlink(f"{directory}/{kind}")
        except (PermissionError, ProcessLookupError):
            return
        except FileNotFoundError:
            # A kind that this kernel lacks, a process that has ended, or a new PID namespace that has no process yet.
            continue


def _held(processes: Iterable[Process]) -> dict[str, frozenset[int]]:
    found: dict[str, set[int]] = {}
    for one in processes:
        # Kernel threads (children of number 2) and zombies are in no namespace of their own.
        if one.parent != 2 and one.state != "Z":
            for name in _namespaces(f"/proc/{one.pid}/ns"):
                found.setdefault(name, set()).add(one.pid)
    return {name: frozenset(inside) for name, inside in found.items()}


def _own_namespaces() -> frozenset[str]:
    """Of each thread: unshare and setns move only the thread that calls them."""
    return frozenset(name for thread in os.listdir("/proc/self/task") for name in _namespaces(f"/proc/self/task/{thread}/ns"))


def _names(directory: str, prefix: str) -> Iterator[str]:
    try:
        yield from (f"{directory}/{name}" for name in os.listdir(directory) if name.startswith(prefix))
    except OSError:
        return


def _cgroups(directory: str, depth: int, inside: bool = False) -> Iterator[str]:
    """The control groups that carry the prefix, and everything in them. The inode tells one from its namesake of later."""
    try:
        # The kernel counts a cgroup's subdirectories in its link count, so that a leaf need not be listed.
        if os.stat(directory).st_nlink == 2:
            return
        entries = [entry for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for entry in entries:
        own = inside or entry.name.startswith(PREFIX)
        if own:
            yield f"{entry.path} ({entry.inode()})"
        if depth > 1 or own:
            yield from _cgroups(entry.path, depth - 1, own)


def _ipc(processes: Mapping[int, Process]) -> Iterator[str]:
    """System V objects. Shared memory names its creator: a segment of a process that lives is that process's business."""
    for kind in ("msg", "sem", "shm"):
        try:
            header, *rows = Path(f"/proc/sysvipc/{kind}").read_text().splitlines()
        except OSError:
            continue
        for row in rows:
            values = dict(zip(header.split(), row.split(), strict=True))
            creator = int(values.get("cpid", "0"))
            if creator == os.getpid() or creator not in processes:
                yield f"{kind} {row.split()[1]}, key {values['key']}"


def _records(run: str) -> Iterator[str]:
    for directory, _, files in os.walk(run):
        yield from (os.path.join(directory, name) for name in files if not name.endswith("lock"))


NETLINK_NETFILTER = 12
NFT_MSG_GETTABLE = 10 << 8 | 1
NLM_F_REQUEST_DUMP = 0x301
NFTA_TABLE_NAME = 1
NFTA_TABLE_HANDLE = 4


def _tables() -> Iterator[str]:
    """The nftables tables that carry the prefix. Asked by netlink: starting nft would cost more than all the rest of an audit."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as link:
            link.settimeout(5)
            link.send(struct.pack("=IHHIIBBH", 20, NFT_MSG_GETTABLE, NLM_F_REQUEST_DUMP, 1, 0, 0, 0, 0))
            while True:
                answer = link.recv(1 << 16)
                while answer:
                    size, kind = struct.unpack_from("=IH", answer)
                    # NLMSG_DONE ends the answer; NLMSG_ERROR says that we may not ask, or that the kernel has no nftables.
                    if kind in (2, 3):
                        return
                    attributes = dict(_attributes(answer[20:size]))
                    name = attributes[NFTA_TABLE_NAME].rstrip(b"\0").decode()
                    if name.startswith(PREFIX):
                        yield f"{name} (family {answer[16]}, handle {int.from_bytes(attributes[NFTA_TABLE_HANDLE], 'big')})"
                    answer = answer[size + 3 & ~3 :]
    except OSError:
        return


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        size, kind = struct.unpack_from("=HH", data)
        yield kind & 0x3FFF, data[4:size]
        data = data[size + 3 & ~3 :]
