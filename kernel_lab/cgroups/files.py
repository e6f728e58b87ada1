"""The files of a group: reading, writing, and what it means when the kernel refuses."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from errno import EACCES, EBUSY, EINVAL, ENODEV, ENOENT, EPERM, ERANGE

from kernel_lab.kernel import rules
from kernel_lab.kernel.errors import KernelError
from kernel_lab.kernel.flags import AT_FD
from kernel_lab.kernel.program import call


@dataclass(frozen=True)
class Refusal:
    """Why a write is refused: for files whose names begin so, and these errnos."""

    file: str
    errnos: tuple[int, ...]
    rule: str
    look: str


GONE = "the group is gone: its container has ended."
# The words for those refusals that the files alone can explain; `rules` knows the rest.
REFUSALS = (
    Refusal("memory.limit_in_bytes", (EBUSY,), "the group uses more than that, and the kernel could not take enough back.", "See memory.stat."),
    Refusal("memory.", (EINVAL,), "version 1 wants the limit of memory and swap together never below that of memory.", "See memory.memsw.*."),
    Refusal("cpu.cfs_quota_us", (EINVAL,), "in version 1 no group may have more than the one above it.", "See cpu.cfs_quota_us of the groups above."),
    Refusal("cpuset.", (EACCES, EINVAL, ERANGE), "a group has only CPUs and memory nodes that the one above it has.", "See cpuset.cpus above it."),
    Refusal("devices.allow", (EPERM,), "in version 1 a group cannot allow what the one above it denies.", "See devices.list of the groups above."),
    Refusal("blkio.", (ENODEV,), "limits of io are for whole disks.", "See lsblk."),
    Refusal("io.", (ENODEV,), "limits of io are for whole disks.", "See lsblk."),
    Refusal("cgroup.subtree_control", (ENOENT, EINVAL), "a group hands on what it has been handed itself.", "See its cgroup.controllers."),
    Refusal("cgroup.kill", (ENOENT,), "cgroup.kill came with Linux 5.14.", "See uname -r."),
    Refusal("", (ENOENT,), "this kernel was built without that limit, or the group lacks the controller.", "See ls of the group's directory."),
)  # fmt: skip


def write(path: str, text: str) -> None:
    """Writes into a file of the kernel's, in one go. Raises KernelError."""
    try:
        write_bytes(path, text.encode())
    except OSError as error:
        raise refused(path, text, error.errno or 0) from None


def write_bytes(path: str, data: bytes) -> None:
    """`write` of what is prepared already, with the bare OSError."""
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, data)
    finally:
        os.close(file)


def refused(path: str, text: str, errno: int) -> KernelError:
    """The error of a refused write."""
    row = call("write", path, text)
    if errno == ENOENT and not os.path.isdir(os.path.dirname(path)):
        return KernelError(errno, str(row), row=row, rule=GONE)
    known = (one for one in REFUSALS if os.path.basename(path).startswith(one.file) and errno in one.errnos)
    if found := next(known, None):
        return KernelError(errno, str(row), row=row, rule=found.rule, look=found.look)
    return rules.refused(row, None, errno)


def not_made(path: str, errno: int) -> KernelError:
    """The error of a group that could not be made."""
    return rules.refused(call("mkdirat", AT_FD.FDCWD, path, 0o755), None, errno)


def read(path: str) -> str:
    """What a file holds, without the line's end. Raises FileNotFoundError where the group, or the file in it, does not exist."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = []
        while chunk := os.read(file, 1 << 16):
            chunks.append(chunk)
        return b"".join(chunks).decode().rstrip("\n")
    finally:
        os.close(file)


def read_number(path: str, unlimited: int) -> int:
    """The number in a file; `max`, and what version 1 has instead (the largest number of whole pages), is `unlimited`."""
    text = read(path)
    return unlimited if text == "max" or int(text) > unlimited - (1 << 20) else int(text)


def numbers(path: str) -> dict[str, int]:
    """The lines `name number` of a file."""
    return dict(_pairs(read(path).splitlines()))


def _pairs(lines: Iterable[str]) -> Iterable[tuple[str, int]]:
    for line in lines:
        name, _, value = line.partition(" ")
        if value.isdecimal():
            yield name, int(value)
