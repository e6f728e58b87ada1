"""This process, as its containers know it: a descriptor that tells when it has ended."""

import os

from kernel_lab.kernel.flags import POLL
from kernel_lab.kernel.structs import Struct
from kernel_lab.kernel.structs import pollfd as _pollfd

_descriptors: dict[int, int] = {}


def descriptor() -> int:
    """A pidfd of this process itself. Kept for as long as it lives; a fork is another process and gets its own."""
    pid = os.getpid()
    if pid not in _descriptors:
        for number in _descriptors.values():
            os.close(number)
        _descriptors.clear()
        _descriptors[pid] = os.pidfd_open(pid)
    return _descriptors[pid]


def pollfd() -> Struct:
    """What poll(2) needs to ask whether this process has ended."""
    return Struct(_pollfd(descriptor(), POLL.IN).data, "{creator, POLLIN}")
