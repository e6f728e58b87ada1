"""The words in which limits are given, the same whatever version of cgroups has the controller, and what each may be."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from kernel_lab.cgroups import devices as nodes
from kernel_lab.cgroups.amounts import UNLIMITED, Size, fraction, number, size
from kernel_lab.kernel.errors import UsageError

ONLINE = Path("/sys/devices/system/cpu/online")
HUGE_PAGES = Path("/sys/kernel/mm/hugepages")
# What the kernel needs for a container's namespaces and mounts is charged to it while its first process still shares its creator's memory: if
# that did not fit, the kernel would kill whoever uses the shared memory, and so the creator (__oom_kill_process, mm/oom_kill.c). Docker's too.
LEAST_MEMORY = 6 << 20
LEAST_CPUS = 0.01  # a quota of 1 ms in a period of 100 ms (min_cfs_quota_period, kernel/sched)
WEIGHTS = (1, 10_000)  # CGROUP_WEIGHT_MIN and _MAX, linux/cgroup.h
MOST_PIDS = 4 << 20  # PID_MAX_LIMIT, linux/threads.h
CPUS = re.compile("([0-9]+)(?:-([0-9]+))?")
MOST_CPUS = 8192  # NR_CPUS_RANGE_END, arch/x86/Kconfig: more than any machine has


class Words(TypedDict, total=False):
    """What may be limited. A size is bytes or a text such as `64M`; `max` lifts a limit; None says nothing."""

    memory: Size | None  # of all processes together, with the page cache that they filled
    swap: Size | None  # beside it
    cpus: float | str | None  # time, in CPUs: 0.5 is half of one
    cpu_weight: int | str | None  # 1 to 10000, against the other groups; who does not say has 100
    cpuset: str | None  # the CPUs to run on: 0-1,3
    pids: int | str | None  # processes and threads
    read_bps: Mapping[str, Size] | None  # bytes a second, by the path of the disk
    write_bps: Mapping[str, Size] | None
    read_iops: Mapping[str, int | str] | None  # operations a second
    write_iops: Mapping[str, int | str] | None
    io_weight: int | str | None  # as cpu_weight
    devices: Sequence[str] | None  # the only ones that may be used: c 1:3 rwm
    hugetlb: Mapping[str, Size] | None  # bytes, by the size of the page: 2MB


@dataclass(frozen=True)
class Limits:
    """Limits in the kernel's units: bytes, CPUs, numbers of devices. None: nothing was said."""

    memory: int | None = None
    swap: int | None = None
    cpus: float | None = None
    cpu_weight: int | None = None
    cpuset: str | None = None
    pids: int | None = None
    read_bps: Mapping[str, int] | None = None
    write_bps: Mapping[str, int] | None = None
    read_iops: Mapping[str, int] | None = None
    write_iops: Mapping[str, int] | None = None
    io_weight: int | None = None
    devices: tuple[nodes.Rule, ...] | None = None
    hugetlb: Mapping[str, int] | None = None

    @classmethod
    def of(cls, words: Words) -> "Limits":
        """Raises UsageError for a word that is none, a value out of range, and what this machine does not have."""
        given = {name: value for name, value in words.items() if value is not None}
        if unknown := given.keys() - PARSERS.keys():
            raise UsageError(f"{min(unknown)}: no such limit; there are {', '.join(PARSERS)}")
        return cls(**{name: PARSERS[name](value, name) for name, value in given.items()})

    @property
    def given(self) -> tuple[str, ...]:
        """The words that were said."""
        return tuple(name for name, value in vars(self).items() if value is not None)


def weight_of_shares(shares: int) -> int:
    """The weight that is docker's --cpu-shares: in the kernel's own proportion, 1024 to 100 (sched_weight_to_cgroup, kernel/sched/sched.h)."""
    return min(max(round(shares * 100 / 1024), WEIGHTS[0]), WEIGHTS[1])


def _memory(value: Size, name: str) -> int:
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return size(
        value, name, least=LEAST_MEMORY, most=machine, why="a container needs the first to start, and the second is all that this machine has"
    )


