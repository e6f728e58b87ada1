"""`klab bench start`: how long a container takes, from the wish to the end of its command, whoever makes it.

Every contestant makes the same container: /bin/true in new user, uts, mnt, ipc, pid and net namespaces, root inside being the caller outside,
a host name, a root of its own by pivot_root, /proc, loopback up; both outputs are read to their end, and the process is waited for. In the second
case it also has a veth into a bridge, with an address and a default route; in the third its root is an overlay, whose upper directory goes with it,
and its memory, processes and CPU time are limited. What a tool does more or less than that, its `includes` says.

All are called from this one process of 500 MB and 12 threads, since that is what a notebook is; the floor alone is timed from within a small C
program, which knows no better way. Each round calls every one of them once, in random order, after a moment of rest: so whatever else happens on
the machine happens to all alike, and nobody pays for the namespaces that the kernel is still taking apart for the one before.
"""

import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from kernel_lab.benchmarks.burden import burden
from kernel_lab.benchmarks.contestant import Absent, Contestant, Ground, Run
from kernel_lab.benchmarks.engines import Docker, Podman
from kernel_lab.benchmarks.floor import Anew, Server
from kernel_lab.benchmarks.ground import ground
from kernel_lab.benchmarks.kit import Kit, KitAnew
from kernel_lab.benchmarks.machine import machine
from kernel_lab.benchmarks.peers import Bubblewrap, Crun, Runc, Unshare
from kernel_lab.benchmarks.report import Report, Row, check_picture
from kernel_lab.kernel.errors import KernelError, UsageError

ROUNDS = 30
WARM_UP = 3
REST = 0.01


class Case(NamedTuple):
    """What the containers of a case have besides the six namespaces."""

    bridged: bool = False
    layered: bool = False


CASES: Mapping[str, Case] = {
    "six namespaces": Case(),
    "veth into a bridge": Case(bridged=True),
    "overlay and limits": Case(layered=True),
}
FLOOR = Server()
CONTESTANTS: tuple[Contestant, ...] = (FLOOR, Anew(), Kit(), KitAnew(), Unshare(), Bubblewrap(), Crun(), Runc(), Podman(), Docker())


@dataclass
class Entry:
    """A contestant in a case: how it is run, or why not, and its times in milliseconds."""

    case: str
    contestant: Contestant
    run: Run | None = None
    note: str = ""
    times: list[float] = field(default_factory=list)

    def once(self, counted: bool) -> None:
        """A start. Who fails once is out, and the note says why: its times would not be those of a container."""
        if not self.run:
            return
        time.sleep(REST)
        try:
            start = self.run()
        except (Absent, KernelError, OSError) as error:
            self._out(str(error))
            return
        if start.code:
            self._out((start.stderr.strip().splitlines() or [""])[-1] or f"exit {start.code}")
        elif counted:
            self.times.append(start.seconds * 1000)

    def _out(self, why: str) -> None:
        self.run, self.note, self.times = None, f"failed: {why}", []


def measure(rounds: int = ROUNDS, cases: Sequence[str] | None = None) -> Report:
    """Starts a container `rounds` times for each contestant in each case. Raises UsageError for a case that there is not."""
    if rounds < 1:
        raise UsageError(f"rounds={rounds}: at least one")
    entries: list[Entry] = []
    with burden():
        for case in _chosen(cases):
            with _ready(case) as ready:
                entries += ready
                for turn in tqdm(range(WARM_UP + rounds), case, disable=not sys.stderr.isatty()):
                    for entry in random.sample(ready, len(ready)):
                        entry.once(turn >= WARM_UP)
    versions = {one.who: version for one in CONTESTANTS if (version := one.version())}
    times = {(entry.case, entry.contestant.who): entry.times for entry in entries if entry.times}
    return Report(tuple(_row(entry, times) for entry in entries), rounds, machine(versions), times, {one.who: one.includes for one in CONTESTANTS})


def _chosen(cases: Sequence[str] | None) -> Sequence[str]:
    """The names of cases; each may be given by its first word."""
    chosen = []
    for asked in cases or CASES:
        found = [case for case in CASES if asked in (case, case.split()[0])]
        if not found:
            raise UsageError(f"case {asked!r}: there is {' and '.join(map(repr, CASES))}")
        chosen += found
    return chosen


@contextmanager
def _ready(case: str) -> Iterator[list[Entry]]:
    """Everybody on one ground, as far as they can be."""
    if CASES[case] != Case() and os.geteuid():
        yield [Entry(case, one, note="needs root, as bridges and limits do") for one in CONTESTANTS]
        return
    with ExitStack() as made:
        place = made.enter_context(ground(CASES[case].bridged, layered=CASES[case].layered))
        yield [_entry(case, one, place, made) for one in CONTESTANTS]


def _entry(case: str, one: Contestant, place: Ground, made: ExitStack) -> Entry:
    try:
        return Entry(case, one, made.enter_context(one.ready(place)))
    except Absent as absent:
        return Entry(case, one, note=str(absent))


def _row(entry: Entry, times: Mapping[tuple[str, str], Sequence[float]]) -> Row:
    case, who = entry.case, entry.contestant.who
    if not entry.times:
        return Row(case, who, note=entry.note)
    return Row.of(case, who, entry.times, times.get((case, FLOOR.who), ()))


def bench_start(rounds: int = ROUNDS, json: bool = False, plot: str | Path | None = None, cases: Sequence[str] | None = None) -> int:
    """Measures, prints, and draws into the file `plot`; the status that a command ends with."""
    if plot is not None:
        check_picture(plot)
    report = measure(rounds, cases)
    print(report.json() if json else report)
    if plot is not None:
        report.plot(plot)
    return 0
