"""Why a file system is not mounted, or a root not changed (mount(2), pivot_root(2), mount_namespaces(7))."""

import posixpath
from errno import EACCES, EBUSY, EINVAL, ELOOP, ENODEV, ENOENT, ENOSPC, ENOTBLK, ENOTDIR, EPERM, EROFS

from kernel_lab.kernel.errors import Asked
from kernel_lab.kernel.flags import CAP, CLONE, MS
from kernel_lab.kernel.rules.machine import Context, below, text, value
from kernel_lab.kernel.rules.rule import Rule, When, Why, found, says

CALLS = "mount umount2 pivot_root open_tree move_mount mount_setattr fsopen fsmount fsconfig"
PROPAGATION = MS.PRIVATE | MS.SLAVE | MS.SHARED | MS.UNBINDABLE
# A file system that shows a namespace is mounted only by the owner of that namespace.
SHOWS = {"proc": (CLONE.NEWPID, "PID"), "sysfs": (CLONE.NEWNET, "Net"), "mqueue": (CLONE.NEWIPC, "IPC"), "cgroup2": (CLONE.NEWCGROUP, "CgroupNS")}
# Those with FS_USERNS_MOUNT in the kernel's sources.
FOR_EVERYBODY = {"proc", "sysfs", "tmpfs", "ramfs", "devpts", "mqueue", "cgroup", "cgroup2", "overlay", "fuse", "binder", "bpf"}


def mode(*flags: MS) -> When:
    """Whether the row is a mount with one of these flags."""
    return lambda row, context: row.call == "mount" and any(value(row, 3) & flag for flag in flags)


def fresh(row: Asked) -> str:
    """The file system that the row would mount anew; nothing when it only changes or moves mounts."""
    return "" if value(row, 3) & (MS.BIND | MS.MOVE | MS.REMOUNT | PROPAGATION) else text(row, 2)


def _foreign(row: Asked, context: Context) -> Why | None:
    kind = fresh(row)
    if not context.mapped or kind not in SHOWS or context.made(SHOWS[kind][0]):
        return None
    part = SHOWS[kind][1]
    return Why(
        f"in a user namespace, {kind} is mounted only by the owner of the namespace that it shows, here the host's (mount_namespaces(7)).",
        f"Add {part}(), or bind the host's own in its place.",
    )


def _revealing(row: Asked, context: Context) -> Why | None:
    kind = fresh(row)
    if not context.mapped or kind not in ("proc", "sysfs"):
        return None
    place = "/proc" if kind == "proc" else "/sys"
    return Why(
        f"a new {kind} must not show more than is visible already, and an outer container has mounted something over parts of {place}"
        " (mount_namespaces(7), kernel: mount_too_revealing).",
        f"See the mounts below {place} in /proc/self/mountinfo; bind {place} with MS_REC, or start the outer container with it unmasked.",
    )


def _closed(row: Asked, context: Context) -> Why | None:
    kind = fresh(row)
    if not context.mapped or not kind or kind in FOR_EVERYBODY:
        return None
    return Why(
        f"{kind} is not among the file systems that may be mounted in a user namespace (user_namespaces(7)).",
        "Mount it outside as root, and bind it into the container.",
    )


def _no_own_mounts(row: Asked, context: Context) -> bool:
    return context.mapped and not context.made(CLONE.NEWNS)


def _unprivileged(row: Asked, context: Context) -> bool:
    return not context.mapped and not context.machine.capable(CAP.SYS_ADMIN)


def _unknown(row: Asked, context: Context) -> Why:
    kind = text(row, 2) if row.call == "mount" else text(row, 0)
    return Why(
        f"this kernel knows no file system {kind!r}, and found no module for it (mount(2)).", f"See /proc/filesystems; as root, modprobe {kind}."
    )


def _was_made_private(context: Context) -> bool:
    changes = [row for row in context.before if row.call == "mount" and text(row, 1) == "/" and value(row, 3) & PROPAGATION]
    return bool(changes) and not value(changes[-1], 3) & MS.SHARED


def _new_root(row: Asked, context: Context) -> str:
    root, cwd = context.tree()
    return below(root, posixpath.join(cwd, text(row, 0)))


def _was_mounted(path: str, context: Context) -> bool:
    for position, row in enumerate(context.before):
        root, cwd = Context(before=context.before[:position]).tree()
        at = {"mount": 1, "move_mount": 3}.get(row.call)
        if at is not None and not value(row, 3) & PROPAGATION and below(root, posixpath.join(cwd, text(row, at))) == path:
            return True
    return False


