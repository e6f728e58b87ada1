"""What the machine allows, as /proc tells it, and what a refused row stood in."""

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kernel_lab.kernel.errors import Asked
from kernel_lab.kernel.flags import CAP, CLONE


@dataclass(frozen=True)
class Machine:
    """The settings that decide what is refused."""

    proc: Path = Path("/proc")

    def setting(self, name: str) -> int | None:
        """A number below /proc/sys; None where this kernel has no such setting."""
        try:
            return int((self.proc / "sys" / name).read_text())
        except (OSError, ValueError):
            return None

    def _status(self, field: str) -> str:
        try:
            lines = (self.proc / "self/status").read_text().splitlines()
        except OSError:
            return ""
        return next((line.partition(":")[2].strip() for line in lines if line.startswith(f"{field}:")), "")

    def capable(self, capability: CAP) -> bool:
        return bool(int(self._status("CapEff") or "0", 16) >> capability & 1)

    @property
    def filtered(self) -> bool:
        """Whether a seccomp filter stands between this process and the kernel."""
        return self._status("Seccomp") == "2"

    @property
    def user_namespaced(self) -> bool:
        """Whether this process is in a user namespace already: the first one maps every id."""
        try:
            return (self.proc / "self/uid_map").read_text().split() != ["0", "0", "4294967295"]
        except OSError:
            return False

    @property
    def ram_root(self) -> bool:
        """Whether / is the kernel's first file system, out of which pivot_root(2) cannot move."""
        try:
            lines = (self.proc / "self/mountinfo").read_text().splitlines()
        except OSError:
            return False
        # The last mount on / is the one that is seen.
        roots = [line.partition(" - ")[2].split()[0] for line in lines if line.split()[4] == "/"]
        return roots[-1:] == ["rootfs"]


@dataclass(frozen=True)
class Context:
    """`flags`: the namespaces that were made with the process. `before`: the rows that ran before the refused one.

    `root`: the directory that was the process's root when it began, which is another's for one that has joined a container.
    """

    flags: CLONE = CLONE(0)  # noqa: RUF009 -- a number, which nobody can change
    before: Sequence[Asked] = ()
    machine: Machine = Machine()
    root: str = "/"

    def made(self, flag: CLONE) -> bool:
        """Whether the process has a new namespace of that kind."""
        return flag in self.flags or any(row.call == "unshare" and isinstance(row.args[0], int) and row.args[0] & flag for row in self.before)

    @property
    def mapped(self) -> bool:
        """Whether the process is in a user namespace, a new one or its creator's."""
        return self.made(CLONE.NEWUSER) or self.machine.user_namespaced

    def tree(self) -> tuple[str, str]:
        """The directory that is the process's root, and its working directory inside that root, after all the rows before."""
        root, cwd = self.root, "/"
        for row in self.before:
            path = text(row, 0)
            if row.call == "chdir":
                cwd = posixpath.join(cwd, path)
            elif row.call == "chroot":
                root = below(root, posixpath.join(cwd, path))
            elif row.call == "pivot_root":
                root, cwd = below(root, posixpath.join(cwd, path)), "/"
        return root, cwd

    def file(self, row: Asked) -> str:
        """The path that the row is about: its own, or that of the row which has opened its descriptor."""
        handle = row.args[0] if row.args else None
        opened = [earlier for earlier in self.before if handle is not None and getattr(earlier, "into", None) == handle]
        if opened:
            return self.file(opened[-1])
        return text(row, 1) if row.call in ("openat", "mkdirat", "mknodat") else text(row, 0)


def below(root: str, path: str) -> str:
    """A path inside a root, seen from outside; `..` does not lead out."""
    inside = posixpath.normpath("/" + path.lstrip("/"))
    return inside if root == "/" else posixpath.normpath(root + inside)


def value(row: Asked, position: int) -> int:
    """A number among the arguments; 0 where there is none."""
    found = row.args[position] if position < len(row.args) else 0
    return int(found) if isinstance(found, int) else 0


def text(row: Asked, position: int) -> str:
    """A text among the arguments; a handle by its name, and nothing for NULL."""
    found = row.args[position] if position < len(row.args) else None
    if isinstance(found, bytes):
        return found.decode(errors="replace")
    return "" if found is None else str(found)
