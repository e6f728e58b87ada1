"""Who belongs to a container with namespaces but no PID namespace, and that none of them escapes."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from boxes import KINDS, Life, box, cleared, end, go, marked
from waiting import soon

from kernel_lab.members import Members

pytestmark = pytest.mark.needs("userns", "unshare", "setsid")
Boxes = Callable[..., "tuple[subprocess.Popen[str], Members]"]


@pytest.fixture
def mark(request: pytest.FixtureRequest) -> str:
    """What is in the environment of everything in this test's boxes, and of nothing in those of another run of the same test."""
    return f"{request.node.name} {os.getpid()}"


@pytest.fixture
def life() -> Iterator[Life]:
    pipe = Life()
    yield pipe
    pipe.close()


@pytest.fixture
def boxes(mark: str, life: Life) -> Iterator[Boxes]:
    """Makes containers of this test's, and ends them after it."""
    made = []

    def make(tenants: Sequence[str] = ("daemon",), kinds: Sequence[str] = KINDS) -> "tuple[subprocess.Popen[str], Members]":
        process = box(mark, life.theirs, kinds, tenants)
        members = Members.of(process.pid)
        made.append((process, members))
        go(process, tenants)
        return process, members

    yield make
    for process, members in made:
        end(process, mark)
        members.close()
    # A hopper that a failed test has let go is seen by none of these, and ends by itself.
    assert soon(lambda: cleared(life, mark), 80)


@pytest.mark.parametrize("tenant", ["daemon", "forker", "hopper", "headless"])
def test_no_daemon_escapes(tenant: str, boxes: Boxes, life: Life) -> None:
    process, members = boxes((tenant,))
    assert not life.all_ended()
    members.kill_all()
    assert soon(life.all_ended)
    assert members.pids() == []
    assert process.wait() == -9


@pytest.mark.needs("root")
@pytest.mark.parametrize("kind", ["cgroup", "time"])
def test_none_escapes_from_a_single_namespace(kind: str, boxes: Boxes, life: Life) -> None:
    _, members = boxes(("daemon",), (kind,))
    assert list(members.namespaces) == [kind]
    members.kill_all()
    assert soon(life.all_ended)


@pytest.mark.needs("namespace:time")
def test_a_namespace_that_is_only_for_what_comes_after_counts(mark: str, life: Life) -> None:
    """As after unshare(CLONE_NEWTIME): the process itself is not in it, its children are."""
    script = "import ctypes, sys; print(ctypes.CDLL(None).unshare(0x80)); sys.stdout.flush(); sys.stdin.readline()"
    prefix = [] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user"]
    command = [*prefix, sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "0\n"
        members = Members.of(process.pid, ["time"])
        assert list(members.namespaces) == ["time"]
        members.close()
        process.stdin.close()


def test_many_at_once_do_not_escape(boxes: Boxes, life: Life) -> None:
    tenants = ("daemon", "forker", "hopper", "headless", "daemon", "hopper", "forker")
    _, members = boxes(tenants)
    members.kill_all()
    assert soon(life.all_ended)


def test_one_that_left_for_namespaces_inside_is_still_within_the_user_namespace(boxes: Boxes, life: Life, mark: str) -> None:
    process, members = boxes(("nested",), ("user", "uts", "ipc"))
    nested = [pid for pid in marked(mark) if pid != process.pid]
    assert nested
    assert set(nested) <= set(members.pids())
    members.kill_all()
    assert soon(life.all_ended)


def test_another_container_is_left_alone(boxes: Boxes) -> None:
    _, first = boxes()
    _, second = boxes()
    there = second.pids()
    first.kill_all()
    assert first.pids() == []
    assert second.pids() == there
    assert len(there) == 3


def test_the_namespaces_stay_known_when_all_in_them_have_ended(boxes: Boxes) -> None:
    """The numbers of a dead namespace are given to the next one, unless somebody holds it."""
    process, first = boxes()
    first.kill_all()
    end(process, "")
    others = [boxes()[1] for _ in range(3)]
    assert first.pids() == []
    first.kill_all()
    assert [len(other.pids()) for other in others] == [3, 3, 3]


def test_one_that_cannot_be_looked_at_yet_is_waited_for(boxes: Boxes, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an ordinary user's container while its creator has closed the memory that both share."""
    from kernel_lab import members as module

    process, _ = boxes()
    refusals = [PermissionError(), PermissionError()]

    class Refused(module.FileIO):  # type: ignore[misc]
        def __init__(self, *arguments: object) -> None:
            if refusals:
                raise refusals.pop()
            super().__init__(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "FileIO", Refused)
    again = Members.of(process.pid, KINDS)
    monkeypatch.undo()
    assert len(again.pids()) == 3
    again.close()


@pytest.mark.needs("user")
def test_one_that_can_never_be_looked_at_is_refused_after_the_patience() -> None:
    begin = time.monotonic()
    with pytest.raises(PermissionError):
        Members.of(2, ["uts"], patience=0.05)
    assert time.monotonic() - begin >= 0.05
