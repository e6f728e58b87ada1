"""Many containers on one root: what is counted is theirs, all of it, and once; and nothing is left of them. No test asserts a time."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel_lab import UsageError, state
from kernel_lab.benchmarks import fleet
from kernel_lab.benchmarks.contestant import Absent
from kernel_lab.kernel import pagecache
from kernel_lab.unionfs.aufs import lacking

pytestmark = [pytest.mark.slow, pytest.mark.needs("userns", "busybox")]
COUNT = 3
WITHOUT_AUFS = pytest.mark.skipif(lacking() is not None, reason=f"AUFS cannot be mounted: {(lacking() or [None])[0]}")


@pytest.fixture
def base() -> Iterator[Path]:
    with fleet.base() as root:
        yield root
    assert not list(state.data_dir().glob(f"fleet-{state.Creator.this().stamp}-*"))


def in_megabytes(amount: int) -> int:
    return round(amount / fleet.MEGABYTE)


def about(megabytes: float) -> Any:
    """The kernel may take a few pages back at any time, even on an idle machine (DAMON)."""
    return pytest.approx(megabytes, rel=0.1)


@pytest.mark.parametrize(
    ("way", "disk", "cache"),
    [
        ("overlay", 0, 16),
        pytest.param("AUFS", 0, (COUNT + 1) * 16, marks=WITHOUT_AUFS),
        ("full copy", COUNT * 16, COUNT * 16),
    ],
)
def test_a_fleet_takes_what_is_its_own(base: Path, way: str, disk: int, cache: int) -> None:
    cost = fleet.cost(fleet.WAYS[way], base, COUNT)
    programs = in_megabytes(fleet.occupied(base) - fleet.SIZE) * COUNT if disk else 0
    assert abs(in_megabytes(cost.disk) - disk - programs) <= COUNT
    assert in_megabytes(cost.cache) == about(cache)
    assert cost.seconds > 0


def test_each_container_may_write_and_the_base_stays_as_it_is(base: Path) -> None:
    before = (base / "etc/hosts").read_bytes()
    with fleet.deployed(fleet.overlay, base, COUNT) as (boxes, folder, _):
        for box in boxes:
            box.exec("sh", "-c", "hostname > etc/hosts", check=True)
        assert [(folder / str(number) / "etc/hosts").read_text() for number in range(COUNT)] == [f"box{number}\n" for number in range(COUNT)]
    assert (base / "etc/hosts").read_bytes() == before
    assert not folder.exists()


def test_pages_that_several_files_have_in_common_count_once(base: Path) -> None:
    one, other = base / "one", base / "other"
    one.write_bytes(os.urandom(1 << 20))
    os.link(one, other)
    assert fleet.cached([base / fleet.DATA, one, other]) == about(1 << 20)
    assert pagecache.resident(one) == 0


def test_blocks_of_a_file_with_two_names_count_once_and_holes_not_at_all(base: Path) -> None:
    folder = base / "new"
    folder.mkdir()
    (folder / "one").write_bytes(os.urandom(1 << 20))
    os.link(folder / "one", folder / "other")
    with open(folder / "holes", "wb") as file:
        file.truncate(1 << 30)
    assert 1 << 20 <= fleet.occupied(folder) < 2 << 20


@pytest.fixture
def sharing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The kit's directory is on a file system whose files can share blocks."""
    disk, mounted = tmp_path / "disk", tmp_path / "mounted"
    with open(disk, "wb") as file:
        file.truncate(400 * fleet.MEGABYTE)
    mounted.mkdir()
    subprocess.run(["mkfs.xfs", "-q", disk], check=True)
    if subprocess.run(["mount", "-o", "loop", disk, mounted], capture_output=True).returncode:
        pytest.skip("no loop device can be mounted here")
    monkeypatch.setenv("KERNEL_LAB_DATA", str(mounted / "data"))
    yield
    subprocess.run(["umount", mounted], check=True)


@pytest.mark.needs("root", "mkfs.xfs")
def test_copies_that_share_blocks_take_memory_and_no_room(sharing: None) -> None:
    with fleet.base() as base:
        cost = fleet.cost(fleet.reflink, base, COUNT)
        assert in_megabytes(cost.disk) == 0 and in_megabytes(cost.cache) == about(COUNT * 16)
        assert in_megabytes(fleet.cost(fleet.copy, base, COUNT).disk) >= COUNT * 16


def test_a_report_has_a_row_for_each_way_and_a_picture() -> None:
    report = fleet.measure(rounds=1, count=2)
    rows = {row.who: row for row in report.rows}
    assert list(rows) == list(fleet.WAYS)
    for row in rows.values():
        assert (row.median_ms is None) == (not row.facts), row
        assert row.note
    assert rows["overlay"].times_floor == 1.0
    assert rows["overlay"].facts["cache_mb"] == about(16) and rows["full copy"].facts["cache_mb"] == about(32)
    assert fleet.picture(report).startswith(b"\x89PNG")


def test_who_cannot_be_had_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernel_lab.unionfs.aufs.lacking", lambda: ("there is no /dev/fuse", "modprobe fuse"))
    rows = {row.who: row for row in fleet.measure(rounds=1, count=1).rows}
    assert rows["AUFS"].median_ms is None and rows["AUFS"].note.endswith("there is no /dev/fuse: modprobe fuse")
    assert rows["overlay"].median_ms is not None


def test_nothing_is_left_of_a_fleet_that_was_cut_short(base: Path) -> None:
    made = []

    def fails_at_last(root: Path, own: Path) -> fleet.Root:
        if len(made) == 2:
            raise Absent("no more")
        made.append(own)
        return fleet.overlay(root, own)

    with pytest.raises(Absent), fleet.deployed(fails_at_last, base, COUNT):
        pass
    assert len(made) == 2 and not any(own.exists() for own in made)


@pytest.mark.parametrize(("rounds", "count"), [(0, 1), (1, 0)])
def test_nothing_is_measured_of_less_than_one(rounds: int, count: int) -> None:
    with pytest.raises(UsageError, match="at least one"):
        fleet.measure(rounds, count)
