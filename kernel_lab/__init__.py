"""Containers, built from system calls, with the kernel as the proof."""

from kernel_lab.capture import Result
from kernel_lab.cgroups.part import Cgroup
from kernel_lab.container import Container
from kernel_lab.kernel.errors import KernelError, UsageError
from kernel_lab.kernel.program import Buffer, Handle, Program, Row, call
from kernel_lab.namespaces.cgroupns import CgroupNS
from kernel_lab.namespaces.ipc import IPC
from kernel_lab.namespaces.mnt import Bind, Mount
from kernel_lab.namespaces.net import Net
from kernel_lab.namespaces.part import Part
from kernel_lab.namespaces.pid import PID
from kernel_lab.namespaces.timens import Time
from kernel_lab.namespaces.user import User
from kernel_lab.namespaces.uts import UTS
from kernel_lab.refusals import CommandError
from kernel_lab.unionfs.aufs import Aufs
from kernel_lab.unionfs.branches import Branch
from kernel_lab.unionfs.overlay import Overlay

__all__ = [
    "IPC",
    "PID",
    "UTS",
    "Aufs",
    "Bind",
    "Branch",
    "Buffer",
    "Cgroup",
    "CgroupNS",
    "CommandError",
    "Container",
    "Handle",
    "KernelError",
    "Mount",
    "Net",
    "Overlay",
    "Part",
    "Program",
    "Result",
    "Row",
    "Time",
    "UsageError",
    "User",
    "call",
]
