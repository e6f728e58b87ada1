"""What dead creators have left is found and taken away; what living ones have made is not."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from boxes import KINDS, Life, box, cleared, end, go, marked
from waiting import at_once, soon

from kernel_lab import cleanup, records, state
from kernel_lab.kernel import procfs
from kernel_lab.records import Record
from kernel_lab.state import Creator, Leftover


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KERNEL_LAB_RUN", str(tmp_path / "run"))
    monkeypatch.setenv("KERNEL_LAB_DATA", str(tmp_path / "data"))
    # Bridges belong to the machine, and their cleanup has tests of its own.
    monkeypatch.delitem(cleanup.FINDERS, "network")
    state.run_dir()
    state.data_dir()
    return tmp_path


@pytest.fixture
def dead() -> Creator:
    with subprocess.Popen(["sleep", "1000"]) as process:
        creator = Creator.of(process.pid)
        process.kill()
    return creator


Boxes = Callable[[], "subprocess.Popen[str]"]


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
    made = []

    def make() -> "subprocess.Popen[str]":
        made.append(box(mark, life.theirs))
        go(made[-1])
        return made[-1]

    yield make
    for process in made:
        end(process, mark)
    assert soon(lambda: cleared(life, mark))


def recorded(process: "subprocess.Popen[str]", creator: Creator, name: str = "box", **fields: object) -> Record:
    started = procfs.process(process.pid).started
    record = Record(records.new_id(), name, process.pid, started, creator, ("sleep",), 0.0, namespaces=KINDS, **fields)  # type: ignore[arg-type]
    records.save(record)
    return record


def kinds() -> list[tuple[str, str]]:
    return [(leftover.kind, leftover.name) for leftover in cleanup.leftovers()]


def test_where_nothing_was_made_nothing_is_left(places: Path) -> None:
    assert cleanup.leftovers() == []
    assert sorted(path.name for path in places.rglob("*")) == ["data", "run"]


@pytest.mark.needs("userns", "unshare", "setsid")
def test_a_container_whose_creator_is_dead_is_killed_with_its_daemons(boxes: Boxes, dead: Creator, mark: str, life: Life) -> None:
    process = boxes()
    record = recorded(process, dead)
    assert soon(lambda: len(marked(mark)) == 3)
    assert kinds() == [("process", f"{process.pid} (box)"), ("record", "box")]
    assert all(str(dead.pid) in leftover.why for leftover in cleanup.leftovers())
    cleanup.remove(cleanup.leftovers())
    assert soon(life.all_ended)
    assert records.all() == [] != [record]
    assert cleanup.leftovers() == []


@pytest.mark.needs("userns", "unshare", "setsid")
def test_a_container_whose_creator_lives_is_left_alone(boxes: Boxes, mark: str) -> None:
    record = recorded(boxes(), Creator.this())
    assert cleanup.leftovers() == []
    cleanup.of_dead_creators()
    assert records.all() == [record]
    assert soon(lambda: len(marked(mark)) == 3)


@pytest.mark.needs("userns", "unshare", "setsid")
def test_a_number_that_has_been_given_again_is_not_killed(boxes: Boxes, dead: Creator, mark: str) -> None:
    """The record's process started at another time: this one only has its number."""
    process = boxes()
    started = procfs.process(process.pid).started - 1
    records.save(Record(records.new_id(), "box", process.pid, started, dead, ("sleep",), 0.0, namespaces=KINDS))
    assert kinds() == [("record", "box")]
    cleanup.remove(cleanup.leftovers())
    assert soon(lambda: len(marked(mark)) == 3)


def test_a_dry_run_changes_nothing(places: Path, dead: Creator) -> None:
    file = state.run_dir() / f"file.{dead.stamp}"
    file.write_text("")
    assert kinds() == kinds() == [("file", str(file))]
    assert file.exists()


def test_files_of_dead_creators_are_removed_and_those_of_living_ones_are_not(dead: Creator) -> None:
    living = Creator.this()
    lost = [
        state.folder("logs") / f"0123456789ab-{dead.stamp}.log",
        state.folder("containers") / f".x.json.{dead.stamp}.0a1b",
        state.data_dir() / f"floor.{dead.stamp}",
    ]
    kept = [state.folder("logs") / f"0123456789ab-{living.stamp}.log", state.data_dir() / "floor-0123", state.run_dir() / "lock"]
    for file in (*lost, *kept):
        file.write_text("")
    half = state.data_dir() / f"rootfs/debian-x.{dead.stamp}"
    (half / "usr/bin").mkdir(parents=True)
    (half / "usr/bin/sh").symlink_to("/bin/sh")
    other = state.data_dir() / f"rootfs/debian-x.{living.stamp}"
    # A name inside a root filesystem is nobody's stamp.
    (other / f"bin/{dead.stamp}").mkdir(parents=True)
    assert sorted(kinds()) == sorted(("file", str(path)) for path in (*lost, half))
    cleanup.remove(cleanup.leftovers())
    assert cleanup.leftovers() == []
    assert not any(path.exists() for path in (*lost, half))
    assert all(path.exists() for path in (*kept, other / f"bin/{dead.stamp}"))


