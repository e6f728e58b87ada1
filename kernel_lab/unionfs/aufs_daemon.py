"""The process of an AUFS in user space: it mounts the union, answers the kernel, and is told of other branches by its creator.

It lives as long as its creator's end of the conversation is open, and as the file system is mounted. It may be killed at any time.
"""

import errno
import fcntl
import json
import os
import resource
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyfuse3

from kernel_lab.kernel import mountinfo
from kernel_lab.kernel.calls import syscall
from kernel_lab.kernel.errors import KernelError
from kernel_lab.kernel.flags import AT_FD, OPEN_TREE
from kernel_lab.unionfs.branches import Branch
from kernel_lab.unionfs.fuse_files import Files
from kernel_lab.unionfs.fuse_loop import Loop
from kernel_lab.unionfs.fuse_operations import Operations
from kernel_lab.unionfs.policies import POLICIES

NAME = "klab-aufs"
READ_AHEAD = 1024  # kilobytes: the most that one request of FUSE can ask for (FUSE_MAX_MAX_PAGES, 256 pages)
LARGEST = 1 << 20  # bytes of a message


class Busy(Exception):
    """Somebody else writes in a branch."""


class Held:
    """Branches by descriptors: this process sees each under a path of its own, and what it holds nobody can take away."""

    def __init__(self) -> None:
        self._held: dict[Branch, tuple[Branch, list[int]]] = {}

    def take(self, branches: Sequence[Branch]) -> list[Branch]:
        """The branches under their paths here."""
        for branch in branches:
            if branch not in self._held:
                self._held[branch] = _held(branch)
        return [self._held[branch][0] for branch in branches]

    def keep(self, branches: Sequence[Branch]) -> None:
        """Lets go of all others."""
        for branch in self._held.keys() - set(branches):
            for descriptor in self._held.pop(branch)[1]:
                os.close(descriptor)


def _held(branch: Branch) -> tuple[Branch, list[int]]:
    lock = _locked(branch)
    try:
        # Without what is mounted in it, as overlay sees its layers: this union could itself be mounted there, and wait for its own answer.
        tree = syscall("open_tree", AT_FD.FDCWD, os.fsencode(branch.path), OPEN_TREE.CLONE | OPEN_TREE.CLOEXEC)
    except KernelError as error:
        if error.errno != errno.EPERM:
            os.close(lock)
            raise
        return branch, [lock]  # an ordinary user's
    return Branch(f"/proc/self/fd/{tree}/.", branch.mode), [lock, tree]


def _locked(branch: Branch) -> int:
    """Nobody else writes where this union does: neither would see what the other one changes."""
    descriptor = os.open(branch.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if branch.writable:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Busy(f"branch {branch.path!r}: another union writes there now; end that one, or give each its own") from None
    return descriptor


class Daemon:
    """`place`: where the union is mounted."""

    def __init__(self, conversation: socket.socket, place: str) -> None:
        self.conversation = conversation
        self.place = place
        self.held = Held()
        self.forgotten = os.eventfd(0)

    def run(self) -> None:
        order = self._hear()
        self.branches = _branches(order)
        try:
            self.files = Files(self.held.take(self.branches), POLICIES[order["create"]]())
            self.files.union.clear()
            pyfuse3.init(Operations(self.files), self.place, _options())
        except (OSError, RuntimeError, Busy) as error:
            self._refuse(error)
            return
        try:
            _read_ahead(self.place)
            self._say({})
            Loop({self.conversation.fileno(): self._answer, self.forgotten: self._finish}).run()
        finally:
            pyfuse3.close()
            self.files.union.clear()
            with suppress(OSError):
                os.rmdir(self.place)

    def _answer(self) -> None:
        order = self._hear()
        if not order:
            pyfuse3.terminate()
            return
        branches = _branches(order)
        try:
            names, numbers = self.files.change(self.held.take(branches))
        except (OSError, Busy) as error:
            self.held.keep(self.branches)
            self._refuse(error)
            return
        self.branches = branches
        # A name is forgotten only when no request for it is under way: so somebody else asks, while requests are answered here.
        threading.Thread(target=self._forget, args=(names, numbers), daemon=True).start()

    def _forget(self, names: Sequence[tuple[int, bytes]], numbers: Sequence[int]) -> None:
        for name in names:
            with suppress(FileNotFoundError):  # it has forgotten by itself
                pyfuse3.invalidate_entry(*name)
        for number in numbers:
            with suppress(FileNotFoundError):
                pyfuse3.invalidate_inode(number)
        os.eventfd_write(self.forgotten, 1)

    def _finish(self) -> None:
        """The kernel has forgotten; until now it could ask for what was only in the branches of before."""
        os.eventfd_read(self.forgotten)
        self.held.keep(self.branches)
        self._say({})

    def _hear(self) -> dict[str, Any]:
        try:
            order: dict[str, Any] = json.loads(self.conversation.recv(LARGEST) or "{}")
        except ConnectionResetError:
            order = {}
        self.number = order.get("number", 0)
        return order

    def _say(self, answer: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):
            self.conversation.send(json.dumps({"number": self.number, **answer}).encode())

    def _refuse(self, error: Exception) -> None:
        self._say({"errno": getattr(error, "errno", 0) or 0, "text": str(error), "usage": isinstance(error, Busy)})


def _branches(order: dict[str, Any]) -> list[Branch]:
    return [Branch(path, mode) for path, mode in order["branches"]]


def _options() -> set[str]:
    options = {*pyfuse3.default_options, "fsname=aufs", "subtype=aufs"}
    # A container's other users, set-user-ID programs and devices: what a root has to have, and only root may allow.
    return options | {"allow_other", "suid", "dev"} if os.geteuid() == 0 else options


def _read_ahead(place: str) -> None:
    """Large requests: each costs as much as any other. Only root may ask for it, and not where /sys can only be read."""
    mount = next(mount for mount in reversed(mountinfo.mounts()) if mount.point == place)
    with suppress(OSError):
        Path("/sys/class/bdi/{}:{}/read_ahead_kb".format(*mount.device)).write_text(str(READ_AHEAD))


def main(descriptor: int, place: str) -> None:
    """The daemon's life."""
    Path("/proc/self/comm").write_text(NAME)
    sys.setrecursionlimit(20_000)  # some frames for each directory of a path, and a path has room for two thousand (PATH_MAX)
    os.umask(0)  # the kernel has applied that of the process which asks
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with socket.socket(fileno=descriptor) as conversation:
        Daemon(conversation, place).run()
