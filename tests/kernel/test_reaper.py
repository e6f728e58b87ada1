"""The reaper for real: as a subreaper that stands in for process 1, and as process 1 of a PID namespace."""

import os
import platform
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from waiting import soon

from kernel_lab.kernel import reaper

# It blocks all signals, starts the command as its child and becomes the reaper, as a container's process 1 does.
STAND_IN = """
import ctypes, os, signal, sys
program, emulator, how, *command = sys.argv[1:]
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
pid = os.fork()
if not pid:
    os.execvp(command[0], command)
if how == "ended before":
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    signal.sigwait({signal.SIGCHLD})
if how == "ignored":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if how == "pending":
    os.kill(os.getpid(), signal.SIGUSR1)
file = os.memfd_create("init", 0)
os.write(file, bytes.fromhex(program))
if emulator:
    os.execvp(emulator, [emulator, "-0", "init", f"/proc/self/fd/{file}", str(pid)])
os.execve(file, ["init", str(pid)], {})
"""

ORPHANS = """
import os, sys, time
read, write = os.pipe()
for _ in range(20):
    if not os.fork():
        parent = os.getpid()
        if not os.fork():
            while os.getppid() == parent:
                time.sleep(0.001)
            os.write(write, b"%d " % os.getppid())
            os._exit(0)
        os._exit(0)
os.close(write)
for _ in range(20):
    os.wait()
print(os.getpid(), *os.fdopen(read).read().split(), flush=True)
sys.stdin.read()
sys.exit(7)
"""

SIGNALS = """
import os, signal, sys
while True:
    number = signal.sigwait(signal.valid_signals())
    os.write(1, b"%d\\n" % number)
    if number == signal.SIGTERM:
        sys.exit(3)
"""

NAMESPACE = """
import os, signal, sys
assert (os.getpid(), os.getppid()) == (2, 1), (os.getpid(), os.getppid())
if not os.fork():
    os.setsid()
    while True:
        signal.pause()
os.kill(1, signal.SIGUSR1)
print("back:", signal.sigwait({signal.SIGUSR1}).name, flush=True)
sys.stdin.read()
sys.exit(9)
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


class Started:
    """A reaper with its command as a child; its lines are the command's."""

    def __init__(self, emulator: str, how: str, command: list[str], before: tuple[str, ...] = ()) -> None:
        program = reaper.elf("aarch64" if emulator else platform.machine())
        stand_in = [*python(STAND_IN), program.hex(), emulator, how, *command]
        self.process = subprocess.Popen([*before, *stand_in], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True)
        self.pid = self.process.pid

    def line(self, patience: float = 60) -> str:
        """The next line. A byte at a time, so that what select sees is what is left."""
        assert self.process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], patience)
            byte = self.process.stdout.read(1) if ready else b""
            if not byte:
                raise AssertionError(f"no whole line but {line!r}")
            line += byte
        return line.decode().rstrip("\n")

    def go_on(self) -> None:
        """Ends the command's standard input: it waits for that."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def code(self) -> int:
        return self.process.wait(60)

    def clean(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        if self.process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()


Start = Callable[..., Started]


@pytest.fixture(params=["native", pytest.param("qemu-aarch64-static", marks=pytest.mark.needs("qemu-aarch64-static"))])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    emulator = "" if request.param == "native" else request.param
    if not emulator and platform.machine() not in reaper.LISTINGS:
        pytest.skip(f"needs a processor that the reaper is written for: this machine is {platform.machine()}")
    started: list[Started] = []

    def start(command: list[str], how: str = "", before: tuple[str, ...] = ()) -> Started:
        started.append(Started(emulator, how, command, before))
        return started[-1]

    yield start
    for one in started:
        one.clean()


def status(pid: int, field: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{field}:"))


def children(parent: int) -> set[int]:
    """The children of a process, zombies too."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_the_name = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(after_the_name[1]) == parent:
            found.add(int(path.parent.name))
    return found


@pytest.mark.parametrize("code", [0, 7, 255])
def test_the_commands_exit_code_is_its_own(start: Start, code: int) -> None:
    assert start(["sh", "-c", f"exit {code}"]).code() == code


def test_a_killed_command_gives_128_and_the_signal(start: Start) -> None:
    assert start(["sh", "-c", "kill -KILL $$"]).code() == 128 + signal.SIGKILL


def test_a_command_that_ended_before_the_reaper_began_is_seen(start: Start) -> None:
    assert start(["sh", "-c", "exit 6"], how="ended before").code() == 6


def test_an_ignored_sigchld_is_ignored_no_longer_and_the_process_is_called_init(start: Start) -> None:
    init = start(["sh", "-c", "read line; exit 5"], how="ignored")
    assert soon(lambda: status(init.pid, "Name") == "init" and not int(status(init.pid, "SigIgn"), 16) >> signal.SIGCHLD - 1 & 1)
    init.go_on()
    assert init.code() == 5


def test_orphans_are_reaped_while_the_command_runs(start: Start) -> None:
    init = start(python(ORPHANS))
    command, *parents = map(int, init.line().split())
    assert parents == [init.pid] * 20
    assert soon(lambda: children(init.pid) == {command})
    init.go_on()
    assert init.code() == 7


def test_signals_are_handed_on_even_one_that_came_before_the_reaper_began(start: Start) -> None:
    init = start(python(SIGNALS), how="pending")
    assert init.line() == str(signal.SIGUSR1.value)
    for name in ("HUP", "INT", "QUIT", "USR1", "USR2", "ALRM", "PIPE", "WINCH", "CONT", "TSTP", "TTIN", "TTOU", "TERM"):
        number = signal.Signals[f"SIG{name}"]
        os.kill(init.pid, number)
        assert init.line() == str(number.value)
    assert init.code() == 3


@pytest.mark.needs("unshare", "namespace:pid", "userns")
def test_as_process_1_it_ends_with_the_command_and_the_rest_of_the_namespace_with_it(start: Start) -> None:
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    init = start(python(NAMESPACE), before=("unshare", *user, "--pid", "--fork", "--kill-child"))
    assert init.line() == "back: SIGUSR1"
    (process_1,) = children(init.pid)
    assert status(process_1, "NSpid").split()[-1] == "1"
    assert status(process_1, "Name") == "init"
    init.go_on()
    assert init.code() == 9
    assert init.process.stdout is not None
    assert init.process.stdout.read() == b"", "whoever is left would hold the pipe open"
