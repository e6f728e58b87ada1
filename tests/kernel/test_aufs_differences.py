"""What is known to be different between a directory, overlay and AUFS in user space, each asserted; and what is the same for ordinary users."""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_lab.kernel.calls import syscall
from kernel_lab.kernel.flags import MNT
from kernel_lab.unionfs.aufs import Aufs
from kernel_lab.unionfs.branches import Branch

pytestmark = pytest.mark.needs("root", "module:pyfuse3")

RENAME_EXCHANGE = 2  # linux/fs.h
AT_FDCWD = -100


@pytest.fixture
def trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Path]]:
    """The same files three times: `plain`, and as the lower layer of `overlay` and `aufs`."""
    monkeypatch.setenv("KERNEL_LAB_DATA", str(tmp_path / "data"))
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)  # for ordinary users
    for name in ("plain", "base", "upper", "work", "overlay", "mine"):
        (tmp_path / name).mkdir()
    for top in (tmp_path / "plain", tmp_path / "base"):
        _fill(top)
    options = f"lowerdir={tmp_path}/base,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    syscall("mount", b"overlay", os.fsencode(tmp_path / "overlay"), b"overlay", 0, options.encode())
    try:
        with Aufs(Branch(str(tmp_path / "mine")), Branch(str(tmp_path / "base"), "ro")) as tree:
            yield {"plain": tmp_path / "plain", "overlay": tmp_path / "overlay", "aufs": Path(tree.path)}
    finally:
        syscall("umount2", os.fsencode(tmp_path / "overlay"), MNT.DETACH)


def _fill(top: Path) -> None:
    (top / "directory").mkdir()
    (top / "directory/file").write_text("content")
    (top / "file").write_text("content")
    os.link(top / "file", top / "alias")
    for mode in (0o4777, 0o2777, 0o6755):
        (top / f"{mode:o}").write_text("content")
        os.chown(top / f"{mode:o}", 1000, 1000)
        (top / f"{mode:o}").chmod(mode)
    for name, mode in (("sticky", 0o1777), ("group", 0o2777), ("secret", 0o700)):
        (top / name).mkdir()
        os.chown(top / name, 0, 2000)
        (top / name).chmod(mode)
        (top / name / "roots").touch()
    (top / "private").touch(0o600)


def answers(trees: dict[str, Path], operation: "object") -> dict[str, object]:
    """What each tree says, or its errno."""
    found: dict[str, object] = {}
    for name, top in trees.items():
        try:
            found[name] = operation(top)  # type: ignore[operator]
        except OSError as error:
            found[name] = errno.errorcode[error.errno or 0]
    return found


def test_a_directory_of_a_lower_layer_is_moved_by_aufs_alone(trees: dict[str, Path]) -> None:
    # The kernel's default; with redirect_dir overlay leaves a note of where the directory has been (overlayfs.rst).
    assert answers(trees, lambda top: os.rename(top / "directory", top / "moved")) == {"plain": None, "overlay": "EXDEV", "aufs": None}
    assert (trees["aufs"] / "moved/file").read_text() == "content" and not (trees["aufs"] / "directory").exists()


def test_hard_links_are_kept_by_aufs_and_by_overlay_only_with_an_index(trees: dict[str, Path]) -> None:
    def changed(top: Path) -> tuple[str, bool]:
        (top / "file").write_text("changed")
        return (top / "alias").read_text(), os.path.samefile(top / "file", top / "alias")

    assert answers(trees, changed) == {"plain": ("changed", True), "overlay": ("content", False), "aufs": ("changed", True)}


def test_the_number_of_links_of_a_merged_directory_is_one(trees: dict[str, Path]) -> None:
    def merged(top: Path) -> int:
        (top / "directory/new").mkdir()
        return os.stat(top / "directory").st_nlink

    assert answers(trees, merged) == {"plain": 3, "overlay": 1, "aufs": 1}


def test_files_have_one_device(trees: dict[str, Path]) -> None:
    # Overlay shows a lower layer's file with that layer's device where the layers are on several (overlayfs.rst, "Inode properties").
    devices = {os.lstat(os.path.join(directory, name)).st_dev for directory, _, names in os.walk(trees["aufs"]) for name in names}
    assert devices == {os.stat(trees["aufs"]).st_dev}


def test_a_file_keeps_its_number_when_it_is_copied_up(trees: dict[str, Path]) -> None:
    before = os.stat(trees["aufs"] / "directory/file").st_ino
    (trees["aufs"] / "directory/file").write_text("changed")
    assert os.stat(trees["aufs"] / "directory/file").st_ino == before


