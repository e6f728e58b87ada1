"""Proof that a union is a file system: the same random operations on a plain directory, on overlay, and on AUFS with one and several writable
branches. Every answer, every errno and the whole tree must be the same.

The differences that are known are each asserted in test_aufs_differences.py, and are kept out of the way here: overlay is mounted with
`redirect_dir` and `index`, and what stands in `NOT_COMPARED` is not looked at.
"""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from kernel_lab.kernel.calls import syscall
from kernel_lab.kernel.flags import MNT
from kernel_lab.unionfs.aufs import Aufs
from kernel_lab.unionfs.aufs_copy import times_kept
from kernel_lab.unionfs.branches import Branch

pytestmark = pytest.mark.needs("root", "module:pyfuse3")

NOT_COMPARED = {
    "the number of links of a directory": "overlay and AUFS tell 1 for one that is merged, as btrfs does for all",
    "the time of the last access": "it is the branch's file that is read, and a read from the page cache is none",
    "the time of the last change of the inode": "a copy is a new inode",
    "the number of blocks": "it is the file system's own affair how it lays a file out",
}
OLD = 10**18  # nanoseconds: 2001. A time before is one that somebody has set, and has to stay.
NAMES = "abc"
# Below a directory of the tree, so that a symbolic link to `../a` does not lead out of it.
paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(lambda names: "/".join(("top", *names)))
modes = st.sampled_from((0o644, 0o600, 0o755, 0o4755, 0o2755, 0o1777, 0o444))
contents = st.binary(max_size=12) | st.integers(1, 3).map(lambda pages: b"x" * 4096 * pages)
offsets = st.sampled_from((0, 1, 10, 4095, 4096, 10000))
ids = st.sampled_from((0, 1000, 2000))
targets = st.sampled_from(("a", "b/c", "../a", "../b", "nowhere", "."))
attributes = st.sampled_from(("user.one", "user.two", "trusted.three"))
times = st.integers(0, OLD // 2)
entries = st.dictionaries(paths, st.tuples(st.sampled_from(("file", "directory", "link", "symlink", "fifo")), contents, modes, st.booleans(), times))


def outcome(operation: Callable[[], object]) -> object:
    """What an operation returns, or its errno by name."""
    try:
        return operation()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def described(path: str, links: dict[int, list[str]], inside: str) -> dict[str, object]:
    """All that can be seen of one file and has to be the same everywhere."""
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFDIR:
        links.setdefault(status.st_ino, []).append(inside)
    names = sorted(name for name in os.listxattr(path, follow_symlinks=False) if not name.startswith("trusted.overlay."))
    return {
        "mode": oct(status.st_mode),
        "owner": (status.st_uid, status.st_gid),
        "size": None if kind == stat.S_IFDIR else status.st_size,
        "links": None if kind == stat.S_IFDIR else status.st_nlink,
        "time": status.st_mtime_ns if status.st_mtime_ns < OLD else "now",
        "attributes": {name: os.getxattr(path, name, follow_symlinks=False) for name in names},
        "content": Path(path).read_bytes() if kind == stat.S_IFREG else os.readlink(path) if kind == stat.S_IFLNK else None,
    }


def picture(top: str) -> dict[str, object]:
    """The whole tree."""
    links: dict[int, list[str]] = {}
    shown: dict[str, object] = {".": described(top, links, ".")}
    for directory, directories, files in os.walk(top):
        for name in sorted(directories + files):
            path = os.path.join(directory, name)
            shown[os.path.relpath(path, top)] = described(path, links, os.path.relpath(path, top))
    shown["hard links"] = sorted(sorted(names) for names in links.values() if len(names) > 1)
    return shown


def different(shown: dict[str, object], plain: dict[str, object]) -> dict[str, tuple[object, object]]:
    """Where a tree is not as it should be: what it shows, and what the plain directory shows."""
    return {path: (shown.get(path), plain.get(path)) for path in shown | plain if shown.get(path) != plain.get(path)}


def fill(top: str, path: str, entry: tuple[str, bytes, int, bool, int], first: dict[str, str]) -> None:
    """A file that has been there before anything was mounted."""
    kind, content, mode, _, _ = entry
    real = f"{top}/{path}"
    with suppress(OSError):
        os.makedirs(os.path.dirname(real), exist_ok=True)
        if kind == "file":
            Path(real).write_bytes(content)
            first.setdefault(top, real)
        elif kind == "directory":
            os.mkdir(real)
        elif kind == "link" and top in first:
            os.link(first[top], real)
            return
        elif kind == "symlink":
            os.symlink("../a", real)
        elif kind == "fifo":
            os.mkfifo(real)
        if kind in ("file", "directory"):
            os.chmod(real, mode)
            os.setxattr(real, "user.one", content[:5])


class Trees(RuleBasedStateMachine):
    """One operation after the other, on all the trees at once."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.folder = tempfile.mkdtemp(prefix="klab-aufs-", dir="/var/tmp")
        self.stack.callback(shutil.rmtree, self.folder)
        self.handles: list[dict[str, int]] = []
        self.trees: dict[str, str] = {}
        self.umask = os.umask(0o022)

    @initialize(base=entries, create=st.sampled_from(("tdp", "mfs", "rr")))
    def mounted(self, base: dict[str, Any], create: str) -> None:
        made = {name: f"{self.folder}/{name}" for name in ("plain", "base", "upper", "work", "overlay", "one", "two", "part", "rest")}
        for path in made.values():
            os.mkdir(path)
        first: dict[str, str] = {}
        os.mkdir(f"{made['plain']}/top")
        for path, entry in sorted(base.items()):
            fill(made["plain"], path, entry, first)
        self._age(made["plain"], base)
        shutil.copystat(made["plain"], made["upper"])
        self._copy(made["plain"], made["base"])
        # The same files in two branches: a hard link cannot be in both, so all of a file's names are in one.
        self._copy(made["plain"], made["part"])
        self._copy(made["plain"], made["rest"])
        for path, entry in sorted(base.items(), reverse=True):
            self._take_out(made["part" if entry[3] else "rest"], path)
        for path in (made["one"], made["two"], made["upper"], made["part"], made["rest"]):
            shutil.copystat(made["plain"], path)
        options = f"lowerdir={made['base']},upperdir={made['upper']},workdir={made['work']},redirect_dir=on,index=on"
        syscall("mount", b"overlay", os.fsencode(made["overlay"]), b"overlay", 0, options.encode())
        self.stack.callback(syscall, "umount2", os.fsencode(made["overlay"]), MNT.DETACH)
        one = self.stack.enter_context(Aufs(Branch(made["one"]), Branch(made["base"], "ro")))
        two = self.stack.enter_context(Aufs(Branch(made["two"]), Branch(made["part"]), Branch(made["rest"], "ro+wh"), create=create))
        self.trees = {"plain": made["plain"], "overlay": made["overlay"], "aufs": one.path, f"aufs, two writable, {create}": two.path}
        self.same()

    def _copy(self, source: str, target: str) -> None:
        os.rmdir(target)
        assert os.system(f"cp -a {source} {target}") == 0

    def _age(self, top: str, base: dict[str, Any]) -> None:
        for directory, directories, files in os.walk(top, topdown=False):
            for name in (*files, *directories, ""):
                path = os.path.join(directory, name)
                entry = base.get(os.path.relpath(path, top))
                os.utime(path, ns=(10**17, entry[4] if entry else 10**17), follow_symlinks=False)

    def _take_out(self, top: str, path: str) -> None:
        with suppress(OSError):
            real = f"{top}/{path}"
            status = os.lstat(real)
            if stat.S_ISDIR(status.st_mode) or status.st_nlink > 1:
                return
            with times_kept(os.path.realpath(os.path.dirname(real))):
                os.unlink(real)

    def everywhere(self, operation: Callable[[str, str], object]) -> None:
        """`operation` gets a tree's name and its top directory."""
        answers = {name: outcome(lambda name=name, top=top: operation(name, top)) for name, top in self.trees.items()}  # type: ignore[misc]
        assert len({repr(answer) for answer in answers.values()}) == 1, answers
        self.same()

    def same(self) -> None:
        pictures = {name: picture(top) for name, top in self.trees.items()}
        for name, shown in pictures.items():
            differences = different(shown, pictures["plain"])
            assert not differences, f"{name} {differences}"

    @rule(path=paths, mode=modes, exclusive=st.booleans(), content=contents)
    def create(self, path: str, mode: int, exclusive: bool, content: bytes) -> None:
        flags = os.O_CREAT | os.O_WRONLY | (os.O_EXCL if exclusive else os.O_TRUNC) | os.O_NONBLOCK

        def operation(name: str, top: str) -> None:
            descriptor = os.open(f"{top}/{path}", flags, mode)
            os.write(descriptor, content)
            os.close(descriptor)

        self.everywhere(operation)

    @rule(path=paths, offset=offsets, content=contents, more=st.sampled_from((0, os.O_APPEND)))
    def write(self, path: str, offset: int, content: bytes, more: int) -> None:
        def operation(name: str, top: str) -> None:
            descriptor = os.open(f"{top}/{path}", os.O_RDWR | more | os.O_NONBLOCK)
            os.lseek(descriptor, offset, os.SEEK_SET)
            os.write(descriptor, content)
            os.close(descriptor)

        if not self._is_fifo(path):
            self.everywhere(operation)

    def _is_fifo(self, path: str) -> bool:
        try:
            return stat.S_ISFIFO(os.stat(f"{self.trees['plain']}/{path}").st_mode)
        except OSError:
            return False

    @rule(path=paths, size=offsets)
    def truncate(self, path: str, size: int) -> None:
        self.everywhere(lambda name, top: os.truncate(f"{top}/{path}", size))

    @rule(path=paths, mode=modes)
    def mkdir(self, path: str, mode: int) -> None:
        self.everywhere(lambda name, top: os.mkdir(f"{top}/{path}", mode))

    @rule(path=paths)
    def mkfifo(self, path: str) -> None:
        self.everywhere(lambda name, top: os.mkfifo(f"{top}/{path}"))

    @rule(path=paths)
    def rmdir(self, path: str) -> None:
        self.everywhere(lambda name, top: os.rmdir(f"{top}/{path}"))

    @rule(path=paths)
    def unlink(self, path: str) -> None:
        self.everywhere(lambda name, top: os.unlink(f"{top}/{path}"))

    @rule(old=paths, new=paths)
    def rename(self, old: str, new: str) -> None:
        self.everywhere(lambda name, top: os.rename(f"{top}/{old}", f"{top}/{new}"))

    @rule(old=paths, new=paths)
    def link(self, old: str, new: str) -> None:
        self.everywhere(lambda name, top: os.link(f"{top}/{old}", f"{top}/{new}", follow_symlinks=False))

    @rule(aim=targets, path=paths)
    def symlink(self, aim: str, path: str) -> None:
        self.everywhere(lambda name, top: os.symlink(aim, f"{top}/{path}"))

    @rule(path=paths, mode=modes)
    def chmod(self, path: str, mode: int) -> None:
        self.everywhere(lambda name, top: os.chmod(f"{top}/{path}", mode))

    @rule(path=paths, user=ids, group=ids)
    def chown(self, path: str, user: int, group: int) -> None:
        self.everywhere(lambda name, top: os.chown(f"{top}/{path}", user, group, follow_symlinks=False))

    @rule(path=paths, time=times)
    def utime(self, path: str, time: int) -> None:
        self.everywhere(lambda name, top: os.utime(f"{top}/{path}", ns=(0, time), follow_symlinks=False))

    @rule(path=paths, attribute=attributes, value=st.binary(max_size=8), flags=st.sampled_from((0, os.XATTR_CREATE, os.XATTR_REPLACE)))
    def setxattr(self, path: str, attribute: str, value: bytes, flags: int) -> None:
        self.everywhere(lambda name, top: os.setxattr(f"{top}/{path}", attribute, value, flags, follow_symlinks=False))

    @rule(path=paths, attribute=attributes)
    def removexattr(self, path: str, attribute: str) -> None:
        self.everywhere(lambda name, top: os.removexattr(f"{top}/{path}", attribute, follow_symlinks=False))

    @precondition(lambda self: len(self.handles) < 4)
    @rule(path=paths, flags=st.sampled_from((os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_TRUNC)))
    def open(self, path: str, flags: int) -> None:
        opened: dict[str, int] = {}

        def operation(name: str, top: str) -> None:
            opened[name] = os.open(f"{top}/{path}", flags | os.O_NONBLOCK)

        if not self._is_fifo(path):
            self.handles.append(opened)
            self.everywhere(operation)
            if not opened:
                self.handles.pop()

    @precondition(lambda self: self.handles)
    @rule(number=st.integers(0, 3), size=offsets)
    def ftruncate(self, number: int, size: int) -> None:
        self._with_handle(number, lambda descriptor: os.ftruncate(descriptor, size))

    @precondition(lambda self: self.handles)
    @rule(number=st.integers(0, 3), content=contents)
    def write_on(self, number: int, content: bytes) -> None:
        self._with_handle(number, lambda descriptor: os.write(descriptor, content))

    @precondition(lambda self: self.handles)
    @rule(number=st.integers(0, 3), offset=offsets)
    def read_again(self, number: int, offset: int) -> None:
        self._with_handle(number, lambda descriptor: os.pread(descriptor, 20000, offset))

    @precondition(lambda self: self.handles)
    @rule(number=st.integers(0, 3), mode=modes)
    def fchmod(self, number: int, mode: int) -> None:
        self._with_handle(number, lambda descriptor: os.fchmod(descriptor, mode))

    @precondition(lambda self: self.handles)
    @rule(number=st.integers(0, 3), value=st.binary(max_size=8))
    def fsetxattr(self, number: int, value: bytes) -> None:
        self._with_handle(number, lambda descriptor: os.setxattr(descriptor, "user.one", value))

    @precondition(lambda self: self.handles)
    @rule(number=st.integers(0, 3))
    def fstat(self, number: int) -> None:
        def told(descriptor: int) -> object:
            status = os.fstat(descriptor)
            is_directory = stat.S_ISDIR(status.st_mode)
            return oct(status.st_mode), status.st_uid, status.st_gid, None if is_directory else (status.st_size, status.st_nlink)

        self._with_handle(number, told)

    @precondition(lambda self: self.handles)
    @rule(number=st.integers(0, 3))
    def close(self, number: int) -> None:
        for descriptor in self.handles.pop(number % len(self.handles)).values():
            os.close(descriptor)

    def _with_handle(self, number: int, operation: Callable[[int], object]) -> None:
        handle = self.handles[number % len(self.handles)]
        self.everywhere(lambda name, top: operation(handle[name]))

    def teardown(self) -> None:
        for handle in self.handles:
            for descriptor in handle.values():
                os.close(descriptor)
        self.stack.close()
        os.umask(self.umask)


@pytest.mark.slow
def test_unions_behave_like_a_directory() -> None:
    run_state_machine_as_test(Trees, settings=settings(max_examples=6, stateful_step_count=25))


@pytest.mark.slow
def test_unions_behave_like_a_directory_for_long() -> None:
    run_state_machine_as_test(Trees, settings=settings(max_examples=40, stateful_step_count=40))
