"""`kill -9` of a creator, at any moment, leaves nothing of its containers. And what it has released is left alone."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from boxes import CREATOR, Life, marked
from waiting import soon

from kernel_lab import janitor
from kernel_lab.kernel import procfs

pytestmark = [pytest.mark.slow, pytest.mark.needs("userns", "unshare", "setsid")]

# It does what it reads, line by line, and says so; at the end of its input it ends as a program ends.
SCRIPT = """
import ctypes, os, signal, sys, threading
from boxes import KINDS, box, go
from kernel_lab import janitor
boxes, guards, mark, life = [], [], sys.argv[1], int(sys.argv[2])
def guard(tenants):
    made = box(mark, life, KINDS, tenants)
    boxes.append(made)
    guards.append(janitor.guard(made.pid, KINDS))
    go(made, tenants)
def many():
    threads = [threading.Thread(target=guard, args=(["daemon"],)) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
libc = ctypes.PyDLL(None)
def fork():
    if not os.fork():
        guards[0].release()
        rest()
def clone():
    # Unknown to Python, so that no descriptor is closed: as a child is before its execve.
    if not libc.fork():
        rest()
def rest():
    os.close(0)
    os.close(life)
    libc.pause()
def interrupted():
    waiting = box(mark, life, KINDS)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        janitor.guard(waiting.pid, KINDS)
    except KeyboardInterrupt:
        waiting.kill()
        waiting.wait()
    else:
        raise AssertionError("a stopped janitor has answered")
def release():
    guards.pop().release()
def end():
    guards[-1].kill_all()
    boxes.pop().wait()
    release()
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


class Creator:
    """A process that makes containers, as a notebook does, and that one can kill."""

    def __init__(self, mark: str) -> None:
        self.mark, self.life = mark, Life()
        path = os.pathsep.join(path for path in sys.path if path)
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, mark, str(self.life.theirs)],
            pass_fds=[self.life.theirs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, CREATOR: mark},
            start_new_session=True,
        )

    def does(self, line: str) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def janitors(self) -> list[int]:
        found = []
        for pid in marked(self.mark, CREATOR):
            with suppress(ProcessLookupError):
                if procfs.process(pid).name == janitor.NAME:
                    found.append(pid)
        return found

    def boxed(self) -> list[int]:
        return marked(self.mark)

    def holds(self, processes: int) -> bool:
        """Whether so many run in its boxes. One that is just in its execve carries no mark for a moment."""
        return soon(lambda: len(self.boxed()) == processes)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def clear(self) -> None:
        """Kill what it has released, or what a failed test has left."""
        for pid in self.boxed():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def leave(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        assert self.process.wait() == 0


@pytest.fixture
def creators(request: pytest.FixtureRequest) -> Iterator[Callable[[], Creator]]:
    made = []

    def make() -> Creator:
        made.append(Creator(f"{request.node.name} {os.getpid()} {len(made)}"))
        return made[-1]

    yield make
    for creator in made:
        creator.kill()
        assert creator.process.stdin and creator.process.stdout
        creator.process.stdin.close()
        creator.process.stdout.close()
        if not soon(creator.life.all_ended):
            creator.clear()
        # A hopper that a failed test has let go is in no list, and ends by itself.
        assert soon(creator.life.all_ended, 80)
        creator.life.close()


def gone(creator: Creator) -> bool:
    """Whether nothing is left: none of the containers' processes, and no janitor."""
    return soon(creator.life.all_ended) and soon(lambda: not marked(creator.mark, CREATOR))


def complaints(run_directory: Path) -> str:
    log = run_directory / "janitor.log"
    return log.read_text() if log.exists() else ""


EVERYBODY = ("daemon", "forker", "hopper", "headless")


@pytest.mark.parametrize("repetition", range(3))
def test_nothing_outlives_a_creator_that_is_killed(repetition: int, creators: Callable[[], Creator], run_directory: Path) -> None:
    creator = creators()
    creator.does(f"guard({EVERYBODY})")
    creator.does("guard(['daemon'])")
    assert not creator.life.all_ended()
    creator.kill()
    assert gone(creator)
    assert complaints(run_directory) == ""


def test_nothing_outlives_a_creator_that_ends_by_itself(creators: Callable[[], Creator]) -> None:
    creator = creators()
    creator.does("guard(['daemon'])")
    creator.leave()
    assert gone(creator)


def test_what_is_released_lives_on(creators: Callable[[], Creator]) -> None:
    creator = creators()
    creator.does("guard(['daemon'])")
    creator.does("guard(['daemon'])")
    assert creator.holds(6)
    creator.does("release()")
    creator.kill()
    assert soon(lambda: not marked(creator.mark, CREATOR)), "the janitor has ended"
    assert creator.holds(3)
    creator.clear()


def test_a_creator_kills_its_container_itself(creators: Callable[[], Creator]) -> None:
    creator = creators()
    creator.does(f"guard({EVERYBODY})")
    creator.does("end()")
    assert soon(lambda: not creator.boxed())
    creator.leave()
    assert gone(creator)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_janitor_is_deaf(number: int, creators: Callable[[], Creator]) -> None:
    creator = creators()
    creator.does("guard(['daemon'])")
    [cleaner] = creator.janitors()
    os.kill(cleaner, number)
    creator.does("guard(['daemon'])")
    assert creator.janitors() == [cleaner]
    creator.kill()
    assert gone(creator)


def test_a_janitor_is_nobodys_child_and_out_of_the_way(creators: Callable[[], Creator]) -> None:
    creator = creators()
    creator.does("guard(['daemon'])")
    [cleaner] = creator.janitors()
    process = procfs.process(cleaner)
    assert process.parent != creator.process.pid
    assert process.session not in (creator.process.pid, os.getsid(0))
    assert os.readlink(f"/proc/{cleaner}/cwd") == "/"
    assert {os.readlink(f"/proc/{cleaner}/fd/{number}") for number in range(3)} == {"/dev/null"}


def test_when_a_janitor_is_killed_the_next_one_knows_everything(creators: Callable[[], Creator]) -> None:
    creator = creators()
    creator.does("guard(['daemon'])")
    [cleaner] = creator.janitors()
    os.kill(cleaner, signal.SIGKILL)
    assert soon(lambda: not creator.janitors())
    creator.does("guard(['daemon'])")
    assert len(creator.janitors()) == 1
    creator.kill()
    assert gone(creator)


def test_many_threads_have_one_janitor(creators: Callable[[], Creator]) -> None:
    creator = creators()
    creator.does("many()")
    assert len(creator.janitors()) == 1
    assert creator.holds(12)
    creator.kill()
    assert gone(creator)


@pytest.mark.parametrize("how", ["fork", "clone"])
def test_a_child_of_the_creator_neither_releases_nor_holds_up_anything(how: str, creators: Callable[[], Creator]) -> None:
    creator = creators()
    creator.does("guard(['daemon'])")
    creator.does(f"{how}()")
    assert creator.holds(3)
    creator.kill()
    assert soon(lambda: not creator.boxed())
    assert soon(lambda: not creator.janitors())
    [fork] = marked(creator.mark, CREATOR)
    os.kill(fork, signal.SIGKILL)


def test_two_creators_do_not_touch_one_another(creators: Callable[[], Creator]) -> None:
    first, second = creators(), creators()
    for creator in (first, second):
        creator.does("guard(['daemon'])")
    first.kill()
    assert gone(first)
    assert second.holds(3)
    assert len(second.janitors()) == 1


def test_an_interrupt_is_not_held_up_by_a_janitor_that_keeps_silent(creators: Callable[[], Creator]) -> None:
    creator = creators()
    creator.does("guard(['daemon'])")
    [cleaner] = creator.janitors()
    # From the second time on answers lie there to the questions that were interrupted before.
    for _ in range(3):
        os.kill(cleaner, signal.SIGSTOP)
        creator.does("interrupted()")
        os.kill(cleaner, signal.SIGCONT)
        assert soon(lambda: procfs.process(cleaner).state == "S"), "it has done all that it was asked"
    creator.does("guard(['daemon'])")
    assert creator.holds(6)
    assert creator.janitors() == [cleaner]
    creator.kill()
    assert gone(creator)
