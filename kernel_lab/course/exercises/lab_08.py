"""Lab 08: the checks about control groups."""

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from errno import EBADF, EINVAL
from pathlib import Path

from kernel_lab.cgroups import delegation, processes
from kernel_lab.cgroups.group import Group
from kernel_lab.cgroups.layout import layout
from kernel_lab.cgroups.limits import Limits
from kernel_lab.cgroups.part import Cgroup
from kernel_lab.cgroups.stats import Stats
from kernel_lab.container import Container
from kernel_lab.course.exercises import NotYet, exercise, not_yet
from kernel_lab.course.hogs import BURNS, EATS, FORKS, READS, spent, start, until
from kernel_lab.kernel.errors import KernelError, UsageError
from kernel_lab.kernel.flags import AT_FD, O
from kernel_lab.kernel.program import Handle, Row, call
from kernel_lab.namespaces.part import Part, Plan
from kernel_lab.namespaces.pid import PID
from kernel_lab.namespaces.user import User

ABLE = delegation.look(("cpu", "memory", "pids")).there  # where not, there is no group to look at, and the checks say so
HOST = () if os.geteuid() == 0 else (User(),)
MOST = 16
WANTED = (1 / 2, 1 / 3, 1 / 6)
BAND = 0.04  # of the whole: what shares may be off
LOOKS = 5


@exercise(
    "08.1",
    wants="a class made from Part, which is given the path of its group, and whose rows make it",
    accepts=lambda answer: isinstance(answer, type) and issubclass(answer, Part),
    seconds=90,
    hints={
        "no group": "A group is made as any directory is, by mkdirat(2): `AT_FD.FDCWD`, a path, and a mode as 0o755. Which path was your part given?",
        "refused": "In a shell this would be a mkdir and two echoes. Which files are there, for what are they opened (`O`), and what is written?",
        "outside": "The group is there, and the command not in it. Which file of a group takes processes, and what does 0 mean there (cgroups(7))?",
        "no limit": "The command is in the group, and the group has no limit yet. Look at `ls` of a group of the controller pids.",
        "another limit": f"The limit is a text, as `cat` would show it, and write(2) takes its length: does the file say {MOST}?",
    },
)
def own(answer: Callable[[str], Part]) -> str | NotYet:
    with _place() as path:
        part = answer(path)
        try:
            inside, limit, refused = _run(part, path) if ABLE else _read(part, path)
        except KernelError as error:
            return not_yet("refused", f"the kernel refused {error.call}: {error.strerror}")
        if limit is None:
            return not_yet("no group")
        if not inside:
            return not_yet("outside")
        if limit != str(MOST):
            return not_yet("no limit" if limit == "max" else "another limit", f"its limit is {limit!r}")
        return f"the command began in its group, and process {refused} was refused" if ABLE else "read, not run: the rows make a group, and enter it"


@contextmanager
def _place() -> Iterator[str]:
    """A path for a group of the controller pids, which is removed again."""
    name = f"klab-own-{os.getpid()}"
    if not ABLE:
        yield f"/sys/fs/cgroup/pids/{name}"
        return
    directory = next(one for one in layout(Limits(pids=MOST)) if "pids" in one.controllers)
    if directory.hierarchy.version == 2:
        delegation.hand_on(directory.parent, ("pids",))
    try:
        yield f"{directory.parent}/{name}"
    finally:
        processes.remove(f"{directory.parent}/{name}")


Found = tuple[bool, str | None, int]


def _run(part: Part, path: str) -> Found:
    """Whether a command of the part's container is in the group, the group's limit, and the number of the process that it refuses."""
    box = Container(*HOST, PID(), part)
    inside = f"/{os.path.basename(path)}\n" in box.run("cat", "/proc/self/cgroup", check=True).stdout
    if not os.path.isdir(path):
        return inside, None, 0
    limit = Path(path, "pids.max").read_text().strip()
    processes.remove(path)
    refused = re.search(r"process (\d+)", box.run(*FORKS, check=True).stdout)
    return inside, limit, int(refused[1]) if refused else 0


def _read(part: Part, path: str) -> Found:
    """The same from the rows alone, for one who may make no group. Raises KernelError for those that the kernel would refuse."""
    files: dict[object, str] = {}
    written: dict[str, str] = {}
    made = False
    for row in part.rows(None):  # type: ignore[arg-type]
        if row.call in ("mkdir", "mkdirat"):
            made = made or path in row.args
        elif row.call in ("open", "openat"):
            files[row.into] = next((str(word) for word in row.args if isinstance(word, str)), "")
        elif row.call == "write":
            text = _text(row)
            if row.args[0] not in files or not text.isdecimal():
                raise KernelError(EINVAL if row.args[0] in files else EBADF, str(row))
            written[files[row.args[0]]] = text
    limit = written.get(f"{path}/pids.max", "max") if made else None
    return written.get(f"{path}/cgroup.procs") == "0", limit, 0


