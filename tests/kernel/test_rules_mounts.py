"""Refusals of mount, umount2 and pivot_root: each provoked for real, each explained by the rule that was broken."""

from errno import EBUSY, EINVAL, ENODEV, ENOENT, ENOTDIR, EPERM
from pathlib import Path

import pytest
from refusals import FILE, HERE, NEWNS, NEWUSER, PRIVATE, case, check, directory, mapped, tmpfs

from kernel_lab.kernel.flags import CLONE, MNT, MS, O
from kernel_lab.kernel.memory import DONE, clone_args
from kernel_lab.kernel.program import Row, Words, call
from kernel_lab.kernel.rules import Context

BOTH = NEWUSER | NEWNS
IN_USER = call("unshare", BOTH)
READ_ONLY = Words((1, 0, 0, 0), "{read only}")
INNER = BOTH | CLONE.NEWPID

CASES = {
    "the parent's mounts": case(NEWUSER, EPERM, lambda t: [tmpfs(t)], "Add Mount()"),
    "proc of the host": case(BOTH, EPERM, lambda t: [call("mount", "proc", "/proc", "proc", MS.NOSUID)], "Add PID()", "mount_namespaces(7)"),
    "sysfs of the host": case(BOTH, EPERM, lambda t: [call("mount", "sysfs", t, "sysfs", MS.NOSUID)], "Add Net()"),
    "mqueue of the host": case(BOTH, EPERM, lambda t: [call("mount", "mqueue", t, "mqueue", MS.NOSUID)], "Add IPC()"),
    "proc that would show more": case(
        NEWNS,
        EPERM,
        lambda t: [
            PRIVATE,
            call("mount", "/dev/null", "/proc/cmdline", None, MS.BIND),
            call("clone3", clone_args(INNER, DONE, 17), 88, positive="parent"),
            call("mount", "proc", "/proc", "proc", MS.NOSUID),
            call("wait4", -1, None, 0, None, label="parent"),
        ],
        "must not show more than is visible already",
        context=Context(INNER),
        at=3,
    ),
    "a file system for root alone": case(BOTH, EPERM, lambda t: [call("mount", "none", t, "devtmpfs", 0)], "devtmpfs is not among", "as root"),
    "locked settings": case(
        NEWNS,
        EPERM,
        lambda t: [PRIVATE, tmpfs(t), IN_USER, call("mount", None, t, None, MS.REMOUNT | MS.BIND)],
        "locked",
        "Repeat in the remount every flag",
    ),
    "a tree without what is locked below": case(
        NEWNS, EINVAL, lambda t: [PRIVATE, IN_USER, call("mount", "/", t, None, MS.BIND)], "locked mounts below it", "MS_REC"
    ),
    "a locked mount": case(BOTH, EINVAL, lambda t: [call("umount2", "/proc", MNT.DETACH)], "locked with the user namespace"),
    "no mount": case(BOTH, EINVAL, lambda t: [call("umount2", t, 0)], "this is no mount point"),
    "propagation of no mount": case(BOTH, EINVAL, lambda t: [call("mount", None, t, None, MS.PRIVATE)], "only a mount point has a propagation"),
    "two propagations": case(BOTH, EINVAL, lambda t: [call("mount", None, "/", None, MS.PRIVATE | MS.SLAVE)], "exactly one of"),
    "remount of no mount": case(BOTH, EINVAL, lambda t: [call("mount", None, t, None, MS.REMOUNT | MS.BIND | MS.RDONLY)], "can be remounted"),
    "move of no mount": case(BOTH, EINVAL, lambda t: [directory(f"{t}/to"), call("mount", t, f"{t}/to", None, MS.MOVE)], "what is moved is a mount"),
    "an unknown option": case(BOTH, EINVAL, lambda t: [tmpfs(t, options="no_such_option=1")], "does not know one of its options"),
    "an unknown file system": case(BOTH, ENODEV, lambda t: [call("mount", "x", t, "nosuchfs", 0)], "'nosuchfs'", "/proc/filesystems"),
    "no such place": case(BOTH, ENOENT, lambda t: [tmpfs(f"{t}/nowhere")], "both must exist"),
    "a directory on a file": case(BOTH, ENOTDIR, lambda t: [call("mount", t, "/etc/passwd", None, MS.BIND)], "a file on a file"),
    "in use": case(BOTH, EBUSY, lambda t: [tmpfs(t), call("chdir", t), call("umount2", t, 0)], "in use", "MNT_DETACH"),
    "open for writing": case(
        BOTH,
        EBUSY,
        lambda t: [
            *mapped(),
            tmpfs(t),
            call("openat", HERE, f"{t}/file", O.CREAT | O.WRONLY, 0o644, into=FILE),
            call("mount", None, t, None, MS.REMOUNT | MS.RDONLY),
        ],
        "open for writing",
    ),
    "attributes of no mount": case(BOTH, EINVAL, lambda t: [call("mount_setattr", HERE, t, 0, READ_ONLY, 32)], "set on a mount point"),
    "a root that is no mount": case(
        NEWNS,
        EINVAL,
        lambda t: [PRIVATE, tmpfs(t), directory(f"{t}/root"), call("pivot_root", f"{t}/root", f"{t}/root")],
        "the new root is not a mount point",
        "bind it onto itself",
    ),
    "a directory of the present root": case(
        NEWNS,
        EBUSY,
        lambda t: [
            PRIVATE,
            tmpfs(t),
            directory(f"{t}/sub"),
            call("chdir", t),
            call("pivot_root", ".", "."),
            call("umount2", ".", MNT.DETACH),
            call("pivot_root", "/sub", "/sub"),
        ],
        "on the same mount as the present root",
    ),
    "shared propagation": case(
        NEWNS,
        EINVAL,
        lambda t: [PRIVATE, call("mount", None, "/", None, MS.REC | MS.SHARED), tmpfs(t), call("pivot_root", t, t)],
        "shared propagation",
        "MS_REC|MS_PRIVATE",
    ),
    "an old root elsewhere": case(
        NEWNS,
        EINVAL,
        lambda t: [PRIVATE, tmpfs(t), *(row for name in "ab" for row in two(f"{t}/{name}")), call("pivot_root", f"{t}/a", f"{t}/b")],
        "at or below the new root",
        "/a/old",
    ),
    "a root that is a file": case(NEWNS, ENOTDIR, lambda t: [PRIVATE, call("pivot_root", "/etc/passwd", "/etc/passwd")], "are directories"),
    "a root that is nowhere": case(NEWNS, ENOENT, lambda t: [PRIVATE, call("pivot_root", f"{t}/none", f"{t}/none")], "does not exist"),
}


def two(path: str) -> list[Row]:
    """A directory, and a file system on it."""
    return [directory(path), tmpfs(path)]


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_is_explained(name: str, tmp_path: Path) -> None:
    check(CASES[name], str(tmp_path))
