"""Lab 06: the checks about PID namespaces."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from kernel_lab.container import Container
from kernel_lab.course.exercises import NotYet, exercise, not_yet
from kernel_lab.kernel import procfs
from kernel_lab.kernel.errors import UsageError
from kernel_lab.kernel.flags import CLONE, MS
from kernel_lab.kernel.procfs import Process
from kernel_lab.kernel.program import Row, call
from kernel_lab.namespaces.mnt import Mount
from kernel_lab.namespaces.part import Part, Plan
from kernel_lab.namespaces.pid import PID
from kernel_lab.namespaces.user import User

PATIENCE = 20.0
LOOKS = 20  # at a process 1 that sleeps while a zombie waits for it: it is not going to reap
PAUSE = 0.1
HOST = () if os.geteuid() == 0 else (User(),)
Members = dict[int, int]


def _members(pid: int) -> Members:
    home = os.readlink(f"/proc/{pid}/ns/pid")
    found = {}
    for one in procfs.processes():
        with suppress(OSError):
            if os.readlink(f"/proc/{one}/ns/pid") == home:
                found[procfs.status(one).pids[-1]] = one
    return found


def _until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError("the container did not come to be what the check wanted to look at")
        time.sleep(0.01)


@exercise(
    "06.1",
    wants="a function of the number of a container's process 1 on the host, which returns a dict: number inside → number on the host",
    accepts=callable,
    seconds=90,
    hints={
        "not allowed": "Processes end while you look at them, and an ordinary user may not read the links of everybody's. What does /proc raise then,"
        " and can such a process be one of yours?",
        "strangers": "Other containers have a process 1, too. What do the processes of one container have in common that no other process has? Look"
        " at ls -l /proc/self/ns.",
        "newcomer missing": "A command that `exec` has put into the container is no child of its process 1. So the tree does not tell who belongs to"
        " it; what does? Look at ls -l /proc/self/ns.",
        "missing": "Which directories of /proc are processes? Ask every one of them, zombies and children included.",
        "wrong numbers": "The right processes. Their numbers inside stand in a line of /proc/PID/status: which one of its numbers is the innermost?",
    },
)
def members(answer: Callable[[int], Members]) -> str | NotYet:
    with Container(*HOST, PID()) as stranger, Container(*HOST, PID()) as box:
        stranger.start("sleep 1000")
        box.start("sh", "-c", "sleep 1000 & wait")
        _until(lambda: len(_members(box.pid)) == 2)
        newcomer = threading.Thread(target=lambda: box.exec("sleep 1000"))
        newcomer.start()
        try:
            _until(lambda: len(_members(box.pid)) == 3)
            return _compared(answer, box.pid)
        finally:
            box.kill()
            newcomer.join()


def _compared(answer: Callable[[int], Members], pid: int) -> str | NotYet:
    wanted = _members(pid)
    try:
        said = answer(pid)
    except OSError as error:
        return not_yet("not allowed", f"it ended in {type(error).__name__}")
    if not isinstance(said, dict):
        return not_yet("missing", f"it returned no dict, but {type(said).__name__}")
    saw = f"the container has {len(wanted)} processes, and it returned {len(said)}"
    found, all_three = set(said.values()), set(wanted.values())
    if found - all_three:
        return not_yet("strangers", f"{saw}, among them {len(found - all_three)} that are not in the container")
    if all_three - found:
        return not_yet("newcomer missing" if found == {pid, *procfs.children(pid)} else "missing", saw)
    if said != wanted:
        return not_yet("wrong numbers", f"inside they are {sorted(wanted)}, and it says {sorted(said, key=str)}")
    return "all 3 processes of the container, the one from outside included, and nobody else's; inside they are 1, 2 and 3"


class _Stage(Part):
    """Before anything else, a tree that shares its mounts with nobody outside, and inside with whom it may: a forgotten MS_PRIVATE does no harm."""

    flags = CLONE.NEWNS
    order = -1000

    def rows(self, plan: Plan) -> Iterator[Row]:
        yield call("mount", None, "/", None, MS.REC | MS.SLAVE, why="nothing gets out")
        yield call("mount", None, "/", None, MS.REC | MS.SHARED, why="as it is on most hosts")


@exercise(
    "06.2",
    wants="a class made from Part, with flags and rows",
    accepts=lambda answer: isinstance(answer, type) and issubclass(answer, Part),
    hints={
        "no PID namespace": "`flags` names the namespaces that the clone makes. Look at `PID.flags`.",
        "no mount namespace": "A mount of the container's own needs a mount namespace of its own, or you would change the host's /proc. Look at"
        " `Mount.flags`, and join flags by |.",
        "old /proc": "The command is process 1, and its /proc is still the host's. Look at the last row of `Container(PID(), Mount()).setup`.",
        "shared": "Your mount is in the mount namespace, and on most hosts it would still reach the host's tree, too. Look at the first row of"
        " `Container(PID(), Mount()).setup`.",
    },
)
def own(answer: Callable[[], Part]) -> str | NotYet:
    part = answer()
    if CLONE.NEWPID not in part.flags:
        return not_yet("no PID namespace")
    if CLONE.NEWNS not in part.flags:
        return not_yet("no mount namespace")
    said = Container(*HOST, _Stage(), part).run("cat", "/proc/self/stat", "/proc/self/mountinfo", check=True).stdout.splitlines()
    number, mounts = said[0].split()[0], [line for line in said[1:] if line.split()[4] == "/proc"]
    if number != "1":
        return not_yet("old /proc", "in its own /proc the command has another number than 1")
    if "shared:" in mounts[-1]:
        return not_yet("shared", "the new /proc is a shared mount")
    return "the command is process 1, its own /proc says so, and nobody outside gets to see that mount"


WAITS = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [10]); print('command waits', flush=True); signal.sigwait([10]); raise SystemExit(7)"
COMMAND = 'for i in 1 2 3; do (sleep 1000 &); done; exec "$0" -I -S -c "$1"'


@exercise(
    "06.3",
    wants="the text of a Python program",
    accepts=lambda answer: isinstance(answer, str),
    seconds=120,
    hints={
        "no command": "The command is what stands in sys.argv[1:]. Process 1 must go on, so the command needs a process of its own: look at"
        " os.spawnvp with os.P_NOWAIT.",
        "zombies": "Who waits for the orphans? Look up the difference between os.wait() and os.waitpid(pid, 0), and count how often yours is called.",
        "ended early": "Somebody's end was the end of your process 1, and so of everybody. os.wait() also tells who it was that ended: whose end is"
        " to be the end of the container?",
        "exit code": "Whoever started the container wants to know how the command went. Look at the second thing that os.wait() returns, at"
        " os.waitstatus_to_exitcode, and at how your program ends.",
    },
)
def init(answer: str) -> str | NotYet:
    python = (sys.executable, "-I", "-S", "-c")
    with Container(*HOST, PID(), Mount()) as box:
        box.start(*python, answer, "sh", "-c", COMMAND, sys.executable, WAITS)
        with suppress(TimeoutError):
            _until(lambda: not box.running or "command waits" in box.logs())
        if "command waits" not in box.logs():
            return not_yet("no command", _last_line(box.logs()))
        try:
            _until(lambda: len(_ends_with(box, "sleep", "1000")) == 3)
            return _reaps(box) or _hands_on(box) or "three orphans ended and no zombie stayed; the command's exit code came through"
        except (UsageError, ProcessLookupError, FileNotFoundError, PermissionError):  # process 1 is there no more, or is a zombie itself
            return not_yet("ended early", _last_line(box.logs()))


def _last_line(log: str) -> str:
    return (log.strip().splitlines() or [""])[-1].removeprefix("command waits")


def _ends_with(box: Container, *words: str) -> list[Process]:
    """The container's processes whose command line ends with these words."""
    found = []
    for pid in _members(box.pid).values():
        with suppress(ProcessLookupError):
            if tuple(procfs.read(pid, "cmdline").decode(errors="replace").split("\0")[-len(words) - 1 : -1]) == words:
                found.append(procfs.process(pid))
    return found


