"""What a part does before the clone: seen by the child, kept for the caller, and taken back whatever happens."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
from here import users

from kernel_lab import PID, UTS, Buffer, Container, Handle, KernelError, Part, Row, call
from kernel_lab.namespaces.part import Plan, Starting

NAME = Buffer("name", 16)
DOOR = Handle("door")


class Named(Part):
    """A host name that is chosen for each run, and a pipe of the creator's that the child writes into."""

    prepares = True
    handles = (DOOR,)
    order = 50

    def __init__(self, log: list[str], fails: bool = False) -> None:
        self.log, self.fails = log, fails

    def rows(self, plan: Plan) -> Iterable[Row]:
        yield call("sethostname", NAME, 4)
        yield call("write", DOOR, NAME, 4)

    @contextmanager
    def prepare(self, start: Starting) -> Iterator[int]:
        self.log.append("in")
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            if self.fails:
                raise RuntimeError("not today")
            start.fill(NAME, f"box{self.log.count('in')}".encode())
            start.give(DOOR, writer)
            yield reader
        finally:
            self.log.append("out")
            os.close(reader)
            os.close(writer)


class Outer(Part):
    """Another one, prepared before it and so taken back after it."""

    prepares = True
    order = 40

    def __init__(self, log: list[str]) -> None:
        self.log = log

    @contextmanager
    def prepare(self, start: Starting) -> Iterator[None]:
        self.log.append("first in")
        yield
        self.log.append("last out")


def test_each_run_is_prepared_anew(executor: str) -> None:
    log: list[str] = []
    box = Container(*users(), UTS("before"), Named(log), Outer(log), PID())
    assert [box.run("hostname").stdout for _ in range(2)] == ["box1\n", "box2\n"]
    assert log == ["first in", "in", "out", "last out"] * 2


def test_what_is_made_is_the_callers_while_it_runs(executor: str) -> None:
    log: list[str] = []
    part = Named(log)
    with Container(*users(), UTS("before"), part, PID()).start("sleep 1000") as box:
        reader = box.made(part)
        assert isinstance(reader, int) and os.read(reader, 16) == b"box1"
        assert log == ["in"]
    assert log == ["in", "out"]


def test_a_part_that_fails_takes_back_the_others(executor: str) -> None:
    log: list[str] = []
    box = Container(*users(), UTS("before"), Named(log, fails=True), Outer(log), PID())
    with pytest.raises(RuntimeError, match="not today"):
        box.run("true")
    assert log[:3] == ["first in", "in", "out"]


def test_a_refused_row_takes_it_back(executor: str) -> None:
    class Wrong(Part):
        def rows(self, plan: Plan) -> Iterable[Row]:
            yield call("close", 12345)

    log: list[str] = []
    with pytest.raises(KernelError, match="close"):
        Container(*users(), UTS("before"), Named(log), Wrong(), PID()).run("true")
    assert log == ["in", "out"]


def test_more_than_a_buffer_holds_is_refused_before_the_clone(executor: str) -> None:
    class Long(Named):
        @contextmanager
        def prepare(self, start: Starting) -> Iterator[None]:
            start.fill(NAME, b"x" * 17)
            yield

    with pytest.raises(ValueError, match="17 bytes do not fit"):
        Container(*users(), UTS("before"), Long([]), PID()).run("true")


class Brief(Outer):
    """What it opens is only needed until there is a child."""

    fails = False

    @contextmanager
    def open(self) -> Iterator[int]:
        self.log.append("open")
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            yield writer
        finally:
            self.log.append("closed")
            os.close(reader)
            os.close(writer)
        if self.fails:
            raise RuntimeError("not today")

    @contextmanager
    def prepare(self, start: Starting) -> Iterator[None]:
        start.until_cloned(self.open())
        yield
        self.log.append("out")


def test_what_is_lent_is_back_while_it_runs(executor: str) -> None:
    log: list[str] = []
    with Container(*users(), UTS("box"), Brief(log), PID()).start("sleep 1000"):
        assert log == ["open", "closed"]
    assert log == ["open", "closed", "out"]


def test_what_is_lent_is_back_when_another_part_fails(executor: str) -> None:
    log: list[str] = []
    with pytest.raises(RuntimeError, match="not today"):
        Container(*users(), UTS("box"), Brief(log), Named(log, fails=True), PID()).run("true")
    assert log == ["open", "in", "out", "closed", "out"]


def test_a_child_goes_when_what_was_lent_cannot_be_taken_back(executor: str) -> None:
    part = Brief([])
    part.fails = True
    with pytest.raises(RuntimeError, match="not today"):
        Container(*users(), UTS("box"), part, PID()).start("sleep 1000")
    assert part.log == ["open", "closed", "out"]
