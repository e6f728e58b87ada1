"""What goes into a running command and what comes out of it."""

import os
import select
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
        """Feeds the input, and reads until the command and all that it has left behind have ended. Raises TimeoutError at `deadline`."""
        texts: dict[int, list[bytes]] = {self.out: [], self.err: []}
        poll = select.poll()
        for end in texts:
            poll.register(end, select.POLLIN)
        poll.register(process.pidfd, select.POLLIN)
        if self.input is not None:
            os.set_blocking(self.feed, False)
            poll.register(self.feed, select.POLLOUT)
        open_ends = set(texts)
        while True:
            ready = poll.poll(milliseconds(None if deadline is None else deadline - time.monotonic()))
            if not ready and deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{process.command.argv[0]}: not done in time")
            for end, _ in ready:
                if end == self.feed:
                    self._write(poll)
                elif end in open_ends:
                    if text := os.read(end, CHUNK):
                        texts[end].append(text)
                    else:
                        poll.unregister(end)
                        open_ends.remove(end)
            if any(end == process.pidfd for end, _ in ready):
                process.wait()
                break
        for end in open_ends:
            texts[end] += _rest(end)
        return b"".join(texts[self.out]), b"".join(texts[self.err])

    def _write(self, poll: select.poll) -> None:
        with suppress(BrokenPipeError):  # a command may end without having read all, or anything
            self.input = (self.input or b"")[os.write(self.feed, (self.input or b"")[:CHUNK]) :]
            if self.input:
                return
        poll.unregister(self.feed)
        self.close(self.feed)


def _rest(end: int) -> list[bytes]:
    """What is left in a pipe whose writers have ended. Not up to its end: somebody else may hold it open, a process that was forked meanwhile."""
    os.set_blocking(end, False)
    texts = []
    with suppress(BlockingIOError):
        while text := os.read(end, CHUNK):
            texts.append(text)
    return texts
