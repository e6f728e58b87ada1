"""What the kernel says about one process, and what it says differently about another: proof, instead of belief, that a container is one.

    host, box = evidence(os.getpid()), evidence(container.pid)
    host.differs(box)           # the namespaces
    host.compare(box)           # everything

The tables show no numbers that change from run to run: instead of inode numbers, `net:[A]` and `net:[B]`. The attributes hold the real ones.
The host name is not among them: /proc shows that of the reader's UTS namespace, whosever directory one looks into.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple, TypeVar

from tabulate import tabulate

from kernel_lab.kernel import mountinfo, procfs
from kernel_lab.kernel.mountinfo import Mount
from kernel_lab.kernel.procfs import CAPABILITIES, Capabilities, CgroupLine, IdRange, Ids, Namespace, Status

T = TypeVar("T")
EVERY_ID = (IdRange(0, 0, 2**32 - 1),)


class Denied(Enum):
    """Stands where the kernel did not let us look: the process is another user's."""

    NOT_READABLE = "not readable"

    def __str__(self) -> str:
        return self.value

    __repr__ = __str__


class Fact(NamedTuple):
    """A line of the table of one process."""

    what: str
    value: str


class Change(NamedTuple):
    """A line of the table of two processes. `differs`: `yes`, `no`, or `not readable` where one side was not to be seen."""

    what: str
    before: str
    after: str
    differs: str


@dataclass(frozen=True, repr=False)
class Difference:
    """Two processes side by side. True if they differ in anything that could be read."""

    changes: tuple[Change, ...]
    names: tuple[str, str]

    def __bool__(self) -> bool:
        return any(change.differs == "yes" for change in self.changes)

    def __getitem__(self, what: str) -> Change:
        return next(change for change in self.changes if change.what == what)

    def only(self, *what: str) -> "Difference":
        """The table with these lines alone, in this order."""
        return Difference(tuple(self[one] for one in what), self.names)

    @property
    def differing(self) -> tuple[str, ...]:
        """What differs."""
        return tuple(change.what for change in self.changes if change.differs == "yes")

    def _table(self, form: str) -> str:
        return tabulate(self.changes, ("", *self.names, "differs"), tablefmt=form, disable_numparse=True)

    def __repr__(self) -> str:
        return self._table("simple")

    def _repr_html_(self) -> str:
        return self._table("html")


@dataclass(frozen=True, repr=False)
class Evidence:
    """One process, as /proc showed it at one moment."""

    status: Status
    namespaces: Mapping[str, Namespace] | Denied
    uid_map: tuple[IdRange, ...] | Denied
    gid_map: tuple[IdRange, ...] | Denied
    mounts: tuple[Mount, ...] | Denied
    cgroups: tuple[CgroupLine, ...] | Denied
    open_files: Mapping[int, str] | Denied

    @property
    def capabilities(self) -> Capabilities:
        return self.status.capabilities

    def facts(self) -> tuple[Fact, ...]:
        """The table's lines: the namespaces by name, and the rest in words."""
        spaces = [Fact(f"{kind} namespace", str(Denied.NOT_READABLE) if mine is None else f"{kind}:[A]") for kind, mine in self._spaces().items()]
        lists = [Fact(what, _counted(value)) for what, value in self._lists().items()]
        return (*spaces, *self._words(), *lists)

    def differs(self, other: "Evidence", names: tuple[str, str] = ("host", "box")) -> Difference:
        """Which namespaces `other` has for itself."""
        mine, its = self._spaces(), other._spaces()
        return Difference(tuple(_named(f"{kind} namespace", kind, mine.get(kind), its.get(kind)) for kind in sorted({*mine, *its})), names)

    def compare(self, other: "Evidence", names: tuple[str, str] = ("before", "after")) -> Difference:
        """Everything side by side: `before.compare(after)`."""
        words = (_worded(mine.what, mine.value, its.value) for mine, its in zip(self._words(), other._words(), strict=True))
        lists = other._lists()
        long = (_named(what, what, _seen(mine), _seen(lists[what])) for what, mine in self._lists().items())
        return Difference((*self.differs(other).changes, *words, *long), names)

    def _spaces(self) -> dict[str, Namespace | None]:
        if isinstance(self.namespaces, Denied):
            return dict.fromkeys(procfs.NAMESPACES)
        return dict(self.namespaces)

    def _words(self) -> tuple[Fact, ...]:
        return (
            Fact("user ids", _ids(self.status.uids)),
            Fact("group ids", _ids(self.status.gids)),
            Fact("further groups", ", ".join(map(str, self.status.groups)) or "none"),
            Fact("user id map", _map(self.uid_map)),
            Fact("group id map", _map(self.gid_map)),
            Fact("capabilities", shown(self.capabilities.effective)),
            Fact("bounding set", shown(self.capabilities.bounding)),
            Fact("no new privileges", "yes" if self.status.no_new_privileges else "no"),
            Fact("seccomp", self.status.seccomp),
        )

    def _lists(self) -> dict[str, Iterable[object] | Denied]:
        files = self.open_files if isinstance(self.open_files, Denied) else tuple(self.open_files.items())
        return {"mounts": self.mounts, "cgroups": self.cgroups, "files": files}

    def _table(self, form: str) -> str:
        return tabulate(self.facts(), tablefmt=form, disable_numparse=True)

    def __repr__(self) -> str:
        return self._table("simple")

    def _repr_html_(self) -> str:
        return self._table("html")