def _pivot(row: Asked, context: Context) -> Why:
    new, old = text(row, 0), text(row, 1)
    if context.machine.ram_root:
        return Why(
            "the root is the kernel's first file system (rootfs, an initramfs), which no process can leave by pivot_root (pivot_root(2)).",
            "Use mount with MS_MOVE onto / and then chroot, as switch_root(8) does.",
        )
    if new.startswith("/") and old.startswith("/") and not (old.rstrip("/") + "/").startswith(new.rstrip("/") + "/"):
        return Why(f"the place of the old root, {old}, must be at or below the new root, {new} (pivot_root(2)).", f'Use "{new.rstrip("/")}/old".')
    if not _was_made_private(context):
        return Why(
            "neither the parent mount of the new root nor that of the old one may have shared propagation (pivot_root(2)); systemd makes / shared.",
            'Before it: mount(None, "/", None, MS_REC|MS_PRIVATE).',
        )
    if not _was_mounted(_new_root(row, context), context):
        return Why("the new root is not a mount point (pivot_root(2)).", "Before it, bind it onto itself: mount(root, root, None, MS_BIND|MS_REC).")
    return Why(
        "the new root must be a mount point of this mount namespace, not one that came locked from another user namespace, the present root"
        " must be one too (not a chroot), and the old root's place must be at or below the new root (pivot_root(2)).",
        "Compare with /proc/self/mountinfo.",
    )


PIVOT: list[Rule] = [
    found("pivot_root", EINVAL, _pivot),
    says(
        "pivot_root",
        EBUSY,
        "the new root or the place of the old one is on the same mount as the present root (pivot_root(2)): a plain directory is no new root.",
        "Bind the new root onto itself first: mount(root, root, None, MS_BIND|MS_REC).",
    ),
    says("pivot_root", ENOTDIR, "the new root and the place of the old one are directories (pivot_root(2)).", "See ls -ld."),
    says("chroot", EPERM, "chroot needs CAP_SYS_CHROOT (chroot(2)).", "Run as root, or add User()."),
]

REFUSED: list[Rule] = [
    says(
        CALLS,
        EPERM,
        "the mount namespace belongs to the parent's user namespace, in which this process has no capabilities (mount_namespaces(7)).",
        "Add Mount(), so that the container has mounts of its own.",
        _no_own_mounts,
    ),
    says(CALLS, EPERM, "mounting needs CAP_SYS_ADMIN (mount(2)).", "Run as root, or add User() and Mount().", _unprivileged),
    says(
        "mount mount_setattr",
        EPERM,
        "mounts from another user namespace keep their read-only, nosuid, nodev, noexec and atime settings: they are locked (mount_namespaces(7)).",
        "Repeat in the remount every flag that the mount has in /proc/self/mountinfo.",
        lambda row, context: context.mapped and (row.call == "mount_setattr" or mode(MS.REMOUNT)(row, context)),
    ),
    found("mount", EPERM, _foreign),
    found("mount", EPERM, _revealing),
    found("mount", EPERM, _closed),
    says(
        CALLS,
        (EPERM, EACCES),
        "a seccomp filter or a security module, probably a surrounding container's, forbids mounting (seccomp(2), apparmor(7)).",
        "See Seccomp: in /proc/self/status and the kernel log; start the outer container with more rights.",
        lambda row, context: context.machine.filtered,
    ),
]

