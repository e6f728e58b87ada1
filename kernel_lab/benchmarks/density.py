"""`klab bench density`: how many containers fit, and how many machines, and what each next one takes in time and memory.

Every contestant starts idle containers, one after the other, until there are enough or the machine's memory says stop: `sleep` in six new
namespaces, on an overlay of its own, in a control group; or in a virtual machine. Memory is measured twice. Once for the machine as a whole
(MemAvailable before and after), in which everything is that belongs to a container, and whatever others did meanwhile; and once as a sum of parts:
the kernel's own (slabs, stacks, page tables, counters) and the proportional memory of all processes that came, and of this one, as far as it has
grown.
"""

import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kernel_lab.benchmarks import accounts
from kernel_lab.benchmarks.accounts import MEGABYTE, Memory
from kernel_lab.benchmarks.contestant import Absent
from kernel_lab.benchmarks.engines import Docker, Podman
from kernel_lab.benchmarks.ground import ground
from kernel_lab.benchmarks.guests import Emulated, Kvm, Xen, XenPvh
from kernel_lab.benchmarks.machine import machine
from kernel_lab.benchmarks.peers import Crun, Runc
from kernel_lab.benchmarks.report import Report, Row, check_picture, save
from kernel_lab.benchmarks.runners import Kit, Runner, Stop
from kernel_lab.benchmarks.runtimes import EngineRunner, Lxc, OciRunner
from kernel_lab.kernel.errors import KernelError, UsageError

COUNT = 500
CONTAINERS: tuple[Runner, ...] = (Kit(), Lxc(), OciRunner(Crun()), OciRunner(Runc()), EngineRunner(Podman()), EngineRunner(Docker()))
MACHINES: tuple[Runner, ...] = (Emulated(), Kvm(), Xen(), XenPvh())
RUNNERS = CONTAINERS + MACHINES
FLOOR = RUNNERS[0].who
RESERVE = 0.2  # of the machine's memory stays available
DESCRIPTORS = 3  # that a creator keeps for one of them at most: a container takes one or two, a machine three
SPARE = 200
SETTLED, PATIENCE = MEGABYTE, 20.0
COUNTED = ("user", "uts", "mnt", "ipc", "pid", "net")


@dataclass
class Crowd:
    """The containers of one contestant: seconds that each took, bytes that the machine used after it, and what they have in common."""

    seconds: list[float] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    kernel: int = 0
    processes: int = 0
    proportional: int = 0
    ended: str = ""

    @property
    def count(self) -> int:
        return len(self.seconds)

    def each(self, amount: float) -> float:
        """Of one container, in MB."""
        return round(amount / MEGABYTE / self.count, 3)


@dataclass(frozen=True, repr=False)
class Densities(Report):
    """A report with the curves of each contestant: seconds of every start, bytes in use after it."""

    crowds: Mapping[str, Crowd] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        curves = {who: {"seconds": crowd.seconds, "used_bytes": crowd.used} for who, crowd in self.crowds.items()}
        return {**super().facts(), "curves": curves}

    def plot(self, file: str | Path | None = None) -> Any:
        """Memory in use and time for each next one, over the number that runs; the matplotlib figure, also written to `file`."""
        from kernel_lab.benchmarks.density_plot import drawn

        figure = drawn(self.crowds)
        if file is not None:
            save(figure, file)
        return figure


def measure(count: int = COUNT, who: Sequence[str] | None = None) -> Densities:
    """Up to `count` containers of each contestant. Raises UsageError for a count that this machine's limits do not allow, and for an unknown one."""
    chosen = _chosen(who)
    with roomy(count):
        crowds = {one.who: _crowd(one, count) for one in chosen}
    case = f"{count} idle containers"
    times = {(case, who): [second * 1000 for second in crowd.seconds] for who, crowd in crowds.items() if crowd.count}
    rows = tuple(_row(case, who, crowd, times) for who, crowd in crowds.items())
    versions = {one.who: version for one in chosen if (version := one.version())}
    return Densities(rows, 1, machine(versions), times, {one.who: one.includes for one in chosen}, crowds)


def _chosen(who: Sequence[str] | None) -> Sequence[Runner]:
    names = [one.who for one in RUNNERS]
    for name in who or ():
        if name not in names:
            raise UsageError(f"who={name!r}: there is {', '.join(names)}")
    return [one for one in RUNNERS if not who or one.who in who]


