"""The life of an AUFS in user space: its process, its mount, its branches; and what the model of random operations does not reach."""

import errno
import fcntl
import mmap
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from here import users
from strangers import NOBODY, nobodys_python
from waiting import soon

from kernel_lab import PID, Container, KernelError, Mount, UsageError, cleanup, rootfs
from kernel_lab.kernel import mountinfo, procfs
from kernel_lab.unionfs.aufs import Aufs, lacking
from kernel_lab.unionfs.branches import Branch

pytestmark = pytest.mark.skipif(lacking() is not None, reason=f"AUFS cannot be mounted: {(lacking() or [None])[0]}")


class Ground:
    """Directories for branches."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.upper, self.base = self.directory("upper"), self.directory("base")
        (self.base / "etc").mkdir()
        (self.base / "etc/motd").write_text("welcome\n")

    def directory(self, name: str) -> Path:
        (self.folder / name).mkdir()
        return self.folder / name

    def union(self, *more: Branch | str, create: str = "tdp") -> Aufs:
        return Aufs(Branch(str(self.upper)), *more, Branch(str(self.base), "ro"), create=create)


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    # A container's root in a user namespace must be able to walk through.
    for directory in (tmp_path, *tmp_path.parents[:2]):
        with suppress(PermissionError):
            directory.chmod(0o755)
    monkeypatch.setenv("KERNEL_LAB_DATA", str(tmp_path / "data"))
    yield Ground(tmp_path)


def refused(number: int) -> "pytest.RaisesExc[OSError]":
    return pytest.raises(OSError, check=lambda error: error.errno == number)


def daemons(creator: int | None = None) -> list[int]:
    return [pid for pid, one in procfs.processes().items() if one.name == "klab-aufs" and one.parent == (creator or os.getpid())]


def mounted(path: str) -> bool:
    return any(mount.point == path for mount in mountinfo.mounts())


def test_it_is_mounted_as_long_as_it_is_used(ground: Ground) -> None:
    with ground.union() as tree:
        mount = mountinfo.at(tree.path)
        assert mount and mount.point == tree.path and "aufs" in mount.kind
        assert len(daemons()) == 1
        with tree:
            pass
        assert Path(tree.path, "etc/motd").read_text() == "welcome\n"
    assert not mounted(tree.path) and not os.path.exists(tree.path) and not daemons()
    assert list(ground.upper.iterdir()) == []


def test_what_is_written_is_in_the_upper_branch_alone(ground: Ground) -> None:
    with ground.union() as tree:
        with open(f"{tree.path}/etc/motd", "a") as file:
            file.write("and more\n")
        os.mkdir(f"{tree.path}/new")
    assert (ground.upper / "etc/motd").read_text() == "welcome\nand more\n" and (ground.upper / "new").is_dir()
    assert (ground.base / "etc/motd").read_text() == "welcome\n"
    assert not list(ground.upper.glob(".wh*"))


def test_a_deleted_name_is_hidden_by_a_whiteout(ground: Ground) -> None:
    with ground.union() as tree:
        os.unlink(f"{tree.path}/etc/motd")
        os.rmdir(f"{tree.path}/etc")
        assert os.listdir(tree.path) == []
        os.mkdir(f"{tree.path}/etc")
        assert os.listdir(f"{tree.path}/etc") == []
    assert (ground.upper / "etc/.wh..wh..opq").exists() and not (ground.upper / ".wh.etc").exists()
    assert (ground.base / "etc/motd").read_text() == "welcome\n"


def test_whiteouts_count_where_the_branch_says_so(ground: Ground) -> None:
    middle = ground.directory("middle")
    (middle / "etc").mkdir()
    (middle / "etc/.wh.motd").touch()
    with Aufs(Branch(str(middle), "ro+wh"), Branch(str(ground.base), "ro")) as tree:
        assert os.listdir(f"{tree.path}/etc") == []
    with Aufs(Branch(str(middle), "ro"), Branch(str(ground.base), "ro")) as tree:
        assert os.listdir(f"{tree.path}/etc") == ["motd"]


def test_without_a_writable_branch_nothing_is_written(ground: Ground) -> None:
    with Aufs(Branch(str(ground.base), "ro")) as tree:
        assert Path(tree.path, "etc/motd").read_text() == "welcome\n"
        for change in (
            lambda: os.mkdir(f"{tree.path}/new"),
            lambda: os.unlink(f"{tree.path}/etc/motd"),
            lambda: os.truncate(f"{tree.path}/etc/motd", 0),
            lambda: os.rename(f"{tree.path}/etc", f"{tree.path}/cfg"),
            lambda: os.chmod(f"{tree.path}", 0o700),
            lambda: os.link(f"{tree.path}/etc/motd", f"{tree.path}/motd"),
        ):
            with refused(errno.EROFS):
                change()


@pytest.mark.parametrize("name", [".wh.name", ".wh..wh..opq", ".wh..wh.klab"])
def test_names_that_aufs_keeps_for_itself(ground: Ground, name: str) -> None:
    (ground.base / name).touch()
    with ground.union() as tree:
        path = f"{tree.path}/{name}"
        assert name not in os.listdir(tree.path)
        with refused(errno.ENOENT):
            os.stat(path)
        for make in (os.mkdir, os.mkfifo, lambda path: os.symlink("x", path), lambda path: os.open(path, os.O_CREAT)):
            with refused(errno.EPERM):
                make(path)
        with refused(errno.EPERM):
            os.rename(f"{tree.path}/etc", path)
        with refused(errno.EPERM):
            os.link(f"{tree.path}/etc/motd", path)


def test_a_name_leaves_room_for_its_whiteout(ground: Ground) -> None:
    with ground.union() as tree:
        assert os.statvfs(tree.path).f_namemax == 251
        os.mkdir(f"{tree.path}/{'n' * 251}")
        with refused(errno.ENAMETOOLONG):
            os.mkdir(f"{tree.path}/{'n' * 252}")


def test_the_room_is_that_of_the_writable_branch(ground: Ground) -> None:
    with ground.union() as tree:
        shown, real = os.statvfs(tree.path), os.statvfs(ground.upper)
        assert (shown.f_blocks, shown.f_frsize, shown.f_files) == (real.f_blocks, real.f_frsize, real.f_files)


def test_a_file_that_is_copied_up_stays_as_it_was(ground: Ground) -> None:
    source = ground.base / "sparse"
    with open(source, "wb") as file:
        file.write(b"begin")
        file.seek(64 << 20)
        file.write(b"end")
    os.setxattr(source, "user.colour", b"blue")
    source.chmod(0o640)
    os.utime(source, ns=(10**17, 10**17 + 1))
    os.utime(ground.base / "etc", ns=(10**17, 10**17 + 2))
    with ground.union() as tree:
        os.chmod(f"{tree.path}/sparse", 0o600)
        os.truncate(f"{tree.path}/etc/motd", 1)
    assert os.stat(ground.upper / "etc").st_mtime_ns == 10**17 + 2
    copy, status = ground.upper / "sparse", (ground.upper / "sparse").stat()
    assert copy.read_bytes() == source.read_bytes() and status.st_blocks == source.stat().st_blocks < 1000
    assert stat.S_IMODE(status.st_mode) == 0o600 and status.st_mtime_ns == 10**17 + 1 and os.getxattr(copy, "user.colour") == b"blue"


def test_a_file_with_many_names_is_copied_up_with_all_of_them(ground: Ground) -> None:
    os.link(ground.base / "etc/motd", ground.base / "etc/alias")
    os.link(ground.base / "etc/motd", ground.base / "other")
    os.link(ground.base / "etc/motd", ground.base / "gone")
    with ground.union() as tree:
        os.unlink(f"{tree.path}/gone")
        with open(f"{tree.path}/etc/alias", "a") as file:
            file.write("and more\n")
        names = [f"{tree.path}/{name}" for name in ("etc/motd", "etc/alias", "other")]
        assert {Path(name).read_text() for name in names} == {"welcome\nand more\n"}
        assert {(os.stat(name).st_ino, os.stat(name).st_nlink) for name in names} == {(os.stat(names[0]).st_ino, 3)}
        with refused(errno.ENOENT):
            os.stat(f"{tree.path}/gone")


def test_who_reads_sees_what_another_one_writes(ground: Ground) -> None:
    with ground.union() as tree, open(f"{tree.path}/etc/motd", "rb", buffering=0) as reader:
        assert reader.read() == b"welcome\n"
        with open(f"{tree.path}/etc/motd", "r+b", buffering=0) as writer:
            writer.write(b"WEL")
            assert os.pread(reader.fileno(), 100, 0) == b"WELcome\n"
        assert os.fstat(reader.fileno()).st_ino == os.stat(f"{tree.path}/etc/motd").st_ino


def test_memory_that_is_mapped_is_the_file(ground: Ground) -> None:
    with ground.union() as tree, open(f"{tree.path}/etc/motd", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[:3] = b"WEL"
        memory.flush()
        assert Path(tree.path, "etc/motd").read_text() == "WELcome\n"
        os.pwrite(file.fileno(), b"M", 6)
        assert memory[:] == b"WELcomM\n"
    assert (ground.upper / "etc/motd").read_text() == "WELcomM\n"


def test_a_deleted_file_lives_while_it_is_open(ground: Ground) -> None:
    with ground.union() as tree, open(f"{tree.path}/etc/motd", "r+b", buffering=0) as file, open(f"{tree.path}/etc/motd", "rb") as reader:
        os.unlink(f"{tree.path}/etc/motd")
        file.write(b"WEL")
        os.fchmod(reader.fileno(), 0o600)
        assert reader.read() == b"WELcome\n"
        status = os.fstat(file.fileno())
        assert (status.st_nlink, stat.S_IMODE(status.st_mode), status.st_size) == (0, 0o600, 8)
    assert os.listdir(ground.upper / "etc") == [".wh.motd"]


def test_a_deleted_file_of_a_lower_branch_can_be_changed_still(ground: Ground) -> None:
    with ground.union() as tree, open(f"{tree.path}/etc/motd", "rb") as reader:
        os.unlink(f"{tree.path}/etc/motd")
        os.fchmod(reader.fileno(), 0o600)
        os.setxattr(reader.fileno(), "user.colour", b"blue")
        assert stat.S_IMODE(os.fstat(reader.fileno()).st_mode) == 0o600 and os.fstat(reader.fileno()).st_nlink == 0
        assert reader.read() == b"welcome\n"
    base = ground.base / "etc/motd"
    assert base.read_text() == "welcome\n" and base.stat().st_mode & 0o777 != 0o600 and not os.listxattr(base)


def test_a_directory_that_changes_while_it_is_read(ground: Ground) -> None:
    names = {f"{number:04}{'x' * 200}" for number in range(6000)}  # more than fits into one answer
    for name in names:
        (ground.base / name).touch()
    with ground.union() as tree:
        seen: list[str] = []
        with os.scandir(tree.path) as entries:
            for number, entry in enumerate(entries):
                seen.append(entry.name)
                if number % 40 == 0 and entry.name in names:
                    os.unlink(entry.path)
                if number % 120 == 0:
                    Path(tree.path, f"new-{number}").touch()
        assert len(seen) == len(set(seen)) and names <= set(seen)
        assert set(os.listdir(tree.path)) >= {"new-0", "etc"} and seen[0] not in os.listdir(tree.path)


def test_a_file_that_is_open_for_writing_moves_to_another_branch(ground: Ground) -> None:
    second = ground.directory("second")
    (second / "file").write_text("content")
    os.link(second / "file", second / "alias")
    (ground.upper / "d").mkdir()
    (ground.upper / "d/.wh..wh..opq").touch()
    with ground.union(Branch(str(second))) as tree, open(f"{tree.path}/file", "r+b", buffering=0) as file:
        os.rename(f"{tree.path}/file", f"{tree.path}/d/file")
        file.write(b"CON")
        assert Path(tree.path, "d/file").read_text() == Path(tree.path, "alias").read_text() == "CONtent"
        assert sorted(os.listdir(tree.path)) == ["alias", "d", "etc"]
    assert (ground.upper / "d/file").read_text() == "CONtent" and (second / "file").read_text() == "content"


@pytest.mark.slow
def test_a_deep_tree(ground: Ground) -> None:
    deep = "/".join("d" * 400)
    subprocess.run(["mkdir", "-p", ground.base / deep], check=True)
    try:
        with ground.union() as tree:
            os.mkdir(f"{tree.path}/{deep}/new")
            os.rename(f"{tree.path}/d", f"{tree.path}/moved")
            assert sorted(os.listdir(tree.path)) == ["etc", "moved"]
            subprocess.run(["rm", "-r", f"{tree.path}/moved"], check=True)
            assert os.listdir(tree.path) == ["etc"]
    finally:
        subprocess.run(["rm", "-r", ground.base / "d"], check=True)


def test_two_who_append_do_not_overwrite_one_another(ground: Ground) -> None:
    with ground.union() as tree:
        files = [open(f"{tree.path}/etc/motd", "ab", buffering=0) for _ in range(2)]  # noqa: SIM115
        for number in range(10):
            files[number % 2].write(b"%d\n" % number)
        for file in files:
            file.close()
        assert Path(tree.path, "etc/motd").read_text() == "welcome\n" + "".join(f"{number}\n" for number in range(10))


def test_special_files_locks_and_programs(ground: Ground) -> None:
    with ground.union() as tree:
        os.mkfifo(f"{tree.path}/fifo")
        writer = threading.Thread(target=lambda: Path(tree.path, "fifo").write_text("through"))
        writer.start()
        assert Path(tree.path, "fifo").read_text() == "through"
        writer.join()
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            os.symlink(tree.path, ground.folder / "short")
            server.bind(f"{ground.folder}/short/socket")
            server.listen()
            client.connect(f"{ground.folder}/short/socket")
        with open(f"{tree.path}/etc/motd") as one, open(f"{tree.path}/etc/motd") as other:
            fcntl.flock(one, fcntl.LOCK_EX)
            with refused(errno.EAGAIN):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        program = Path(tree.path, "program")
        program.write_text("#!/bin/sh\necho runs\n")
        program.chmod(0o755)
        assert subprocess.run([program], capture_output=True, text=True).stdout == "runs\n"
        with open(f"{tree.path}/etc/motd", "r+b") as file:
            os.fsync(file.fileno())
        directory = os.open(f"{tree.path}/etc", os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)


@pytest.mark.parametrize(("create", "expected"), [("tdp", [0, 4]), ("rr", [2, 2])])
def test_where_new_files_go(ground: Ground, create: str, expected: list[int]) -> None:
    second = ground.directory("second")
    (second / "etc").mkdir()
    with ground.union(Branch(str(second)), create=create) as tree:
        for number in range(4):
            Path(tree.path, "etc", f"new{number}").touch()
        assert sorted(os.listdir(f"{tree.path}/etc")) == ["motd", "new0", "new1", "new2", "new3"]
    assert [len(list(branch.rglob("new*"))) for branch in (ground.upper, second)] == expected


@pytest.mark.needs("root")
def test_most_free_space(ground: Ground) -> None:
    small, large = ground.directory("small"), ground.directory("large")
    for directory, size in ((small, "1m"), (large, "8m")):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory], check=True)
    try:
        with Aufs(Branch(str(small)), Branch(str(large)), create="mfs") as tree:
            Path(tree.path, "new").touch()
            assert (large / "new").exists() and not (small / "new").exists()
    finally:
        for directory in (small, large):
            subprocess.run(["umount", directory], check=True)


def test_a_branch_is_swapped_while_the_union_is_used(ground: Ground) -> None:
    other = ground.directory("other")
    (other / "etc").mkdir()
    (other / "etc/motd").write_text("another\n")
    (other / "new").touch()
    with ground.union() as tree:
        inside = os.open(f"{tree.path}/etc", os.O_RDONLY)
        with open(f"{tree.path}/etc/motd") as reader:
            assert not os.path.exists(f"{tree.path}/new") and reader.read() == "welcome\n"
            tree.change(Branch(str(ground.upper)), Branch(str(other), "ro"))
            assert Path(tree.path, "etc/motd").read_text() == "another\n" and os.path.exists(f"{tree.path}/new")
            assert os.stat("motd", dir_fd=inside).st_size == len("another\n")
            reader.seek(0)
            assert reader.read() == "welcome\n"  # who has a file open goes on with it
        os.close(inside)
        tree.insert(1, Branch(str(ground.base), "ro"))
        assert Path(tree.path, "etc/motd").read_text() == "welcome\n" and os.path.exists(f"{tree.path}/new")
        tree.move(str(other), 1)
        assert Path(tree.path, "etc/motd").read_text() == "another\n"
        tree.remove(str(other))
        assert Path(tree.path, "etc/motd").read_text() == "welcome\n" and not os.path.exists(f"{tree.path}/new")
        tree.append(str(other))
        assert os.path.exists(f"{tree.path}/new")
        assert tree.layers == (str(ground.upper), str(ground.base), str(other))


def test_branches_are_swapped_while_others_read_and_write(ground: Ground) -> None:
    other = ground.directory("other")
    (other / "etc").mkdir()
    (other / "etc/motd").write_text("another\n")
    errors: list[BaseException] = []
    done = threading.Event()

    def use(number: int, path: str) -> None:
        try:
            while not done.is_set():
                assert Path(path, "etc/motd").read_text() in ("welcome\n", "another\n")
                Path(path, f"mine{number}").write_text("x")
                os.unlink(f"{path}/mine{number}")
        except BaseException as error:
            errors.append(error)

    with ground.union() as tree:
        workers = [threading.Thread(target=use, args=(number, tree.path)) for number in range(4)]
        for worker in workers:
            worker.start()
        for turn in range(20):
            tree.change(Branch(str(ground.upper)), Branch(str((ground.base, other)[turn % 2]), "ro"))
        done.set()
        for worker in workers:
            worker.join()
        assert Path(tree.path, "etc/motd").read_text() == "another\n"
    assert not errors, errors


def test_a_branch_in_which_somebody_writes_stays(ground: Ground) -> None:
    second = ground.directory("second")
    with ground.union() as tree:
        tree.insert(0, str(Branch(str(second))))
        with open(f"{tree.path}/file", "w"):
            with pytest.raises(KernelError, check=lambda error: error.errno == errno.EBUSY):
                tree.remove(str(second))
            assert tree.layers[0] == str(second)
        tree.remove(str(second))
        assert not os.path.exists(f"{tree.path}/file") and (second / "file").exists()


def test_what_was_changed_past_the_union_is_seen_after_refresh(ground: Ground) -> None:
    (ground.base / "other").touch()
    with ground.union() as tree:
        assert Path(tree.path, "etc/motd").read_text() == "welcome\n" and not os.path.exists(f"{tree.path}/etc/new")
        mode = os.stat(f"{tree.path}/other").st_mode
        (ground.base / "etc/motd").write_text("mended\n")
        (ground.base / "etc/new").touch()
        (ground.base / "other").chmod(0o604)
        assert os.stat(f"{tree.path}/other").st_mode == mode
        tree.refresh()
        assert stat.S_IMODE(os.stat(f"{tree.path}/other").st_mode) == 0o604
        assert Path(tree.path, "etc/motd").read_text() == "mended\n" and os.path.exists(f"{tree.path}/etc/new")


def test_wrong_branches_are_refused_before_anything_is_made(ground: Ground) -> None:
    file = ground.folder / "file"
    file.touch()
    (ground.base / "inner").mkdir()
    base = Branch(str(ground.base), "ro")
    for branches, why in (
        ((), "no branches"),
        ((f"{ground.folder}/nowhere",), "cannot be found"),
        ((str(file),), "not a directory"),
        ((base, base), "there already"),
        ((f"{ground.base}/inner", base), "inside"),
    ):
        with pytest.raises(UsageError, match=why), Aufs(*branches):
            pass
    with pytest.raises(UsageError, match="mode 'rx'"):
        Branch("/", "rx")
    with pytest.raises(UsageError, match="create='x'"):
        Aufs("/", create="x")
    assert not (ground.folder / "data").exists() or not os.listdir(ground.folder / "data/aufs")
    with ground.union() as tree:
        with pytest.raises(UsageError, match="cannot be found"):
            tree.append("/nowhere")
        with pytest.raises(UsageError, match="none of"):
            tree.remove("/nowhere")
        assert sorted(os.listdir(tree.path)) == ["etc", "inner"]


def test_only_one_union_writes_in_a_branch(ground: Ground) -> None:
    with ground.union() as tree:
        with pytest.raises(UsageError, match="another union writes there"), ground.union():
            pass
        assert Path(tree.path, "etc/motd").read_text() == "welcome\n"
    with ground.union() as tree:
        assert Path(tree.path, "etc/motd").read_text() == "welcome\n"


def test_a_killed_process_loses_nothing(ground: Ground) -> None:
    with ground.union() as tree:
        Path(tree.path, "written").write_text("kept")
        [pid] = daemons()
        os.kill(pid, signal.SIGKILL)
        assert soon(lambda: _answer(tree.path) == errno.ENOTCONN)
        with pytest.raises(KernelError, match="has ended"):
            tree.refresh()
    assert not mounted(tree.path) and not os.path.exists(tree.path)
    with ground.union() as tree:
        assert Path(tree.path, "written").read_text() == "kept" and Path(tree.path, "etc/motd").read_text() == "welcome\n"


def _answer(path: str) -> int | None:
    try:
        os.stat(path)
    except OSError as error:
        return error.errno
    return None


def test_what_is_half_made_goes_at_the_next_start(ground: Ground) -> None:
    work = ground.upper / ".wh..wh.klab"
    work.mkdir()
    (work / "0").touch()
    with ground.union() as tree:
        assert os.listdir(tree.path) == ["etc"] and not work.exists()


CREATOR = """
import os, sys, time
from kernel_lab.unionfs.aufs import Aufs
tree = Aufs(*sys.argv[1:]).__enter__()
print(tree.path, flush=True)
time.sleep(1000)
"""


def test_it_ends_with_its_creator(ground: Ground) -> None:
    creator = subprocess.Popen([sys.executable, "-c", CREATOR, str(ground.upper), str(ground.base)], stdout=subprocess.PIPE, text=True)
    with creator:
        assert creator.stdout
        path = creator.stdout.readline().strip()
        assert mounted(path)
        creator.kill()
    assert soon(lambda: not mounted(path) and not os.path.exists(path))


def test_what_a_killed_creator_and_its_process_leave_is_cleaned_up(ground: Ground) -> None:
    creator = subprocess.Popen([sys.executable, "-c", CREATOR, str(ground.upper), str(ground.base)], stdout=subprocess.PIPE, text=True)
    with creator:
        assert creator.stdout
        path = creator.stdout.readline().strip()
        [pid] = daemons(creator.pid)
        creator.send_signal(signal.SIGSTOP)
        os.kill(pid, signal.SIGKILL)
        creator.kill()
    assert soon(lambda: _answer(path) == errno.ENOTCONN)
    cleanup.remove(leftover for leftover in cleanup.leftovers() if path in leftover.name)
    assert not mounted(path) and not os.path.exists(path)


ORPHAN = """
import os, signal, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from kernel_lab import cleanup
from kernel_lab.kernel import mountinfo
creator = subprocess.Popen([sys.executable, "-c", sys.argv[1], *sys.argv[2:]], stdout=subprocess.PIPE, text=True)
path = creator.stdout.readline().strip()
creator.send_signal(signal.SIGSTOP)
for pid in filter(str.isdecimal, os.listdir("/proc")):
    if os.path.exists(f"/proc/{pid}/comm") and open(f"/proc/{pid}/comm").read() == "klab-aufs\\n" and os.stat(f"/proc/{pid}").st_uid == os.getuid():
        os.kill(int(pid), signal.SIGKILL)
