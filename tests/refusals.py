"""Rows that the kernel refuses, run for real in a process of their own, and the explanation of the refusal."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from errno import errorcode

import pytest
from needs import reason

from kernel_lab.kernel.errors import KernelError
from kernel_lab.kernel.executors import executor
from kernel_lab.kernel.flags import AT_FD, CLONE, MS, O
from kernel_lab.kernel.memory import Image, Layout
from kernel_lab.kernel.program import Handle, Program, Row, call
from kernel_lab.kernel.program import refused as said_no
from kernel_lab.kernel.rules import Context, clone_refused, refused

HERE = AT_FD.FDCWD
FILE = Handle("file")
NOTHING, NEWNS, NEWUSER = CLONE(0), CLONE.NEWNS, CLONE.NEWUSER
PRIVATE = call("mount", None, "/", None, MS.REC | MS.PRIVATE)
NOBODY = call("setresuid", 65534, 65534, 65534)


@dataclass(frozen=True)
class Case:
    """`rows` for a folder of the test's own, one of which, the last unless `at` says so, is refused with `errno`; the explanation has `words`."""

    flags: CLONE
    errno: int
    rows: Callable[[str], Sequence[Row]]
    words: tuple[str, ...]
    context: Context | None = None
    at: int = -1


def case(flags: CLONE, errno: int, rows: Callable[[str], Sequence[Row]], *words: str, context: Context | None = None, at: int = -1) -> Case:
    return Case(flags, errno, rows, words, context, at)


def attempt(rows: Sequence[Row], flags: CLONE, context: Context | None = None) -> KernelError | None:
    """What the kernel refuses of the rows in a new process, explained; None when it refuses nothing."""
    program = Program([*rows, call("exit_group", 0)])
    layout, runs_it = Layout(program, flags), executor()
    image = Image(layout, runs_it.shared)
    try:
        child = runs_it.start(image)
    except KernelError as error:
        return clone_refused(error.errno or 0, flags)
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
    child.wait_execed()
    os.close(child.pidfd)
    answers = layout.results(image.raw()).answers
    image.close()
    for index, answer in enumerate(answers):
        if answer is not None and said_no(answer) and -answer not in program[index].tolerate:
            return refused(program[index], index, -answer, context or Context(flags, program[:index]))
    return None


def check(case: Case, folder: str) -> None:
    """Provokes the refusal, and compares its explanation."""
    # Root alone has capabilities outside a user namespace; a user namespace must be allowed.
    lack = reason(["userns"] if NEWUSER in case.flags else ["root", "userns"])
    if lack:
        pytest.skip(lack)
    rows = case.rows(folder)
    error = attempt(rows, case.flags, case.context)
    assert error is not None, "the kernel refused nothing"
    assert errorcode[error.errno or 0] == errorcode[case.errno], str(error)
    assert error.index in (case.at % len(rows) if rows else None, None), str(error)
    said = str(error)
    assert [word for word in case.words if word not in said] == [], said
    assert error.rule and error.look


def tmpfs(place: str, flags: MS = MS.NOSUID, options: str | None = None) -> Row:
    return call("mount", "tmpfs", place, "tmpfs", flags, options)


def directory(path: str) -> Row:
    return call("mkdirat", HERE, path, 0o755)


def mapped(uid: int = os.geteuid(), gid: int = os.getegid()) -> list[Row]:
    """Root inside is this user outside. Nobody without a place in the map makes files, or another user namespace."""
    maps = {"uid_map": f"0 {uid} 1", "setgroups": "deny", "gid_map": f"0 {gid} 1"}
    return [row for file, data in maps.items() for row in [*writes(f"/proc/self/{file}", data), call("close", FILE)]]


def writes(path: str, data: str) -> list[Row]:
    return [call("openat", HERE, path, O.WRONLY, into=FILE), call("write", FILE, data, len(data))]
