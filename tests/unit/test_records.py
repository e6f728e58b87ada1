"""One file for each started container: written whole, found by name and id, names given once."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from waiting import soon

from kernel_lab import records, state
from kernel_lab.kernel.errors import UsageError
from kernel_lab.records import Record
from kernel_lab.state import Creator


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KERNEL_LAB_RUN", str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
def processes() -> Iterator[Callable[[], Creator]]:
    """Makes processes that live to the end of the test."""
    started = []

    def start() -> Creator:
        started.append(subprocess.Popen(["sleep", "1000"]))
        return Creator.of(started[-1].pid)

    yield start
    for process in started:
        process.kill()
        process.wait()


def ended() -> Creator:
    with subprocess.Popen(["sleep", "1000"]) as process:
        creator = Creator.of(process.pid)
        process.kill()
    return creator


def record(name: str, first: Creator, identifier: str | None = None, **fields: object) -> Record:
    return Record(
        id=identifier or records.new_id(),
        name=name,
        pid=first.pid,
        started=first.start,
        creator=Creator.this(),
        command=("sleep", "1000"),
        created=1.5,
        **fields,  # type: ignore[arg-type]
    )


def test_what_is_saved_is_found_again(processes: Callable[[], Creator]) -> None:
    saved = record("one", processes(), parts=("UTS('box')",), namespaces=("uts",), layers=("/",), log="/some/log")
    records.save(saved)
    assert records.all() == [saved]
    assert records.find("one") == records.find(saved.id) == records.find(saved.id[:3]) == saved
    assert saved.alive()


def test_before_the_first_one_there_is_none_and_nothing_is_made(place: Path) -> None:
    assert records.all() == records.unreadable() == []
    with pytest.raises(UsageError, match="'any': no such container"):
        records.find("any")
    assert not place.exists()


@pytest.mark.parametrize("name", ["", "absent", "0"])
def test_a_name_of_no_container_is_refused(name: str, processes: Callable[[], Creator]) -> None:
    records.save(record("one", processes(), "1" * 12))
    with pytest.raises(UsageError, match="no such container"):
        records.find(name)


def test_the_beginning_of_two_ids_is_refused_and_names_both(processes: Callable[[], Creator]) -> None:
    for identifier in ("aa" + "1" * 10, "aa" + "2" * 10):
        records.save(record(identifier, processes(), identifier))
    with pytest.raises(UsageError, match="2 containers are meant: aa1111111111, aa2222222222"):
        records.find("aa")
    assert records.find("aa1").id == "aa1111111111"


def test_a_name_counts_before_the_beginning_of_an_id(processes: Callable[[], Creator]) -> None:
    records.save(record("one", processes(), "ab" * 6))
    records.save(record("abab", processes(), "12" * 6))
    assert records.find("abab").id == "12" * 6


def test_a_living_containers_name_is_taken(processes: Callable[[], Creator]) -> None:
    first, second = record("box", processes()), record("box", processes())
    records.save(first)
    with pytest.raises(UsageError, match=f"'box': container {first.id} has this name"):
        records.save(second)
    with pytest.raises(UsageError, match="has this name"):
        records.check_name("box")
    assert records.all() == [first]


def test_a_name_that_ends_as_a_living_containers_does_is_free(processes: Callable[[], Creator]) -> None:
    records.save(record("my-box", processes()))
    records.check_name("box")


def test_only_the_records_of_that_name_are_read(processes: Callable[[], Creator], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two", "three"):
        records.save(record(name, processes()))
    read: list[Path] = []
    monkeypatch.setattr(records, "_read", read.append)
    assert records.new_name() not in ("one", "two", "three")
    records.check_name("two")
    assert [path.name.partition("-")[2] for path in read] == ["two.json"]


def test_an_ended_containers_name_is_free_and_means_the_living_one(processes: Callable[[], Creator]) -> None:
    records.save(record("box", ended()))
    living = record("box", processes())
    records.save(living)
    assert records.find("box") == living


def test_a_record_may_be_saved_again(processes: Callable[[], Creator]) -> None:
    first = record("box", processes())
    records.save(first)
    records.save(record("box", processes(), first.id))
    assert [one.id for one in records.all()] == [first.id]


def test_of_many_that_want_one_name_at_once_one_gets_it(processes: Callable[[], Creator]) -> None:
    process = processes()
    outcomes: list[str] = []

    def work() -> None:
        try:
            records.save(record("box", process))
            outcomes.append("saved")
        except UsageError:
            outcomes.append("refused")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 7 + ["saved"]
    assert len(records.all()) == 1


@pytest.mark.parametrize("name", ["", "-box", "a b", "a/b", ".", "é", "x" * 129, "a\n"])
def test_what_is_no_name_is_refused(name: str, processes: Callable[[], Creator]) -> None:
    with pytest.raises(UsageError, match="a container's name has"):
        records.save(record(name, processes()))
    assert records.all() == []


def test_a_dropped_record_is_gone_and_its_log_too(place: Path, processes: Callable[[], Creator]) -> None:
    log = state.folder("logs") / "log"
    log.write_text("output")
    saved = record("box", processes(), log=str(log))
    records.save(saved)
    records.drop(saved.id)
    assert records.all() == []
    assert not log.exists()
    records.drop(saved.id)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"id": "x", "command": [], "parts": [], "namespaces": [], "creator": [1, 2]}', '"text"', "7"])
def test_a_file_that_is_no_record_is_passed_over_and_reported(place: Path, text: str, processes: Callable[[], Creator]) -> None:
    saved = record("box", processes())
    records.save(saved)
    broken = place / "containers/broken.json"
    broken.write_text(text)
    assert records.all() == [saved]
    assert records.unreadable() == [broken]


WRITER = """
import sys
from kernel_lab import records
from kernel_lab.state import Creator
me = Creator.this()
for number in range(10**9):
    records.save(records.Record("0" * 12, "box", me.pid, me.start, me, ("x" * (number % 5000),), 0.0))
    if number == 20:
        print("going", flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_record() -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER], stdout=subprocess.PIPE) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == b"going\n"
        for _ in range(50):
            assert [one.name for one in records.all()] == ["box"]
        writer.kill()
    assert [one.name for one in records.all()] == ["box"]
    assert not records.find("box").alive()


def test_names_are_made_up_as_long_as_there_are_any(processes: Callable[[], Creator], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "COLOURS", "red")
    monkeypatch.setattr(records, "ANIMALS", "fox owl")
    process = processes()
    for _ in range(2):
        records.save(record(records.new_name(), process))
    assert sorted(one.name for one in records.all()) == ["red_fox", "red_owl"]
    records.check_name(records.new_name())


def test_an_ended_container_is_not_alive() -> None:
    gone = record("box", ended())
    assert soon(lambda: not gone.alive())
