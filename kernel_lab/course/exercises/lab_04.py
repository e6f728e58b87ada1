"""Lab 04: the checks about System V objects and the namespaces they are in."""

import os
from collections.abc import Callable, Iterator

from kernel_lab.container import Container
from kernel_lab.course.exercises import NotYet, exercise, not_yet
from kernel_lab.kernel.errors import KernelError
from kernel_lab.kernel.flags import CLONE
from kernel_lab.kernel.flags import IPC as FLAG
from kernel_lab.kernel.program import Handle, Row, call
from kernel_lab.namespaces.ipc import IPC
from kernel_lab.namespaces.part import Part, Plan
from kernel_lab.namespaces.user import User
from kernel_lab.namespaces.uts import UTS

KEY, OTHER_KEY = 0x1AB, 0x5EC
BYTES, SEMAPHORES = 8192, 3
KINDS = CLONE.NEWIPC if os.geteuid() == 0 else CLONE.NEWUSER | CLONE.NEWIPC


def _user() -> tuple[Part, ...]:
    return () if os.geteuid() == 0 else (User(),)


def _is_part(answer: object) -> bool:
    return isinstance(answer, type) and issubclass(answer, Part)


def _objects(text: str) -> list[dict[str, str]]:
    """The lines of a file below /proc/sysvipc, each by the names of its columns."""
    header, *lines = text.splitlines()
    return [dict(zip(header.split(), line.split(), strict=True)) for line in lines]


@exercise(
    "04.1",
    wants="a class made from Part, with an IPC namespace and two rows",
    accepts=_is_part,
    hints={
        "the host's": "So it would furnish the host's namespace, and the furniture would stay there. Look at `IPC.flags`.",
        "no memory": "`memory` under *See it* is a row that makes some. Which rows does your part yield?",
        "no semaphores": "`semaphores` under *See it* is a row that makes one. Which rows does your part yield?",
        "another key": "Both calls take the key first. In which base is it written here?",
        "another size": "Compare the second arguments with shmget(2), where they are bytes, and semget(2), where they are semaphores.",
        "another mode": "The lowest nine bits of the flags are permissions, as of a file, joined to IPC_CREAT by `|`. In which base?",
    },
)
def room(answer: Callable[[], Part]) -> str | NotYet:
    part = answer()
    if CLONE.NEWIPC not in part.flags:
        return not_yet("the host's", "its flags hold no new IPC namespace")
    with Container(*_user(), part) as box:
        box.start("sleep 600")
        memory, semaphores = (_objects(box.exec("cat", f"/proc/sysvipc/{kind}").stdout) for kind in ("shm", "sem"))
    if not memory:
        return not_yet("no memory")
    if not semaphores:
        return not_yet("no semaphores")
    return _furniture(memory[0], semaphores[0])


def _furniture(memory: dict[str, str], semaphores: dict[str, str]) -> str | NotYet:
    for thing, has in (("shared memory", memory), ("semaphores", semaphores)):
        if int(has["key"]) != KEY:
            return not_yet("another key", f"the key of the {thing} is {int(has['key']):#x}")
    if (int(memory["size"]), int(semaphores["nsems"])) != (BYTES, SEMAPHORES):
        return not_yet("another size", f"there are {memory['size']} bytes and {semaphores['nsems']} semaphores")
    for thing, has in (("shared memory", memory), ("semaphores", semaphores)):
        if has["perms"] != "600":
            return not_yet("another mode", f"the mode of the {thing} is {has['perms']}")
    return f"/proc/sysvipc has {BYTES} bytes and {SEMAPHORES} semaphores under one key, inside; they are gone with the container"


@exercise(
    "04.2",
    wants="a function of two process numbers that returns True or False",
    accepts=callable,
    hints={
        "same namespace": "A container without `IPC()` is in the host's, whatever else it has for itself. What is /proc/PID/ns/ipc a link to?",
        "host and box": "Look at os.readlink of /proc/PID/ns/ipc of both: what is in the brackets?",
        "two boxes": "Each `IPC()` is a namespace of its own. Compare the two processes with each other, not with the host.",
    },
)
def share(answer: Callable[[int, int], bool]) -> str | NotYet:
    with Container(*_user(), IPC()) as one, Container(*_user(), IPC()) as two, Container(*_user(), UTS()) as guest:
        for box in (one, two, guest):
            box.start("sleep 600")
        if not answer(guest.pid, os.getpid()):
            return not_yet("same namespace", "it says no for this notebook and a container without IPC()")
        if answer(one.pid, os.getpid()):
            return not_yet("host and box", "it says yes for this notebook and a container with IPC()")
        if answer(one.pid, two.pid):
            return not_yet("two boxes", "it says yes for two containers with an IPC() each")
    return "it told a guest of the host's namespace from two containers with their own"