def _state(pid: int) -> str:
    try:
        return procfs.process(pid).state
    except ProcessLookupError:
        return ""


def _reaps(box: Container) -> NotYet | None:
    """What is wrong with process 1 when three orphans end, if anything."""
    orphans, command = _ends_with(box, "sleep", "1000"), _command(box)
    for orphan in orphans:
        os.kill(orphan.pid, signal.SIGKILL)
    asleep, end = 0, time.monotonic() + PATIENCE
    while time.monotonic() < end and asleep < LOOKS:
        left = [_state(one.pid) for one in orphans if procfs.start_time(one.pid) == one.started]
        # In this order: the kernel wakes the command to its death before process 1, which is ending, falls asleep to wait for it.
        settled = _state(box.pid) == "S" and _state(command) == "S"
        if not box.running:
            return not_yet("ended early", _last_line(box.logs()))
        if settled and not left:
            return None
        asleep += settled and "Z" in left
        time.sleep(PAUSE)
    return not_yet("zombies", f"{len(left)} orphans that have ended are still there")


def _command(box: Container) -> int:
    for one in _ends_with(box, "-c", WAITS):
        return one.pid
    raise ProcessLookupError("the command has ended")


def _hands_on(box: Container) -> NotYet | None:
    """What is wrong with the end of process 1, if anything, when the command ends with 7."""
    os.kill(_command(box), signal.SIGUSR1)
    try:
        code = box.wait(PATIENCE)
    except TimeoutError:
        return not_yet("exit code", "the command has ended, and your process 1 goes on")
    return None if code == 7 else not_yet("exit code", f"the command ended with 7, and your process 1 with {code}")