def test_space_cannot_be_reserved_and_holes_not_be_found(trees: dict[str, Path]) -> None:
    # pyfuse3 has neither request. posix_fallocate(3) writes zeros instead; a file looks as if it had no holes.
    def reserve(top: Path) -> None:
        with open(top / "file", "r+b") as file:
            # Python's posix_fallocate falls back as the C library does; only the system call itself is refused.
            syscall("fallocate", file.fileno(), 0, 0, 1 << 16)

    assert answers(trees, reserve) == {"plain": None, "overlay": None, "aufs": "ENOTSUP"}

    def hole(top: Path) -> int:
        with open(top / "sparse", "wb") as file:
            file.truncate(1 << 20)
        with open(top / "sparse", "rb") as file:
            return os.lseek(file.fileno(), 0, os.SEEK_HOLE)

    assert answers(trees, hole) == {"plain": 0, "overlay": 0, "aufs": 1 << 20}


def test_names_are_not_exchanged(trees: dict[str, Path]) -> None:
    def exchange(top: Path) -> int:
        names = (os.fsencode(top / name) for name in ("file", "private"))
        return syscall("renameat2", AT_FDCWD, next(names), AT_FDCWD, next(names), RENAME_EXCHANGE)

    assert answers(trees, exchange) == {"plain": 0, "overlay": 0, "aufs": "EINVAL"}


def test_a_file_without_a_name_cannot_be_made(trees: dict[str, Path]) -> None:
    def nameless(top: Path) -> None:
        os.close(os.open(top, os.O_TMPFILE | os.O_RDWR))

    assert answers(trees, nameless) == {"plain": None, "overlay": None, "aufs": "ENOTSUP"}


def test_access_lists_are_refused(trees: dict[str, Path]) -> None:
    # An empty one: version 2, and no entries but the owner's, the group's and the others' (linux/posix_acl_xattr.h).
    entries = b"".join(tag.to_bytes(2, "little") + b"\6\0" + b"\xff" * 4 for tag in (1, 4, 32))
    found = answers(trees, lambda top: os.setxattr(top / "file", "system.posix_acl_access", b"\2\0\0\0" + entries))
    assert found == {"plain": None, "overlay": None, "aufs": "ENOTSUP"}
    assert "system.posix_acl_access" not in os.listxattr(trees["aufs"] / "file")


# What an ordinary user may do and what becomes of it: one line each.
ORDINARY = """
import os, stat, sys
os.chdir(sys.argv[1])
os.umask(0o027)

def seen(path):
    status = os.lstat(path)
    return oct(status.st_mode), status.st_uid, status.st_gid

def write(path, how="r+"):
    with open(path, how) as file:
        file.write("y")

def make(path, mode):
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, mode))

for path, operation in (
    ("4777", lambda: write("4777")),
    ("2777", lambda: write("2777")),
    ("6755", lambda: write("6755")),
    ("4777", lambda: os.truncate("4777", 2)),
    ("6755", lambda: os.chown("6755", -1, 1000)),
    ("private", lambda: write("private")),
    ("private", lambda: open("private").read()),
    ("private", lambda: os.chmod("private", 0o777)),
    ("private", lambda: os.utime("private")),
    ("private", lambda: os.setxattr("private", "user.one", b"1")),
    ("4777", lambda: os.setxattr("4777", "trusted.one", b"1")),
    ("4777", lambda: os.chown("4777", 0, 0)),
    ("4777", lambda: os.setxattr("4777", "user.one", b"1")),
    ("group/file", lambda: write("group/file", "w")),
    ("group/directory", lambda: os.mkdir("group/directory")),
    ("group/link", lambda: os.symlink("file", "group/link")),
    ("group/suid", lambda: make("group/suid", 0o4755)),
    ("group/sgid", lambda: make("group/sgid", 0o2755)),
    ("group/fifo", lambda: os.mkfifo("group/fifo", 0o666)),
    ("sticky/device", lambda: os.mknod("sticky/device", stat.S_IFCHR | 0o666, os.makedev(1, 3))),
    ("sticky/mine", lambda: os.mkdir("sticky/mine", 0o777)),
    ("sticky/roots", lambda: os.unlink("sticky/roots")),
    ("sticky/roots", lambda: os.rename("sticky/roots", "sticky/moved")),
    ("secret", lambda: os.listdir("secret")),
    ("secret/roots", lambda: os.stat("secret/roots")),
    (".", lambda: write("new", "w")),
    ("file", lambda: os.unlink("file")),
):
    try:
        answer = operation()
    except OSError as error:
        answer = error.strerror
    try:
        print(path, answer, *seen(path))
    except OSError as error:
        print(path, answer, error.strerror)
"""


@pytest.mark.needs("setpriv")
def test_an_ordinary_user_may_do_the_same_everywhere(trees: dict[str, Path]) -> None:
    said = {}
    for name, top in trees.items():
        command = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", sys.executable, "-c", ORDINARY, str(top)]
        said[name] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said["plain"]) == 27
    assert said["aufs"] == said["overlay"] == said["plain"]


def test_what_somebody_makes_belongs_to_them(trees: dict[str, Path]) -> None:
    command = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "mkdir", str(trees["aufs"] / "sticky/theirs")]
    subprocess.run(command, check=True)
    status = os.stat(trees["aufs"] / "sticky/theirs")
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1000, 1000, 0o755)
