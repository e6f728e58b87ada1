"""What goes into a running command and what comes out of it."""

import fcntl
import os
import select
import struct
import termios
import time
from contextlib import suppress

from kernel_lab.process import Process, milliseconds, nothing

CHUNK = 1 << 16


class Pipes:
    """The creator's ends of a command's streams, and the command's own until it has them.

    Without `input` the command reads from /dev/null. Whoever makes them closes them.
    """

    def __init__(self, input: bytes | None) -> None:
        self.ends: list[int] = []
        self.input = input
        try:
            self.stdin, self.feed = self._pipe() if input is not None else (nothing(), -1)
            self.out, self.stdout = self._pipe()
            self.err, self.stderr = self._pipe()
        except BaseException:
            self.close()
            raise

    def _pipe(self) -> tuple[int, int]:
        pair = os.pipe2(os.O_CLOEXEC)
        self.ends += pair
        return pair

    def close(self, *ends: int) -> None:
        """Closes these ends, or all that are left."""
        for end in ends or tuple(self.ends):
            if end in self.ends:
                self.ends.remove(end)
                os.close(end)

    def communicate(self, process: Process, deadline: float | None) -> tuple[bytes, bytes]:
        """Feeds the input, and reads until the command and all that it has left behind have ended. Raises TimeoutError at `deadline`.

        That the process has ended says that nothing more will come. The pipes' own end would say it too, but in two wake-ups more, each
        of which takes the processor from the process that is ending: so the command's ends stay open here.
        """
        texts: dict[int, list[bytes]] = {self.out: [], self.err: []}
        poll = select.poll()
        poll.register(self.out, select.POLLIN)
        poll.register(self.err, select.POLLIN)
        poll.register(process.pidfd, select.POLLIN)
        if self.input is not None:
            self.close(self.stdin)  # its reader: should the command close it, the kernel says so
            os.set_blocking(self.feed, False)
            poll.register(self.feed, select.POLLOUT)
        while process.code is None:
            ready = poll.poll(None if deadline is None else milliseconds(deadline - time.monotonic()))
            if not ready and deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{process.command.argv[0]}: not done in time")
            for end, _ in ready:
                if end in texts:
                    texts[end].append(os.read(end, CHUNK))
                elif end == self.feed:
                    self._write(poll)
                else:
                    process.wait()
        return b"".join((*texts[self.out], _rest(self.out))), b"".join((*texts[self.err], _rest(self.err)))

    def _write(self, poll: select.poll) -> None:
        with suppress(BrokenPipeError):  # a command may end without having read all, or anything
            self.input = (self.input or b"")[os.write(self.feed, (self.input or b"")[:CHUNK]) :]
            if self.input:
                return
        poll.unregister(self.feed)
        self.close(self.feed)


def _rest(end: int) -> bytes:
    """What is left in a pipe (FIONREAD, pipe(7)). Not up to its end: others may hold it open, a process that was forked meanwhile."""
    (count,) = struct.unpack("i", fcntl.ioctl(end, termios.FIONREAD, bytes(4)))
    return os.read(end, count) if count else b""
