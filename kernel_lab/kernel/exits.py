"""How a process has ended: from wait(2), or where somebody else has been told already, from its descriptor."""

import fcntl
import os
import select
import struct
from contextlib import suppress
from errno import ECHILD

from kernel_lab.kernel.errors import KernelError

# linux/pidfd.h: struct pidfd_info as it was at first begins with a mask of what is asked and answered, and ends with the status.
PIDFD_GET_INFO = 0xC040FF0B
PIDFD_INFO_EXIT = 1 << 3
_INFO = struct.Struct("@Q52xi")
PATIENCE = 1.0  # seconds


def exit_code(pidfd: int) -> int | None:
    """The exit code of a child, or 128 + the number of the signal that ended it; None while it runs. It is reaped.

    The kernel itself reaps the children of a process that ignores SIGCHLD, and a thread that waits for any child those of the others. Then the
    descriptor is asked, which knows from Linux 6.15 on. Raises KernelError when it does not.
    """
    try:
        status = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return _remembered(pidfd)
    if status is None:
        return None
    return status.si_status if status.si_code == os.CLD_EXITED else 128 + status.si_status


def taken() -> KernelError:
    """The error of an exit code that somebody else has been told, and that nobody remembers."""
    return KernelError(
        ECHILD,
        "waitid(P_PIDFD)",
        rule="the exit code has been taken: this process ignores SIGCHLD, or another of its threads waits for any child (wait(2)).",
        look="Let SIGCHLD have its default, and wait for other children by their numbers.",
    )


def _remembered(pidfd: int) -> int | None:
    if not _says(pidfd, select.POLLIN):
        return None  # it runs, and is no child: this process is a fork of its parent
    mask, status = _info(pidfd)
    # It is nobody's child a moment before its end is written down; then the descriptor hangs up (exit_notify, release_task in kernel/exit.c).
    if mask and not mask & PIDFD_INFO_EXIT and _says(pidfd, select.POLLHUP, PATIENCE):
        mask, status = _info(pidfd)
    if not mask & PIDFD_INFO_EXIT:
        raise taken()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _info(pidfd: int) -> tuple[int, int]:
    """What there is to say of a process, as a mask, and its wait status; no mask where the kernel does not know the question."""
    with suppress(OSError):
        mask, status = _INFO.unpack(fcntl.ioctl(pidfd, PIDFD_GET_INFO, _INFO.pack(PIDFD_INFO_EXIT, 0)))
        return mask, status
    return 0, 0


def _says(pidfd: int, event: int, seconds: float = 0.0) -> bool:
    poll = select.poll()
    poll.register(pidfd, event)
    return bool(poll.poll(1000 * seconds))
