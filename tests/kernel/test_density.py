"""Crowds: as many containers as asked for, each counted, and nothing left of them, however it ends. No test asserts a time."""

import json
import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from waiting import soon

from kernel_lab import UsageError, state
from kernel_lab.benchmarks import accounts, density
from kernel_lab.benchmarks.accounts import Memory
from kernel_lab.benchmarks.contestant import Absent, Ground
from kernel_lab.benchmarks.density import RUNNERS, bench_density, measure
from kernel_lab.benchmarks.ground import ground
from kernel_lab.benchmarks.runners import IDLE, Boxes, Runner, Stop, started
from kernel_lab.benchmarks.runtimes import RuntimeBoxes
from kernel_lab.kernel import procfs

pytestmark = [pytest.mark.slow, pytest.mark.needs("userns", "busybox")]
COUNT = 3


@pytest.fixture(autouse=True)
def nothing_on_disk() -> Iterator[None]:
    yield
    assert not list(state.data_dir().glob(f"bench-{state.Creator.this().stamp}-*"))


class Failing:
    """Two can be started, and no third."""

    who, includes, networks = "failing", "", False
    runs = 0

    def version(self) -> str | None:
        return None

    @contextmanager
    def ready(self, ground: Ground) -> Iterator[Boxes]:
        yield self  # type: ignore[misc]

    def idle(self, number: int) -> Stop:
        if number == 3:
            raise OSError("no more")
        self.runs += 1
        return self.stop

    def stop(self) -> None:
        self.runs -= 1


def idle(pids: set[int]) -> set[int]:
    """Those of these processes that do what an idle box does, or are a machine in which that is done."""
    found = set()
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if words[:2] == list(IDLE) or words[0].startswith("qemu-system-"):
                found.add(pid)
    return found


@pytest.mark.needs("root")  # whose runtimes leave no process of their own behind; podman's pause stays with every other user
@pytest.mark.parametrize("one", RUNNERS, ids=lambda one: one.who)
def test_idle_boxes_run_until_they_are_stopped_or_it_is_said_why_not(one: Runner) -> None:
    with ground(False, layered=True) as place:
        try:
            with one.ready(place) as boxes:
                before = accounts.processes()
                stops = [boxes.idle(number) for number in range(2)]
                new = accounts.belonging(accounts.processes() - before)
                both = soon(lambda: len(idle(new)) == 2)  # runc returns before its process has become the command
                pids = idle(new)
                for stop in stops:
                    stop()
                assert both and not idle(pids)
        except Absent as absent:
            assert "install" in str(absent) or one.who == "KVM"


def test_a_box_that_does_not_start_is_taken_away() -> None:
    calls: list[str] = []

    def fails(words: Sequence[str]) -> None:
        calls.append(words[-1])
        if len(calls) == 1:
            raise Absent("no")

    with ground(False, layered=True) as place:
        before = {*place.layers.iterdir(), *place.folder.iterdir()}
        with pytest.raises(Absent, match="no"):
            RuntimeBoxes(place, "runtime", fails, started).idle(1)
        assert {*place.layers.iterdir(), *place.folder.iterdir()} == before
    assert " delete --force " in calls[1]


def test_the_kits_have_six_namespaces_an_overlay_and_no_helper() -> None:
    with ground(False, layered=True) as place, RUNNERS[0].ready(place) as boxes:
        boxes.idle(0)()
        before = accounts.processes()
        stop = boxes.idle(1)
        (pid,) = accounts.belonging(accounts.processes() - before)
        kinds = ("user", "uts", "mnt", "ipc", "pid", "net")
        assert all(os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}") for kind in kinds)
        assert " / / rw" in Path(f"/proc/{pid}/mountinfo").read_text() and " - overlay " in Path(f"/proc/{pid}/mountinfo").read_text()
        stop()


def test_no_more_descriptors_are_held_than_are_counted_with(executor: str) -> None:
    with ground(False, layered=True) as place, RUNNERS[0].ready(place) as boxes, ExitStack() as running:
        boxes.idle(0)()
        before = len(procfs.open_files(os.getpid()))
        for number in range(1, 21):
            running.callback(boxes.idle(number))
        assert len(procfs.open_files(os.getpid())) - before <= 20 * density.DESCRIPTORS


def test_a_report_has_every_next_one_and_a_picture(tmp_path: Path) -> None:
    report = measure(COUNT, ["kit"])
    (row,) = report.rows
    assert row.times_floor == 1.0 and row.facts["count"] == COUNT and row.facts["processes"] == 1.0
    curve = json.loads(report.json())["curves"]["kit"]
    assert len(curve["seconds"]) == len(curve["used_bytes"]) == COUNT
    report.plot(tmp_path / "density.png")
    assert (tmp_path / "density.png").read_bytes().startswith(b"\x89PNG")


def test_who_fails_says_so_and_what_was_started_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Failing()
    monkeypatch.setattr(density, "RUNNERS", (one,))
    (row,) = measure(5).rows
    assert row.facts["count"] == 2 and row.note.endswith("; no more")
    assert one.runs == 0


def test_an_interrupt_stops_all(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Failing()
    monkeypatch.setattr(density, "RUNNERS", (one,))
    monkeypatch.setattr(Memory, "now", lambda: (_ for _ in ()).throw(KeyboardInterrupt) if one.runs == 2 else Memory(0, 0, 1))
    with pytest.raises(KeyboardInterrupt):
        measure(5)
    assert one.runs == 0


def test_memory_says_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Failing()
    monkeypatch.setattr(density, "RUNNERS", (one,))
    monkeypatch.setattr(Memory, "now", lambda: Memory(90 << 20, 0, 10 << 20))
    (row,) = measure(2).rows
    assert row.note == "memory: 10 MB are left, and 20% of the machine's are kept free"


@pytest.mark.parametrize(("count", "who", "said"), [(0, None, "at least one"), (10**9, None, "raise it, or take fewer"), (1, ["x"], "who='x'")])
def test_what_cannot_be_is_refused_before_anything_is_made(count: int, who: list[str] | None, said: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.raises(UsageError, match=said):
        measure(count, who)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


def test_a_soft_limit_of_open_files_is_raised_for_as_long_as_it_is_needed() -> None:
    before = _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = 250
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
    try:
        with density.roomy(20):
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 20 * density.DESCRIPTORS
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (low, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_picture_that_cannot_be_written_is_refused_first() -> None:
    with pytest.raises(UsageError, match="a picture ends in"):
        bench_density(1, plot="density.txt")
