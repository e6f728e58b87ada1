"""Version 1: what is written into a group of each controller, and what is read there (Documentation/admin-guide/cgroup-v1)."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from kernel_lab.cgroups import alike
from kernel_lab.cgroups.amounts import UNLIMITED, shown
from kernel_lab.cgroups.devices import name as disk_name
from kernel_lab.cgroups.files import numbers, read, read_number
from kernel_lab.cgroups.limits import Limits
from kernel_lab.cgroups.stats import IO, limit
from kernel_lab.cgroups.writes import Write
from kernel_lab.kernel.errors import UsageError

PERIOD = 100_000  # microseconds, what a new group has
MOST_IO_WEIGHT = 1000  # BFQ_MAX_WEIGHT, block/bfq-iosched.h
RATES = ("read_bps", "write_bps", "read_iops", "write_iops")
NANOSECONDS = 1e9

Texts = Iterator[tuple[str, str]]


class Memory(NamedTuple):
    """The limits of a group: of memory, and of memory and swap together."""

    alone: int = UNLIMITED
    both: int = UNLIMITED

    @classmethod
    def of(cls, directory: str) -> "Memory":
        """Those that a group has now."""
        files = (f"{directory}/memory.{file}limit_in_bytes" for file in ("", "memsw."))
        return cls(*(read_number(file, UNLIMITED) for file in files))


NEW = Memory()


def writes(limits: Limits, controller: str, now: Memory = NEW) -> list[Write]:
    """What gives a group of this controller its limits, in the order that the kernel needs. Raises UsageError for what version 1 cannot do."""
    texts = _memory(limits, now) if controller == "memory" else WRITERS.get(controller, _nothing)(limits)
    return [Write("v1", controller, file, text) for file, text in texts]


def inherited(parent: str, controller: str) -> list[Write]:
    """What a new group needs before a process may enter: a cpuset is empty at first, and takes both lists from the group above (cpusets.rst)."""
    files = ("cpuset.cpus", "cpuset.mems") if controller == "cpuset" else ()
    return [Write("v1", controller, file, read(f"{parent}/{file}")) for file in files]


def _memory(limits: Limits, now: Memory) -> Texts:
    """The second file limits memory and swap together, and is never below the first: what grows, grows there first, and what shrinks, here."""
    alone = now.alone if limits.memory is None else limits.memory
    if limits.swap not in (None, UNLIMITED) and alone == UNLIMITED:
        raise UsageError(f"swap={shown(limits.swap or 0)!r}: version 1 limits memory and swap together (memory.memsw.*): give memory, too")
    had = UNLIMITED if now.both == UNLIMITED else now.both - now.alone
    swap = had if limits.swap is None else limits.swap
    both = UNLIMITED if UNLIMITED in (alone, swap) else alone + swap
    changes = [("memory.limit_in_bytes", now.alone, alone), ("memory.memsw.limit_in_bytes", now.both, both)]
    for file, before, after in reversed(changes) if both > now.both else changes:
        if after != before:
            yield file, _bytes(after)


def _bytes(amount: int) -> str:
    return "-1" if amount == UNLIMITED else str(amount)


def _cpu(limits: Limits) -> Texts:
    if limits.cpus is not None:
        yield "cpu.cfs_quota_us", "-1" if limits.cpus == float("inf") else str(round(limits.cpus * PERIOD))
    if limits.cpu_weight is not None:
        # As the kernel turns the one into the other: 100 and 1024 are what a new group has (sched_weight_from_cgroup, kernel/sched/sched.h).
        yield "cpu.shares", str(round(limits.cpu_weight * 1024 / 100))


def _blkio(limits: Limits) -> Texts:
    for rate in RATES:
        for disk, amount in (getattr(limits, rate) or {}).items():
            yield f"blkio.throttle.{rate}_device", f"{disk} {0 if amount == UNLIMITED else amount}"
    if limits.io_weight is not None:
        if limits.io_weight > MOST_IO_WEIGHT:
            raise UsageError(f"io_weight={limits.io_weight}: in version 1 the scheduler BFQ has the weights, and they end at {MOST_IO_WEIGHT}")
        yield "blkio.bfq.weight", str(limits.io_weight)


def _hugetlb(limits: Limits) -> Texts:
    for page, amount in (limits.hugetlb or {}).items():
        yield f"hugetlb.{page}.limit_in_bytes", _bytes(amount)


def _devices(limits: Limits) -> Texts:
    if limits.devices is not None:
        yield "devices.deny", "a"
        yield from (("devices.allow", "a" if rule.kind == "a" else str(rule)) for rule in limits.devices)


def _nothing(limits: Limits) -> Texts:
    yield from ()


WRITERS: dict[str, Callable[[Limits], Texts]] = {
    "cpu": _cpu,
    "cpuset": alike.cpuset,
    "pids": alike.pids,
    "blkio": _blkio,
    "hugetlb": _hugetlb,
    "devices": _devices,
}


def _memory_used(directory: str) -> dict[str, Any]:
    return {
        "memory": int(read(f"{directory}/memory.usage_in_bytes")),
        "memory_peak": int(read(f"{directory}/memory.max_usage_in_bytes")),
        "memory_limit": limit(read_number(f"{directory}/memory.limit_in_bytes", UNLIMITED)),
        "oom_kills": numbers(f"{directory}/memory.oom_control")["oom_kill"],
    }


def _cpu_used(directory: str) -> dict[str, Any]:
    counted = numbers(f"{directory}/cpu.stat")
    return {"throttled": counted["nr_throttled"], "throttled_seconds": counted["throttled_time"] / NANOSECONDS}


def _cpuacct_used(directory: str) -> dict[str, Any]:
    # Only the sum is exact. User and system time are counted in ticks of the clock, and say how it is to be divided (cputime_adjust, kernel/sched).
    total, user, system = (int(read(f"{directory}/cpuacct.{file}")) for file in ("usage", "usage_user", "usage_sys"))
    in_system = total * system / (user + system) if system else 0.0
    return {"cpu_user": (total - in_system) / NANOSECONDS, "cpu_system": in_system / NANOSECONDS}


def _blkio_used(directory: str) -> dict[str, Any]:
    found: dict[str, IO] = {}
    for file, fields in (("io_service_bytes", ("read_bytes", "write_bytes")), ("io_serviced", ("reads", "writes"))):
        for line in read(f"{directory}/blkio.throttle.{file}_recursive").splitlines():
            disk, operation, amount = line.split() if line.count(" ") == 2 else ("", "", "")
            if operation in ("Read", "Write"):
                key = disk_name(disk)
                found[key] = found.get(key, IO())._replace(**{fields[operation == "Write"]: int(amount)})
    return {"io": found}


READERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "memory": _memory_used,
    "cpu": _cpu_used,
    "cpuacct": _cpuacct_used,
    "pids": alike.pids_used,
    "blkio": _blkio_used,
}


def _memory_events(directory: str) -> dict[str, int]:
    control = numbers(f"{directory}/memory.oom_control")
    # How often the limit of memory alone was met: where that of memory and swap is no higher, the kernel meets that one first.
    met = int(read(f"{directory}/memory.failcnt"))
    return {"memory.max": met, "memory.oom_kill": control["oom_kill"], "memory.under_oom": control["under_oom"]}


def _pids_events(directory: str) -> dict[str, int]:
    return {"pids.max": numbers(f"{directory}/pids.events")["max"]}


EVENTS: dict[str, Callable[[str], dict[str, int]]] = {"memory": _memory_events, "pids": _pids_events}
