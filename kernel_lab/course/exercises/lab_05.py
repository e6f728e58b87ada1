"""Lab 05: the checks about user namespaces."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kernel_lab.container import Container
from kernel_lab.course.exercises import NotYet, exercise, not_yet
from kernel_lab.kernel import mountinfo, procfs
from kernel_lab.kernel.errors import KernelError
from kernel_lab.kernel.flags import AT_FD, CLONE, O
from kernel_lab.kernel.program import Handle, Row, call
from kernel_lab.namespaces.mnt import Mount
from kernel_lab.namespaces.part import Part, Plan
from kernel_lab.namespaces.user import User
from kernel_lab.namespaces.uts import UTS

ROOT = os.geteuid() == 0
OVERFLOW = "65534"
# Only root writes a map of several lines without a grant; for everybody else, the second is what the kernel has said to root.
IDS = User([(0, 100000, 1000), (1000, 300000, 10)]) if ROOT else User()
TEXT = "         0     100000       1000\n      1000     300000         10\n"


@exercise(
    "05.1",
    wants="a class made from Part, whose rows write the maps",
    accepts=lambda answer: isinstance(answer, type) and issubclass(answer, Part),
    hints={
        "no namespace": "Before ids can be mapped there must be a new user namespace. Look at `User.flags`.",
        "nobody": "So the kernel has no map of your number yet. Which files below /proc/self does user_namespaces(7) name for users and for groups?",
        "group refused": "Look at the rows of `Container(User()).setup`: what comes before the gid_map, and why?",
        "user refused": "The second number of the line is from outside. Whose may it be? The first failure under *Break it first* says.",
        "wrong id": "A line is `inside outside count`. Look at the rows of `Container(User()).setup`: which of the three says who you are inside?",
    },
)
def thousand(answer: Callable[[], Part]) -> str | NotYet:
    part = answer()
    if CLONE.NEWUSER not in part.flags:
        return not_yet("no namespace")
    try:
        user, group = Container(part).run("sh", "-c", "id -u; id -g").stdout.split()
    except KernelError as error:
        return not_yet("group refused" if "gid_map" in error.call else "user refused", f"the kernel refused {error.call}")
    if OVERFLOW in (user, group):
        return not_yet("nobody", f"inside, you are user {user} and group {group}")
    if (user, group) != ("1000", "1000"):
        return not_yet("wrong id", f"inside, you are user {user} and group {group}")
    return "inside, the kernel says user 1000 and group 1000; outside, it is still you"


@exercise(
    "05.2",
    wants="a function of the text of a uid_map and a number inside, which returns the number outside or None",
    accepts=callable,
    hints={
        "first id": "Print a map and look at its three columns: which one is asked for, and which one is given?",
        "inside a range": "A line stands for many ids. How far is this one from the beginning of its range?",
        "later line": "Look at every line of the map, until one has the number.",
        "no line": "No line has this number. Where does a range end? The third column says how many ids it has, the first one included.",
    },
)
def who(answer: Callable[[str, int], int | None]) -> str | NotYet:
    for state, text, inside, outside in _asked():
        said = answer(text, inside)
        if said != outside:
            return not_yet(state, f"for {inside} in the map {text.split()} it returned {said!r}, and it is {outside}")
    return "for every number it says what the kernel says, and None where the kernel has no line"


def _asked() -> Iterator[tuple[str, str, int, int | None]]:
    yield "first id", *_kernel_says(0)
    yield "inside a range", *(_kernel_says(7) if ROOT else (TEXT, 7, 100007))
    yield "later line", *(_kernel_says(1003) if ROOT else (TEXT, 1003, 300003))
    yield "no line", TEXT, 1010, None
    yield "no line", TEXT, 5000, None


def _kernel_says(inside: int) -> tuple[str, int, int]:
    with Container(IDS) as box:
        box.start("sleep 600", user=inside or None)
        return Path(f"/proc/{box.pid}/uid_map").read_text(), inside, procfs.status(box.pid).uids.real


@exercise(
    "05.3",
    wants="a list of parts",
    accepts=lambda answer: isinstance(answer, list | tuple),
    hints={
        "has power": "Who is its root outside? Look at `procfs.status(box.pid).uids`, and at what the variable `ids` is for.",
        "no name": "Which part has given a host name of its own to `box`?",
        "no tmpfs": "Look at `help(Mount)`: which setting makes a place for an empty file system in memory?",
    },
)
def island(answer: Sequence[Part]) -> str | NotYet:
    try:
        with Container(*answer) as box:
            box.start("sleep 600")
            return _lies(box)
    except KernelError as error:
        return not_yet("has power", f"it wanted power that it does not have: {error.call} was refused")


def _lies(box: Container) -> str | NotYet:
    host = procfs.namespaces(os.getpid())
    if procfs.namespaces(box.pid)["user"] == host["user"] or procfs.status(box.pid).uids.real == 0:
        return not_yet("has power", "outside, its root is root")
    if (said := box.exec("cat /proc/sys/kernel/hostname").stdout.strip()) != "island":
        return not_yet("no name", f"its host name is {said!r}")
    if not any(mount.point == "/mnt" and mount.kind == "tmpfs" for mount in mountinfo.mounts(box.pid)) or box.exec("touch /mnt/flag").code:
        return not_yet("no tmpfs", "on /mnt there is no memory file system that its root may write to")
    return "root on its island, with a name and a file system of its own; outside, an ordinary user"


class _Writes(Part):
    """Rows that write these files below /proc/self, as the learner's do."""

    flags = CLONE.NEWUSER
    order = 10
    files: tuple[tuple[str, str], ...] = ()

    def rows(self, plan: Plan) -> Iterator[Row]:
        for name, text in self.files:
            opened = Handle(name)
            yield call("openat", AT_FD.FDCWD, f"/proc/self/{name}", O.WRONLY | O.CLOEXEC, into=opened)
            yield call("write", opened, text, len(text))
            yield call("close", opened)


