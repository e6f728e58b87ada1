"""Time: the clocks that count from the machine's start, set off from the host's (time_namespaces(7))."""

from collections.abc import Iterable
from math import floor, isfinite

from kernel_lab.kernel.errors import UsageError
from kernel_lab.kernel.flags import AT_FD, CLONE, O
from kernel_lab.kernel.program import Handle, Row, call
from kernel_lab.namespaces.part import Part, Plan

LARGEST = 2**63 // 10**9 // 2  # KTIME_SEC_MAX / 2: beyond it the kernel answers ERANGE


class Time(Part):
    """A time namespace: CLOCK_MONOTONIC and CLOCK_BOOTTIME are this many seconds ahead of the host's, or behind it when negative.

    A process that calls unshare(CLONE_NEWTIME) is not in the new namespace itself: it enters with its execve, and the offsets must be written before.
    """

    order = 30

    def __init__(self, monotonic: float = 0.0, boottime: float = 0.0) -> None:
        self.monotonic = monotonic
        self.boottime = boottime

    def check(self, plan: Plan) -> None:
        for name, seconds in (("monotonic", self.monotonic), ("boottime", self.boottime)):
            if not isinstance(seconds, int | float) or not isfinite(seconds) or abs(seconds) > LARGEST:
                raise UsageError(f"Time({name}={seconds!r}): it must be a number of seconds between -{LARGEST} and {LARGEST} (time_namespaces(7))")

    def rows(self, plan: Plan) -> Iterable[Row]:
        yield call("unshare", CLONE.NEWTIME, why="a time namespace for whoever comes after the execve")
        offsets = Handle("timens_offsets")
        lines = "".join(f"{clock} {floor(seconds)} {round(seconds % 1 * 1e9)}\n" for clock, seconds in self._offsets())
        yield call("openat", AT_FD.FDCWD, "/proc/self/timens_offsets", O.WRONLY | O.CLOEXEC, into=offsets, why="the clocks' offsets")
        yield call("write", offsets, lines, len(lines), why="can be set until the first process enters")
        yield call("close", offsets)

    def _offsets(self) -> tuple[tuple[str, float], ...]:
        return ("monotonic", self.monotonic), ("boottime", self.boottime)
