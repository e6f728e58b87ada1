"""The dashboard: sliders that write limits, samples of what is used, and a thread that ends by itself. The group is a made-up one."""

import gc
import threading
from collections.abc import Iterator
from errno import EBUSY, ENODEV
from typing import Any

import pytest
from waiting import soon

from kernel_lab.cgroups.stats import Stats
from kernel_lab.course import dashboard
from kernel_lab.course.dashboard import MEGABYTE, Dashboard
from kernel_lab.kernel import inventory
from kernel_lab.kernel.errors import KernelError, UsageError

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")

PNG = b"\x89PNG\r\n\x1a\n"


class Group:
    """One process, which uses a second of CPU between any two looks, and 5 MB; `refuses` is what the kernel says to the next limit."""

    def __init__(self) -> None:
        self.limits: list[dict[str, Any]] = []
        self.inside = [1]
        self.cpu = 0.0
        self.gone = False
        self.refuses: KernelError | None = None

    def set(self, **limits: Any) -> None:
        if self.refuses:
            raise self.refuses
        self.limits.append(limits)

    def stats(self) -> Stats:
        if self.gone:
            raise OSError(ENODEV, "the group has been removed")
        self.cpu += 1
        return Stats(self.cpu, 0.0, memory=5 * MEGABYTE)

    def processes(self) -> list[int]:
        return self.inside


@pytest.fixture
def group() -> Group:
    return Group()


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither a thread nor an open file, such as those of matplotlib's fonts. It looks more often here, so that nobody has to wait."""
    monkeypatch.setattr(dashboard, "EVERY", 0.01)
    gc.collect()  # what earlier tests have lost hold of is closed now, and not while this one runs
    before = set(inventory.descriptors())
    yield
    assert soon(lambda: "klab-dashboard" not in [thread.name for thread in threading.enumerate()])
    assert set(inventory.descriptors()) <= before


def board(group: Group, seconds: float = 60.0, **limits: tuple[float, float, float]) -> Dashboard:
    return Dashboard(group, seconds, **limits)  # type: ignore[arg-type]


def test_a_slider_writes_its_limit_at_once_and_when_it_moves(group: Group) -> None:
    sliders = board(group, cpus=(1, 0.1, 2), memory=(64, 16, 128), pids=(8, 1, 9)).sliders
    assert group.limits == [{"cpus": 1}, {"memory": 64 * MEGABYTE}, {"pids": 8}]
    sliders["memory"].value = 32
    sliders["cpus"].value = 0.25
    assert group.limits[3:] == [{"memory": 32 * MEGABYTE}, {"cpus": 0.25}]


def test_a_refused_limit_is_said_on_the_board_and_raised(group: Group) -> None:
    shown = board(group, pids=(8, 1, 9))
    group.refuses = KernelError(EBUSY, "write(pids.max)")
    with pytest.raises(KernelError, match=r"pids\.max"):
        shown.sliders["pids"].value = 2
    assert "pids.max" in shown._said.value
    group.refuses = None
    shown.sliders["pids"].value = 3
    assert shown._said.value == ""


def test_a_slider_for_something_else_is_an_error(group: Group) -> None:
    with pytest.raises(UsageError, match="weight: there is no such slider; there are cpus, memory, pids"):
        board(group, weight=(1, 1, 2))


def test_samples_are_of_the_time_after_the_call_and_know_their_limits(group: Group) -> None:
    shown = board(group, cpus=(1, 0.1, 2))
    first = shown.wait(1)
    shown.sliders["cpus"].value = 0.5
    later = shown.wait(2)
    shown.close()
    assert [sample.limits for sample in (*first, *later)] == [{"cpus": 1}, {"cpus": 0.5}, {"cpus": 0.5}]
    assert shown.samples.index(later[0]) > shown.samples.index(first[0]) + 1
    assert all(sample.cpus > 0 and sample.memory == 5 and sample.pids is None for sample in later)


@pytest.mark.parametrize("end", ["closed", "empty", "removed"])
def test_the_thread_ends_and_who_waits_is_told(group: Group, end: str) -> None:
    shown = board(group)
    shown.wait(1)
    match end:
        case "closed":
            shown.close()
        case "empty":
            group.inside = []
        case "removed":
            group.gone = True
    with pytest.raises(TimeoutError, match="looks no more"):
        shown.wait(1000)


def test_it_looks_for_so_many_seconds_and_no_longer(group: Group) -> None:
    shown = board(group, seconds=0.3)
    with pytest.raises(TimeoutError, match=r"0\.3 s are over"):
        shown.wait(1000)
    assert shown.samples


def test_closing_one_that_was_never_shown_does_nothing(group: Group) -> None:
    shown = board(group)
    shown.close()
    assert not shown.samples


def test_the_picture_is_a_png_with_and_without_samples(group: Group) -> None:
    shown = board(group, memory=(64, 16, 128))
    assert shown.picture().startswith(PNG)
    shown.wait(1)
    shown.close()
    assert shown.picture().startswith(PNG)
    assert bytes(shown._picture.value).startswith(PNG)


def test_showing_it_begins_to_look_and_its_text_is_always_the_same(group: Group) -> None:
    shown = board(group, cpus=(1, 0.1, 2))
    bundle = shown._repr_mimebundle_()
    assert bundle["text/plain"] == "Dashboard(cpus)"
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert soon(lambda: shown.samples)
    shown.close()