creator.kill()
creator.wait()
found = [one.kind for one in cleanup.leftovers() if path in one.name]
with ThreadPoolExecutor(4) as threads:
    list(threads.map(lambda number: cleanup.remove(cleanup.leftovers()), range(4)))
print(found[0], any(mount.point == path for mount in mountinfo.mounts()), os.path.exists(path))
"""


@pytest.mark.needs("root", "setpriv", "unshare", "module:pyfuse3")
def test_an_ordinary_users_cleanup_unmounts_what_is_left(tmp_path: Path) -> None:
    # In a mount namespace with a /dev/fuse that everybody may open, as most machines have it.
    node = "mknod $0/fuse c 10 229; chmod 666 $0/fuse; mount --bind $0/fuse /dev/fuse"
    with tempfile.TemporaryDirectory(prefix="klab-tests-", dir="/var/tmp") as folder, nobodys_python() as python:
        for name in ("", "a", "b"):
            os.makedirs(f"{folder}/{name}", exist_ok=True)
            os.chown(f"{folder}/{name}", NOBODY, NOBODY)
        own = {"HOME": folder, "KERNEL_LAB_RUN": f"{folder}/run", "KERNEL_LAB_DATA": f"{folder}/data"}
        nobody = f'exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups "$@"'
        command = ["unshare", "--mount", "sh", "-ec", f"{node}; {nobody}", folder, python, "-c", ORPHAN, CREATOR, f"{folder}/a", f"{folder}/b"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=os.environ | own, cwd="/")
    assert done.stdout == "mount False False\n", done.stderr


def test_it_is_unmounted_by_somebody_else(ground: Ground) -> None:
    with ground.union() as tree:
        subprocess.run(["umount", tree.path] if os.geteuid() == 0 else ["fusermount3", "-u", tree.path], check=True)
        assert soon(lambda: not os.path.exists(tree.path))
    assert not daemons()


@pytest.mark.needs("root")
def test_a_branch_may_hold_the_unions_own_mount(ground: Ground) -> None:
    # The upper branch is on a file system of its own: on the base's, it would be inside it.
    upper = ground.directory("memory")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", upper], check=True)
    try:
        with Aufs(Branch(str(upper)), Branch(str(ground.folder), "ro")) as tree:
            inside = Path(tree.path, os.path.relpath(tree.path, ground.folder))
            assert inside.is_dir() and os.listdir(inside) == []
            (upper / "mine").touch()
            tree.change(*tree.branches)
            assert os.listdir(f"{tree.path}/memory") == [] and os.path.exists(f"{tree.path}/mine")
    finally:
        subprocess.run(["umount", upper], check=True)


def test_a_container_has_it_as_its_root(ground: Ground) -> None:
    union = Aufs(Branch(str(ground.upper)), Branch(str(rootfs.busybox()), "ro"))
    box = Container(*users(), PID(), Mount(union))
    assert box.run("sh", "-c", "echo mine > /mine; rm /bin/vi; cat /mine").stdout == "mine\n"
    assert box.run("sh", "-c", "cat /mine; ls /bin/vi", check=False).stdout == "mine\n"
    assert (ground.upper / "mine").read_text() == "mine\n" and (ground.upper / "bin/.wh.vi").exists()
    assert not os.path.exists(union.path)


def test_containers_and_their_creator_share_one_mount(ground: Ground) -> None:
    with Aufs(Branch(str(ground.upper)), Branch(str(rootfs.busybox()), "ro")) as tree:
        one, other = (Container(*users(), PID(), Mount(tree)) for _ in range(2))
        assert one.run("sh", "-c", "echo there > /there; cat /there").stdout == "there\n"
        assert other.run("cat", "/there").stdout == Path(tree.path, "there").read_text() == "there\n"
        assert len(daemons()) == 1
    assert not daemons()


def test_a_base_is_swapped_under_a_running_container(ground: Ground) -> None:
    fix = ground.directory("fix")
    (fix / "etc").mkdir()
    (fix / "etc/motd").write_text("mended\n")
    union = Aufs(Branch(str(ground.upper)), Branch(str(rootfs.busybox()), "ro"))
    with Container(*users(), PID(), Mount(union)) as box:
        box.start("sleep", "1000")
        assert box.exec("cat", "/etc/motd").code != 0
        union.insert(1, Branch(str(fix), "ro"))
        assert box.exec("cat", "/etc/motd").stdout == "mended\n"
        assert box.exec("ls", "/proc/1/exe").code == 0  # what is mounted in it has stayed
        union.remove(str(fix))
        assert box.exec("cat", "/etc/motd").code != 0
    assert not daemons()
