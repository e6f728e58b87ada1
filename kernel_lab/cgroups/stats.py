"""What a group has used, whatever version of cgroups has counted it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tabulate import tabulate

from kernel_lab.cgroups.amounts import UNLIMITED, shown


class IO(NamedTuple):
    """What was read from a disk and written to it: bytes and operations."""

    read_bytes: int = 0
    write_bytes: int = 0
    reads: int = 0
    writes: int = 0


@dataclass(frozen=True, repr=False)
class Stats:
    """Counted since the group was made, with processes that have ended and with groups inside. None: the group is in no controller that counts it.

    Memory in bytes, times in seconds; `throttled`: in how many periods the processes had used up their quota, `throttled_seconds`: how long they
    waited then; `io` by the path of the disk. A limit that is not set is None, too.
    """

    cpu_user: float
    cpu_system: float
    throttled: int | None = None
    throttled_seconds: float | None = None
    memory: int | None = None
    memory_peak: int | None = None
    memory_limit: int | None = None
    oom_kills: int | None = None
    pids: int | None = None
    pids_limit: int | None = None
    io: Mapping[str, IO] | None = None

    @property
    def cpu_seconds(self) -> float:
        """User and system time together."""
        return self.cpu_user + self.cpu_system

    def _rows(self) -> list[tuple[str, str]]:
        rows = [(name.replace("_", " "), _shown(name, value)) for name, value in vars(self).items() if name != "io" and value is not None]
        return [*rows, *((f"io {disk}", _shown_io(io)) for disk, io in (self.io or {}).items())]

    def __repr__(self) -> str:
        return tabulate(self._rows(), tablefmt="plain", disable_numparse=True)

    def _repr_html_(self) -> str:
        return tabulate(self._rows(), tablefmt="html", disable_numparse=True)


def _shown(name: str, value: float) -> str:
    if name.startswith("memory"):
        return shown(int(value))
    return f"{value:.3f} s" if isinstance(value, float) else str(value)


def _shown_io(io: IO) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in io._asdict().items())


def limit(amount: int) -> int | None:
    """A limit, or None where there is none."""
    return None if amount >= UNLIMITED else amount


class Stall(NamedTuple):
    """The share of time (percent of the last 10, 60 and 300 seconds) in which processes waited for a resource; all of it so far, in seconds."""

    avg10: float
    avg60: float
    avg300: float
    total: float


class Pressure(NamedTuple):
    """Of one resource: `some`: at least one process waited; `full`: all of them did at once (PSI, Documentation/accounting/psi.rst)."""

    some: Stall
    full: Stall | None
