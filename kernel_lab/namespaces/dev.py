"""/dev of a container: the few devices that every program expects, terminals, shared memory and queues of its own."""

import os
import socket
import struct
from collections.abc import Iterator
from errno import ENOTTY

from kernel_lab.kernel import procfs
from kernel_lab.kernel.flags import AT_FD, CAP, MOVE_MOUNT, MS, OPEN_TREE, S_IF, O
from kernel_lab.kernel.flags.terminals import MSG, TIOC
from kernel_lab.kernel.program import Address, Buffer, Handle, Row, Words, call
from kernel_lab.kernel.rules.machine import Machine
from kernel_lab.namespaces.ipc import IPC
from kernel_lab.namespaces.part import Plan
from kernel_lab.namespaces.user import User

DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"}
TTY_GROUP = 5  # Debian's, and docker's


class Nodes:
    """The rows that make /dev: some before the root is changed, the rest after.

    A device file can be made only with CAP_MKNOD in the first user namespace (mknod(2)): elsewhere the host's files are bound instead.
    """

    def __init__(self, plan: Plan) -> None:
        machine, user = Machine(), plan.part(User)
        self._gids = user.gids if user else procfs.gid_map(os.getpid())
        self._may_make = user is None and machine.capable(CAP.MKNOD) and not machine.user_namespaced
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
        has_group = any(inside <= TTY_GROUP < inside + count for inside, _, count in self._gids)
        options = "newinstance,ptmxmode=0666,mode=0620" + (f",gid={TTY_GROUP}" if has_group else "")
        yield call("mkdirat", AT_FD.FDCWD, "/dev/pts", 0o755)
        yield call("mount", "devpts", "/dev/pts", "devpts", MS.NOSUID | MS.NOEXEC, options, why="terminals of its own")
        yield call("mkdirat", AT_FD.FDCWD, "/dev/shm", 0o1777)
        yield call("mount", "tmpfs", "/dev/shm", "tmpfs", MS.NOSUID | MS.NODEV | MS.NOEXEC, "mode=1777,size=65536k", why="POSIX shared memory")
        if self._queues:
            yield call("mkdirat", AT_FD.FDCWD, "/dev/mqueue", 0o1777)
            yield call("mount", "mqueue", "/dev/mqueue", "mqueue", MS.NOSUID | MS.NODEV | MS.NOEXEC, why="POSIX queues of its IPC namespace")


def terminal(console: Handle, screen: Handle, owner: int | None) -> Iterator[Row]:
    """A terminal of the /dev/pts that is here, as descriptors 0, 1 and 2; it belongs to the user `owner` if that is somebody else.

    The creator gets the end at which one types through the socket `console`, as from any runtime of OCI's (`--console-socket`): so neither has
    to look into the other. `screen` is where the creator shows it.
    """
    size, master, slave = Buffer("size", 8), Handle("master"), Handle("slave")
    yield call("ioctl", screen, TIOC.GWINSZ, size, tolerate={ENOTTY}, why="how large the caller's terminal is, if it has one")
    yield call("openat", AT_FD.FDCWD, "/dev/ptmx", O.RDWR | O.NOCTTY | O.CLOEXEC, into=master, why="a new terminal: the end at which one types")
    yield call("dup3", master, 0, 0)
    yield call("ioctl", 0, TIOC.SWINSZ, size, why="as large")
    yield call("ioctl", 0, TIOC.SPTLCK, Buffer("unlocked", 4), why="the other end may be opened,")
    yield call("ioctl", 0, TIOC.GPTPEER, O.RDWR | O.NOCTTY | O.CLOEXEC, into=slave, why="and is, whatever may lie on top of its name")
    yield call("sendmsg", console, _holding_descriptor_0(), MSG.NOSIGNAL, why="the creator gets the first end")
    for number in range(3):
        yield call("dup3", slave, number, 0, why="the command has the other")
    if owner is not None:
        yield call("fchown", 0, owner, -1, why="and may open it again")
    yield call("ioctl", 0, TIOC.SCTTY, 0, why="it is this session's")


def _holding_descriptor_0() -> Words:
    """`struct msghdr` of a message without a word (unix(7), cmsg(3)): a packet may be empty."""
    rights = struct.pack("@Nii", struct.calcsize("@Niii"), socket.SOL_SOCKET, socket.SCM_RIGHTS) + struct.pack("@i4x", 0)
    return Words((0, 0, 0, 0, Address(Buffer("rights", len(rights), rights)), len(rights), 0), "{SCM_RIGHTS, 0}")


def console() -> Iterator[Row]:
    """Descriptor 0 as /dev/console, as OCI's runtimes have it."""
    held = Handle("console")
    yield call("mknodat", AT_FD.FDCWD, "/dev/console", S_IF.REG | 0o600, 0, why="an empty file,")
    yield call("open_tree", 0, "", OPEN_TREE.CLONE | OPEN_TREE.CLOEXEC | OPEN_TREE.AT_EMPTY_PATH, into=held)
    yield call("move_mount", held, "", AT_FD.FDCWD, "/dev/console", MOVE_MOUNT.F_EMPTY_PATH, why="with the terminal on it")
    yield call("close", held)
