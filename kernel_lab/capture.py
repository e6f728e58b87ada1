"""A process whose output is caught, from its start to what it has left."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from kernel_lab.kernel.interrupts import Deferred
from kernel_lab.kernel.program import Program
from kernel_lab.process import Process, Streams
from kernel_lab.refusals import CommandError
from kernel_lab.streams import Pipes


@dataclass(frozen=True)
class Result:
    """What a command has left: its output, its exit code (128 + signal if one ended it), and how long it took, in seconds."""

    stdout: str
    stderr: str
    code: int
    seconds: float
    _table: Callable[[], Program]

    @cached_property
    def program(self) -> Program:
        """The command's table, with what the kernel answered."""
        return self._table()

    def __repr__(self) -> str:
        return f"Result(code={self.code}, stdout={self.stdout!r}, stderr={self.stderr!r})"


def captured(start: Callable[[Streams, float | None], Process], input: str | bytes | None, timeout: float | None, check: bool) -> Result:
    """Starts a process on pipes, and waits for its end and for all that it writes. `start` is told, too, when its time is over."""
    deadline = None if timeout is None else time.monotonic() + timeout
    pipes: Pipes | None = None
    process: Process | None = None
    with Deferred() as interrupts:
        try:
            pipes = Pipes(input.encode() if isinstance(input, str) else input)
            process = start(Streams(pipes.stdin, pipes.stdout, pipes.stderr), deadline)
            interrupts.allow()
            process.settle()
            out, err = pipes.communicate(process, deadline)
            interrupts.forbid()
            return _result(process, out.decode(errors="replace"), err.decode(errors="replace"), check)
        finally:
            interrupts.forbid()
            if process:
                process.take_back()
            if pipes:
                pipes.close()


def _result(process: Process, out: str, err: str, check: bool) -> Result:
    code = process.code
    assert code is not None
    layout, raw = process.image.layout, process.image.raw()
    try:
        process.check()
    except CommandError as error:
        code, err = error.code, f"{error}\n"
    if check and code:
        raise RuntimeError(f"{' '.join(process.command.argv)}: ended with {code}: {(err or out).strip()}")
    return Result(out, err, code, process.seconds, lambda: layout.results(raw))