def _text(row: Row) -> str:
    """What a row writes."""
    data, length = row.args[1], int(str(row.args[2]))
    return (data.decode() if isinstance(data, bytes) else str(data))[:length].strip()


@exercise(
    "08.2",
    wants="a list of three weights",
    accepts=lambda answer: isinstance(answer, list | tuple),
    seconds=120,
    hints={
        "not three": "One whole number for each container, the one that gets most first.",
        "refused": "Look at what `Cgroup(cpu_weight=0)` says about the numbers that may be.",
        "backwards": "Who has the larger weight gets the larger share: compare with the two in *See it*.",
        "shares": "A share is the own weight divided by the sum of all three. What is the sum of yours, and what is each of them of it?",
    },
)
def weights(answer: Sequence[int]) -> str | NotYet:
    if len(answer) != 3 or not all(isinstance(weight, int) for weight in answer):
        return not_yet("not three", f"there are {len(answer)}: {', '.join(type(weight).__name__ for weight in answer)}")
    try:
        limits = [Cgroup(cpu_weight=weight) for weight in answer]
    except UsageError as error:
        return not_yet("refused", str(error))
    shares = _shares(limits) if ABLE else [weight / sum(answer) for weight in answer]
    saw = f"{'they got' if ABLE else 'they would get'} {', '.join(f'{share:.0%}' for share in shares)}"
    if shares[0] < shares[-1] - BAND:
        return not_yet("backwards", saw)
    if not _as_wanted(shares):
        return not_yet("shares", saw)
    return f"on one CPU they {'got' if ABLE else 'would get'} a half, a third and a sixth"


def _as_wanted(shares: Sequence[float]) -> bool:
    return all(abs(share - wanted) <= BAND for share, wanted in zip(shares, WANTED, strict=True))


def _shares(limits: Sequence[Cgroup]) -> list[float]:
    """Of all that they have had so far. Where that is not what is wanted they are watched for longer: a busy machine takes time from one of them."""
    with ExitStack() as running:
        groups = [running.enter_context(_started(one, *BURNS))[1] for one in limits]
        times = [0.0] * len(groups)
        for _ in range(LOOKS):
            times = [sum(each) for each in zip(times, spent(*groups, seconds=1.5), strict=True)]
            shares = [each / sum(times) for each in times]
            if _as_wanted(shares):
                break
    return shares


@contextmanager
def _started(limits: Cgroup, *command: str) -> Iterator[tuple[Container, Group]]:
    box, group = start(limits, *command)
    with box:
        yield box, group


Diagnosis = Callable[[Stats, dict[str, int]], str]


@exercise(
    "08.3",
    wants="a function of a group's stats and events, which returns 'memory', 'cpu', 'pids' or 'nothing'",
    accepts=callable,
    seconds=120,
    hints={
        "not counted": "A group counts only what its controllers count: what is None, or missing, did not happen. Look at `dict.get`.",
        "memory": "Somebody in one of the groups was killed. Which counter goes up then? Print both arguments.",
        "cpu": "One group has used up its quota again and again. Which counter goes up then? Print both arguments.",
        "pids": "In one group a fork was refused. Which counter goes up then? Print both arguments.",
        "nothing": "One group is as full of memory as it may be, and fares well: it has read a large file. To be full is no trouble; what is?",
    },
)
def trouble(answer: Diagnosis) -> str | NotYet:
    for truth, stats, events in _patients() if ABLE else _RECORDED:
        try:
            said = answer(stats, dict(events))
        except (KeyError, TypeError) as error:
            return not_yet("not counted", f"it ended in {type(error).__name__}: {error}")
        if said != truth:
            return not_yet(truth, f"of a group of four it said {said!r}")
    return "it found what was wrong with three of four containers, and nothing with the fourth"


def _patients() -> Iterator[tuple[str, Stats, dict[str, int]]]:
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:  # /tmp may be memory itself, which nothing caches
        file.truncate(64 << 20)
        yield "memory", *_seen(Cgroup(memory="24M", swap=0), _said, *EATS)
        yield "nothing", *_seen(Cgroup(memory="24M", swap=0, pids=MOST), _said, *READS, file.name)
    yield "cpu", *_seen(Cgroup(cpus=0.1, cpu_weight=1000), lambda box, group: (group.stats().throttled or 0) > 2, *BURNS)
    yield "pids", *_seen(Cgroup(pids=MOST, cpus=1), _said, *FORKS)


