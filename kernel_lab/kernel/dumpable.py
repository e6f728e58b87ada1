"""When others of this user may look into the creator's memory, which its children share until their execve (PR_SET_DUMPABLE, prctl(2)).

A child that joins a running container could be opened from inside there, through /proc/PID/mem or ptrace, and with it the creator (the class
of CVE-2016-9962): while there is such a child, the creator is closed. But a closed process's files in /proc belong to root, and a child that
writes its own user map there as an ordinary user would be refused: so the two kinds of start wait for one another.

A child that changes its ids makes the kernel close the memory that it shares (commit_creds, kernel/cred.c). Root's may, since no file in /proc
refuses root; it is opened again afterwards. An ordinary user's would keep other threads' children from their maps: they get memory of their own
(`starting.Table.executor`).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from kernel_lab.kernel.calls import dumpable, set_dumpable

_change = threading.Condition()
_inside = {"open": 0, "closed": 0}
_before = True


@contextmanager
def closed() -> Iterator[None]:
    """Nobody of this user's may open this process."""
    with _as("closed", "open"):
        yield


@contextmanager
def kept() -> Iterator[None]:
    """This process is as open as it was: a child writes its own map there, or it is opened again after one of root's that changes its ids."""
    with _as("open", "closed"):
        yield


@contextmanager
def _as(mode: str, other: str) -> Iterator[None]:
    global _before
    with _change:
        _change.wait_for(lambda: not _inside[other])
        if not _inside[mode]:
            _before = dumpable()
        _inside[mode] += 1
        if mode == "closed":
            set_dumpable(False)
    try:
        yield
    finally:
        with _change:
            _inside[mode] -= 1
            if not _inside[mode] or mode == "open":
                set_dumpable(_before)
            if not _inside[mode]:
                _change.notify_all()
