"""What changes of the union do to its branches; without a mount, and without root."""

import errno
import os
from pathlib import Path

import pytest

from kernel_lab.unionfs.aufs_copy import copy
from kernel_lab.unionfs.aufs_union import Union
from kernel_lab.unionfs.branches import Branch
from kernel_lab.unionfs.policies import POLICIES


class Stack:
    """Branches by name, and the union of them."""

    def __init__(self, top: Path, modes: str, create: str) -> None:
        self.top = top
        self.branches = []
        for name, mode in (word.split("=") for word in modes.split()):
            (top / name).mkdir()
            self.branches.append(Branch(str(top / name), mode))
        self.copied: list[str] = []
        self.union = Union(self.branches, POLICIES[create](), lambda status, path: self.copied.append(path))

    def lay(self, *paths: str) -> None:
        for path in paths:
            (self.top / path).parent.mkdir(parents=True, exist_ok=True)
            (self.top / path).write_text(path)

    def tree(self, name: str) -> list[str]:
        """What is in a branch."""
        top = self.top / name
        return sorted(str(path.relative_to(top)) for path in top.rglob("*") if ".wh..wh.klab" not in path.parts)

    def shows(self, path: str = "") -> list[str]:
        """What the union shows."""
        found = []
        for name in self.union.names(path):
            found.append(f"{path}/{name}"[1:])
            if self.union.find(f"{path}/{name}")[0].is_directory:
                found += self.shows(f"{path}/{name}")
        return sorted(found)


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(tmp_path, "top=rw base=ro", "tdp")


@pytest.fixture
def two(tmp_path: Path) -> Stack:
    """Two writable branches; new files go to each in turn."""
    return Stack(tmp_path, "top=rw second=rw base=ro", "rr")


def touch(path: str) -> None:
    Path(path).touch(exist_ok=False)


def test_a_new_file_brings_its_directory(stack: Stack) -> None:
    stack.lay("base/a/b/old")
    stack.union.add("/a/b/new", touch)
    assert stack.tree("top") == ["a", "a/b", "a/b/new"] and stack.shows() == ["a", "a/b", "a/b/new", "a/b/old"]


def test_a_file_comes_and_goes_and_comes(stack: Stack) -> None:
    stack.lay("base/file")
    stack.union.remove("/file")
    assert stack.tree("top") == [".wh.file"] and stack.shows() == []
    stack.union.add("/file", touch)
    assert stack.tree("top") == ["file"]
    stack.union.remove("/file")
    assert stack.tree("top") == [".wh.file"] and stack.tree("base") == ["file"]


def test_what_no_branch_below_has_goes_without_a_whiteout(stack: Stack) -> None:
    stack.lay("top/file", "base/d/file")
    stack.union.add("/d/mine", touch)
    stack.union.remove("/d/mine")
    stack.union.remove("/file")
    assert stack.tree("top") == ["d"]


def test_a_new_directory_in_the_place_of_a_removed_one_is_empty(stack: Stack) -> None:
    stack.lay("base/d/file")
    stack.union.remove("/d/file")
    stack.union.remove("/d")
    assert stack.tree("top") == [".wh.d"]
    stack.union.add("/d", os.mkdir)
    assert stack.tree("top") == ["d", "d/.wh..wh..opq"] and stack.shows() == ["d"]


def test_what_is_not_empty_stays(stack: Stack) -> None:
    stack.lay("base/d/file")
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENOTEMPTY):
        stack.union.remove("/d")
    assert stack.tree("top") == []


def test_a_merged_directory_is_moved_whole(stack: Stack) -> None:
    stack.lay("base/d/one", "base/d/e/two", "top/d/three", "base/d/gone", "base/new/hidden")
    stack.union.remove("/d/gone")
    stack.union.remove("/new/hidden")
    stack.union.rename("/d", "/new")
    assert stack.shows() == ["new", "new/e", "new/e/two", "new/one", "new/three"]
    assert stack.tree("base") == ["d", "d/e", "d/e/two", "d/gone", "d/one", "new", "new/hidden"]
    assert ".wh.d" in stack.tree("top") and "new/.wh..wh..opq" in stack.tree("top")
    assert sorted(map(os.path.basename, stack.copied)) == ["one", "two"]


def test_a_rename_may_be_told_not_to_replace(stack: Stack) -> None:
    stack.lay("base/one", "base/two")
    with pytest.raises(FileExistsError):
        stack.union.rename("/one", "/two", replace=False)
    stack.union.rename("/one", "/two")
    assert stack.shows() == ["two"] and (stack.top / "top/two").read_text() == "base/one"


def test_nothing_is_made_where_it_would_be_hidden(two: Stack) -> None:
    # `d` of the top hides all below it; the second branch has its turn, and must not get it there, nor any deeper.
    two.lay("top/d/.wh..wh..opq", "top/d/e/x")
    for number in range(4):
        two.union.add(f"/d/{number}", touch)
        two.union.add(f"/d/e/{number}", touch)
        two.union.add(f"/{number}", touch)
    assert {"d", "d/e", *(f"d/{number}" for number in range(4)), *(f"d/e/{number}" for number in range(4))} < set(two.shows())
    assert not any(path.startswith("d") for path in two.tree("second"))
    assert sum(name.isdigit() for name in two.tree("second")) == 2


def test_a_name_that_a_branch_hides_is_not_made_below_it(two: Stack) -> None:
    two.lay("top/.wh.file", "base/file")
    two.union.create = lambda branches, directory: branches[-1]
    two.union.add("/file", touch)
    assert two.tree("top") == ["file"] and two.tree("second") == []


def test_a_change_stays_in_its_branch_if_it_can_be_written(two: Stack) -> None:
    two.lay("second/file", "base/other")
    assert two.union.bring("/file") == f"{two.top}/second/file"
    assert two.union.bring("/other") == f"{two.top}/top/other"
    two.union.link("/file", "/link")
    two.union.rename("/file", "/moved")
    assert two.tree("second") == ["link", "moved"] and two.tree("top") == ["other"]


def test_a_directory_shows_the_time_of_its_last_change_wherever_that_was(two: Stack) -> None:
    two.lay("second/d/x", "top/d/y")
    os.utime(two.top / "top/d", (0, 0))
    two.union.remove("/d/x")
    assert two.union.find("/d")[0].status.st_mtime > 0


def test_what_a_killed_process_has_left_is_cleared(stack: Stack) -> None:
    stack.lay("top/.wh..wh.klab/0", "top/file")
    stack.union.clear()
    assert os.listdir(stack.top / "top") == ["file"]


def test_a_copy_that_fails_is_not_seen(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.lay("base/file")
    monkeypatch.setattr(os, "sendfile", lambda *args: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENOSPC):
        stack.union.bring("/file")
    monkeypatch.undo()
    assert stack.shows() == ["file"] and stack.tree("top") == []
    assert Path(stack.union.bring("/file")).read_text() == "base/file"


@pytest.mark.parametrize("size", [0, 1, 4096, 100_000])
def test_holes_stay_holes(tmp_path: Path, size: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with open(source, "wb") as file:
        for start in (0, 1 << 20, 3 << 20):
            file.seek(start)
            file.write(os.urandom(size))
        file.truncate(5 << 20)
    copy(str(source), str(target))
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks == source.stat().st_blocks
