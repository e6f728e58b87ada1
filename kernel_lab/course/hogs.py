"""Programs that are greedy for one thing each, and how they fare in a group: what lab 08 and its checks look at."""

import os
import sys
import time
from collections.abc import Callable, Sequence

from kernel_lab.cgroups.group import Group
from kernel_lab.cgroups.part import Cgroup
from kernel_lab.container import Container
from kernel_lab.namespaces.part import Part
from kernel_lab.namespaces.pid import PID
from kernel_lab.namespaces.user import User

PATIENCE = 60.0  # far more than anything here takes on a busy machine
_PYTHON = (sys.executable, "-ISc")

# Touches 64 MB of memory; then says `done` and waits.
EATS = (
    *_PYTHON,
    """import subprocess, sys, time
code = subprocess.run([sys.executable, "-ISc", "held = bytes(1) * (64 << 20)"]).returncode
print("the program has ended with", code, flush=True)
time.sleep(1000)""",
)
# Reads the file that is its argument, 1 MB at a time.
READS = (
    *_PYTHON,
    """import sys, time
with open(sys.argv[1], "rb", 0) as file:
    pieces = iter(lambda: len(file.read(1 << 20)), 0)
    print(sum(pieces) >> 20, "MB were read", flush=True)
time.sleep(1000)""",
)
# Makes processes until it is refused. They end with it.
FORKS = (
    *_PYTHON,
    """import os
near, far = os.pipe()
for number in range(2, 100):
    try:
        if os.fork() == 0:
            os.close(far)
            os.read(near, 1)  # returns when the first process has ended
            os._exit(0)
    except OSError as error:
        print(f"process {number} was refused: {error.strerror}", flush=True)
        break""",
)
# Never rests, always on the same CPU.
BURNS = (
    *_PYTHON,
    """import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
while True:
    pass""",
)
# Never rests either, while its memory swells to 40 MB and sinks again.
SWELLS = (
    *_PYTHON,
    """held = []
while True:
    held = [*held, bytes(1) * (1 << 20)] if len(held) < 40 else []
    sum(range(200_000))""",
)
# Computes, writes to the file that is its argument, and prints its own account: seconds of CPU, and bytes.
WORKS = (
    *_PYTHON,
    """import os, resource, sys, time
while time.process_time() < 0.4:
    pass
with open(sys.argv[1], "wb", 0) as file:
    file.write(bytes(8 << 20))
    os.fsync(file)
own = resource.getrusage(resource.RUSAGE_SELF)
print(own.ru_utime + own.ru_stime, own.ru_oublock * 512, flush=True)
time.sleep(1000)""",
)


def start(limits: Cgroup, *command: str, parts: Sequence[Part] | None = None) -> tuple[Container, Group]:
    """A container with these limits that runs a command, and its group. `parts`: the others that it has, without any a PID namespace."""
    user = () if os.geteuid() == 0 else (User(),)
    box = Container(*user, *((PID(),) if parts is None else parts), limits).start(*command)
    group = box.made(limits)
    assert isinstance(group, Group)
    return box, group


def until(happened: Callable[[], object]) -> None:
    """Returns when it has happened. Raises TimeoutError when it has not after a minute."""
    end = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError(f"after {PATIENCE:g} s it has not happened")
        time.sleep(0.01)


def spent(*groups: Group, seconds: float) -> list[float]:
    """CPU time of each group, from when all have begun to use some until they have used so many seconds together. Whoever else is busy."""

    def used() -> list[float]:
        return [group.stats().cpu_seconds for group in groups]

    until(lambda: min(used()) > 0.05)
    before = used()
    until(lambda: sum(used()) - sum(before) > seconds)
    return [now - then for now, then in zip(used(), before, strict=True)]


def waited(*groups: Group, seconds: float) -> list[float]:
    """How long each group has waited for a CPU while `spent` looked on. Raises UsageError where the kernel does not count it."""

    def total() -> list[float]:
        return [group.pressure()["cpu"].some.total for group in groups]

    before = total()
    spent(*groups, seconds=seconds)
    return [now - then for now, then in zip(total(), before, strict=True)]


def pace(group: Group, seconds: float = 0.5) -> float:
    """The CPUs that a group uses, watched for so long."""
    begin, before = time.monotonic(), group.stats().cpu_seconds
    time.sleep(seconds)
    return (group.stats().cpu_seconds - before) / (time.monotonic() - begin)