def evidence(pid: int) -> Evidence:
    """What /proc says of `pid` now. ProcessLookupError if it ends meanwhile: half an answer would be about nobody."""
    started = procfs.process(pid).started
    found = Evidence(
        procfs.status(pid),
        _ask(procfs.namespaces, pid),
        _ask(procfs.uid_map, pid),
        _ask(procfs.gid_map, pid),
        _ask(mountinfo.mounts, pid),
        _ask(procfs.cgroups, pid),
        _ask(procfs.open_files, pid),
    )
    if procfs.start_time(pid) != started:
        raise ProcessLookupError(f"process {pid} ended while it was looked at")
    return found


def _ask(question: Callable[[int], T], pid: int) -> T | Denied:
    try:
        return question(pid)
    except PermissionError:
        return Denied.NOT_READABLE


def _seen(value: T | Denied) -> T | None:
    return None if isinstance(value, Denied) else value


def _counted(value: Iterable[object] | Denied) -> str:
    return str(value) if isinstance(value, Denied) else str(len(tuple(value)))


def _named(what: str, name: str, mine: object, its: object) -> Change:
    """The two by canonical names: the same letter for the same thing."""
    refused = str(Denied.NOT_READABLE)
    first, second = f"{name}:[A]", f"{name}:[B]"
    if mine is None or its is None:
        return Change(what, refused if mine is None else first, refused if its is None else first, refused)
    return Change(what, first, first, "no") if mine == its else Change(what, first, second, "yes")


def _worded(what: str, mine: str, its: str) -> Change:
    refused = str(Denied.NOT_READABLE)
    return Change(what, mine, its, refused if refused in (mine, its) else "no" if mine == its else "yes")


def shown(capabilities: frozenset[str]) -> str:
    """A set of capabilities in few words: `all 41`, `all 41 but sys_module`, `none`, or the names."""
    # The kernel's own number: an older one has fewer than our list, and its root has all of them.
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    known = frozenset(CAPABILITIES[bit] if bit < len(CAPABILITIES) else str(bit) for bit in range(last + 1))
    missing = known - capabilities
    if not capabilities:
        return "none"
    if not missing:
        return f"all {len(known)}"
    if len(missing) < len(capabilities):
        return f"all {len(known)} but {', '.join(sorted(missing))}"
    return ", ".join(sorted(capabilities))


def _ids(ids: Ids) -> str:
    if len(set(ids)) == 1:
        return str(ids.real)
    return ", ".join(f"{name} {value}" for name, value in ids._asdict().items())


def _map(ranges: tuple[IdRange, ...] | Denied) -> str:
    if isinstance(ranges, Denied):
        return str(ranges)
    if ranges == EVERY_ID:
        return "every id is itself"
    return "; ".join(f"{_span(one.inside, one.length)} is {_span(one.outside, one.length)}" for one in ranges) or "none"


def _span(first: int, length: int) -> str:
    return str(first) if length == 1 else f"{first}-{first + length - 1}"