@exercise(
    "04.3",
    wants="a class made from Part, which is called with a process number",
    accepts=_is_part,
    hints={
        "new namespace": "It made a namespace of its own, and then there are two. Which flags has a part that only enters one?",
        "no rows": "A part acts through its rows. pidfd_open(2) is the first.",
        "refused": "pidfd_open(2) answers with a descriptor: `into=Handle(…)` keeps it for the next row, setns(2), whose second argument is `kinds`.",
        "elsewhere": "Which row changes the namespaces of the process that calls it? See setns(2), and what `kinds` holds.",
    },
)
def joins(answer: Callable[[int], Part]) -> str | NotYet:
    with Container(*_user(), IPC(), _Made(call("msgget", OTHER_KEY, FLAG.CREAT | 0o600))) as there:
        there.start("sleep 600")
        part = answer(there.pid)
        if CLONE.NEWIPC in part.flags:
            return not_yet("new namespace")
        if not list(part.rows(Container(part).plan)):
            return not_yet("no rows")
        try:
            seen = _objects(Container(part).run("cat /proc/sysvipc/msg").stdout)
        except KernelError as error:
            return not_yet("refused", f"the kernel refused {error.call.partition('(')[0]}: {error.strerror}")
    if OTHER_KEY not in {int(queue["key"]) for queue in seen}:
        return not_yet("elsewhere", "the queue of the other container is not to be seen from this one")
    return "it sees the other container's queue: two containers, one IPC namespace"


class _Made(Part):
    """These rows and nothing else."""

    order = 90

    def __init__(self, *made: Row) -> None:
        self.made = made

    def rows(self, plan: Plan) -> tuple[Row, ...]:
        return self.made


def _room(*rows: Row, flags: CLONE = CLONE.NEWIPC) -> type[Part]:
    return type("Room", (Part,), {"flags": flags, "rows": lambda self, plan: rows})


_MODE = FLAG.CREAT | 0o600
_MEMORY, _SET = call("shmget", KEY, BYTES, _MODE), call("semget", KEY, SEMAPHORES, _MODE)
room.answers(
    right=[_room(_MEMORY, _SET), _room(_SET, _MEMORY)],
    wrong={
        "the host's": [_room(_MEMORY, _SET, flags=CLONE(0))],
        "no memory": [_room(), _room(_SET)],
        "no semaphores": [_room(_MEMORY)],
        "another key": [_room(_MEMORY, call("semget", 0, SEMAPHORES, _MODE)), _room(call("shmget", 1, BYTES, _MODE), _SET)],
        "another size": [_room(_MEMORY, call("semget", KEY, 1, _MODE)), _room(call("shmget", KEY, 4096, _MODE), _SET)],
        "another mode": [_room(_MEMORY, call("semget", KEY, SEMAPHORES, FLAG.CREAT)), _room(call("shmget", KEY, BYTES, FLAG.CREAT | 0o666), _SET)],
    },
)


def _link(pid: int, kind: str = "ipc") -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


share.answers(
    right=[
        lambda a, b: _link(a) == _link(b),
        lambda a, b: os.path.samefile(f"/proc/{a}/ns/ipc", f"/proc/{b}/ns/ipc"),
    ],
    wrong={
        "same namespace": [lambda a, b: False, lambda a, b: _link(a, "uts") == _link(b, "uts"), lambda a, b: a == b],
        "host and box": [lambda a, b: True, lambda a, b: _link(a, "mnt") == _link(b, "mnt")],
        "two boxes": [lambda a, b: (_link(a) == _link(os.getpid())) == (_link(b) == _link(os.getpid()))],
    },
)


class _Joins(Part):
    order = 10

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def rows(self, plan: Plan) -> Iterator[Row]:
        yield call("pidfd_open", self.pid, 0, into=Handle("other"))
        yield call("setns", Handle("other"), KINDS)


class _New(_Joins):
    flags = CLONE.NEWIPC


class _Nothing(_Joins):
    def rows(self, plan: Plan) -> Iterator[Row]:
        yield from ()


class _ByNumber(_Joins):
    def rows(self, plan: Plan) -> Iterator[Row]:
        yield call("setns", self.pid, KINDS)


class _Outside(_Joins):
    def rows(self, plan: Plan) -> Iterator[Row]:
        yield call("pidfd_open", self.pid, 0, into=Handle("other"))


joins.answers(
    right=[_Joins],
    wrong={"new namespace": [_New], "no rows": [_Nothing], "refused": [_ByNumber], "elsewhere": [_Outside]},
)
