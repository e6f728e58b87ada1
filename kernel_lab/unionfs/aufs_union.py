"""The branches as one file system: what each change of the union does to the branches, so that afterwards it shows what was asked for.

A path of the union is "" for its top directory and "/etc/passwd" for a file. Errors are those of the system calls (OSError). One thread at a time.

What is changed stays in its branch if that is writable, and otherwise is first copied to a writable one above. Each step leaves a union that makes
sense, and none changes what a read-only branch has: a process that is killed between two of them loses nothing.
"""

import errno
import itertools
import os
import shutil
import stat
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, NoReturn, TypeVar

from kernel_lab.unionfs import branches as tree
from kernel_lab.unionfs.aufs_copy import copy, times_kept
from kernel_lab.unionfs.branches import Branch, Place
from kernel_lab.unionfs.policies import Policy, top_down_parent
from kernel_lab.unionfs.whiteouts import AUFS_OWN

T = TypeVar("T")
WORK = f"{AUFS_OWN}klab"  # in a writable branch: here things are made ready, and come into their place whole, or not at all


class Directory(NamedTuple):
    """The places of a directory, and how far down one of its names may be: what is in a branch below number `floor` is hidden."""

    places: list[Place]
    floor: int


class Union:
    """`branches`: the topmost first. `create`: where new files go. `copied(status, path)` is called for each file that was copied up."""

    def __init__(self, branches: Sequence[Branch], create: Policy, copied: Callable[[os.stat_result, str], None] = lambda status, path: None) -> None:
        self.create = create
        self.copied = copied
        self._numbers = itertools.count()
        self._links: dict[Branch, dict[int, list[str]]] = {}
        self.change(branches)

    def change(self, branches: Sequence[Branch]) -> None:
        """Other branches, from now on."""
        self.branches = tuple(branches)
        self._height = {branch: number for number, branch in enumerate(branches)}
        self._directories: dict[str, Directory] = {}

    def search(self, path: str) -> list[Place]:
        """The places of a path, none where there is nothing."""
        if not path:
            return tree.roots(self.branches)
        directory, name = _split(path)
        return [] if tree.is_reserved(name) else tree.find(self._directory(directory).places, name)

    def find(self, path: str) -> list[Place]:
        """The places of a path; raises FileNotFoundError where there is nothing."""
        return self.search(path) or _refuse(errno.ENOENT, path)

    def names(self, path: str) -> list[str]:
        """What is in a directory."""
        return tree.names(self._directory(path).places)

    def add(self, path: str, make: Callable[[str], T], branch: Branch | None = None) -> T:
        """A new name, made by `make` at the path that it is given: in `branch`, or in the one that the policy chooses."""
        directory, name = _checked(path)
        if self.search(path):
            _refuse(errno.EEXIST, path)
        branch = branch or self.create(self._allowed(path), self._directory(directory).places)
        parent = self._bring_directory(directory, branch)
        made = make(f"{parent}/{name}")
        self._close_off(directory, branch, name, f"{parent}/{name}")
        tree.reveal(parent, name)
        self._touch(directory, branch)
        return made

    def remove(self, path: str) -> None:
        """Removes a file or an empty directory; what the branches below have is hidden by a whiteout."""
        directory, name = _split(path)
        top = self.find(path)[0]
        if top.is_directory and self.names(path):
            _refuse(errno.ENOTEMPTY, path)
        branch = self._writable(top, directory)
        parent = self._bring_directory(directory, branch)
        if self._below(directory, branch, name):
            tree.hide(parent, name)
        if top.branch is branch:
            self._discard(top)
        self._directories.pop(path, None)
        self._touch(directory, branch)

    def link(self, old: str, new: str) -> None:
        """A hard link: both names in one branch."""
        _checked(new)
        branch = self._common(self.find(old)[0], self._allowed(new))
        self.add(new, lambda real: os.link(self.bring(old, branch), real, follow_symlinks=False), branch)

    def rename(self, old: str, new: str, replace: bool = True) -> None:
        """Moves a file, or a directory with all that is in it, which is copied up first where one writable branch alone does not have it."""
        (old_directory, old_name), (directory, name) = _split(old), _checked(new)
        source, target = self.find(old)[0], self.search(new)
        if target and not replace:
            _refuse(errno.EEXIST, new)
        if target and target[0].is_directory and self.names(new):
            _refuse(errno.ENOTEMPTY, new)
        branch = self._common(source, self._allowed(new, target))
        parent, real = self._bring_directory(directory, branch), self._bring_whole(old, branch)
        self._close_off(directory, branch, name, real)
        if target and target[0].is_directory and target[0].branch is branch:
            self._discard(target[0])
        os.rename(real, f"{parent}/{name}")
        tree.reveal(parent, name)
        if self._below(old_directory, branch, old_name):
            tree.hide(os.path.dirname(real), old_name)
        if source.is_directory:
            self._directories.clear()
        self._touch(old_directory, branch)
        self._touch(directory, branch)

    def bring(self, path: str, branch: Branch | None = None, content: bool = True) -> str:
        """Where something may be changed: its path in a writable branch, to which it is copied up if it must be.

        `branch`: in this one, or where it is writable above. Without `content`, a regular file is copied empty: it is about to be truncated.
        """
        top = self.find(path)[0]
        if top.branch.writable and (branch is None or self._height[top.branch] <= self._height[branch]):
            return top.path
        branch = branch or self._writable(top, _split(path)[0])
        return self._bring_directory(path, branch) if top.is_directory else self._bring_file(path, top, branch, content)

    def bring_nameless(self, source: str) -> int:
        """A copy of a file that the union does not show any more, as a descriptor (O_PATH); `source`: where a read-only branch still has it."""
        writable = [branch for branch in self.branches if branch.writable] or _refuse(errno.EROFS, source)
        made = self._copied(source, writable[0])
        try:
            return os.open(made, os.O_PATH | os.O_CLOEXEC)
        finally:
            os.unlink(made)

    def clear(self) -> None:
        """Removes from the branches what a killed process has left half made."""
        for branch in self.branches:
            if branch.writable and os.path.isdir(f"{branch.path}/{WORK}"):
                with times_kept(branch.path):
                    shutil.rmtree(f"{branch.path}/{WORK}")

    def _directory(self, path: str) -> Directory:
        """Changes only when a directory is copied up, moved or removed, or the branches change: until then it is looked up once."""
        found = self._directories.get(path)
        if found is None:
            places = self.find(path)
            if not places[0].is_directory:
                _refuse(errno.ENOTDIR, path)
            found = self._directories[path] = Directory(places, self._floor(path, places))
        return found

    def _floor(self, path: str, places: Sequence[Place]) -> int:
        """The number of the lowest branch that could show something under this path."""
        ends = [place for place in places if place.ends]
        floor = len(self.branches) - 1
        if path:
            directory, name = _split(path)
            above, floor = self._directory(directory)
            ends += [place for place in above if tree.is_hidden(place, name)]
        return min(floor, *(self._height[place.branch] for place in ends)) if ends else floor

    def _allowed(self, path: str, found: Sequence[Place] = ()) -> list[Branch]:
        """The writable branches in which a new name would be seen, in the place of what has been found there."""
        floor = min(self._floor(path, found), *(self._height[place.branch] for place in found[:1]), len(self.branches))
        return [branch for branch in self.branches[: floor + 1] if branch.writable] or _refuse(errno.EROFS, path)

    def _writable(self, top: Place, directory: str) -> Branch:
        """Where to change something whose topmost place this is."""
        if top.branch.writable:
            return top.branch
        above = [branch for branch in self.branches[: self._height[top.branch]] if branch.writable]
        return top_down_parent(above or _refuse(errno.EROFS, top.path), self._directory(directory).places)

    def _common(self, source: Place, allowed: Sequence[Branch]) -> Branch:
        """The branch for something that comes to a new name: its own, or the next above where that is allowed."""
        above = [branch for branch in allowed if self._height[branch] <= self._height[source.branch]]
        return above[-1] if above else _refuse(errno.EROFS, source.path)

    def _below(self, directory: str, branch: Branch, name: str) -> list[Place]:
        """What a name would show if this branch did not have it, and no whiteout of it."""
        places = self._directory(directory).places
        return tree.find([place for place in places if self._height[place.branch] > self._height[branch]], name)

    def _close_off(self, directory: str, branch: Branch, name: str, real: str) -> None:
        """A directory that comes to this name shows nothing of one that the branches below have had there."""
        if stat.S_ISDIR(os.lstat(real).st_mode) and self._below(directory, branch, name):
            with times_kept(real):
                tree.close_off(real)

    def _bring_directory(self, path: str, branch: Branch) -> str:
        places = self._directory(path).places
        if all(place.branch != branch for place in places):
            made = self._copied(places[0].path, branch)
            self._enter(path, branch, lambda real: os.rename(made, real))
            del self._directories[path]
        return branch.path + path

    def _bring_file(self, path: str, top: Place, branch: Branch, content: bool) -> str:
        others = self._other_names(path, top)
        made = self._copied(top.path, branch, content)
        real = self._enter(path, branch, lambda real: os.rename(made, real))
        for other in others:  # what was one file stays one
            self._enter(other, branch, lambda name: os.link(real, name, follow_symlinks=False))
        self.copied(top.status, real)
        return real

    def _bring_whole(self, path: str, branch: Branch) -> str:
        """Something with all that is in it in one branch, and nothing of it in others."""
        real = self.bring(path, branch)
        places = self.find(path)
        if places[0].is_directory and len(places) > 1:
            for name in self.names(path):
                self._bring_whole(f"{path}/{name}", branch)
            with times_kept(real):
                tree.close_off(real)
            del self._directories[path]
        return real

    def _copied(self, source: str, branch: Branch, content: bool = True) -> str:
        made = self._unused(branch)
        copy(source, made, content)
        return made

    def _unused(self, branch: Branch) -> str:
        place = f"{branch.path}/{WORK}"
        if not os.path.isdir(place):
            with times_kept(branch.path):
                os.mkdir(place, 0o700)
        return f"{place}/{next(self._numbers)}"

    def _enter(self, path: str, branch: Branch, make: Callable[[str], None]) -> str:
        """Makes in a branch what the union has shown already."""
        directory, name = _split(path)
        parent = self._bring_directory(directory, branch)
        with times_kept(parent):
            make(f"{parent}/{name}")
        return f"{parent}/{name}"

    def _other_names(self, path: str, top: Place) -> list[str]:
        """The other names that the union shows of a file that has several in its branch."""
        if top.status.st_nlink == 1:
            return []
        links = self._links[top.branch] if top.branch in self._links else _hard_links(top.branch.path)
        if not top.branch.writable:  # and does not change
            self._links[top.branch] = links
        return [name for name in links.get(top.status.st_ino, ()) if name != path and self._shows(name, top)]

    def _shows(self, path: str, top: Place) -> bool:
        with suppress(FileNotFoundError, NotADirectoryError):
            return os.path.samestat(self.find(path)[0].status, top.status)
        return False

    def _discard(self, top: Place) -> None:
        if not top.is_directory:
            os.unlink(top.path)
            return
        # Whole, with the whiteouts in it: without them it would show for a moment what they hide.
        gone = self._unused(top.branch)
        os.rename(top.path, gone)
        shutil.rmtree(gone)

    def _touch(self, directory: str, branch: Branch) -> None:
        """A directory shows the times of its topmost place, also when it was changed in another."""
        top = self._directory(directory).places[0]
        if top.branch != branch and top.branch.writable:
            os.utime(top.path)


def _split(path: str) -> tuple[str, str]:
    directory, _, name = path.rpartition("/")
    return directory, name


def _checked(path: str) -> tuple[str, str]:
    """The directory and the name of a path that is to be made."""
    directory, name = _split(path)
    if tree.is_reserved(name):
        _refuse(errno.EPERM, path)
    if len(os.fsencode(name)) > tree.LONGEST:
        _refuse(errno.ENAMETOOLONG, path)
    return directory, name


def _refuse(number: int, path: str) -> NoReturn:
    raise OSError(number, os.strerror(number), path)


def _hard_links(top: str) -> dict[int, list[str]]:
    """The names of each file of a branch that has several."""
    found: defaultdict[int, list[str]] = defaultdict(list)
    waiting = [""]
    while waiting:
        directory = waiting.pop()
        with os.scandir(top + directory) as entries:
            for entry in entries:
                path = f"{directory}/{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                else:
                    found[entry.inode()].append(path)
    return {number: names for number, names in found.items() if len(names) > 1}
