"""A union that is mounted: by the kernel's own AUFS, or by a process in user space that answers for it on FUSE."""

import errno
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from kernel_lab import state
from kernel_lab.kernel.calls import syscall
from kernel_lab.kernel.errors import KernelError, UsageError
from kernel_lab.kernel.flags import MS
from kernel_lab.unionfs import aufs_kernel
from kernel_lab.unionfs.branches import Branch

LARGEST = 1 << 16  # bytes of an answer
PATIENCE = 60.0  # seconds: an answer takes some milliseconds
# As the janitor is started: the package's own __init__ would import half of the kit. Nor is trio imported, which pyfuse3 can do without (fuse_loop).
START = """
import sys
kit = type(sys)("kernel_lab")
kit.__path__ = [sys.argv[1]]
sys.modules["kernel_lab"] = kit
sys.modules["trio"] = type(sys)("trio")
sys.path += sys.argv[4:]
from kernel_lab.unionfs import aufs_daemon
aufs_daemon.main(int(sys.argv[2]), sys.argv[3])
"""


class InKernel:
    """A mount of the file system `aufs`."""

    def __init__(self, path: str, branches: Sequence[Branch], create: str) -> None:
        self.path = path
        os.makedirs(path, mode=0o711)
        try:
            self._mount(0, aufs_kernel.options(branches, create))
        except BaseException:
            os.rmdir(path)
            raise

    def change(self, old: Sequence[Branch], new: Sequence[Branch]) -> None:
        """Puts the branches `new` in place of `old`. Raises KernelError."""
        self._mount(MS.REMOUNT, aufs_kernel.changes(old, new))

    def close(self) -> None:
        """Unmounts it, whoever uses it."""
        _unmount(self.path)

    def _mount(self, flags: int, data: str) -> None:
        syscall("mount", b"none", os.fsencode(self.path), b"aufs", flags, os.fsencode(data))


class InUserSpace:
    """The process that answers, and this end of the conversation with it."""

    def __init__(self, path: str, branches: Sequence[Branch], create: str) -> None:
        self.path = path
        self.questions = itertools.count(1)
        self.process: subprocess.Popen[bytes] | None = None
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(PATIENCE)
        with theirs, tempfile.TemporaryFile() as said:
            os.makedirs(path, mode=0o711)
            try:
                self.process = _started(path, theirs, said.fileno())
                theirs.close()
                self._ask(branches, create=create)
            except BaseException as error:
                self.close()
                if isinstance(error, KernelError) and (words := _last_line(said.fileno())):
                    error.rule = words
                raise

    def change(self, old: Sequence[Branch], new: Sequence[Branch]) -> None:
        """Puts the branches `new` in place of `old`. Raises KernelError."""
        self._ask(new)

    def close(self) -> None:
        """It unmounts the union when the conversation ends; when it has been killed, this process does."""
        self.socket.close()
        if self.process:
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        _unmount(self.path)

    def _ask(self, branches: Sequence[Branch], **more: str) -> None:
        number = next(self.questions)
        question = {"number": number, "branches": [(branch.path, branch.mode) for branch in branches], **more}
        answer: dict[str, Any] = {}
        try:
            self.socket.send(json.dumps(question).encode())
            while answer.get("number") != number:  # an interrupted question leaves its answer behind
                answer = json.loads(self.socket.recv(LARGEST))
        except (BrokenPipeError, ConnectionResetError, json.JSONDecodeError):
            raise KernelError(errno.ENOTCONN, "aufs", rule="The process that answers for the union has ended.") from None
        if answer.get("usage"):
            raise UsageError(answer["text"])
        if "text" in answer:
            raise KernelError(answer["errno"] or errno.EIO, "aufs", rule=f"{answer['text']}.")


def _started(path: str, theirs: socket.socket, said: int) -> subprocess.Popen[bytes]:
    package = os.path.dirname(os.path.dirname(__file__))
    paths = [directory for directory in sys.path if os.path.isabs(directory)]
    # In a session of its own, where a terminal's Ctrl-C does not reach it.
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", START, package, str(theirs.fileno()), path, *paths],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=said,
        pass_fds=[theirs.fileno()],
        start_new_session=True,
        cwd="/",
    )


def _last_line(said: int) -> str:
    lines = os.pread(said, 1 << 16, 0).decode(errors="replace").splitlines()
    return lines[-1] if lines else ""


def _unmount(path: str) -> None:
    """Takes the mount and the directory that it is on away."""
    state.unmount(path)
    with suppress(FileNotFoundError):
        os.rmdir(path)
