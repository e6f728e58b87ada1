"""What is used of the machine's memory: by all, by the kernel, and by processes (proc_meminfo(5), proc_pid_smaps(5))."""

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from kernel_lab.kernel import procfs

KILOBYTE, MEGABYTE = 1 << 10, 1 << 20
HYPERVISOR = Path("/sys/hypervisor/type")
XL = re.compile(r"^(total|free)_memory +: (\d+)$", re.MULTILINE)
# What the kernel takes for itself. Slab: namespaces, groups, mounts, inodes; Percpu: counters of groups and networks, a copy for each processor.
KERNELS = ("Slab", "KernelStack", "PageTables", "Percpu")


class Memory(NamedTuple):
    """Bytes at one moment. `used`: what a new program, or machine, could not have; `kernel`: what of it the kernel has taken for itself.

    In the first guest of Xen that is all the machine's memory: what other guests have is not this kernel's, and has been taken all the same.
    """

    used: int
    kernel: int
    available: int

    @classmethod
    def now(cls) -> "Memory":
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        amounts = {name: int(value.split()[0]) * KILOBYTE for name, value in fields.items()}
        total, free = _of_xen() or (amounts["MemTotal"], 0)
        available = amounts["MemAvailable"] + free
        others = total - free - amounts["MemTotal"]
        return cls(total - available, sum(amounts.get(name, 0) for name in KERNELS) + others, available)


def below_is_xen() -> bool:
    """Whether this kernel is a guest of Xen's (Documentation/ABI/stable/sysfs-hypervisor-xen)."""
    return HYPERVISOR.exists() and HYPERVISOR.read_text().strip() == "xen"


def _of_xen() -> tuple[int, int] | None:
    """All of the machine's memory, and what no guest has of it (xl(1)); nothing where no hypervisor says so."""
    if not (below_is_xen() and shutil.which("xl")):
        return None
    said = subprocess.run(["xl", "info"], capture_output=True, text=True).stdout
    found = {name: int(amount) * MEGABYTE for name, amount in XL.findall(said)}
    return (found["total"], found["free"]) if len(found) == 2 else None


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
