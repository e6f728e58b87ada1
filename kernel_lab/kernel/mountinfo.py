"""The mounts of a process's mount namespace, from /proc/PID/mountinfo (man proc_pid_mountinfo(5))."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from kernel_lab.kernel.procfs import read

# The kernel writes space, tab, newline, backslash and # as a backslash and three octal digits (mangle, fs/seq_file.c).
ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One mount. `root` is the directory of the file system that is seen at `point`; `options` belong to this mount, `super_options` to the file
    system, whichever way one comes to it. `shared`, `master` and `propagate_from` are numbers of peer groups (man mount_namespaces(7))."""

    id: int
    parent: int
    device: tuple[int, int]
    root: str
    point: str
    options: tuple[str, ...]
    kind: str
    source: str
    super_options: str
    shared: int | None = None
    master: int | None = None
    propagate_from: int | None = None
    unbindable: bool = False

    @property
    def propagation(self) -> str:
        """`private`, `shared`, `slave`, `slave, shared` or `unbindable`: what mounts below this one do to others, and others' to it."""
        if self.unbindable:
            return "unbindable"
        return ", ".join(word for word, group in (("slave", self.master), ("shared", self.shared)) if group is not None) or "private"

    @property
    def read_only(self) -> bool:
        """Whether writing is refused, by the mount or by the file system."""
        return "ro" in self.options or "ro" in self.super_options.split(",")


def _plain(text: str) -> str:
    return ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def parse(line: str) -> Mount:
    """The mount that a line of mountinfo describes."""
    # By single spaces: the source of a mount may be empty, and then two of them stand side by side.
    fields = line.split(" ")
    end = fields.index("-")
    tags = dict(tag.partition(":")[::2] for tag in fields[6:end])
    major, _, minor = fields[2].partition(":")
    kind, source, super_options = fields[end + 1 : end + 4]

    def group(tag: str) -> int | None:
        return int(tags[tag]) if tag in tags else None

    return Mount(
        id=int(fields[0]),
        parent=int(fields[1]),
        device=(int(major), int(minor)),
        root=_plain(fields[3]),
        point=_plain(fields[4]),
        options=tuple(fields[5].split(",")),
        kind=_plain(kind),
        source=_plain(source),
        super_options=_plain(super_options),
        shared=group("shared"),
        master=group("master"),
        propagate_from=group("propagate_from"),
        unbindable="unbindable" in tags,
    )


def mounts(pid: int | None = None) -> tuple[Mount, ...]:
    """The mounts that `pid` (without it: this process) can reach from its root directory."""
    text = os.fsdecode(read(os.getpid() if pid is None else pid, "mountinfo"))
    # Not splitlines: a path may hold every other character that Python takes for the end of a line.
    return tuple(parse(line) for line in text.split("\n") if line)


def at(path: str | os.PathLike[str], table: Iterable[Mount] | None = None) -> Mount | None:
    """The mount on which the absolute `path` lies, symbolic links aside; its `point` is `path` where `path` itself is a mount point.

    It walks the path as the kernel does: a mount that a later one covers, itself or a directory above it, is not found. None: `table` (without it:
    this process's) has no mount of a root directory, as after chroot into a directory that is no mount point.
    """
    whole = tuple(mounts() if table is None else table)
    ids = {mount.id for mount in whole}
    below = {(mount.parent, mount.point): mount for mount in whole if mount.parent in ids}
    found = next((mount for mount in whole if mount.point == "/" and (mount.parent not in ids or mount.parent == mount.id)), None)
    steps = PurePosixPath(path)
    for step in (*reversed(steps.parents), steps):
        while found and (found.id, str(step)) in below:
            found = below[found.id, str(step)]
    return found