def test_a_half_record_is_reported_but_removed_only_on_request(places: Path) -> None:
    broken = state.folder("containers") / "x.json"
    broken.write_text("{")
    assert kinds() == [("unreadable record", "x.json")]
    cleanup.of_dead_creators()
    assert broken.exists()
    cleanup.remove(cleanup.leftovers())
    assert not broken.exists()


def test_a_janitors_log_stays_until_somebody_asks(places: Path) -> None:
    log = state.run_dir() / "janitor.log"
    log.write_text("Traceback")
    assert kinds() == [("log", str(log))]
    cleanup.of_dead_creators()
    assert log.read_text() == "Traceback"
    cleanup.remove(cleanup.leftovers())
    assert not log.exists()


def test_control_groups_are_known_by_prefix_and_stamp(tmp_path: Path, dead: Creator, monkeypatch: pytest.MonkeyPatch) -> None:
    # A directory stands for the kernel's file system: making and removing groups is the same to both.
    groups = tmp_path / "cgroup"
    monkeypatch.setattr(cleanup, "CGROUPS", groups)
    mine, theirs = Creator.this().stamp, dead.stamp
    for name in (f"memory/klab-{theirs}/inner", f"klab-{theirs}", f"klab-{mine}", f"other-{theirs}", "klab-of-nobody"):
        (groups / name).mkdir(parents=True)
    assert sorted(kinds()) == [("cgroup", str(groups / f"klab-{theirs}")), ("cgroup", str(groups / f"memory/klab-{theirs}"))]
    cleanup.remove(cleanup.leftovers())
    assert cleanup.leftovers() == []
    assert sorted(path.name for path in groups.rglob("*")) == sorted(["memory", f"klab-{mine}", f"other-{theirs}", "klab-of-nobody"])


def test_many_cleanups_at_once_do_not_stumble_over_one_another(dead: Creator) -> None:
    for number in range(30):
        half = state.data_dir() / f"rootfs/{number}.{dead.stamp}"
        (half / "a/b/c").mkdir(parents=True)
        (state.folder("logs") / f"{number}.{dead.stamp}.log").write_text("")
        records.save(Record(f"{number:012x}", f"box{number}", dead.pid, dead.start, dead, ("sleep",), 0.0))
    assert at_once(cleanup.of_dead_creators, 4) == []
    cleanup.of_dead_creators()
    assert cleanup.leftovers() == []


def test_one_that_cannot_be_removed_does_not_stop_the_others(tmp_path: Path) -> None:
    done = []

    def fails() -> None:
        raise OSError("stuck")

    found = [Leftover("file", "a", "why", fails), Leftover("file", "b", "why", lambda: done.append("b")), Leftover("file", "c", "why", fails)]
    with pytest.raises(ExceptionGroup) as caught:
        cleanup.remove(found)
    assert done == ["b"]
    assert [error.__notes__ for error in caught.value.exceptions] == [["while removing file a"], ["while removing file c"]]


def test_what_cannot_be_looked_for_is_said_and_does_not_hide_the_rest(dead: Creator, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> list[Leftover]:
        raise OSError("no mounts here")

    monkeypatch.setitem(cleanup.FINDERS, "mount", fails)
    file = state.run_dir() / f"file.{dead.stamp}"
    file.write_text("")
    found = cleanup.leftovers()
    assert [(one.kind, one.why) for one in found if one.kind == "mount"] == [("mount", "it is not known what is left: no mounts here")]
    with pytest.raises(ExceptionGroup):
        cleanup.remove(found)
    assert not file.exists()


# In a mount namespace of its own: the host's mounts stay what they are.
MOUNTER = """
import os, subprocess, sys
from pathlib import Path
from kernel_lab import cleanup, state
from kernel_lab.state import Creator
dead, place = sys.argv[1], state.run_dir()
lost, kept = place / f"view.{dead}", place / f"view.{Creator.this().stamp}"
for directory in (lost, kept):
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "klab", directory], check=True)
(lost / "in").mkdir()
subprocess.run(["mount", "--bind", sys.argv[2], lost / "in"], check=True)
try:
    state.discard(lost)
except RuntimeError as error:
    print("refused" if "is mounted there" in str(error) else error)
found = [one for one in cleanup.leftovers() if one.kind in ("mount", "file")]
print([(one.kind, os.path.relpath(one.name, place).replace(dead, "DEAD")) for one in found])
cleanup.remove(found)
print(os.path.ismount(kept), lost.exists(), os.listdir(sys.argv[2]))
"""


@pytest.mark.needs("userns", "unshare", "mount")
def test_mounts_of_dead_creators_are_taken_away_and_nothing_below_them(places: Path, dead: Creator) -> None:
    (places / "precious").mkdir()
    (places / "precious/file").write_text("")
    told = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", "--mount", sys.executable, "-c", MOUNTER, dead.stamp, str(places / "precious")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert told.stderr == ""
    assert told.stdout.splitlines() == [
        "refused",
        "[('mount', 'view.DEAD/in'), ('mount', 'view.DEAD'), ('file', 'view.DEAD')]",
        "True False ['file']",
    ]