def _descendants(pid: int) -> Members:
    return {procfs.status(one).pids[-1]: one for one in (pid, *procfs.children(pid))}


def _on_the_host(pid: int) -> Members:
    return {one: one for one in _members(pid).values()}


def _careless(pid: int) -> Members:
    raise PermissionError(f"/proc/{pid}/ns/pid")


members.answers(
    right=[_members, lambda pid: dict(reversed(_members(pid).items()))],
    wrong={
        "not allowed": [_careless],
        "strangers": [lambda pid: {one: one for one in procfs.processes()}, lambda pid: {**_members(pid), 4: os.getpid()}],
        "newcomer missing": [_descendants],
        "missing": [lambda pid: {1: pid}, lambda pid: {}, lambda pid: list(_members(pid))],
        "wrong numbers": [_on_the_host, lambda pid: dict(enumerate(_members(pid).values()))],
    },
)

_PRIVATE = call("mount", None, "/", None, MS.REC | MS.PRIVATE)
_PROC = call("mount", "proc", "/proc", "proc", 0, None)


def _part(flags: CLONE, *rows: Row) -> type[Part]:
    return type("Own", (Part,), {"flags": flags, "rows": lambda self, plan: rows})


own.answers(
    right=[
        _part(CLONE.NEWPID | CLONE.NEWNS, _PRIVATE, _PROC),
        _part(CLONE.NEWPID | CLONE.NEWNS, call("mount", None, "/", None, MS.REC | MS.SLAVE), _PROC),
    ],
    wrong={
        "no PID namespace": [_part(CLONE(0)), _part(CLONE.NEWNS, _PRIVATE)],
        "no mount namespace": [_part(CLONE.NEWPID), _part(CLONE.NEWPID, _PRIVATE, _PROC)],
        "old /proc": [_part(CLONE.NEWPID | CLONE.NEWNS), _part(CLONE.NEWPID | CLONE.NEWNS, _PRIVATE)],
        "shared": [_part(CLONE.NEWPID | CLONE.NEWNS, _PROC)],
    },
)

_STARTS = "import os, signal, sys\ncommand = os.spawnvp(os.P_NOWAIT, sys.argv[1], sys.argv[1:])\n"
_LOOP = "while True:\n    pid, status = os.wait()\n    if pid == command:\n        sys.exit({})\n"
_POLLS = """import time
while True:
    pid, status = os.waitpid(-1, os.WNOHANG)
    if pid == command:
        sys.exit(os.WEXITSTATUS(status))
    if pid == 0:
        time.sleep(0.05)
"""
_IGNORES = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\ntry:\n    os.waitpid(command, 0)\nexcept ChildProcessError:\n    pass\n"
init.answers(
    right=[_STARTS + _LOOP.format("os.waitstatus_to_exitcode(status)"), _STARTS + _POLLS],
    wrong={
        "no command": ["import os\nos.wait()\n", "this is no Python", "print('hello')"],
        "zombies": [
            _STARTS + "sys.exit(os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]))\n",
            "import os, sys\nos.execvp(sys.argv[1], sys.argv[1:])\n",
        ],
        "ended early": [_STARTS + "os.wait()\n", _STARTS + "for _ in range(3):\n    os.wait()\n"],
        "exit code": [_STARTS + _LOOP.format(""), _STARTS + "while True:\n    os.wait()\n", _STARTS + _IGNORES],
    },
)
