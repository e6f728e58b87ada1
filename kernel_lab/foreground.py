"""A process in the foreground of a terminal, or of a pipe: it gets the caller's streams and signals, and the caller ends as it does."""

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from kernel_lab.process import Process, Streams, nothing

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
CHUNK = 1 << 16

Start = Callable[[Streams], Process]


def attached(start: Start, interactive: bool, terminal: bool) -> int:
    """Runs a process with the caller's streams to its end; returns its exit code. `interactive`: it may read what the caller can read."""
    return _on_terminal(start) if terminal else _on_streams(start, interactive)


def _on_streams(start: Start, interactive: bool) -> int:
    # The child copies them onto 0, 1 and 2, and dup3(2) refuses to copy one onto itself.
    copies = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3) for number in (0, 1, 2)]
    try:
        return _to_the_end(start, Streams(copies[0] if interactive else nothing(), *copies[1:]), lambda process: process.ended())
    finally:
        for number in copies:
            os.close(number)


def _on_terminal(start: Start) -> int:
    ours, its = pty.openpty()
    for number in (ours, its):
        os.set_inheritable(number, False)
    try:
        _copy_size(ours)
        with _raw(0):
            return _to_the_end(start, Streams(its, its, its), lambda process: _converse(process, ours))
    finally:
        os.close(ours)
        os.close(its)


def _to_the_end(start: Start, streams: Streams, until: Callable[[Process], object]) -> int:
    process: Process | None = None
    with _PassedOn() as passed_on:
        try:
            process = start(streams)
            passed_on.to(process)
            process.settle()
            until(process)
            code = process.wait()
            process.check()
            return code
        finally:
            if process:
                process.take_back()


class _PassedOn:
    """What this process is told by a signal, the other one is told instead: its session is its own, so the terminal does not tell it.

    What comes before there is another one is kept for it.
    """

    def __enter__(self) -> "_PassedOn":
        self._process: Process | None = None
        self._early: list[int] = []
        wanted = [number for number in PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._pass_on) for number in wanted}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def to(self, process: Process) -> None:
        """From now on they go there."""
        self._process = process
        for number in self._early:
            self._pass_on(number, None)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self._process is None:
            self._early.append(number)
            return
        with suppress(ProcessLookupError):
            self._process.signal(number)


def _converse(process: Process, terminal: int) -> None:
    """What is typed goes to the terminal's other end, and what comes out of it is shown, until the process has ended and all is shown."""
    resized = signal.signal(signal.SIGWINCH, lambda *_: _copy_size(terminal))
    try:
        listening = [0, terminal, process.pidfd]
        while True:
            ready, _, _ = select.select(listening, [], [])
            if terminal in ready:
                _show(terminal)
            elif process.pidfd in ready:
                return
            if 0 in ready:
                typed = os.read(0, CHUNK)
                os.write(terminal, typed or b"\x04")  # the end of the input is, for a terminal, Ctrl-D
                if not typed:
                    listening.remove(0)
    finally:
        signal.signal(signal.SIGWINCH, resized)


def _show(terminal: int) -> None:
    text = os.read(terminal, CHUNK)
    while text:
        text = text[os.write(1, text) :]


def _copy_size(terminal: int) -> None:
    with suppress(OSError):  # the caller may have no terminal of its own
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, struct.pack("8x")))


@contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    """Keys go through as they are: the other terminal echoes them, and makes a signal of Ctrl-C."""
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        sys.stdout.flush()
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
