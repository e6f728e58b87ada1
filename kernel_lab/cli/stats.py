"""`klab stats`: what containers use, a line for each, again and again."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import click
from tabulate import tabulate

from kernel_lab import records
from kernel_lab.cgroups.group import Group
from kernel_lab.cgroups.stats import Stats
from kernel_lab.kernel.errors import UsageError
from kernel_lab.records import Record

EVERY = 1.0  # seconds
HEADERS = ("CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "PIDS", "BLOCK I/O")
CLEAR = "\x1b[2J\x1b[H"  # the screen, and the cursor to its corner (console_codes(4))


@dataclass(frozen=True)
class Line:
    """What one container used since the look before. Bytes; `cpu`: percent of one CPU; None where nothing counts it."""

    id: str
    name: str
    cpu: float | None = None
    memory: int | None = None
    memory_limit: int | None = None
    pids: int | None = None
    read_bytes: int | None = None
    write_bytes: int | None = None

    def cells(self) -> tuple[str, ...]:
        cpu = "–" if self.cpu is None else f"{self.cpu:.1f}"
        memory = "–" if self.memory is None else f"{_size(self.memory)} / {_size(self.memory_limit) if self.memory_limit else 'max'}"
        disk = "–" if self.read_bytes is None else f"{_size(self.read_bytes)} / {_size(self.write_bytes or 0)}"
        return (self.id, self.name, cpu, memory, "–" if self.pids is None else str(self.pids), disk)


def _size(amount: int) -> str:
    """In the unit that leaves a number below 1024, rounded down."""
    for unit in "BkMGT":
        if amount < 1024 or unit == "T":
            break
        amount //= 1024
    return f"{amount}{unit}"


@click.command()
@click.option("--no-stream", is_flag=True, help="Once, and not again and again.")
@click.option("--json", "as_json", is_flag=True, help="Once, as JSON.")
@click.argument("names", nargs=-1)
def stats(no_stream: bool, as_json: bool, names: tuple[str, ...]) -> None:
    """What containers use: all that run, or those named."""
    before = _look(names)
    while True:
        time.sleep(EVERY)
        now = _look(names)
        lines = [_line(record, now, before) for record in now.records]
        if as_json:
            click.echo(json.dumps([asdict(line) for line in lines], indent=1))
        else:
            click.echo(("" if no_stream or not sys.stdout.isatty() else CLEAR) + _table(lines))
        if no_stream or as_json:
            return
        before = now


def _table(lines: Sequence[Line]) -> str:
    return tabulate([line.cells() for line in lines], HEADERS, tablefmt="plain", disable_numparse=True)


@dataclass(frozen=True)
class _Look:
    """What there was at a moment."""

    moment: float
    records: Sequence[Record]
    used: dict[str, Stats]


def _look(names: Sequence[str]) -> _Look:
    found = [records.find(name) for name in names] if names else records.all()
    living = [record for record in found if record.alive()]
    used = {record.id: counted for record in living if (counted := _counted(record))}
    return _Look(time.monotonic(), living, used)


def _counted(record: Record) -> Stats | None:
    try:
        return Group.of(record.pid).stats()
    except (UsageError, ProcessLookupError, FileNotFoundError):  # in no group, or it has just ended
        return None


def _line(record: Record, now: _Look, before: _Look) -> Line:
    used, had = now.used.get(record.id), before.used.get(record.id)
    if used is None:
        return Line(record.id, record.name)
    cpu = None if had is None else round(100 * (used.cpu_seconds - had.cpu_seconds) / (now.moment - before.moment), 1)
    disks = None if used.io is None else used.io.values()
    read, written = (None if disks is None else sum(getattr(disk, what) for disk in disks) for what in ("read_bytes", "write_bytes"))
    return Line(record.id, record.name, cpu, used.memory, used.memory_limit, used.pids, read, written)


COMMANDS = (stats,)
