"""Whose a layer's files are: in its archive by the container's numbers, on the disk of an ordinary user all that user's own."""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress

from kernel_lab.images.unpack import Owner
from kernel_lab.kernel import procfs
from kernel_lab.kernel.errors import UsageError
from kernel_lab.namespaces.user import Map, User

NOBODY = 65534  # /proc/sys/kernel/overflowuid and overflowgid, which nobody changes


def on_disk() -> Owner | None:
    """From an archive's owners to those on the disk: for root the same, for an ordinary user always that user, whom its containers call root."""
    if os.geteuid() == 0:
        return None
    return lambda uid, gid: (os.geteuid(), os.getegid())


def in_archive() -> Owner | None:
    """The way back, also of what a container with ids of /etc/subuid has written. Raises UsageError for a file of anybody else's."""
    if os.geteuid() == 0:
        return None
    user = User()
    with suppress(UsageError):  # nobody has granted any
        user = User.subordinate()
    uid_of, gid_of = _inside(user.uids, "user"), _inside(user.gids, "group")
    return lambda uid, gid: (uid_of(uid), gid_of(gid))


def of_process(pid: int) -> Owner:
    """As the user namespace of a process has them; who has no number in it is shown there as the kernel's nobody."""
    uid_of, gid_of = _shown(procfs.uid_map(pid)), _shown(procfs.gid_map(pid))
    return lambda uid, gid: (uid_of(uid), gid_of(gid))


def _shown(ranges: Iterable[procfs.IdRange]) -> Callable[[int], int]:
    found = [(line.inside, line.outside, line.length) for line in ranges]
    return lambda number: next((inside + number - first for inside, first, count in found if first <= number < first + count), NOBODY)


def _inside(ranges: Map, what: str) -> Callable[[int], int]:
    def inside(number: int) -> int:
        for start, outside, count in ranges:
            if outside <= number < outside + count:
                return start + number - outside
        raise UsageError(f"a file belongs to the {what} {number}, who is nobody in a container of yours; give it to yourself, or leave it out")

    return inside
