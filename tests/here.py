"""Parts and roots that work for whoever runs the tests: root of the machine, or an ordinary user in a user namespace of its own."""

import os
from functools import cache
from pathlib import Path

from kernel_lab import Part, User, rootfs

IS_ROOT = os.geteuid() == 0


def users() -> tuple[Part, ...]:
    """What an ordinary user's containers need besides."""
    return () if IS_ROOT else (User(),)


@cache
def busybox() -> Path:
    """The busybox root."""
    return rootfs.busybox()


def state(pid: int) -> str:
    """The letter of a process's state in /proc, empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    return state(pid) in ("", "Z", "X")
