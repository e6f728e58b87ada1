"""/dev of a container: the few devices that every program expects, terminals, shared memory and queues of its own."""

import os
from collections.abc import Iterator

from kernel_lab.kernel.flags import AT_FD, MOVE_MOUNT, MS, OPEN_TREE, S_IF
from kernel_lab.kernel.program import Handle, Row, call
from kernel_lab.namespaces.ipc import IPC
from kernel_lab.namespaces.part import Plan
from kernel_lab.namespaces.user import User

DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"}
TTY_GROUP = 5  # Debian's, and docker's


class Nodes:
    """The rows that make /dev: some before the root is changed, the rest after.

    A device file can be made only by root of the machine (mknod(2)): with a user namespace the host's files are bound instead.
    """

    def __init__(self, plan: Plan) -> None:
        self._user = plan.part(User)
        self._may_make = self._user is None and os.geteuid() == 0
        self._queues = plan.has(IPC) or self._may_make

    def before(self) -> Iterator[Row]:
        """While the host's paths can be seen."""
        flags = OPEN_TREE.CLONE | OPEN_TREE.CLOEXEC
        if not self._may_make:
            for name in DEVICES:
                yield call("open_tree", AT_FD.FDCWD, f"/dev/{name}", flags, into=Handle(f"dev-{name}"), why="the host's device")

    def after(self) -> Iterator[Row]:
        """Inside the new root."""
        yield call("mkdirat", AT_FD.FDCWD, "/dev", 0o755, tolerate={17, 30}, why="a place to mount on")
        yield call("mount", "tmpfs", "/dev", "tmpfs", MS.NOSUID | MS.STRICTATIME, "mode=755,size=65536k", why="an empty /dev")
        yield call("umask", 0, why="the modes below are meant as they are")
        for name, (major, minor) in DEVICES.items():
            yield from self._device(name, os.makedev(major, minor))
        for name, target in LINKS.items():
            yield call("symlinkat", target, AT_FD.FDCWD, f"/dev/{name}")
        yield from self._mounts()
        yield call("umask", 0o022)

    def _device(self, name: str, number: int) -> Iterator[Row]:
        path, handle = f"/dev/{name}", Handle(f"dev-{name}")
        if self._may_make:
            yield call("mknodat", AT_FD.FDCWD, path, S_IF.CHR | 0o666, number, why=f"device {os.major(number)}:{os.minor(number)}")
        else:
            yield call("mknodat", AT_FD.FDCWD, path, S_IF.REG | 0o666, 0, why="an empty file,")
            yield call("move_mount", handle, "", AT_FD.FDCWD, path, MOVE_MOUNT.F_EMPTY_PATH, why="with the host's device on it")
            yield call("close", handle)

    def _mounts(self) -> Iterator[Row]:
        has_group = self._user is None or any(inside <= TTY_GROUP < inside + count for inside, _, count in self._user.gids)
        options = "newinstance,ptmxmode=0666,mode=0620" + (f",gid={TTY_GROUP}" if has_group else "")
        yield call("mkdirat", AT_FD.FDCWD, "/dev/pts", 0o755)
        yield call("mount", "devpts", "/dev/pts", "devpts", MS.NOSUID | MS.NOEXEC, options, why="terminals of its own")
        yield call("mkdirat", AT_FD.FDCWD, "/dev/shm", 0o1777)
        yield call("mount", "tmpfs", "/dev/shm", "tmpfs", MS.NOSUID | MS.NODEV | MS.NOEXEC, "mode=1777,size=65536k", why="POSIX shared memory")
        if self._queues:
            yield call("mkdirat", AT_FD.FDCWD, "/dev/mqueue", 0o1777)
            yield call("mount", "mqueue", "/dev/mqueue", "mqueue", MS.NOSUID | MS.NODEV | MS.NOEXEC, why="POSIX queues of its IPC namespace")
