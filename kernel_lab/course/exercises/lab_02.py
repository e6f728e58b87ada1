"""The exercises of lab 02: a part that names its host, one that joins a namespace, and who is in it."""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import ClassVar

from kernel_lab.container import Container
from kernel_lab.course.exercises import NotYet, exercise, not_yet
from kernel_lab.course.session import user
from kernel_lab.kernel import procfs
from kernel_lab.kernel.errors import KernelError
from kernel_lab.kernel.flags import CLONE
from kernel_lab.kernel.program import Handle, Row, call
from kernel_lab.namespaces.part import Part, Plan
from kernel_lab.namespaces.uts import UTS

HOST, DOMAIN = "node1", "lab.example"
TARGET = Handle("target")
NAMERS = ("sethostname", "setdomainname")
PATIENCE = 20.0  # seconds that a busy machine gets to start two commands


def _is_part(answer: object) -> bool:
    return isinstance(answer, type) and issubclass(answer, Part)


@exercise(
    "02.1",
    wants="a class made from Part",
    accepts=_is_part,
    hints={
        "no namespace": "It was not run: without a namespace of its own it would rename your machine. Which CLONE flag does uts_namespaces(7) name?",
        "refused": "The error names the row and the rule. Compare its arguments with sethostname(2).",
        "wrong host": "What do the two arguments of sethostname(2) mean? Count the bytes.",
        "wrong domain": "The domain has a system call of its own, which works like sethostname(2). Look at the SEE ALSO of that page.",
    },
)
def node(answer: type[Part]) -> str | NotYet:
    part = answer()
    if CLONE.NEWUTS not in part.flags:
        return not_yet("no namespace")
    try:
        said = Container(*user(), part).run("sh", "-c", "hostname; cat /proc/sys/kernel/domainname").stdout.split("\n")
    except KernelError as error:
        return not_yet("refused", str(error))
    if said[0] != HOST:
        return not_yet("wrong host", f"inside, the host name is {said[0]!r}")
    if said[1] != DOMAIN:
        return not_yet("wrong domain", f"inside, the host is {said[0]!r} in the domain {said[1]!r}")
    return f"inside, the kernel says {HOST} and {DOMAIN}; outside, nothing has changed"


class Node(Part):
    flags = CLONE.NEWUTS
    named: ClassVar[tuple[tuple[str, str, int], ...]] = (("sethostname", HOST, len(HOST)), ("setdomainname", DOMAIN, len(DOMAIN)))

    def rows(self, plan: Plan) -> Iterable[Row]:
        for name, text, length in self.named:
            yield call(name, text, length)


class Flagless(Node):
    flags = CLONE(0)


class Short(Node):
    named = (("sethostname", HOST, 4), ("setdomainname", DOMAIN, len(DOMAIN)))


class Long(Node):
    named = (("sethostname", HOST, 65),)


class NoDomain(Node):
    named = (("sethostname", HOST, len(HOST)),)


class Nothing(Node):
    named = ()


node.answers(
    right=[Node],
    wrong={"no namespace": [Flagless, Part], "refused": [Long], "wrong host": [Short, Nothing], "wrong domain": [NoDomain]},
)


@exercise(
    "02.2",
    wants="a class made from Part",
    accepts=_is_part,
    hints={
        "renames": "It was not run: without a new namespace, a row that renames a host renames your machine. No name is to be set; see setns(2).",
        "a new one": "Its UTS namespace is a new one. `flags` are those of the clone, which makes namespaces; who joins one needs none of them.",
        "not there": "The kernel shows it in another UTS namespace than the process that it was to join. Which row moves a process? See setns(2).",
        "refused": "The error names the row and the rule. setns(2) takes a descriptor, not the number of a process: which row gets one?",
    },
)
def join(answer: Callable[[int, CLONE], Part]) -> str | NotYet:
    kinds = CLONE.NEWUTS | (CLONE.NEWUSER if user() else CLONE(0))
    with Container(*user(), UTS("target")) as box:
        box.start("sleep 100")
        part = answer(box.pid, kinds)
        if any(row.call in NAMERS for row in part.rows(Container(part).plan)):
            return not_yet("renames")
        try:
            with Container(part) as guest:
                guest.start("sleep 100")
                there, own, new = _uts(box.pid), _uts(os.getpid()), _uts(guest.pid)
        except KernelError as error:
            return not_yet("refused", str(error))
    if new == there:
        return "the kernel shows both in one UTS namespace, and nobody has made a new one"
    return not_yet("not there" if new == own else "a new one")


