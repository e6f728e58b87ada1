"""Looking at the machine with another user's eyes, in the middle of a test."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from kernel_lab.course.ordinary import Ordinary, inside, readable
from kernel_lab.kernel.calls import set_dumpable, syscall

T = TypeVar("T")
NOBODY = 65534
ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def nobodys_python() -> Iterator[Path]:
    """A Python with the kit in it that nobody can run, even where this one is below root's home."""
    with readable(ROOT, Ordinary("nobody", NOBODY, NOBODY, Path("/"))) as project:
        yield inside(project, ROOT, Path(sys.executable))


def as_an_ordinary_user(ask: Callable[[], T]) -> T:
    """What `ask` answers or raises to an ordinary user: to this one, or as root to nobody."""
    if os.geteuid() != 0:
        if os.stat("/proc/1").st_uid == os.geteuid():
            pytest.skip("needs a process of another user: process 1 is this one's")
        return ask()
    answers: list[T] = []
    errors: list[Exception] = []

    def thread() -> None:
        # The bare call changes this thread alone (the C library would change all of them), and the thread ends with it.
        syscall("setresuid", NOBODY, NOBODY, NOBODY)
        try:
            answers.append(ask())
        except Exception as error:
            errors.append(error)

    stranger = threading.Thread(target=thread)
    stranger.start()
    stranger.join()
    # A process with a thread that has changed its user counts as one with secrets (commit_creds, kernel/cred.c).
    set_dumpable(True)
    if errors:
        raise errors[0]
    return answers[0]
