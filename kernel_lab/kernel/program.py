"""The table of system calls: a container as data. Nothing here calls the kernel."""

import errno as errnos
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum, IntFlag
from html import escape
from types import MappingProxyType
from typing import overload

from tabulate import tabulate

from kernel_lab.kernel import syscalls
from kernel_lab.kernel.errors import UsageError
from kernel_lab.kernel.flags import shown
from kernel_lab.kernel.structs import Struct


@dataclass(frozen=True)
class Handle:
    """A value that is known only once a row has run, or that the creator gives: a descriptor, a process id."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Buffer:
    """`size` bytes of memory that the kernel writes into, or that creator and child wait on; zero at the start unless `fill` says otherwise."""

    name: str
    size: int
    fill: bytes = b""

    def __str__(self) -> str:
        return f"{self.name}[{self.size}]"


@dataclass(frozen=True)
class Address:
    """The address of a buffer, as a word of its own inside a structure: `clone_args.pidfd`, `iovec.iov_base`."""

    buffer: Buffer


@dataclass(frozen=True)
class Words:
    """A structure of 64-bit words, some of them addresses; passed by its own address."""

    items: tuple[int | Address, ...]
    shown: str

    def __str__(self) -> str:
        return self.shown


@dataclass(frozen=True)
class Strings:
    """`argv` or `envp`: an array of pointers to C strings, ended by a null pointer; printed as `name` when it has one."""

    items: tuple[str | bytes, ...]
    name: str = ""

    def __str__(self) -> str:
        if self.name:
            return self.name
        return "[" + ", ".join(map(_text, self.items)) + "]"


Arg = int | IntFlag | IntEnum | str | bytes | None | Handle | Buffer | Struct | Words | Strings
_KINDS = (int, str, bytes, type(None), Handle, Buffer, Struct, Words, Strings)
REGISTERS = 6


@dataclass(frozen=True)
class Row:
    """One system call: its name, its arguments and what it is for.

    `tolerate`: errnos that do not end the table. `into`: the handle that takes the answer.
    `positive`: the label of the row to go on with when the answer is above zero, which after a clone is the parent's side.
    """

    call: str
    args: tuple[Arg, ...]
    why: str = ""
    tolerate: frozenset[int] = frozenset()
    into: Handle | None = None
    positive: str | None = None
    label: str | None = None

    def __str__(self) -> str:
        return f"{self.call}({', '.join(map(_text, self.args))})"

    def explain(self) -> str:
        """The row as one sentence."""
        purpose = f", {self.why.rstrip(',')}" if self.why else ""
        forgiven = f"; {' or '.join(sorted(map(_errno, self.tolerate)))} is no failure" if self.tolerate else ""
        return f"{self}{purpose}{forgiven}."


def call(
    name: str,
    *args: Arg,
    why: str = "",
    tolerate: Iterable[int] = (),
    into: Handle | None = None,
    positive: str | None = None,
    label: str | None = None,
) -> Row:
    """A row of the table. Raises UsageError for what no kernel could be asked: an unknown call, a seventh argument, a NUL in a string."""
    syscalls.number(name)
    if len(args) > REGISTERS:
        raise UsageError(f"{name}: {len(args)} arguments; a system call has at most {REGISTERS} (syscall(2))")
    for arg in args:
        _check(name, arg)
    tolerated = frozenset(tolerate)
    if bad := [number for number in tolerated if not 0 < number < 64]:
        raise UsageError(f"{name}: errno {bad[0]} cannot be tolerated: the loop knows 1 to 63")
    return Row(name, args, why, tolerated, into, positive, label)


def _check(name: str, arg: object) -> None:
    if not isinstance(arg, _KINDS) or isinstance(arg, bool):
        raise UsageError(f"{name}: {arg!r} is no argument of a system call: it takes numbers, strings, handles, buffers and structures")
    if isinstance(arg, int) and not -(2**63) <= arg < 2**64:
        raise UsageError(f"{name}: {arg} does not fit into a 64-bit register")
    for text in arg.items if isinstance(arg, Strings) else (arg,):
        if isinstance(text, str | bytes) and (b"\0" if isinstance(text, bytes) else "\0") in text:  # type: ignore[operator]
            raise UsageError(f"{name}: {text!r} has a NUL inside: the kernel would read it only up to there")


class Program(Sequence[Row]):
    """An ordered table of system calls, and, after a run, what the kernel answered to each.

    Raises UsageError when a row is no row, or names a label that no row carries.
    """

    def __init__(self, rows: Iterable[Row], answers: Sequence[int | None] = (), buffers: Mapping[Buffer, bytes] = MappingProxyType({})) -> None:
        self.rows = tuple(rows)
        for index, row in enumerate(self.rows):
            if not isinstance(row, Row):
                raise UsageError(f"row {index} is {row!r}: a row is made by call(name, arguments…)")
        self.labels = {row.label: index for index, row in enumerate(self.rows) if row.label}
        for row in self.rows:
            if row.positive and row.positive not in self.labels:
                raise UsageError(f"{row}: goes on at {row.positive!r}, but no row has that label")
        self.answers = tuple(answers) or (None,) * len(self.rows)
        self.buffers = buffers

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> "Program": ...
    def __getitem__(self, index: int | slice) -> "Row | Program":
        return Program(_loose(self.rows[index]), self.answers[index]) if isinstance(index, slice) else self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self.rows == other.rows

    def __hash__(self) -> int:
        return hash(self.rows)

    def __add__(self, other: Iterable[Row]) -> "Program":
        return Program((*self.rows, *other))

    def with_results(self, answers: Sequence[int | None], buffers: Mapping[Buffer, bytes] = MappingProxyType({})) -> "Program":
        """The same table with what the kernel answered; None where a row was not reached."""
        return Program(self.rows, answers, buffers)

    def answer(self, name: str) -> int | None:
        """What the kernel answered to the first row that calls `name`; a refusal is a negative errno."""
        return next(answer for row, answer in zip(self.rows, self.answers, strict=True) if row.call == name)

    def explain(self) -> str:
        """One sentence a row."""
        return "\n".join(f"{index}. {row.explain()}" for index, row in enumerate(self.rows))

    def _cells(self) -> list[tuple[str, ...]]:
        ran = any(answer is not None for answer in self.answers)
        return [
            (str(index), row.call, ", ".join(map(_text, row.args)), *([_answer(row, answer)] if ran else []), row.why)
            for index, (row, answer) in enumerate(zip(self.rows, self.answers, strict=True))
        ]

    def _headers(self) -> tuple[str, ...]:
        return ("#", "call", "arguments", *(["answer"] if any(answer is not None for answer in self.answers) else []), "why")

    def __str__(self) -> str:
        cells = [[_short(cell) for cell in cells] for cells in self._cells()]
        return tabulate(cells, self._headers(), disable_numparse=True)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='text-align:left'>{name}</th>" for name in self._headers())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(map(_html_row, self._cells()))}</tbody></table>"


def refused(answer: int | None) -> bool:
    """Whether an answer is the kernel's no: it answers -errno, and no errno is above 4095 (syscall(2), linux/err.h)."""
    return answer is not None and -4095 <= answer < 0


