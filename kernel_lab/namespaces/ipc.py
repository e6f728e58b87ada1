"""IPC: System V queues, semaphores and shared memory, and POSIX queues, of its own (ipc_namespaces(7))."""

from kernel_lab.kernel.flags import CLONE
from kernel_lab.namespaces.part import Part


class IPC(Part):
    """An IPC namespace. It is empty at first, and everything in it goes with its last process: there is nothing to do but ask for it."""

    flags = CLONE.NEWIPC
