"""What is used of the machine's memory: by all, by the kernel, and by processes (proc_meminfo(5), proc_pid_smaps(5))."""

import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from kernel_lab.kernel import procfs

KILOBYTE = 1 << 10
# What the kernel takes for itself. Slab: namespaces, groups, mounts, inodes; Percpu: counters of groups and networks, a copy for each processor.
KERNELS = ("Slab", "KernelStack", "PageTables", "Percpu")


class Memory(NamedTuple):
    """Bytes at one moment. `used`: what a new program could not have; `kernel`: what of it the kernel has taken for itself."""

    used: int
    kernel: int
    available: int

    @classmethod
    def now(cls) -> "Memory":
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        amounts = {name: int(value.split()[0]) * KILOBYTE for name, value in fields.items()}
        available = amounts["MemAvailable"]
        return cls(amounts["MemTotal"] - available, sum(amounts.get(name, 0) for name in KERNELS), available)


def proportional(pids: Iterable[int]) -> int:
    """The memory of processes in bytes; what several share is divided among them (Pss). Of one that has ended, nothing."""
    total = 0
    for pid in pids:
        with suppress(OSError, ProcessLookupError):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * KILOBYTE
    return total


def processes() -> frozenset[int]:
    """Every process that there is."""
    return frozenset(int(name) for name in os.listdir("/proc") if name.isdigit())


def belonging(new: Collection[int]) -> set[int]:
    """Of these processes, those that descend from this one, or from process 1: whose child a daemon is, once it has left itself behind.

    Those of others, which have come meanwhile, descend from what was there before. A dead one that process 1 has not come to yet does not count.
    """
    return {pid for pid in new if _ancestor(pid, new) in (1, os.getpid())}


def _ancestor(pid: int, new: Collection[int]) -> int:
    """The first of its ancestors that is not new; 0 where it has ended."""
    try:
        if procfs.process(pid).state == "Z":
            return 0
        while pid in new:
            pid = procfs.process(pid).parent
    except OSError:
        return 0
    return pid
