"""The ten subsystems of control groups as they were when containers became popular, and what has become of each."""

from typing import NamedTuple

from kernel_lab.cgroups.hierarchies import find, missing, unified
from kernel_lab.kernel.table import Table


class Subsystem(NamedTuple):
    """One of them: what it does, where it is on this machine, and what does the same in version 2."""

    name: str
    does: str
    here: str
    in_version_2: str


# Name, what it does, what it became. Documentation/admin-guide/cgroup-v1 and cgroup-v2.
TEN = (
    ("blkio", "limits and counts reading and writing of disks", "io"),
    ("cpu", "shares processor time by weight, and caps it", "cpu"),
    ("cpuacct", "counts processor time", "cpu.stat, in every group"),
    ("cpuset", "pins to processors and memory nodes", "cpuset"),
    ("devices", "allows and forbids devices", "an eBPF program attached to the group"),
    ("freezer", "stops all processes, and lets them go on", "cgroup.freeze, in every group"),
    ("memory", "limits and counts memory", "memory"),
    ("net_cls", "marks packets by the group that sent them", "eBPF, and the socket cgroupv2 match of nftables"),
    ("ns", "made a group for every new namespace", "the cgroup namespace"),
    ("perf_event", "lets perf count one group alone", "perf_event, implicit: any group"),
)
# In no list of controllers, since every group of version 2 has it.
IMPLICIT = frozenset({"cpuacct", "devices", "freezer", "perf_event"})


def subsystems() -> Table[Subsystem]:
    """All ten."""
    return Table(Subsystem(name, does, _here(name), became) for name, does, became in TEN)


def _here(name: str) -> str:
    if name == "ns":
        return "in no kernel since Linux 3.0"
    successor = "io" if name == "blkio" else name
    if found := find(name) or find(successor):
        return str(found)
    if name in IMPLICIT and (hierarchy := unified()):
        return f"{hierarchy}, as on the right"
    return missing(name).partition(":")[0]