def _loose(rows: Iterable[Row]) -> list[Row]:
    return [replace(row, positive=None) for row in rows]


def _html_row(cells: tuple[str, ...]) -> str:
    styles = ["", "font-family:monospace", "font-family:monospace", *([""] * (len(cells) - 3))]
    columns = (f"<td style='text-align:left;{style}'>{escape(_short(cell))}</td>" for cell, style in zip(cells, styles, strict=True))
    return f"<tr>{''.join(columns)}</tr>"


def _short(text: str, width: int = 72) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _text(arg: object) -> str:
    for kind, form in _FORMS.items():
        if isinstance(arg, kind):
            return form(arg)
    return str(arg)


def _quoted(text: str | bytes) -> str:
    raw = text.decode(errors="backslashreplace") if isinstance(text, bytes) else text
    return '"' + raw.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


_FORMS: dict[type, Callable[..., str]] = {
    IntFlag: shown,
    IntEnum: shown,
    str: _quoted,
    bytes: _quoted,
    Struct: lambda struct: struct.shown,
    type(None): lambda _: "NULL",
}


def _errno(number: int) -> str:
    return errnos.errorcode.get(number, str(number))


def _answer(row: Row, answer: int | None) -> str:
    if answer is None:
        return ""
    if refused(answer):
        return _errno(-answer) + (" (tolerated)" if -answer in row.tolerate else "")
    # A descriptor's or a process's number differs from run to run and says nothing; its name does.
    return str(row.into) if row.into else str(answer)
