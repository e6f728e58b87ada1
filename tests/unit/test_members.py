"""Who belongs to a container of no namespaces at all: the session of its first process."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest
from boxes import Life, box, cleared, end, go, marked
from waiting import soon

from kernel_lab.kernel import procfs
from kernel_lab.members import Members, last_number


@pytest.fixture
def bystander() -> Iterator["subprocess.Popen[str]"]:
    """A process that is no member."""
    with subprocess.Popen(["sleep", "1000"], text=True, start_new_session=True) as process:
        yield process
        process.kill()


@pytest.fixture
def session(request: pytest.FixtureRequest) -> Iterator["subprocess.Popen[str]"]:
    """A container whose first process has two children in its session."""
    process = subprocess.Popen(
        ["sh", "-c", "sleep 1000 & sleep 1000 & echo; exec sleep 1000"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout
    process.stdout.readline()
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    with process:
        process.wait()


def test_the_session_of_the_first_process_is_found(session: "subprocess.Popen[str]") -> None:
    members = Members.of(session.pid, [])
    assert soon(lambda: len(members.pids()) == 3)
    assert session.pid in members.pids()


def test_all_of_it_is_killed_and_nobody_else(session: "subprocess.Popen[str]", bystander: "subprocess.Popen[str]") -> None:
    members = Members.of(session.pid, [])
    members.kill_all()
    assert members.pids() == []
    assert session.wait() == -9
    assert bystander.poll() is None
    members.kill_all()


def test_the_caller_is_spared_in_its_own_session() -> None:
    """Of whatever container a caller may be in."""
    script = "import os; from kernel_lab.members import Members; os.setsid(); m = Members.of(os.getpid(), []); m.kill_all(); print(m.pids())"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"


FORKER = """
import os, signal, sys
for line in sys.stdin:
    child = os.fork()
    if not child:
        signal.pause()
    print(child, flush=True)
"""


def test_one_that_is_made_during_the_look_is_seen() -> None:
    forker = subprocess.Popen([sys.executable, "-c", FORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    members = Members.of(forker.pid, [])
    made: list[int] = []

    def ask(pid: int) -> None:
        if len(made) < 3:
            assert forker.stdin and forker.stdout
            print(file=forker.stdin, flush=True)
            made.append(int(forker.stdout.readline()))

    with forker:
        found = members.each(ask)
        members.kill_all()
    assert len(made) == 3
    assert {forker.pid, *made} <= set(found)


def test_a_zombie_is_no_member(session: "subprocess.Popen[str]") -> None:
    members = Members.of(session.pid, [])
    session.kill()
    assert soon(lambda: session.pid not in members.pids())
    members.kill_all()
    assert session.returncode is None, "the first process is its creator's to reap"


def test_one_whose_first_thread_has_ended_is_a_member() -> None:
    mark, life = f"headless {os.getpid()}", Life()
    process = box(mark, life.theirs, (), ("headless",))
    try:
        go(process, ("headless",))
        [headless] = [pid for pid in marked(mark) if pid != process.pid]
        # It has left the first process's session for its own.
        members = Members.of(headless, [])
        assert soon(lambda: procfs.process(headless).state == "Z")
        assert members.pids() == [headless]
        members.kill_all()
        assert soon(lambda: headless not in marked(mark))
    finally:
        end(process, mark)
        assert soon(lambda: cleared(life, mark))
        life.close()


def test_what_is_closed_has_no_members(session: "subprocess.Popen[str]") -> None:
    members = Members.of(session.pid, [])
    members.close()
    members.kill_all()
    assert members.pids() == []
    assert session.poll() is None
    members.close()


def test_a_namespace_that_is_the_creators_too_makes_nobody_a_member(session: "subprocess.Popen[str]", bystander: "subprocess.Popen[str]") -> None:
    members = Members.of(session.pid)
    assert members.namespaces == {}
    assert bystander.pid not in members.pids()
    assert os.getpid() not in members.pids()


@pytest.mark.parametrize("number", [-1, 0, 1])
def test_a_number_that_is_no_containers_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="not the number of a container's first process"):
        Members(number, {})


def test_a_process_that_is_gone_has_no_members() -> None:
    with subprocess.Popen(["true"], start_new_session=True) as process:
        process.wait()
    members = Members.of(process.pid)
    assert members.namespaces == {}
    assert members.pids() == []


def test_the_last_number_given_out_is_that_of_the_newest_process() -> None:
    before = last_number()
    with subprocess.Popen(["true"]) as process:
        pass
    assert process.pid <= last_number() or last_number() < before, "numbers start again from below"
