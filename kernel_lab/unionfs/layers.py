"""The directories that a union is put together from, and which of them go together."""

import os
import stat
from collections.abc import Sequence
from itertools import pairwise

from kernel_lab.kernel import mountinfo
from kernel_lab.kernel.errors import UsageError

MOST = 500  # OVL_MAX_STACK, fs/overlayfs/params.h
# Overlay writes on no other overlay, and on no file system whose files another machine or process may change, or that tells no names apart
# (ovl_mount_dir_check and ovl_dentry_weird, fs/overlayfs).
UNWRITABLE = frozenset(["9p", "afs", "ceph", "cifs", "exfat", "fuse", "fuseblk", "msdos", "nfs", "nfs4", "overlay", "smb3", "vfat", "virtiofs"])
WORKED = {"work", "index"}  # what overlay makes in its work directory


def check(lower: Sequence[str]) -> None:
    """Raises UsageError for lower layers that are missing, no directories, repeated, one inside another, or too many."""
    if not 1 <= len(lower) <= MOST:
        raise UsageError(f"Overlay: {len(lower)} lower layers; it takes 1 to {MOST} (OVL_MAX_STACK in the kernel)")
    for path in lower:
        check_directory("layer", path)
    _check_repeated(lower)
    _check_nested(lower)


def check_directory(what: str, path: str) -> None:
    """Raises UsageError when `path` is none; `what` it is for."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise UsageError(f"{what} {path!r}: cannot be found: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISDIR(mode):
        raise UsageError(f"{what} {path!r}: not a directory, and a union is made of directories")


def _check_repeated(lower: Sequence[str]) -> None:
    seen: dict[tuple[int, int], str] = {}
    for path in lower:
        status = os.stat(path)
        identity = status.st_dev, status.st_ino
        if identity in seen:
            raise UsageError(f"layer {path!r}: it is there already, as {seen[identity]!r}; a directory is a layer once")
        seen[identity] = path


def _check_nested(lower: Sequence[str]) -> None:
    # Of the same file system, in the order of their real paths: whoever is inside another stands behind it, or behind one that is inside it too.
    order = sorted((os.stat(path).st_dev, f"{os.path.realpath(path).rstrip('/')}/", path) for path in lower)
    for (device, outer, path), (other, inner, nested) in pairwise(order):
        if device == other and inner.startswith(outer):
            raise UsageError(f"layer {nested!r}: it is inside the layer {path!r}, whose files would show twice; take directories beside one another")


def check_writable(what: str, path: str, lower: Sequence[str]) -> None:
    """Raises UsageError when what a container writes cannot be kept at `path`, a directory that there is or that is yet to be made."""
    mine = os.path.realpath(path)
    device = _device(mine)
    for layer in lower:
        other = os.path.realpath(layer)
        if os.path.commonpath((mine, other)) in (mine, other) and os.stat(other).st_dev == device:
            raise UsageError(f"{what} {path!r} and layer {layer!r}: one is inside the other, and a layer below must not change")
    mount = mountinfo.at(mine)
    kind = mount.kind.partition(".")[0] if mount else ""
    if kind in UNWRITABLE:
        raise UsageError(f"{what} {path!r}: on a file system of type {kind}, which overlay cannot write on; take one on ext4, xfs, btrfs or tmpfs")


def check_kept(upper: str, work: str, lower: Sequence[str]) -> None:
    """Raises UsageError when a container cannot write into `upper`, the real path of a directory, with the kernel's own beside it at `work`."""
    check_directory("upper", upper)
    check_writable("upper", upper, lower)
    check_writable("work directory", work, lower)
    parent = os.path.dirname(upper)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"upper {upper!r}: overlay needs a directory beside it, and you may not write in {parent}")
    if any(mount.point == upper for mount in mountinfo.mounts()):
        raise UsageError(f"upper {upper!r}: a mount point; overlay needs a directory beside it on the same mount: take one below {upper}")
    if os.path.lexists(work) and (strange := set(_names(work)) - WORKED):
        raise UsageError(f"upper {upper!r}: overlay would work in {work}, where somebody keeps {sorted(strange)[0]!r}")


def _names(path: str) -> list[str]:
    check_directory("work directory", path)
    return os.listdir(path)


def _device(path: str) -> int:
    """The file system that something is on, or will be."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return os.stat(path).st_dev
