"""Where in the tree of version 2 groups are made: root's at its top, an ordinary user's in the part that systemd has handed over to it.

Two of the kernel's rules decide (cgroups(7)). A group hands controllers on to the groups in it, and so does every group above, from the top down.
And a group that hands on holds no processes itself, but for the topmost.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from kernel_lab.cgroups import files
from kernel_lab.cgroups.hierarchies import Hierarchy, unified
from kernel_lab.kernel.errors import UsageError

CREATORS = "klab-creators"  # where those go who were in the delegated group itself; it goes with that
ROUNDS = 100
SCOPE = "systemd-run --user --scope -p Delegate=yes klab …, or jupyter lab in the place of klab"
BOOT = "systemd.unified_cgroup_hierarchy=1 on the kernel's command line"
HANDED_ON = "/etc/systemd/system/user@.service.d/delegate.conf with [Service] Delegate=cpu cpuset io memory pids, then systemctl daemon-reload"


class Delegation(NamedTuple):
    """Whether this user may make groups in version 2; what was found; and what mends it."""

    there: bool
    detail: str
    mend: str


def base(hierarchy: Hierarchy) -> str:
    """The directory in which this user's groups are made. Raises UsageError where there is none."""
    if os.access(hierarchy.point, os.W_OK):
        return hierarchy.point
    own = hierarchy.own()
    own = os.path.dirname(own) if os.path.basename(own) == CREATORS else own
    needed = ("", "cgroup.procs", "cgroup.subtree_control")
    if all(os.access(os.path.join(own, file), os.W_OK) for file in needed):
        return own
    if os.geteuid() == 0:
        raise UsageError(f"cgroup v2: not even root may write to {own}: {_writable(hierarchy)}; a container around needs to be privileged")
    raise UsageError(f"cgroup v2: {own}, where this process is, has not been delegated to user {os.geteuid()}: {SCOPE}")


def _writable(hierarchy: Hierarchy) -> str:
    return f"mount -o remount,rw {hierarchy.point}"


def look(wanted: Iterable[str] = ("cpu", "cpuset", "io", "memory", "pids")) -> Delegation:
    """What `klab doctor` says of it; `wanted`: the controllers that limits need."""
    hierarchy = unified()
    if hierarchy is None:
        return Delegation(os.geteuid() == 0, "no cgroup v2 is mounted, and in v1 only root makes groups", "" if os.geteuid() == 0 else BOOT)
    try:
        directory = base(hierarchy)
    except UsageError:
        return Delegation(False, f"{hierarchy.own()} cannot be written to", SCOPE if os.geteuid() else _writable(hierarchy))
    lacking = [name for name in wanted if name not in handed_to(directory)]
    if not lacking or os.geteuid() == 0:
        return Delegation(True, f"groups are made in {directory}", "")
    return Delegation(False, f"{directory} has not been handed {', '.join(lacking)}", f"as root, {HANDED_ON}")


def handed_to(directory: str) -> list[str]:
    """The controllers that a group may hand on."""
    return files.read(f"{directory}/cgroup.controllers").split()


def check(directory: str, controllers: Iterable[str]) -> None:
    """Raises UsageError when a group cannot hand these controllers on."""
    handed = handed_to(directory)
    if lacking := [name for name in controllers if name not in handed]:
        has = " ".join(handed) or "no controller"
        raise UsageError(f"{', '.join(lacking)}: {directory} has been handed {has} (cgroup.controllers): as root, {HANDED_ON}")


def hand_on(directory: str, controllers: Iterable[str]) -> None:
    """Has a group hand these controllers on to those that are made in it; the processes that it holds go into one of these. Raises KernelError."""
    control = f"{directory}/cgroup.subtree_control"
    already = files.read(control).split()
    if lacking := [name for name in controllers if name not in already]:
        # The topmost group alone has no cgroup.type, and may hold processes all the same.
        if os.path.exists(f"{directory}/cgroup.type"):
            _empty(directory)
        files.write(control, " ".join(f"+{name}" for name in lacking))


def _empty(directory: str) -> None:
    inside = f"{directory}/{CREATORS}"
    for _ in range(ROUNDS):  # one of them may be forking
        if not (pids := files.read(f"{directory}/cgroup.procs").split()):
            return
        os.makedirs(inside, exist_ok=True)
        for pid in pids:
            with suppress(ProcessLookupError):  # it has ended
                files.write_bytes(f"{inside}/cgroup.procs", pid.encode())
