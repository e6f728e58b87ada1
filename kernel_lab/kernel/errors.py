"""The two errors of the kit: what the caller can mend, and what the kernel refused."""

import errno as errnos
import os
from collections.abc import Sequence
from typing import Protocol


class UsageError(ValueError):
    """A wrong use: the message names the value and the rule, and nothing has been made yet."""


class Asked(Protocol):
    """What an error needs of a program's row."""

    @property
    def call(self) -> str: ...
    @property
    def args(self) -> Sequence[object]: ...


def name_of(errno: int) -> str:
    """EPERM for 1."""
    return errnos.errorcode.get(errno, f"errno {errno}")


class KernelError(OSError):
    """A system call that the kernel refused: which one, why, and where to look."""

    def __init__(
        self,
        errno: int,
        call: str,
        *,
        index: int | None = None,
        row: Asked | None = None,
        rule: str = "",
        look: str = "",
    ) -> None:
        super().__init__(errno, os.strerror(errno))
        self.call = call
        self.index = index
        self.row = row
        self.rule = rule
        self.look = look
        self.program: object | None = None

    def __str__(self) -> str:
        where = "" if self.index is None else f"row {self.index}, "
        why = " ".join(part for part in (self.rule or f"{self.strerror}.", self.look) if part)
        return f"{where}{self.call}: {name_of(self.errno or 0)}: {why}"

    def __reduce__(self) -> tuple[object, ...]:
        # OSError would be rebuilt from (errno, strerror), which is not what this constructor takes.
        return type(self), (self.errno, self.call), self.__dict__
