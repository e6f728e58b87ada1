"""A process that runs a table: how long it lasts, how it ended, and how all of it is taken back."""

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import cache
from typing import NamedTuple

from kernel_lab.command import Command
from kernel_lab.keeper import lastingly
from kernel_lab.kernel import dumpable
from kernel_lab.kernel.errors import KernelError
from kernel_lab.kernel.exits import exit_code, taken
from kernel_lab.kernel.interrupts import Deferred
from kernel_lab.kernel.memory import Image
from kernel_lab.kernel.native import Child
from kernel_lab.kernel.program import Program
from kernel_lab.refusals import refusal

STOPPED = 127  # what the loop ends with at a refused row
UNKNOWN = -1  # the code of one whose end somebody else has been told


class Streams(NamedTuple):
    """Three descriptors of the creator's for a child's standard streams; none of them 0, 1 or 2, which dup3(2) could not copy onto itself."""

    stdin: int
    stdout: int
    stderr: int


class Process:
    """A started table. Whoever makes one ends it with `take_back`."""

    command: Command
    program: Program
    image: Image
    pid: int
    pidfd: int = -1
    code: int | None = None
    seconds: float = 0.0
    _needs_settling = False
    _mode: AbstractContextManager[None] | None = None
    _sharing: tuple[int, int] | None = None

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taking = threading.Lock()
        self.started = time.monotonic()

    def wait_execed(self) -> None:
        """Returns once nothing of the table uses the image: the command has taken over, or has failed to."""
        raise NotImplementedError

    def be(self, mode: AbstractContextManager[None]) -> None:
        """Open or closed to others, until `settle`."""
        mode.__enter__()
        self._mode = mode

    def hide(self) -> None:
        """Nobody may look into this process until `settle`: the other one, which shares its memory, will be where others live."""
        self._sharing = os.pipe2(os.O_CLOEXEC)
        self.be(dumpable.closed())
        self._needs_settling = True

    def cloned(self, start: Callable[[Image], Child], image: Image) -> Child:
        """The child that `start` makes of an image, in a thread that lasts."""
        try:
            return lastingly(start, image)
        finally:
            if self._sharing:
                os.close(self._sharing[1])

    def settle(self) -> None:
        """Waits for as long as this process must be open, or closed, to others on account of this one. An interrupt may cut it short."""
        if self._needs_settling:
            self.wait_execed()
        if self._sharing:
            # The kernel clears the word just before the child gets memory of its own, and closes descriptors just after (begin_new_exec,
            # fs/exec.c): only then is there nothing of this process to be seen.
            poll = select.poll()
            poll.register(self._sharing[0], select.POLLIN)
            poll.poll()
        self.unhide()

    def unhide(self) -> None:
        """Leaves the mode that was needed on account of this one."""
        if self._sharing:
            os.close(self._sharing[0])
            self._sharing = None
        if self._mode:
            self._mode.__exit__(None, None, None)
            self._mode = None

    def check(self) -> None:
        """Raises what kept the command from running: KernelError for a refused row, CommandError for a command that cannot be executed."""
        if self.code in (None, STOPPED) and (error := self._refusal()):
            raise error

    def _refusal(self) -> KernelError | None:
        program = self.results()
        error = refusal(program, self.command, self.image.layout.flags)
        if error:
            error.program = program
        return error

    def results(self) -> Program:
        """The table with the kernel's answers."""
        return self.image.layout.results(self.image.raw())

    def ended(self, timeout: float | None = None) -> bool:
        """Whether it has ended, after waiting for that as long as `timeout` seconds."""
        if self.code is not None:
            return True
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(milliseconds(timeout)))

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, or 128 + the number of the signal that ended it.

        Raises TimeoutError after `timeout` seconds, and KernelError when the exit code cannot be known (`kernel.exits`).
        """
        while (code := self._reaped()) is None:
            if not self.ended(timeout):
                raise TimeoutError(f"{self.command.argv[0]}: still running after {timeout} s")
        if code == UNKNOWN:
            raise taken()
        return code

    def _reaped(self) -> int | None:
        """Its exit code, if it has ended."""
        with self._lock, Deferred():  # once it has been reaped, nobody can ask again
            if self.code is None and self._others_ended():
                try:
                    self.code = exit_code(self.pidfd)
                except KernelError:
                    self.code = STOPPED if self._refusal() else UNKNOWN
                if self.code is not None:
                    self.seconds = time.monotonic() - self.started
            return self.code

    def signal(self, number: int) -> None:
        """Raises ProcessLookupError when it has ended."""
        if self.code is not None:
            raise ProcessLookupError(f"{self.command.argv[0]} has ended")
        signal.pidfd_send_signal(self.pidfd, number)

    def take_back(self) -> None:
        """Ends it, if it runs, and everything that came with it. Returns when nothing is left; may be called again."""
        with Deferred(), self._taking:
            if self.pidfd < 0:
                return
            if self.code is None:
                with suppress(ProcessLookupError):
                    self.signal(signal.SIGKILL)
                    self._let_die()
                while self._reaped() is None:
                    self.ended()
            try:
                self._release()
            finally:
                self.unhide()
                os.close(self.pidfd)
                self.pidfd = -1

    def _others_ended(self) -> bool:
        """Ends what ends with it, once it has ended and before its number can be another's; whether it may be reaped."""
        return True

    def _let_die(self) -> None:
        """What it needs besides the signal."""

    def _release(self) -> None:
        """What it has held besides its descriptor."""


def milliseconds(seconds: float | None) -> float | None:
    """A time for poll(2), which takes a number of 31 bits: for longer than 24 days it need not be waited at once."""
    return None if seconds is None else min(max(0.0, seconds) * 1000, 2.0**31 - 1)


@cache
def nothing() -> int:
    """/dev/null, to read from."""
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
