"""What the kernel calls a file by: FUSE's numbers, and which paths of the union they stand for.

A directory is known by where it is, so that it stays the same when it is copied up or when the branches change below it. Any other file is known by
what it is, the inode of its branch: so it stays the same under all of its names.
"""

import errno
import itertools
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

Name = tuple[int, str]  # the number of a directory, and a name in it
ROOT = 1


@dataclass(eq=False)
class Node:
    """A file that the kernel knows; `lookups`: how often it has been told, and not yet forgotten it.

    `open`: descriptors of open files. `absent`: of a directory, the names that the kernel has been told there are none of. `source`: where a branch
    has had the file last. Once it has lost its last name it is reached by `nameless`, an O_PATH descriptor; `hidden`: how many names a read-only
    branch still has of it.
    """

    number: int
    names: set[Name] = field(default_factory=set)
    identity: tuple[int, int] | None = None
    lookups: int = 0
    open: list[int] = field(default_factory=list)
    absent: set[str] = field(default_factory=set)
    nameless: int = -1
    hidden: int = 0
    source: str = ""


class Nodes:
    """All the files that the kernel knows."""

    def __init__(self) -> None:
        self._numbers = itertools.count(ROOT + 1)
        self._nodes = {ROOT: Node(ROOT, lookups=1)}
        self._directories: dict[Name, Node] = {}
        self._files: dict[tuple[int, int], Node] = {}

    def __getitem__(self, number: int) -> Node:
        return self._nodes[number]

    def __iter__(self) -> Iterator[Node]:
        return iter(list(self._nodes.values()))

    def path(self, number: int) -> str:
        """The path of a directory."""
        if number == ROOT:
            return ""
        node = self._nodes.get(number)
        for parent, name in node.names if node else ():
            return f"{self.path(parent)}/{name}"
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def paths(self, node: Node) -> Iterator[str]:
        """The paths by which the kernel knows a file; those whose directory it has forgotten are left out."""
        if node.number == ROOT:
            yield ""
        for parent, name in list(node.names):
            if parent in self._nodes:
                yield f"{self.path(parent)}/{name}"

    def known(self, parent: int, name: str, status: os.stat_result) -> Node | None:
        """The node of a name, if the kernel has been told of the file."""
        if stat.S_ISDIR(status.st_mode):
            return self._directories.get((parent, name))
        return self._files.get((status.st_dev, status.st_ino))

    def meet(self, parent: int, name: str, source: str, status: os.stat_result) -> Node:
        """The node of a name that the kernel is being told of, a new one where it has not heard of the file. `source`: its path in its branch."""
        node = self.known(parent, name, status)
        if node is None:
            node = Node(next(self._numbers))
            self._nodes[node.number] = node
            if stat.S_ISDIR(status.st_mode):
                self._directories[parent, name] = node
            else:
                self.identify(node, status)
        node.lookups += 1
        node.names.add((parent, name))
        node.source = source
        if node.nameless >= 0:  # another name of it, of which the kernel had not heard
            os.close(node.nameless)
            node.nameless = -1
        return node

    def identify(self, node: Node, status: os.stat_result) -> None:
        """A file is this one from now on: it has been copied up."""
        if node.identity:
            self._files.pop(node.identity, None)
        node.identity = status.st_dev, status.st_ino
        self._files[node.identity] = node

    def of(self, status: os.stat_result) -> Node | None:
        """The node of a file of a branch, no directory."""
        return self._files.get((status.st_dev, status.st_ino))

    def unname(self, node: Node, name: Name) -> None:
        """A file has lost a name."""
        node.names.discard(name)
        self._directories.pop(name, None)

    def rename(self, node: Node, old: Name, new: Name) -> None:
        """A file has another name."""
        node.names.discard(old)
        node.names.add(new)
        if self._directories.pop(old, None):
            self._directories[new] = node

    def forget(self, node: Node, lookups: int) -> None:
        """The kernel forgets that it was told of a file so many times."""
        node.lookups -= lookups
        if node.lookups > 0 or node.number == ROOT:
            return
        del self._nodes[node.number]
        for name in node.names:
            if self._directories.get(name) is node:
                del self._directories[name]
        if node.identity and self._files.get(node.identity) is node:
            del self._files[node.identity]
        if node.nameless >= 0:
            os.close(node.nameless)