def _part(*files: tuple[str, str], namespace: bool = True) -> type[_Writes]:
    return type("Written", (_Writes,), {"files": files, "flags": CLONE.NEWUSER if namespace else CLONE(0)})


_DENY, _GROUP, _USER = ("setgroups", "deny"), ("gid_map", f"1000 {os.getegid()} 1"), ("uid_map", f"1000 {os.geteuid()} 1")
thousand.answers(
    right=[_part(_DENY, _GROUP, _USER), _part(_USER, _DENY, _GROUP)],
    wrong={
        "no namespace": [_part(_DENY, _GROUP, _USER, namespace=False)],
        "nobody": [_part(), _part(_USER), _part(_DENY, _GROUP)],
        "group refused": [_part(_GROUP, _USER), _part(_USER, _GROUP, _DENY)],
        "user refused": [_part(_DENY, _GROUP, ("uid_map", f"1000 {os.geteuid() + 1} 1")), _part(("uid_map", f"0 {os.geteuid()} 1000"))],
        "wrong id": [_part(_DENY, ("gid_map", f"0 {os.getegid()} 1"), ("uid_map", f"0 {os.geteuid()} 1"))],
    },
)


def _ranges(text: str) -> list[tuple[int, int, int]]:
    return [(int(one), int(two), int(three)) for one, two, three in (line.split() for line in text.splitlines())]


def _right(text: str, uid: int) -> int | None:
    return next((outside + uid - inside for inside, outside, count in _ranges(text) if inside <= uid < inside + count), None)


def _starts(text: str, uid: int) -> int | None:
    return next((outside for inside, outside, count in _ranges(text) if inside <= uid < inside + count), None)


def _first_line(text: str, uid: int) -> int | None:
    return _right(text.splitlines()[0], uid)


def _endless(text: str, uid: int) -> int | None:
    return next((outside + uid - inside for inside, outside, _ in reversed(_ranges(text)) if inside <= uid), None)


def _one_too_many(text: str, uid: int) -> int | None:
    return next((outside + uid - inside for inside, outside, count in reversed(_ranges(text)) if inside <= uid <= inside + count), None)


who.answers(
    right=[_right],
    wrong={
        "first id": [lambda text, uid: uid, lambda text, uid: None, lambda text, uid: str(_right(text, uid))],
        "inside a range": [_starts],
        "later line": [_first_line],
        "no line": [_endless, _one_too_many],
    },
)

_NOBODY = User([(0, 100000, 1)]) if ROOT else User()
island.answers(
    right=[[_NOBODY, UTS("island"), Mount(tmpfs=["/mnt"])], (Mount(tmpfs=["/mnt"]), UTS("island"), IDS)],
    wrong={
        "has power": [[UTS("island"), Mount(tmpfs=["/mnt"])], *([[User(), UTS("island"), Mount(tmpfs=["/mnt"])]] if ROOT else [])],
        "no name": [[_NOBODY, Mount(tmpfs=["/mnt"])], [_NOBODY, UTS("atoll"), Mount(tmpfs=["/mnt"])]],
        "no tmpfs": [[_NOBODY, UTS("island")], [_NOBODY, UTS("island"), Mount()]],
    },
)