def _uts(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/uts")


class Join(Part):
    def __init__(self, pid: int, kinds: CLONE) -> None:
        self.pid, self.kinds = pid, kinds

    def rows(self, plan: Plan) -> Iterable[Row]:
        yield call("pidfd_open", self.pid, 0, into=TARGET)
        yield call("setns", TARGET, self.kinds)


class Stays(Join):
    def rows(self, plan: Plan) -> Iterable[Row]:
        return ()


class Renames(Join):
    def rows(self, plan: Plan) -> Iterable[Row]:
        yield call("sethostname", "target", 6)


class Makes(Join):
    def __init__(self, pid: int, kinds: CLONE) -> None:
        super().__init__(pid, kinds)
        self.flags = kinds

    def rows(self, plan: Plan) -> Iterable[Row]:
        return ()


class NothingHeld(Join):
    def rows(self, plan: Plan) -> Iterable[Row]:
        yield call("setns", -1, self.kinds)


join.answers(right=[Join], wrong={"renames": [Renames], "a new one": [Makes], "not there": [Stays], "refused": [NothingHeld]})


@exercise(
    "02.3",
    wants="a function of a pid that returns a set of pids",
    accepts=callable,
    hints={
        "stopped": "A process may end while you look, or be another user's. What does readlink raise then, and what should become of the others?",
        "alone": "There are others: a child is in the namespace of its parent. Where does /proc list every process of the machine?",
        "too many": "Some of these are in another UTS namespace, such as the notebook itself. What do two in the same one have in common?",
        "some only": "Some are missing. Compare the links of all processes in /proc, not of some.",
    },
)
def members(answer: Callable[[int], object]) -> str | NotYet:
    with Container(*user(), UTS("box")) as box:
        box.start("sh", "-c", "sleep 100 & sleep 100 & wait")
        first = box.pid
        there = {first, *_children(first, 2)}
        try:
            said = answer(first)
        except OSError as error:
            return not_yet("stopped", f"it ended in {type(error).__name__}")
    if not isinstance(said, set | frozenset):
        return not_yet("some only", f"it returned {type(said).__name__}, and not a set")
    if said - there:
        return not_yet("too many", f"there are {len(there)} processes in it, and it found {len(said)}")
    if said <= {first}:
        return not_yet("alone")
    if there - said:
        return not_yet("some only", f"there are {len(there)} processes in it, and it found {len(said)}")
    return "a shell and its two children: it found these three, and nobody else"


def _children(pid: int, wanted: int) -> tuple[int, ...]:
    end = time.monotonic() + PATIENCE
    while len(found := procfs.children(pid)) < wanted and time.monotonic() < end:
        time.sleep(0.005)
    return found


def _all(pid: int) -> set[int]:
    return {int(entry) for entry in os.listdir("/proc") if entry.isdigit()}


def _in_it(pid: int) -> set[int]:
    found = set()
    for other in _all(pid):
        with suppress(OSError):
            if _uts(other) == _uts(pid):
                found.add(other)
    return found


members.answers(
    right=[_in_it],
    wrong={
        "stopped": [lambda pid: {other for other in (pid, 2**22 + 1) if _uts(other) == _uts(pid)}],
        "alone": [lambda pid: {pid}, lambda pid: set()],
        "too many": [_all],
        "some only": [lambda pid: {pid, *sorted(_in_it(pid) - {pid})[:1]}, lambda pid: [pid]],
    },
)