@contextmanager
def roomy(count: int) -> Iterator[None]:
    """As many open files for this process as so many containers need. Raises UsageError where a limit forbids them, before there is one."""
    if count < 1:
        raise UsageError(f"count={count}: at least one")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = count * DESCRIPTORS + SPARE
    _check(count, "ulimit -Hn", hard, need)
    for name, limit in _limits():
        _check(count, name, limit, count + SPARE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, need), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _check(count: int, name: str, limit: int, need: int) -> None:
    if 0 <= limit < need:
        raise UsageError(f"count={count}: {name} is {limit}, and so many containers need {need}; raise it, or take fewer")


def _limits() -> Iterator[tuple[str, int]]:
    """What bounds the number of processes and namespaces."""
    for name in ("kernel/pid_max", "kernel/threads-max", *(f"user/max_{kind}_namespaces" for kind in COUNTED)):
        yield name.replace("/", "."), int(Path("/proc/sys", name).read_text())
    if os.geteuid():
        yield "ulimit -u", resource.getrlimit(resource.RLIMIT_NPROC)[0]


def _crowd(one: Runner, count: int) -> Crowd:
    crowd = Crowd()
    _settle()
    with ExitStack() as made:
        try:
            place = made.enter_context(ground(False, layered=True))
            boxes = made.enter_context(one.ready(place))
            # The first one also makes what stays: a janitor, caches, a runtime's directory.
            boxes.idle(0)()
            _fill(crowd, one.who, count, boxes.idle, made)
        except (Absent, UsageError, KernelError, OSError) as error:
            crowd.ended = str(error)
    return crowd


def _fill(crowd: Crowd, who: str, count: int, idle: Callable[[int], Stop], made: ExitStack) -> None:
    others, before, own = accounts.processes(), Memory.now(), accounts.proportional([os.getpid()])
    reserve = RESERVE * (before.used + before.available)
    try:
        for number in tqdm(range(1, count + 1), who, disable=not sys.stderr.isatty()):
            if (left := Memory.now().available) < reserve:
                crowd.ended = f"memory: {left // MEGABYTE} MB are left, and {RESERVE:.0%} of the machine's are kept free"
                break
            begin = time.perf_counter()
            made.callback(idle(number))
            crowd.seconds.append(time.perf_counter() - begin)
            crowd.used.append(Memory.now().used - before.used)
    finally:
        new = accounts.belonging(accounts.processes() - others)
        crowd.processes = len(new)
        crowd.proportional = accounts.proportional([*new, os.getpid()]) - own
        crowd.kernel = Memory.now().kernel - before.kernel


def _settle() -> None:
    """Returns when the kernel has taken apart what was there before: it does so in its own time."""
    end, last = time.monotonic() + PATIENCE, Memory.now()
    while time.monotonic() < end:
        time.sleep(0.2)
        now = Memory.now()
        if abs(now.used - last.used) < SETTLED and abs(now.kernel - last.kernel) < SETTLED:
            return
        last = now


def _row(case: str, who: str, crowd: Crowd, times: Mapping[tuple[str, str], Sequence[float]]) -> Row:
    if not crowd.count:
        return Row(case, who, note=crowd.ended)
    facts = {
        "count": crowd.count,
        "seconds": round(sum(crowd.seconds), 2),
        "memory_mb": crowd.each(crowd.used[-1]),
        "kernel_mb": crowd.each(crowd.kernel),
        "processes_mb": crowd.each(crowd.proportional),
        "processes": round(crowd.processes / crowd.count, 2),
    }
    note = (
        f"{crowd.count} in {facts['seconds']:.1f} s; {facts['memory_mb']:.2f} MB each (the kernel's {facts['kernel_mb']:.2f},"
        f" processes {facts['processes_mb']:.2f}); processes each: {facts['processes']:.2f}"
    )
    return Row.of(case, who, times[case, who], times.get((case, FLOOR), ()), "; ".join(filter(None, (note, crowd.ended))), facts)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends this as Ctrl-C does: everything is taken down."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def bench_density(count: int = COUNT, who: Sequence[str] | None = None, json: bool = False, plot: str | Path | None = None) -> int:
    """Measures, prints, and draws into the file `plot`; the status that a command ends with."""
    if plot is not None:
        check_picture(plot)
    with interruptible():
        report = measure(count, who)
    print(report.json() if json else report)
    if plot is not None:
        report.plot(plot)
    return 0
