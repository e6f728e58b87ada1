"""Machines with both versions of cgroups: crun starts nothing while version 2 has a controller there ("cgroups in hybrid mode not supported")."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from kernel_lab.kernel.calls import syscall
from kernel_lab.kernel.flags import CLONE, MNT, MS

T = TypeVar("T")
V2 = Path("/sys/fs/cgroup/unified")


@contextmanager
def without_v2(call: Callable[[Sequence[str]], T]) -> Iterator[Callable[[Sequence[str]], T]]:
    """What runs commands, by `call`, where cgroup version 2 is out of sight, if it is one of two here.

    A thread that has left the mount namespace of the others (unshare(2)) starts them. A program in between would do as well, but its time would
    be counted.
    """
    controllers = V2 / "cgroup.controllers"
    # An ordinary user cannot leave it, and then crun says itself what it lacks.
    if os.geteuid() or not controllers.exists() or not controllers.read_text().strip():
        yield call
        return
    with ThreadPoolExecutor(1, initializer=_leave) as thread:
        yield lambda words: thread.submit(call, words).result()


def _leave() -> None:
    syscall("unshare", int(CLONE.NEWNS))
    syscall("mount", None, b"/", None, int(MS.REC | MS.PRIVATE), None)
    syscall("umount2", bytes(V2), int(MNT.DETACH))
