"""Lab 17: whose kernel it is, and what the next one costs."""

import inspect
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from kernel_lab import rootfs
from kernel_lab.container import Container
from kernel_lab.course.exercises import NotYet, exercise, not_yet
from kernel_lab.course.session import user
from kernel_lab.namespaces.mnt import Mount
from kernel_lab.namespaces.pid import PID
from kernel_lab.namespaces.uts import UTS

Read = Callable[[str], str]
MEGABYTE = 1 << 20


def _counters(text: str) -> dict[str, int]:
    """The first number of each line of /proc/stat."""
    return {words[0]: int(words[1]) for line in text.splitlines() if len(words := line.split()) > 1}


def machines(text: str, factor: float) -> str:
    """/proc/stat of a machine that has done so many times what this one has: each of its numbers."""
    lines = (line.split() for line in text.splitlines())
    return "\n".join(" ".join([words[0], *(str(int(int(number) * factor)) for number in words[1:])]) for words in lines)


def _guest(factor: float) -> Read:
    """Reads in a machine that has the same version, name and memory as this one, and a kernel of its own."""

    def read(path: str) -> str:
        text = Path(path).read_text()
        return machines(text, factor) if path == "/proc/stat" else text

    return read


def _reads_in(box: Container) -> Read:
    return lambda path: box.exec("cat", path, check=True).stdout


@exercise(
    "17.1",
    wants="a function of a function, which reads a file inside",
    accepts=inspect.isfunction,
    hints={
        "container": "It has the host's kernel, whose counters go on while you read them. Which two values must the one from inside lie between?",
        "version": "A machine may run the same version, with as much memory. What of a kernel can no other have, unless it has done the same?",
        "smaller": "This machine has done less than the host, so its counters are smaller. What must `inside` not be smaller than?",
        "larger": "This machine has done more than the host, so its counters are larger. What must `inside` not be larger than?",
    },
)
def same_kernel(answer: Callable[[Read], object]) -> str | NotYet:
    others = {"smaller": 0.5, "larger": 2.0}
    seen = {name: bool(answer(_guest(factor))) for name, factor in others.items()}
    with Container(*user(), UTS("box"), PID(), Mount(rootfs.busybox())).start("sleep", "1d") as box:
        for _ in range(5):
            if not answer(_reads_in(box)):
                return not_yet("container", "of a container it says that the kernel is another")
    if all(seen.values()):
        return not_yet("version", "of a machine with the same version of Linux it says that the kernel is the host's")
    for name, wrong in seen.items():
        if wrong:
            return not_yet(name, f"of a machine whose counters are {name} it says that the kernel is the host's")
    return "a container has the host's kernel; machines with the same version, with smaller counters and with larger ones, do not"


def _samples(first: float, each: float, jump: float = 0.0, noise: float = 0.0, count: int = 101) -> list[float]:
    """Bytes in use after each container: the first also makes what stays; in the middle somebody else takes so much."""
    chance = random.Random(17)
    return [(first + each * number + (jump if number > count // 2 else 0) + chance.uniform(-noise, noise)) * MEGABYTE for number in range(count)]


CASES = {
    "plain": (_samples(0.5, 0.5), 0.5),
    "first": (_samples(60.0, 0.5), 0.5),
    "others": (_samples(60.0, 0.5, jump=-200.0, noise=0.05), 0.5),
}


@exercise(
    "17.2",
    wants="a function of a list of numbers",
    accepts=inspect.isfunction,
    hints={
        "plain": "Each container takes exactly half a megabyte here, the list is in bytes. What is the difference between neighbours in the list?",
        "first": "The first one also makes what all of them use afterwards. Does the first number belong to what the *next* one costs?",
        "others": "In the middle somebody else has given 200 MB back: that is one difference out of a hundred. Which kind of average does not care?",
    },
)
def next_one(answer: Callable[[Sequence[float]], float]) -> str | NotYet:
    for state, (used, each) in CASES.items():
        found = float(answer(list(used))) / MEGABYTE
        if abs(found - each) > each * 0.1:
            return not_yet(state, f"it says {found:.2f} MB")
    return "half a megabyte each, whatever the first one took, and whatever somebody else did meanwhile"


def _between(inside: Read) -> bool:
    before = _counters(Path("/proc/stat").read_text())["ctxt"]
    there = _counters(inside("/proc/stat"))["ctxt"]
    return before <= there <= _counters(Path("/proc/stat").read_text())["ctxt"]


def _equal(inside: Read) -> bool:
    return _counters(Path("/proc/stat").read_text())["ctxt"] == _counters(inside("/proc/stat"))["ctxt"]


def _version(inside: Read) -> bool:
    return inside("/proc/version") == Path("/proc/version").read_text()


def _not_smaller(inside: Read) -> bool:
    before = _counters(Path("/proc/stat").read_text())["ctxt"]
    return before <= _counters(inside("/proc/stat"))["ctxt"]


def _not_larger(inside: Read) -> bool:
    there = _counters(inside("/proc/stat"))["ctxt"]
    return there <= _counters(Path("/proc/stat").read_text())["ctxt"]


def _median(used: Sequence[float]) -> float:
    steps = sorted(after - before for before, after in pairwise(used))
    return steps[len(steps) // 2]


def _mean_of_all(used: Sequence[float]) -> float:
    return used[-1] / len(used)


def _mean_of_steps(used: Sequence[float]) -> float:
    return (used[-1] - used[0]) / (len(used) - 1)


same_kernel.answers(
    right=[_between],
    wrong={
        "container": [_equal, lambda inside: False],
        "version": [_version, lambda inside: True],
        "smaller": [_not_larger],
        "larger": [_not_smaller],
    },
)
next_one.answers(
    right=[_median],
    wrong={
        "plain": [lambda used: used[-1], lambda used: _median(used) / MEGABYTE],
        "first": [_mean_of_all],
        "others": [_mean_of_steps],
    },
)