INVALID: list[Rule] = [
    says(
        "mount",
        EINVAL,
        "exactly one of MS_SHARED, MS_PRIVATE, MS_SLAVE and MS_UNBINDABLE is given at a time, and only MS_REC and MS_SILENT beside it (mount(2)).",
        "One row for each.",
        lambda row, context: (value(row, 3) & PROPAGATION).bit_count() > 1,
    ),
    says(
        "mount",
        EINVAL,
        "only a mount point has a propagation (mount(2)), and this place is none.",
        "Name the mount point above it, or bind the place onto itself first.",
        mode(MS.PRIVATE, MS.SLAVE, MS.SHARED, MS.UNBINDABLE),
    ),
    says(
        "mount",
        EINVAL,
        "only a mount point can be remounted (mount(2)), with options that its file system knows.",
        "Bind the place onto itself first: MS_BIND, and then MS_REMOUNT|MS_BIND|MS_RDONLY.",
        mode(MS.REMOUNT),
    ),
    says(
        "mount",
        EINVAL,
        "what is moved is a mount point, not locked, and its parent mount has no shared propagation (mount(2)).",
        'Before it: mount(None, "/", None, MS_REC|MS_PRIVATE).',
        mode(MS.MOVE),
    ),
    says(
        "mount open_tree",
        EINVAL,
        "a tree with locked mounts below it, as in a user namespace, is bound with them or not at all (mount_namespaces(7)).",
        "Bind with MS_REC (open_tree: AT_RECURSIVE).",
        lambda row, context: row.call == "open_tree" or mode(MS.BIND)(row, context),
    ),
    says(
        "mount",
        EINVAL,
        "overlay wants upperdir and workdir together, on one mount and neither inside the other, or else two lower layers (overlayfs.rst).",
        "See the end of dmesg.",
        lambda row, context: fresh(row) == "overlay",
    ),
    says("mount", EINVAL, "the file system does not know one of its options, or found no valid image of itself (mount(2)).", "See the end of dmesg."),
    says(
        "umount2",
        EINVAL,
        "this is no mount point, or a mount that came locked with the user namespace and hides what is below (umount(2), mount_namespaces(7)).",
        "See /proc/self/mountinfo.",
    ),
    says(
        "mount_setattr",
        EINVAL,
        "its attributes are set on a mount point, with flags that this kernel knows (mount_setattr(2)).",
        "Bind the place onto itself first.",
    ),
    says(
        "move_mount",
        EINVAL,
        "a directory goes on a directory and a file on a file, in this mount namespace; an attached mount moves only from a parent that is not"
        " shared (move_mount(2)).",
        "See with ls -ld that both are directories, or both files; make / private first.",
    ),
]

PLACES: list[Rule] = [
    says("umount2", EBUSY, "the file system is in use: open files, a working directory, mounts below (umount(2)).", "MNT_DETACH lets go of it."),
    says(
        "mount",
        EBUSY,
        "a file system with files open for writing is not made read-only (mount(2)).",
        "Make only the mount read-only: MS_REMOUNT|MS_BIND|MS_RDONLY.",
        mode(MS.REMOUNT),
    ),
    says("mount", EBUSY, "the same file system is on top of this place already, or its device is in use (mount(2)).", "See /proc/self/mountinfo."),
    says(
        "mount",
        ENOENT,
        "what is bound and where, both must exist: a mount needs a place (mount(2)).",
        "Make the directory, or for a file an empty file.",
    ),
    says(
        "mount move_mount",
        ENOTDIR,
        "a directory is mounted on a directory, and a file on a file (mount(2)).",
        "Look at both with ls -ld.",
    ),
    says(
        "mount move_mount", ELOOP, "a mount cannot be put inside itself (mount(2)), and symbolic links may not lead in a circle.", "Check both paths."
    ),
    says(
        "mount",
        ENOTBLK,
        "this file system lies on a block device, and the source is none (mount(2)).",
        "Use a loop device: losetup --find --show FILE.",
    ),
    found("mount fsopen", ENODEV, _unknown),
    says("mount", (EACCES, EROFS), "the device can only be read (mount(2)).", "Add MS_RDONLY."),
    says(
        "mount open_tree move_mount",
        ENOSPC,
        "a mount namespace holds at most fs.mount-max mounts (proc(5)).",
        "See sysctl fs.mount-max, and wc -l /proc/self/mounts.",
    ),
]

UNIONS: list[Rule] = [
    says(
        "fsconfig",
        ENOENT,
        "a directory of the union is not there, or was taken away after it was looked at (overlayfs.rst).",
        "See that every layer exists.",
    ),
    says(
        "fsconfig",
        EACCES,
        "root inside cannot reach a directory of the union: each one above it needs x for that user (path_resolution(7)).",
        "See namei -l.",
    ),
    says("fsconfig", ELOOP, "layers may not lie in one another (overlayfs.rst).", "Take directories beside one another."),
    says(
        "fsconfig",
        EINVAL,
        "the file system does not know the option or refuses its value; overlay tells the kernel's log why.",
        "See the end of dmesg.",
    ),
]

MOUNTS = [*PIVOT, *REFUSED, *INVALID, *PLACES, *UNIONS]
