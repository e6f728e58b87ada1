"""The exercises of lab 00: parts chosen, a witness of one's own, a table by hand."""

import os
from collections.abc import Callable, Iterable, Sequence

from kernel_lab.container import Container
from kernel_lab.course.exercises import NotYet, exercise, not_yet
from kernel_lab.course.session import user
from kernel_lab.kernel import procfs
from kernel_lab.kernel.errors import KernelError
from kernel_lab.kernel.flags import PR
from kernel_lab.kernel.program import Row, call
from kernel_lab.namespaces.ipc import IPC
from kernel_lab.namespaces.net import Net
from kernel_lab.namespaces.part import Part, Plan
from kernel_lab.namespaces.pid import PID
from kernel_lab.namespaces.uts import UTS

WANTED = frozenset({"uts", "ipc", "pid"})


class Given(Part):
    """Somebody's rows as a part."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.given = rows

    def rows(self, plan: Plan) -> Iterable[Row]:
        return self.given


def _kinds(*parts: Part) -> frozenset[str]:
    """The kinds of namespaces that a container of these parts has for itself."""
    return frozenset(what.partition(" ")[0] for what in Container(*parts).evidence().differing)


@exercise(
    "00.1",
    wants="a list of parts",
    accepts=lambda answer: isinstance(answer, list | tuple) and all(isinstance(part, Part) for part in answer),
    hints={
        "missing": "Three answers are to be replaced, and a part replaces one. Which of the six names fits which of the questions?",
        "more": "That is more than was asked for. Take parts away, one at a time, and look at Container(…).evidence() of what is left.",
        "same name": "The UTS namespace is new, and the name in it still a copy of the host's. What does UTS take in its parentheses? See help(UTS).",
    },
)
def parts(answer: Sequence[Part]) -> str | NotYet:
    # An ordinary user's containers need a user namespace, which is not the learner's choice.
    kinds = _kinds(*answer) - _kinds(*user())
    named = f"the kernel shows these namespaces as the container's own: {', '.join(sorted(kinds)) or 'none'}"
    if kinds - WANTED:
        return not_yet("more", named)
    if WANTED - kinds:
        return not_yet("missing", named)
    if Container(*answer).run("uname -n").stdout.strip() == os.uname().nodename:
        return not_yet("same name", named)
    return "host name, IPC and PIDs are the container's own, and everything else is the host's"


parts.answers(
    right=[[*user(), UTS("box"), IPC(), PID()], [PID(), IPC(), UTS("other"), *user()]],
    wrong={
        "missing": [[*user(), UTS("box")], [*user(), UTS("box"), PID()], [*user()]],
        "more": [[*user(), UTS("box"), IPC(), PID(), Net()]],
        "same name": [[*user(), UTS(), IPC(), PID()]],
    },
    blank=[[*user(), ...]],
)


@exercise(
    "00.2",
    wants="a function of a pid that returns a dict",
    accepts=callable,
    hints={
        "no links": "The values are to be what the links point to, a kind and a number in brackets. Which function of `os` reads a symbolic link?",
        "always own": "It said the same of two processes that are in different UTS namespaces. Whose directory of /proc does it read?",
        "some only": "The kernel shows more kinds for that process. Which names does the directory ns hold?",
    },
)
def worlds(answer: Callable[[int], object]) -> str | NotYet:
    with Container(*user(), UTS("box")) as box:
        box.start("sleep 100")
        said, own = answer(box.pid), answer(os.getpid())
        truth = _links(box.pid)
    if not isinstance(said, dict) or not said or not all(value in (*truth.values(), *_links(os.getpid()).values()) for value in said.values()):
        return not_yet("no links", f"of a container's process it said {said!r:.80}")
    if said == own:
        return not_yet("always own")
    kinds = [kind for kind in procfs.NAMESPACES if kind in truth]
    lacking = [kind for kind in kinds if said.get(kind) != truth[kind]]
    if lacking:
        return not_yet("some only", f"not told, or wrong: {', '.join(lacking)}")
    return "it tells the namespaces of any process, and a container's UTS namespace from the notebook's"


def _links(pid: int) -> dict[str, str]:
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in os.listdir(f"/proc/{pid}/ns")}


def _known_kinds(pid: int) -> dict[str, str]:
    return {kind: link for kind, link in _links(pid).items() if kind in procfs.NAMESPACES}


worlds.answers(
    right=[_links, _known_kinds],
    wrong={
        "no links": [lambda pid: {kind: f"/proc/{pid}/ns/{kind}" for kind in os.listdir(f"/proc/{pid}/ns")}, lambda pid: None, lambda pid: {}],
        "always own": [lambda pid: _links(os.getpid())],
        "some only": [lambda pid: {"uts": os.readlink(f"/proc/{pid}/ns/uts")}],
    },
)


@exercise(
    "00.3",
    wants="a list of rows, made by call(name, arguments…)",
    accepts=lambda answer: isinstance(answer, Sequence) and all(isinstance(row, Row) for row in answer),
    hints={
        "refused": "The error names the row and the rule. Go through that call's manual page, one argument after the other.",
        "elsewhere": "Which system call gives a process another working directory? chdir(2) takes a path.",
        "may gain": "Look in prctl(2) for `no_new_privs`: which option sets it, and to what value? The option's name is in PR, without its PR_.",
    },
)
def rows(answer: Sequence[Row]) -> str | NotYet:
    try:
        with Container(*user(), Given(answer)) as box:
            box.start("sleep 100")
            directory, barred = os.readlink(f"/proc/{box.pid}/cwd"), procfs.status(box.pid).no_new_privileges
    except KernelError as error:
        return not_yet("refused", str(error))
    if directory != "/proc":
        return not_yet("elsewhere", "the process works in another directory than /proc")
    if not barred:
        return not_yet("may gain", "it works in /proc, and in its status the kernel says NoNewPrivs: 0")
    return "/proc shows it: its cwd is /proc, and NoNewPrivs is 1"


BARRED = call("prctl", PR.SET_NO_NEW_PRIVS, 1, 0, 0, 0)
rows.answers(
    right=[[call("chdir", "/proc"), BARRED], [BARRED, call("chdir", "/"), call("chdir", "proc")]],
    wrong={
        "refused": [[call("chdir", "/nowhere"), BARRED], [call("chdir", "/proc"), call("prctl", PR.SET_NO_NEW_PRIVS, 2, 0, 0, 0)]],
        "elsewhere": [[BARRED], [call("chdir", "/"), BARRED], []],
        "may gain": [[call("chdir", "/proc")]],
    },
    blank=[[...]],
)