def _cpus(value: float | str, name: str) -> float:
    online = len(cpu_list(ONLINE.read_text()))
    return fraction(value, name, least=LEAST_CPUS, most=online, why=f"{online} CPUs are online, and the kernel gives out no less than 1 ms in 100")


def _cpuset(value: str, name: str) -> str:
    try:
        wanted = cpu_list(value)
    except (ValueError, TypeError, AttributeError):
        raise UsageError(f"{name}={value!r}: it is a list of CPUs, as 0-1,3") from None
    online = cpu_list(ONLINE.read_text())
    if not wanted or wanted - online:
        raise UsageError(f"{name}={value!r}: CPUs that this machine does not have; online are {ONLINE.read_text().strip()} ({ONLINE})")
    return value.replace(" ", "")


def cpu_list(text: str) -> frozenset[int]:
    """The numbers in a list such as 0-1,3 (cpuset(7), List format), up to what no machine has. Raises ValueError for anything else."""
    found: set[int] = set()
    for part in text.strip().split(","):
        if not (ends := CPUS.fullmatch(part.strip())):
            raise ValueError(f"{text!r} is no list of CPUs")
        found.update(range(int(ends[1]), min(int(ends[2] or ends[1]), MOST_CPUS) + 1))
    return frozenset(found)


def _weight(value: int | str, name: str) -> int:
    return number(value, name, least=WEIGHTS[0], most=WEIGHTS[1])


def _pids(value: int | str, name: str) -> int:
    return number(value, name, least=1, most=MOST_PIDS, unlimited=True, why="the first process counts, and the kernel numbers no more")


def _rates(one: Callable[[Any, str], int]) -> Callable[[Mapping[str, Any], str], dict[str, int]]:
    def parse(value: Mapping[str, Any], name: str) -> dict[str, int]:
        return {nodes.disk(path): one(rate, f"{name}[{path}]") for path, rate in _mapping(value, name, "the path of a disk", "/dev/vda").items()}

    return parse


def _bytes(value: Size, name: str) -> int:
    return size(value, name, least=1)


def _operations(value: int | str, name: str) -> int:
    return number(value, name, least=1, most=2**32 - 1, unlimited=True)


def _hugetlb(value: Mapping[str, Size], name: str) -> dict[str, int]:
    found = {}
    for page, limit in _mapping(value, name, "a size of page", "2MB").items():
        length = size(page, f"{name}: page", least=1)
        sizes = [1024 * int(entry.removeprefix("hugepages-").removesuffix("kB")) for entry in os.listdir(HUGE_PAGES)] if HUGE_PAGES.exists() else []
        if length not in sizes:
            raise UsageError(f"{name}: pages of {page!r}: this machine has huge pages of {', '.join(map(page_name, sorted(sizes))) or 'no size'}")
        amount = size(limit, f"{name}[{page}]")
        if amount != UNLIMITED and amount % length:
            raise UsageError(f"{name}[{page}]={limit!r}: a limit is a number of whole pages")
        found[page_name(length)] = amount
    return found


def page_name(length: int) -> str:
    """2MB for a page of 2 << 20 bytes, as in the names of the kernel's files (mem_fmt, mm/hugetlb_cgroup.c)."""
    unit, text = next((unit, text) for unit, text in ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB")) if length >= unit)
    return f"{length // unit}{text}"


def _mapping(value: Mapping[str, Any], name: str, key: str, example: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not value:
        raise UsageError(f"{name}={value!r}: it gives a limit for {key}: {{{example!r}: '1M'}}")
    return value


def _devices(value: Sequence[str], name: str) -> tuple[nodes.Rule, ...]:
    return nodes.parse(value)


PARSERS: dict[str, Callable[[Any, str], Any]] = {
    "memory": _memory,
    "swap": size,
    "cpus": _cpus,
    "cpu_weight": _weight,
    "cpuset": _cpuset,
    "pids": _pids,
    "read_bps": _rates(_bytes),
    "write_bps": _rates(_bytes),
    "read_iops": _rates(_operations),
    "write_iops": _rates(_operations),
    "io_weight": _weight,
    "devices": _devices,
    "hugetlb": _hugetlb,
}
