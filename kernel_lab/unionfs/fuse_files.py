"""The files of a union by FUSE's numbers instead of paths, and what the kernel is told of them.

The kernel may keep names, attributes and contents as long as it likes: everything that changes them comes by here.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple, TypeVar

from pyfuse3 import EntryAttributes

from kernel_lab.unionfs.aufs_union import Union
from kernel_lab.unionfs.branches import Branch, Place
from kernel_lab.unionfs.fuse_nodes import Name, Node, Nodes
from kernel_lab.unionfs.policies import Policy

T = TypeVar("T")

FOREVER = 1e6  # seconds
ABSENT = 4096  # so many names of which there are none are remembered for each directory


class Real(NamedTuple):
    """Where a branch has a file: a path, and whether a symbolic link is to be followed to it, as that of a descriptor is."""

    path: str
    follow: bool


class Files:
    """`opened`: the descriptors of the branches' files that are open, and of which file each is."""

    def __init__(self, branches: Sequence[Branch], create: Policy) -> None:
        self.union = Union(branches, create, self._copied)
        self.nodes = Nodes()
        self.opened: dict[int, Node] = {}

    def path(self, parent: int, name: str) -> str:
        """The path of a name in the union."""
        return f"{self.nodes.path(parent)}/{name}"

    def found(self, node: Node) -> tuple[str, list[Place]]:
        """A path by which the union shows a file, and its places. Raises OSError (ESTALE) when it does not."""
        for path in self.nodes.paths(node):
            found = self.union.search(path)
            if found and (found[0].is_directory or self.nodes.of(found[0].status) is node):
                return path, found
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def readable(self, node: Node) -> Real:
        """Where to read a file."""
        if node.nameless >= 0:
            return Real(f"/proc/self/fd/{node.nameless}", True)
        try:
            return Real(self.found(node)[1][0].path, False)
        except OSError:
            # Its branch has just gone, or another one hides it, and the kernel does not know yet.
            if _is_still(node, node.source):
                return Real(node.source, False)
            raise

    def changeable(self, node: Node, content: bool = True) -> Real:
        """Where to change a file: it is copied up before, without its content if that is not needed any more."""
        if node.nameless < 0:
            return Real(self.union.bring(self.found(node)[0], content=content), False)
        if node.hidden:
            self._copy_nameless(node)
        return Real(f"/proc/self/fd/{node.nameless}", True)

    def status(self, node: Node) -> EntryAttributes:
        """What the kernel is told of a file that it knows."""
        descriptor = node.open[0] if node.open else node.nameless
        if descriptor >= 0:
            return told(node, os.fstat(descriptor))
        if node.identity:
            return told(node, os.lstat(self.readable(node).path))
        found = self.found(node)[1]
        return told(node, found[0].status, len(found) > 1)

    def entry(self, parent: int, name: str) -> EntryAttributes:
        """What the kernel is told of a name; it remembers, and we that it does."""
        found = self.union.search(self.path(parent, name))
        absent = self.nodes[parent].absent
        if found:
            absent.discard(name)
            node = self.nodes.meet(parent, name, found[0].path, found[0].status)
            return told(node, found[0].status, len(found) > 1)
        entry = EntryAttributes()
        entry.st_ino = 0
        entry.entry_timeout = FOREVER if len(absent) < ABSENT else 0
        if entry.entry_timeout:
            absent.add(name)
        return entry

    def forget(self, number: int, lookups: int = 1) -> None:
        """The kernel has forgotten, so many times, that it was told of a file."""
        self.nodes.forget(self.nodes[number], lookups)

    def make(self, parent: int, name: str, make: Callable[[str], T]) -> tuple[T, EntryAttributes]:
        """A new name, and what the kernel is told of it."""
        return self.union.add(self.path(parent, name), make), self.entry(parent, name)

    def remove(self, parent: int, name: str) -> None:
        """Removes a file or a directory."""
        path = self.path(parent, name)
        with self._losing((parent, name), self.union.find(path)):
            self.union.remove(path)

    def rename(self, old: Name, new: Name, replace: bool) -> None:
        """Moves a file or a directory."""
        source, target = self.path(*old), self.path(*new)
        with self._losing(new, self.union.search(target)):
            self.union.rename(source, target, replace)
        moved = self.nodes.known(*old, self.union.find(target)[0].status)
        if moved:
            self.nodes.rename(moved, old, new)

    def open(self, node: Node, descriptor: int) -> None:
        """A file is open now."""
        node.open.append(descriptor)
        self.opened[descriptor] = node

    def close(self, descriptor: int) -> None:
        """It is no longer."""
        self.opened.pop(descriptor).open.remove(descriptor)
        os.close(descriptor)

    def change(self, branches: Sequence[Branch]) -> tuple[list[tuple[int, bytes]], list[int]]:
        """Puts other branches in place of these. What the kernel has to forget then: names, and the contents of files.

        Raises OSError (EBUSY) while a file of a branch that goes is open for writing: nobody would see any more what is written there.
        """
        for descriptor, node in self.opened.items():
            if _access(descriptor) != os.O_RDONLY and node.nameless < 0 and (branch := self.found(node)[1][0].branch) not in branches:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), branch.path)
        self.union.change(branches)
        names = [name for node in self.nodes for name in node.names if self._known(name) is not node]
        names += [(node.number, name) for node in self.nodes for name in node.absent if self._known((node.number, name))]
        return [(parent, os.fsencode(name)) for parent, name in names], [node.number for node in self.nodes]

    def _known(self, name: Name) -> Node | bool:
        """What is there now: a file that the kernel knows, or whether there is any."""
        with suppress(OSError):  # a directory above it may be gone
            if found := self.union.search(self.path(*name)):
                return self.nodes.known(*name, found[0].status) or True
        return False

    @contextmanager
    def _losing(self, name: Name, found: Sequence[Place]) -> Iterator[None]:
        """A file loses a name. If that was its last, whoever has it open goes on by a descriptor."""
        node = self.nodes.known(*name, found[0].status) if found else None
        with ExitStack() as closing:
            descriptor = os.open(found[0].path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC) if node else -1
            closing.callback(os.close, descriptor) if node else None
            yield
            if node:
                self.nodes.unname(node, name)
                if not found[0].branch.writable:
                    node.hidden, node.source = node.hidden + 1, found[0].path
                if not node.names:
                    node.nameless = descriptor
                    closing.pop_all()

    def _copied(self, status: os.stat_result, real: str) -> None:
        """A file has been copied up: from now on it is this one, also for those who have it open."""
        if node := self.nodes.of(status):
            self._moved(node, os.lstat(real), real)

    def _copy_nameless(self, node: Node) -> None:
        if not _is_still(node, node.source):  # its branch has gone
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        copy = self.union.bring_nameless(node.source)
        self._moved(node, os.stat(copy), f"/proc/self/fd/{copy}")
        os.close(node.nameless)
        node.nameless = copy

    def _moved(self, node: Node, status: os.stat_result, real: str) -> None:
        self.nodes.identify(node, status)
        node.hidden = 0
        for descriptor in node.open:
            now = os.open(real, _access(descriptor) | os.O_CLOEXEC)
            os.dup2(now, descriptor, inheritable=False)
            os.close(now)


def told(node: Node, status: os.stat_result, is_merged: bool = False) -> EntryAttributes:
    """A file's attributes. A directory of several branches has no number of links that would say something: 1, as on btrfs and overlay."""
    entry = EntryAttributes()
    entry.st_ino = node.number
    entry.entry_timeout = entry.attr_timeout = FOREVER
    entry.st_mode, entry.st_rdev = status.st_mode, status.st_rdev
    entry.st_nlink = 1 if is_merged else status.st_nlink - node.hidden
    entry.st_uid, entry.st_gid = status.st_uid, status.st_gid
    entry.st_size, entry.st_blocks, entry.st_blksize = status.st_size, status.st_blocks, status.st_blksize
    entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns = status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns
    return entry


def _is_still(node: Node, path: str) -> bool:
    """Whether a branch has this file there."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == node.identity


def _access(descriptor: int) -> int:
    """O_RDONLY, O_WRONLY or O_RDWR."""
    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
