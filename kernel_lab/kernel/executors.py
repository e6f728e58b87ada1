"""Which executor runs the tables: the fastest that works on this machine, or the one that KERNEL_LAB_EXECUTOR names."""

import os
import select
from collections.abc import Callable
from functools import cache
from typing import Protocol

from kernel_lab.kernel.errors import KernelError, UsageError
from kernel_lab.kernel.exits import exit_code
from kernel_lab.kernel.memory import Image, Layout
from kernel_lab.kernel.native import Child, Loop
from kernel_lab.kernel.portable import Helper
from kernel_lab.kernel.program import Program, call

VARIABLE = "KERNEL_LAB_EXECUTOR"
_FASTEST_FIRST: dict[str, Callable[[], "Executor"]] = {Loop.name: Loop, Helper.name: Helper}
_TRIAL = Program([call("exit_group", 42, why="ends the trial with a number that nothing else ends with")])


class Executor(Protocol):
    """What runs a table in a new process."""

    name: str
    shared: bool

    def start(self, image: Image) -> Child:
        """Starts a child of the caller's that walks the image's rows."""


@cache
def trial(name: str) -> tuple["Executor | None", str]:
    """The executor of that name when it can run a table here, and otherwise why it cannot."""
    try:
        executor = _FASTEST_FIRST[name]()
        image = Image(Layout(_TRIAL), executor.shared)
        child = executor.start(image)
        select.select([child.pidfd], [], [])
        code = exit_code(child.pidfd)
        child.wait_execed()
        os.close(child.pidfd)
        image.close()
    except (KernelError, UsageError, OSError, RuntimeError) as error:
        return None, str(error)
    return (executor, "works") if code == 42 else (None, f"its trial ended with {code} instead of 42")


def available() -> list[str]:
    """The names of the executors that work here, the fastest first."""
    return [name for name in _FASTEST_FIRST if trial(name)[0]]


def executor() -> Executor:
    """The executor in use. Raises UsageError for a name that is none, or that does not work here."""
    name = os.environ.get(VARIABLE)
    if name and name not in _FASTEST_FIRST:
        raise UsageError(f"{VARIABLE}={name}: there is {' and '.join(_FASTEST_FIRST)}")
    for candidate in [name] if name else _FASTEST_FIRST:
        chosen, why = trial(candidate)
        if chosen:
            return chosen
    raise UsageError(f"no executor works here; {candidate}: {why}")


def with_own_memory() -> Executor:
    """The executor whose children share no memory with their creator. Raises UsageError where it does not work."""
    chosen, why = trial(Helper.name)
    if not chosen:
        raise UsageError(f"the portable helper does not work here: {why}")
    return chosen
