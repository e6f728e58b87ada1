"""The portable executor: the same table in the same memory, walked by a fresh Python that has one thread and nothing to lose."""

import ctypes
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from kernel_lab.kernel import creator, rules
from kernel_lab.kernel.memory import DONE, PIDFD, Image
from kernel_lab.kernel.native import Child
from kernel_lab.kernel.program import Buffer

_PROGRAM = str(Path(__file__).with_name("helper.py"))


class HelpedChild(Child):
    """A child of the helper's making, but the creator's by birth (CLONE_PARENT)."""

    def __init__(self, image: Image, pid: int, helper: subprocess.Popen[bytes]) -> None:
        super().__init__(image, pid, os.pidfd_open(pid))
        self._helper = helper

    def wait_execed(self, done: Buffer = DONE) -> None:
        """Returns once every process of the table has called execve, or ended: then the helper ends."""
        self._helper.wait()

    def close(self) -> None:
        """After its end: nothing of what made it is left."""
        self._helper.wait()


class Helper:
    """Runs tables by `python -I -S helper.py`. Needs nothing of the processor, and takes as long as an interpreter's start."""

    name = "helper"
    shared = True

    def start(self, image: Image) -> Child:
        """Starts the child; raises KernelError when the kernel refuses the clone."""
        words = [image.address, image.size, image.file, image.clone_args, image.buffer(PIDFD)]
        command = [sys.executable, "-I", "-S", _PROGRAM, *map(str, words)]
        keep = [image.file, creator.descriptor(), *(number for number in (*image.given, image.cgroup) if number > 2)]
        # Its own session would be the child's too until the table makes one: signals of a terminal must not reach either half-way.
        helper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=keep)
        try:
            assert helper.stdin and helper.stdout
            with helper.stdin, helper.stdout:
                helper.stdout.read()  # ends when the helper has cloned
                pid = ctypes.c_int64.from_address(image.buffer(PIDFD)).value
                if pid < 0:
                    raise rules.clone_refused(-pid, image.layout.flags)
                if pid == 0:
                    raise RuntimeError(f"the helper ended with {helper.wait()} before it had made a process")
                child = HelpedChild(image, pid, helper)
                # It waits for that: where somebody else reaps it (`exits`), its number would be nobody's as soon as it has ended.
                with suppress(BrokenPipeError):  # both have been killed
                    os.write(helper.stdin.fileno(), b"\n")
                return child
        except BaseException:
            helper.kill()
            helper.wait()
            raise