def _said(box: Container, group: Group) -> bool:
    return box.logs().endswith("\n")


def _seen(limits: Cgroup, happened: Callable[[Container, Group], bool], *command: str) -> tuple[Stats, dict[str, int]]:
    with _started(limits, *command) as (box, group):
        until(lambda: happened(box, group))
        return group.stats(), group.events()


# For one who may make no group: what the kernel has said of such.
_ALIVE = {"populated": 1, "frozen": 0}
_RECORDED = [
    ("memory", Stats(0.01, 0.04, memory=487424, memory_peak=24 << 20, memory_limit=24 << 20, oom_kills=1), {**_ALIVE, "memory.oom_kill": 1}),
    (
        "nothing",
        Stats(0.01, 0.05, memory=24 << 20, memory_peak=24 << 20, memory_limit=24 << 20, oom_kills=0, pids=1, pids_limit=MOST),
        {**_ALIVE, "memory.oom_kill": 0, "memory.max": 41, "pids.max": 0},
    ),
    ("cpu", Stats(0.3, 0.0, throttled=3, throttled_seconds=0.27), _ALIVE),
    ("pids", Stats(0.02, 0.02, throttled=0, throttled_seconds=0.0, pids=16, pids_limit=16), {**_ALIVE, "pids.max": 1}),
]


class _Right(Part):
    """What the learner is to write, and what goes wrong with it."""

    order = 5
    limit = str(MOST)
    process = "0"

    def __init__(self, group: str) -> None:
        self.group = group

    def rows(self, plan: Plan) -> Iterator[Row]:
        yield call("mkdirat", AT_FD.FDCWD, self.group, 0o755)
        yield from self.write("pids.max", self.limit)
        yield from self.write("cgroup.procs", self.process)

    def write(self, name: str, text: str) -> Iterator[Row]:
        file = Handle(name)
        if text:
            yield call("openat", AT_FD.FDCWD, f"{self.group}/{name}", O.WRONLY, into=file)
            yield call("write", file, text, len(text))


class _Idle(_Right):
    def rows(self, plan: Plan) -> Iterator[Row]:
        return iter(())


class _NoLimit(_Right):
    limit = ""


class _TooMany(_Right):
    limit = "160"


class _Stays(_Right):
    process = ""


class _Junk(_Right):
    limit = "sixteen"


class _NoFile(_Right):
    def rows(self, plan: Plan) -> Iterator[Row]:
        yield call("mkdirat", AT_FD.FDCWD, self.group, 0o755)
        yield call("write", 99, "16", 2)


def _right(stats: Stats, events: dict[str, int]) -> str:
    if events.get("memory.oom_kill"):
        return "memory"
    if events.get("pids.max"):
        return "pids"
    return "cpu" if stats.throttled else "nothing"


def _blind_to(what: str) -> Diagnosis:
    return lambda stats, events: "nothing" if _right(stats, events) == what else _right(stats, events)


def _full(stats: Stats, events: dict[str, int]) -> str:
    return "memory" if (stats.memory_peak or 0) > 0.9 * (stats.memory_limit or 1 << 40) else _right(stats, events)


def _trusting(stats: Stats, events: dict[str, int]) -> str:
    return "pids" if events["pids.max"] else _right(stats, events)


own.answers(
    right=[_Right],
    wrong={
        "no group": [_Idle],
        "outside": [_Stays],
        "no limit": [_NoLimit],
        "another limit": [_TooMany],
        "refused": [_Junk, _NoFile],
    },
)
weights.answers(
    right=[[300, 200, 100], (3000, 2000, 1000), [50, 33, 17]],
    wrong={
        "not three": [[300, 200], [0.5, 0.33, 0.17]],
        "refused": [[0, 0, 0], [30000, 20000, 10000]],
        "backwards": [[100, 200, 300], [2, 3, 6]],
        "shares": [[100, 100, 100], [600, 300, 100], [900, 600, 200]],
    },
)
trouble.answers(
    right=[_right],
    wrong={
        "memory": [_blind_to("memory"), lambda stats, events: None],
        "cpu": [_blind_to("cpu")],
        "pids": [_blind_to("pids")],
        "nothing": [_full, lambda stats, events: "memory"],
        "not counted": [_trusting, lambda stats, events: "cpu" if stats.throttled > 0 else "memory"],
    },
)
