"""Version 2: what is written into a group for each controller, and what is read there (Documentation/admin-guide/cgroup-v2)."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from kernel_lab.cgroups import alike
from kernel_lab.cgroups.amounts import UNLIMITED
from kernel_lab.cgroups.devices import name as disk_name
from kernel_lab.cgroups.files import numbers, read, read_number
from kernel_lab.cgroups.limits import Limits
from kernel_lab.cgroups.processes import groups
from kernel_lab.cgroups.stats import IO, limit
from kernel_lab.cgroups.writes import Write

PERIOD = 100_000  # microseconds
RATES = {"read_bps": "rbps", "write_bps": "wbps", "read_iops": "riops", "write_iops": "wiops"}
USED = {"rbytes": "read_bytes", "wbytes": "write_bytes", "rios": "reads", "wios": "writes"}
MICROSECONDS = 1e6

Texts = Iterator[tuple[str, str]]


def writes(limits: Limits, controller: str) -> list[Write]:
    """What gives a group its limits of this controller."""
    return [Write("v2", controller, file, text) for file, text in WRITERS[controller](limits)]


def _amount(amount: int) -> str:
    return "max" if amount == UNLIMITED else str(amount)


def _memory(limits: Limits) -> Texts:
    if limits.memory is not None:
        yield "memory.max", _amount(limits.memory)
    if limits.swap is not None:
        yield "memory.swap.max", _amount(limits.swap)


def _cpu(limits: Limits) -> Texts:
    if limits.cpus is not None:
        yield "cpu.max", f"{'max' if limits.cpus == float('inf') else round(limits.cpus * PERIOD)} {PERIOD}"
    if limits.cpu_weight is not None:
        yield "cpu.weight", str(limits.cpu_weight)


def _io(limits: Limits) -> Texts:
    disks: dict[str, list[str]] = {}
    for rate, key in RATES.items():
        for disk, amount in (getattr(limits, rate) or {}).items():
            disks.setdefault(disk, []).append(f"{key}={_amount(amount)}")
    yield from (("io.max", " ".join((disk, *rates))) for disk, rates in disks.items())
    if limits.io_weight is not None:
        yield "io.weight", str(limits.io_weight)


def _hugetlb(limits: Limits) -> Texts:
    for page, amount in (limits.hugetlb or {}).items():
        yield f"hugetlb.{page}.max", _amount(amount)


WRITERS: dict[str, Callable[[Limits], Texts]] = {
    "memory": _memory,
    "cpu": _cpu,
    "cpuset": alike.cpuset,
    "pids": alike.pids,
    "io": _io,
    "hugetlb": _hugetlb,
}


def _memory_used(directory: str) -> dict[str, Any]:
    found = {
        "memory": int(read(f"{directory}/memory.current")),
        "memory_limit": limit(read_number(f"{directory}/memory.max", UNLIMITED)),
        "oom_kills": numbers(f"{directory}/memory.events")["oom_kill"],
    }
    with suppress(FileNotFoundError):  # before Linux 5.19
        found["memory_peak"] = int(read(f"{directory}/memory.peak"))
    return found


def _cpu_used(directory: str) -> dict[str, Any]:
    counted = numbers(f"{directory}/cpu.stat")
    return {"throttled": counted["nr_throttled"], "throttled_seconds": counted["throttled_usec"] / MICROSECONDS}


def _io_used(directory: str) -> dict[str, Any]:
    found = {}
    for line in read(f"{directory}/io.stat").splitlines():
        disk, *pairs = line.split()
        counted = (pair.partition("=")[::2] for pair in pairs)
        found[disk_name(disk)] = IO(**{USED[key]: int(amount) for key, amount in counted if key in USED})
    return {"io": found}


def time_used(directory: str) -> dict[str, Any]:
    """The time that every group counts, with or without the controller cpu."""
    counted = numbers(f"{directory}/cpu.stat")
    return {"cpu_user": counted["user_usec"] / MICROSECONDS, "cpu_system": counted["system_usec"] / MICROSECONDS}


READERS: dict[str, Callable[[str], dict[str, Any]]] = {"memory": _memory_used, "cpu": _cpu_used, "pids": alike.pids_used, "io": _io_used}


def _memory_events(directory: str) -> dict[str, int]:
    return {f"memory.{name}": count for name, count in numbers(f"{directory}/memory.events").items()}


def _pids_events(directory: str) -> dict[str, int]:
    # Before Linux 6.11 it was counted in the group of who was refused, which may be one inside.
    here, *inside = (numbers(f"{group}/pids.events").get("max", 0) for group in reversed(groups(directory)))
    return {"pids.max": here or sum(inside)}


EVENTS: dict[str, Callable[[str], dict[str, int]]] = {"memory": _memory_events, "pids": _pids_events}
