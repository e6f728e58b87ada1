"""A process in the foreground of a terminal, or of a pipe: it gets the caller's streams and signals, and the caller ends as it does."""

import fcntl
import os
import select
import signal
import socket
import struct
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from errno import EAGAIN, EIO
from io import FileIO
from types import FrameType

from kernel_lab.process import Process, Streams, nothing

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
ENDING = (signal.SIGINT, signal.SIGTERM)
INSISTING = 3  # as docker's command
CHUNK = 1 << 16
MOMENT = 0.1
# The end of the input is, for a terminal, Ctrl-D at the beginning of a line; within one it only sends what is there of it.
END = b"\x04\x04"

Start = Callable[[Streams], Process]


def attached(start: Start, interactive: bool, terminal: bool) -> int:
    """Runs a process with the caller's streams to its end; returns its exit code. `interactive`: it may read what the caller can read."""
    return _on_terminal(start, interactive) if terminal else _on_streams(start, interactive)


def _on_streams(start: Start, interactive: bool) -> int:
    # The child copies them onto 0, 1 and 2, and dup3(2) refuses to copy one onto itself.
    copies = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3) for number in (0, 1, 2)]
    try:
        return _to_the_end(start, Streams(copies[0] if interactive else nothing(), *copies[1:]), lambda process: process.ended())
    finally:
        for number in copies:
            os.close(number)


def _on_terminal(start: Start, interactive: bool) -> int:
    console, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with console, theirs, FileIO(_screen(), "w") as screen, _raw(0) if interactive else nullcontext():

        def converse(process: Process) -> None:
            try:
                master = _received(console)
            except BlockingIOError:
                return  # its table has run, and a row was refused
            with FileIO(master, "r+") as terminal:
                _converse(process, terminal.fileno(), screen.fileno(), interactive)

        return _to_the_end(start, Streams(theirs.fileno(), screen.fileno(), screen.fileno()), converse)


def _screen() -> int:
    """The caller's output. A terminal is opened anew: that nobody waits when this process writes to it must not be so for its other writers."""
    if os.isatty(1):
        with suppress(PermissionError):  # after su(1) it is another user's
            return os.open("/proc/self/fd/1", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)


def _received(console: socket.socket) -> int:
    """The container's terminal: the end at which one types. Raises BlockingIOError when it has not been sent."""
    _, (terminal,), _, _ = socket.recv_fds(console, 1, 1, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
    os.set_blocking(terminal, False)
    return terminal


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
        self._asked = 0
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
        self._asked += number in ENDING
        # Process 1 of a PID namespace ignores what it has no handler for (pid_namespaces(7)): who asks again and again means it.
        with suppress(ProcessLookupError):
            self._process.signal(signal.SIGKILL if self._asked >= INSISTING else number)


class _Way:
    """One direction of a conversation: what has been read from its source and not been written to its target yet."""

    def __init__(self, source: int, target: int, at_end: bytes = b"") -> None:
        self.source, self.target, self.at_end = source, target, at_end
        self.held = b""
        self.open = True

    @property
    def end(self) -> int:
        """The one of its two ends that it waits for."""
        return self.target if self.held else self.source

    def go_on(self) -> None:
        """One step, where `end` is ready for it."""
        if self.held:
            # So much a pipe takes at once when it takes anything (pipe(7)).
            self.held = self.held[os.write(self.target, self.held[: select.PIPE_BUF]) :]
        else:
            text = os.read(self.source, CHUNK)
            self.held, self.open = text or self.at_end, bool(text)


def _converse(process: Process, terminal: int, screen: int, interactive: bool) -> None:
    """What is typed goes to the terminal, and what comes out of it is shown, until the process has ended and all is shown.

    Neither direction waits for the other: a command may read nothing, or nobody what it writes.
    """
    shown, typed = _Way(terminal, screen), _Way(0, terminal, END)
    ways = [shown, typed] if interactive else [shown]
    with _as_large_as(screen, terminal):
        while True:
            reading = [way.source for way in ways if not way.held and way.open]
            readable, writable, _ = select.select([process.pidfd, *reading], [way.target for way in ways if way.held], [])
            if process.pidfd in readable:
                break
            for way in ways:
                if way.end in (writable if way.held else readable):
                    _step(way, terminal, process)
        _show(shown.held, screen)
        while text := _left(terminal):
            _show(text, screen)


def _step(way: _Way, terminal: int, process: Process) -> None:
    try:
        way.go_on()
    except OSError as error:
        if error.errno == EIO and way.end == terminal:
            process.ended(MOMENT)  # nobody has the other end open; somebody may open it again
        elif error.errno != EAGAIN:
            raise


def _left(terminal: int) -> bytes:
    with suppress(OSError):  # EAGAIN or EIO: that was all
        return os.read(terminal, CHUNK)
    return b""


def _show(text: bytes, screen: int) -> None:
    while text:
        select.select([], [screen], [])
        with suppress(BlockingIOError):
            text = text[os.write(screen, text[: select.PIPE_BUF]) :]


@contextmanager
def _as_large_as(screen: int, terminal: int) -> Iterator[None]:
    def copy(*_: object) -> None:
        with suppress(OSError):  # the caller may have no terminal of its own
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, fcntl.ioctl(screen, termios.TIOCGWINSZ, struct.pack("8x")))

    before = signal.signal(signal.SIGWINCH, copy)
    copy()  # it may have changed since the container's own was made
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


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
