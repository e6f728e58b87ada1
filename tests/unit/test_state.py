"""The kit's directories, its locks, its atomic files, and whose a thing on disk is."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from waiting import soon

from kernel_lab import state
from kernel_lab.kernel.errors import UsageError
from kernel_lab.state import Creator


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KERNEL_LAB_RUN", str(tmp_path / "run"))
    monkeypatch.setenv("KERNEL_LAB_DATA", str(tmp_path / "data"))
    return tmp_path


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_user_looks_into_the_run_directory_and_everybody_into_the_data_directory(umask: int) -> None:
    before = os.umask(umask)
    try:
        assert (mode(state.run_dir()), mode(state.data_dir())) == (0o700, 0o755)
        assert mode(state.folder("logs")) == 0o700
    finally:
        os.umask(before)


def test_the_environment_is_read_at_each_call(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert state.run_dir() == places / "run"
    monkeypatch.setenv("KERNEL_LAB_RUN", str(places / "elsewhere"))
    assert state.run_dir() == places / "elsewhere"


def test_asking_for_the_path_makes_nothing(places: Path) -> None:
    assert state.run_path() == places / "run"
    assert state.data_path() == places / "data"
    assert not list(places.iterdir())


@pytest.mark.needs("user")
def test_an_ordinary_user_has_the_directories_of_the_session(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KERNEL_LAB_RUN", "KERNEL_LAB_DATA"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(places))
    monkeypatch.setenv("XDG_DATA_HOME", str(places / "share"))
    assert state.run_path() == places / "kernel-lab"
    assert state.data_path() == places / "share/kernel-lab"
    # Another user's, as `su` may leave it in the environment.
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/")
    assert state.run_path() == Path(f"/tmp/kernel-lab-{os.geteuid()}")


def test_a_file_in_the_place_of_the_directory_is_refused(places: Path) -> None:
    (places / "run").write_text("")
    with pytest.raises(UsageError, match="needs a directory here"):
        state.run_dir()


def test_a_link_to_a_directory_is_refused(places: Path) -> None:
    (places / "run").symlink_to(places)
    with pytest.raises(UsageError, match="needs a directory here"):
        state.run_dir()


def test_a_directory_that_others_may_write_to_is_refused(places: Path) -> None:
    (places / "run").mkdir()
    (places / "run").chmod(0o777)
    with pytest.raises(UsageError, match="chmod go-w"):
        state.run_dir()


def test_another_users_directory_is_refused(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        (places / "run").mkdir()
        os.chown(places / "run", 65534, 65534)
    else:
        monkeypatch.setenv("KERNEL_LAB_RUN", "/usr")
    with pytest.raises(UsageError, match=r"belongs to user \d+"):
        state.run_dir()


def test_a_relative_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNEL_LAB_RUN", "run")
    with pytest.raises(UsageError, match="absolute"):
        state.run_dir()


def test_a_creator_is_alive_until_it_ends_and_its_stamp_says_so(places: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        creator = Creator.of(process.pid)
        assert creator.alive()
        assert Creator.in_name(f"/some/where/0123456789ab-{creator.stamp}.log") == creator
        process.kill()
        # A zombie has ended, whether or not its parent has heard of it.
        assert soon(lambda: not creator.alive())
    assert not creator.alive()


def test_the_same_number_with_another_start_is_another_process() -> None:
    me = Creator.this()
    assert me.alive()
    assert not me._replace(start=me.start + 1).alive()


@pytest.mark.parametrize("name", ["ab12-34-56.log", "p12", "p12t", "t12p34", "ap1t2", "p1t2a", "busybox-0123456789ab", ""])
def test_other_names_carry_no_stamp(name: str) -> None:
    assert Creator.in_name(name) is None


def test_a_file_is_replaced_as_a_whole(places: Path) -> None:
    file = places / "file"
    state.write_atomically(file, "old")
    with file.open() as reader:
        state.write_atomically(file, "new and longer")
        assert reader.read() == "old"
    assert file.read_text() == "new and longer"
    assert list(places.iterdir()) == [file]


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(places: Path) -> None:
    (places / "directory").mkdir()
    with pytest.raises(OSError):
        state.write_atomically(places / "directory", "text")
    assert list(places.iterdir()) == [places / "directory"]


def test_a_lock_keeps_threads_apart(places: Path) -> None:
    path = places / "lock"
    inside = threading.Semaphore(1)
    overlaps = []

    def work() -> None:
        for _ in range(50):
            with state.locked(path):
                if not inside.acquire(blocking=False):
                    overlaps.append(1)
                    continue
                inside.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not overlaps


HOLDER = """
import sys
from pathlib import Path
from kernel_lab import state
with state.locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_lock_keeps_processes_apart_and_ends_with_its_holder(places: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(places / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        got = threading.Event()

        def take() -> None:
            with state.locked(places / "lock"):
                got.set()

        taker = threading.Thread(target=take)
        taker.start()
        assert not got.wait(0.1)
        holder.kill()
        taker.join()
    assert got.is_set()


def test_a_lock_is_free_after_an_interrupt(places: Path) -> None:
    with pytest.raises(KeyboardInterrupt), state.locked(places / "lock"):
        raise KeyboardInterrupt
    with state.locked(places / "lock"):
        pass
