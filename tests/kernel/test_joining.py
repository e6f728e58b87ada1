"""Who joins a running container shares its creator's memory until its execve: nobody inside may look at it (the class of CVE-2016-9962)."""

import ctypes
import os
import secrets
import sys
from contextlib import nullcontext

import pytest
from here import users
from waiting import soon

from kernel_lab import PID, UTS, Container, Handle, Mount, Part, User, call, process
from kernel_lab.kernel.calls import dumpable, set_dumpable
from kernel_lab.kernel.flags import CLONE
from kernel_lab.kernel.native import Loop

# Reads, from every process that it can open, what the creator has at an address of its own.
ATTACK = """
import os, sys
address = int(sys.argv[1])
print("ready", flush=True)
while True:
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (1, os.getpid()):
            try:
                with open(f"/proc/{name}/mem", "rb", 0) as memory:
                    memory.seek(address)
                    print(memory.read(16).hex(), flush=True)
            except OSError:
                pass
"""
# So many places where the command is not that the child takes its time.
PATH = ":".join(f"/no/such/place/{number}" for number in range(4000)) + ":/usr/bin:/bin"


@pytest.fixture
def secret() -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(secrets.token_bytes(16), 16)


def attacked(secret: ctypes.Array[ctypes.c_char], tries: int) -> bool:
    """Whether somebody in a container reads the secret while commands join it."""
    box = Container(User(), PID(), Mount())
    with box.start(sys.executable, "-c", ATTACK, str(ctypes.addressof(secret))):
        assert soon(lambda: "ready" in box.logs())
        for _ in range(tries):
            box.exec("true", env={"PATH": PATH}, check=True)
            if secret.raw.hex() in box.logs():
                return True
    return False


@pytest.fixture(autouse=True)
def opened() -> None:
    set_dumpable(True)  # another test's children may have closed it


@pytest.mark.usefixtures("executor")
def test_nobody_inside_reads_the_creators_memory(secret: ctypes.Array[ctypes.c_char]) -> None:
    assert not attacked(secret, 20)
    assert dumpable()


def test_the_attack_works_where_nothing_guards_against_it(secret: ctypes.Array[ctypes.c_char], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNEL_LAB_EXECUTOR", "loop")
    monkeypatch.setattr(process.dumpable, "closed", nullcontext)
    assert attacked(secret, 500)


class Joins(Part):
    """A part of a learner's own that enters a container."""

    order = 15

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def rows(self, plan):  # type: ignore[no-untyped-def]
        other = Handle("other")
        yield call("pidfd_open", self.pid, 0, into=other)
        yield call("setns", other, CLONE.NEWUSER | CLONE.NEWNS)


class JoinsUTS(Part):
    def __init__(self, pid: int) -> None:
        self.pid = pid

    def rows(self, plan):  # type: ignore[no-untyped-def]
        other = Handle("other")
        yield call("pidfd_open", self.pid, 0, into=other)
        yield call("setns", other, CLONE.NEWUTS | (CLONE.NEWUSER if users() else CLONE(0)))


def test_who_joins_takes_nobody_along_at_its_end() -> None:
    with Container(*users(), UTS("one")).start("sleep 1000") as one:
        assert Container(JoinsUTS(one.pid)).run("hostname").stdout == "one\n"
        assert one.running


def test_a_part_that_joins_shares_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNEL_LAB_EXECUTOR", "loop")
    shared: list[bool] = []
    start = Loop.start
    monkeypatch.setattr(Loop, "start", lambda loop, image: shared.append(True) or start(loop, image))  # type: ignore[func-returns-value]
    with Container(User(), PID(), Mount()).start("sleep 1000") as box:
        assert shared == [True]
        assert Container(Joins(box.pid)).run("true").code == 0
    assert shared == [True]


@pytest.mark.usefixtures("executor")
def test_the_creator_can_be_looked_into_again_afterwards() -> None:
    with Container(*users(), User() if not users() else PID()).start("sleep 1000") as box:
        box.exec("true")
        assert box.exec("no-such-command").code == 127
    assert dumpable() and os.stat("/proc/self/mem").st_uid == os.geteuid()
