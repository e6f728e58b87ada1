"""`klab bench compare`: containers, by whom ever, and virtual machines, side by side on this machine.

A row is a runner, a column what is measured of it (`columns`). Each row is kept as soon as it is there: who interrupts the run and begins again goes
on where it was, on the same machine with the same kit. A row that cannot be had here is shown as it was measured elsewhere, and says where and when
that was (`stored`), or says why it is not there.
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from kernel_lab.benchmarks import columns, compiled, density
from kernel_lab.benchmarks.columns import Cell, Column, Setting
from kernel_lab.benchmarks.contestant import Absent
from kernel_lab.benchmarks.density import interruptible
from kernel_lab.benchmarks.ground import ground
from kernel_lab.benchmarks.machine import machine
from kernel_lab.benchmarks.report import check_picture
from kernel_lab.benchmarks.rows import Comparison, Measured, Store, brought_along
from kernel_lab.benchmarks.runners import Plain, Runner
from kernel_lab.kernel.errors import KernelError, UsageError

ROUNDS, GUEST_ROUNDS = 20, 3
CROWD, GUESTS = 100, 2  # fewer containers find their room in what the last ones have left behind in the kernel
PLAIN = Plain()
RUNNERS: tuple[Runner, ...] = (PLAIN, *density.RUNNERS)
COLUMNS: Mapping[str, Column] = {
    "first instruction": columns.first_instruction,
    "a shell": columns.shell,
    "stop": columns.stop,
    "memory": columns.memory,
    "CPU work": columns.computing,
    "system calls": columns.calling,
    "disk": columns.disk,
    "network": columns.network,
    "isolation": columns.isolation,
}
NETWORKED = frozenset({"network"})
ON_DISK = frozenset({"disk"})


class Size(NamedTuple):
    """How much is measured: rounds of boxes and of machines; idle boxes and machines."""

    rounds: int = ROUNDS
    guest_rounds: int = GUEST_ROUNDS
    crowd: int = CROWD
    guests: int = GUESTS


USUAL = Size()


def measure(size: Size = USUAL, who: Sequence[str] | None = None, cases: Sequence[str] | None = None, anew: bool = False) -> Comparison:
    """Every runner in every column, as far as it is not there already; `anew`: in any case. Raises UsageError for names that there are not."""
    if min(size) < 1:
        raise UsageError(f"{size}: at least one of each")
    runners = [one for one in RUNNERS if one.who in _chosen("who", who, [one.who for one in RUNNERS])]
    chosen = _chosen("case", cases, COLUMNS)
    store = Store.of_this(machine({}), size)
    with tqdm(total=len(runners) * len(chosen), disable=not sys.stderr.isatty()) as steps:
        rows = [_row(one, chosen, size, store, anew, steps) for one in runners]
    return Comparison(tuple(chosen), tuple(rows), machine({}))


def stored(machine: str) -> Comparison:
    """What has been measured on a machine whose rows the kit brings along: `host`, `lab-vm`."""
    rows = brought_along(machine)
    if not rows:
        raise UsageError(f"{machine!r}: no rows of such a machine are brought along")
    return Comparison(tuple(COLUMNS), tuple(rows), rows[0].machine)


def _chosen(what: str, asked: Sequence[str] | None, known: Sequence[str] | Mapping[str, object]) -> list[str]:
    for name in asked or ():
        if name not in known:
            raise UsageError(f"{what} {name!r}: there is {', '.join(known)}")
    return [name for name in known if not asked or name in asked]


def _row(one: Runner, cases: Sequence[str], size: Size, store: Store, anew: bool, steps: "tqdm[Any]") -> Measured:
    """A row, kept after each of its columns; a stored one where this machine cannot have it."""
    fresh = Measured.begun(one.who, one.includes, one.version())
    row = (None if anew else store.read(one.who)) or fresh
    try:
        for case in cases:
            steps.set_description(f"{one.who}: {case}")
            if case not in row.cells:
                row.cells[case] = _cell(one, case, size)
                store.write(row)
            steps.update()
    except Absent as absent:
        return store.elsewhere(one.who) or replace(fresh, absent=str(absent))
    return row


def _cell(one: Runner, case: str, size: Size) -> Cell:
    """Raises Absent where the runner is not to be had at all; what it cannot do is a note."""
    guest = one in density.MACHINES
    if case in NETWORKED and not one.networks:
        return Cell(note="it joins what its caller makes")
    if case in NETWORKED and os.geteuid():
        return Cell(note="needs root, as bridges do")
    with ExitStack() as made:
        place = made.enter_context(ground(case in NETWORKED, layered=True, quota=False, disk=case in ON_DISK))
        shutil.copy(compiled.work(), place.root / "bin/work")
        boxes = made.enter_context(one.ready(place))
        plain = made.enter_context(PLAIN.ready(place))
        address = place.network.gateway if place.network else ""
        setting = Setting(boxes, plain, size.guest_rounds if guest else size.rounds, size.guests if guest else size.crowd, address)
        try:
            return COLUMNS[case](setting)
        except (Absent, UsageError, KernelError, OSError, EOFError) as error:
            return Cell(note=f"failed: {error}")


def bench_compare(
    size: Size = USUAL,
    who: Sequence[str] | None = None,
    cases: Sequence[str] | None = None,
    anew: bool = False,
    json: bool = False,
    plot: str | Path | None = None,
) -> int:
    """Measures, prints, and draws into the file `plot`, with the raw results as JSON beside it; the status that a command ends with."""
    if plot is not None:
        check_picture(plot)
    with interruptible():
        comparison = measure(size, who, cases, anew)
    print(comparison.json() if json else comparison)
    if plot is not None:
        comparison.plot(plot)
        Path(plot).with_suffix(".json").write_text(comparison.json() + "\n")
    return 0
