"""`./lab vm compare`: lab 17 on one processor, with the rows that few machines can have: KVM's guests, and Xen's, below the lab VM's kernel."""

import json
import shlex
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path

from kernel_lab.benchmarks.rows import Measured
from kernel_lab.machines.labvm import LabVM

CONTAINERS = ("plain process", "kit", "LXC", "crun", "runc")
IN_DOM0 = "plain process in Xen's dom0"
MEMORY = 4 << 30  # half of it is for guests
Booted = Callable[[bool], AbstractContextManager[LabVM]]


def compare(booted: Booted, options: Sequence[str], emulator: str) -> list[Measured]:
    """Every row, on a machine with and on one without a hypervisor below its kernel. `emulator`: what the processor is, if it is none."""
    with booted(False) as machine:
        rows = _rows(machine, (*CONTAINERS, "KVM"), options)
    with booted(True) as machine:
        plain, *guests = _rows(machine, ("plain process", "Xen", "Xen, PVH"), options)
    rows += [replace(plain, who=IN_DOM0, includes="the same in Xen's first guest, whose kernel is para-virtualised"), *guests]
    return [replace(row, machine={**row.machine, "cpu": f"{row.machine['cpu']}{emulator}"}) for row in rows]


def _rows(machine: LabVM, who: Sequence[str], options: Sequence[str]) -> list[Measured]:
    """Measured there, as far as they are not there already. Raises RuntimeError for one that cannot be had, and where the command fails."""
    words = ["./lab", "klab", "bench", "compare", "--json", *options, *(word for one in who for word in ("--who", one))]
    done = machine.run(shlex.join(words), capture=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(words)}: exit {done.returncode} in the lab VM")
    rows = [Measured.of(row) for row in json.loads(done.stdout)["measured"]]
    for row in rows:
        if row.absent or row.stored:
            raise RuntimeError(f"{row.who}: not to be had in the lab VM: {row.absent or 'only a stored row'}")
    return rows


def write(rows: Sequence[Measured], file: Path) -> None:
    file.write_text(json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False) + "\n")
