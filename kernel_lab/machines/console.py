"""What a machine says on its serial console, line by line, each with the moment when it came."""

import codecs
import os
import re
import threading
import time
from io import FileIO
from typing import IO, NamedTuple

CONTROL = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[ -/]*[0-Z\\-~])|[\x00-\x08\x0b-\x1f\x7f]")  # ECMA-48: what moves a terminal's cursor, and colours it
SHOWN = 8


class Line(NamedTuple):
    """`seconds`: since the machine was started."""

    seconds: float
    text: str


class Console:
    """Reads until the machine closes its side. `output` is what comes from the machine, `input` what goes to it."""

    def __init__(self, output: IO[bytes] | FileIO, input: IO[bytes] | FileIO) -> None:
        self.lines: list[Line] = []
        self.closed = False
        self._begun = time.monotonic()
        self._output, self._input = output, input
        self._open = ""  # a line that has no end yet: a prompt
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="klab-console", daemon=True)
        self._reader.start()

    def __str__(self) -> str:
        with self._news:
            return "\n".join([*(line.text for line in self.lines), *([self._open] if self._open else [])])

    def write(self, text: str) -> None:
        """Types on the machine's keyboard."""
        self._input.write(text.encode())
        self._input.flush()

    def wait(self, pattern: str, timeout: float) -> Line:
        """The first line in which the regular expression is found, whenever it comes.

        Raises TimeoutError after so many seconds, and EOFError when the machine has ended before; both show what it said last.
        """
        with self._news:
            self._news.wait_for(lambda: self.closed or self._found(pattern), timeout)
            if found := self._found(pattern):
                return found
            said = "\n".join(line.text for line in self.lines[-SHOWN:]) or "nothing"
            if self.closed:
                raise EOFError(f"the machine has ended without {pattern!r} on its console; it said last:\n{said}")
            raise TimeoutError(f"the machine has not said {pattern!r} in {timeout:.0f} s; it said last:\n{said}")

    def join(self, timeout: float) -> None:
        """Waits until all has been read that the machine will ever say, or for so many seconds."""
        self._reader.join(timeout)

    def _found(self, pattern: str) -> Line | None:
        heard = [*self.lines, Line(self._since(), self._open)]
        return next((line for line in heard if re.search(pattern, line.text)), None)

    def _since(self) -> float:
        return time.monotonic() - self._begun

    def _read(self) -> None:
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        try:
            while chunk := os.read(self._output.fileno(), 1 << 16):
                self._hear(decode(chunk))
        finally:
            with self._news:
                self.closed = True
                self._news.notify_all()

    def _hear(self, text: str) -> None:
        now = self._since()
        with self._news:
            *whole, self._open = (self._open + text).split("\n")
            self.lines += [Line(now, CONTROL.sub("", line)) for line in whole]
            self._news.notify_all()
