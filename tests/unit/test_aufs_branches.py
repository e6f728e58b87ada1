"""The union of branches as functions over directories: looking up, listing, and saying where something comes from."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_lab import Aufs, UsageError
from kernel_lab.unionfs import branches, merged
from kernel_lab.unionfs.aufs_kernel import changes, options
from kernel_lab.unionfs.branches import Branch, parse, walk
from kernel_lab.unionfs.policies import most_free_space, round_robin, top_down_parent
from kernel_lab.unionfs.whiteouts import AUFS


def lay(top: Path, *paths: str) -> None:
    """Files; directories end with a slash."""
    for path in paths:
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).mkdir(exist_ok=True) if path.endswith("/") else (top / path).touch()


@pytest.fixture
def stack(tmp_path: Path) -> tuple[Branch, Branch, Branch]:
    made = tuple(Branch(str(tmp_path / name), mode) for name, mode in (("top", "rw"), ("middle", "ro+wh"), ("base", "ro")))
    for branch in made:
        os.mkdir(branch.path)
    return made  # type: ignore[return-value]


def shown(stack: Sequence[Branch], path: str) -> list[str]:
    return [os.path.basename(place.branch.path) for place in walk(stack, path)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("br:/a=rw:/b=ro", [("/a", "rw"), ("/b", "ro")]),
        ("br=/a:/b:/c=ro+wh", [("/a", "rw"), ("/b", "ro"), ("/c", "ro+wh")]),
        ("/a=ro", [("/a", "ro")]),
    ],
)
def test_branches_as_aufs_writes_them(text: str, expected: list[tuple[str, str]]) -> None:
    found = parse(text)
    assert [(branch.path, branch.mode) for branch in found] == expected
    assert parse(":".join(map(str, found))) == found


@pytest.mark.parametrize("text", ["", "br:", "a=rw", "/a=rw:b", "/a=rx", "/a=rw::/b"])
def test_what_are_no_branches(text: str) -> None:
    with pytest.raises(UsageError, match="branch"):
        parse(text)


def test_the_topmost_file_is_shown(stack: tuple[Branch, ...], tmp_path: Path) -> None:
    lay(tmp_path, "top/one", "middle/one", "middle/two", "base/two", "base/three")
    assert [shown(stack, name) for name in ("one", "two", "three", "four")] == [["top"], ["middle"], ["base"], []]


def test_directories_are_merged_down_to_a_file(stack: tuple[Branch, ...], tmp_path: Path) -> None:
    lay(tmp_path, "top/d/", "middle/d/", "base/d/x", "top/e/", "middle/e", "base/e/x", "top/f", "middle/f/", "base/f/x")
    assert shown(stack, "d") == ["top", "middle", "base"] and shown(stack, "d/x") == ["base"]
    assert shown(stack, "e") == ["top"] and shown(stack, "e/x") == []
    assert shown(stack, "f") == ["top"] and shown(stack, "f/x") == []


def test_whiteouts_hide_what_is_below_and_not_what_is_beside(stack: tuple[Branch, ...], tmp_path: Path) -> None:
    lay(tmp_path, "top/.wh.gone", "base/gone", "middle/.wh.new", "middle/new", "base/new", "top/.wh.d", "top/d/mine", "base/d/theirs")
    assert shown(stack, "gone") == [] and shown(stack, "new") == ["middle"]
    assert shown(stack, "d") == ["top"] and shown(stack, "d/theirs") == []
    assert sorted(branches.names(walk(stack, "/"))) == ["d", "new"]


def test_an_opaque_directory_shows_nothing_below(stack: tuple[Branch, ...], tmp_path: Path) -> None:
    lay(tmp_path, "middle/d/.wh..wh..opq", "middle/d/mine", "base/d/theirs", "top/d/top")
    assert shown(stack, "d") == ["top", "middle"]
    assert sorted(branches.names(walk(stack, "d"))) == ["mine", "top"]


def test_in_a_read_only_branch_marks_say_nothing_and_are_not_shown(stack: tuple[Branch, ...], tmp_path: Path) -> None:
    below = Branch(str(tmp_path / "below"), "ro")
    lay(tmp_path, "base/.wh.x", "base/d/.wh..wh..opq", "below/x", "below/d/y")
    assert shown((*stack, below), "x") == ["below"] and shown((*stack, below), "d/y") == ["below"]
    assert sorted(branches.names(walk((*stack, below), "/"))) == ["d", "x"]


NAMES = ("a", "b", ".wh.a", ".wh.b", ".wh..wh..opq")
trees = st.lists(st.lists(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join), max_size=8), min_size=1, max_size=3)


@given(trees)
def test_it_agrees_with_the_other_way_to_look_up(layers: list[list[str]]) -> None:
    folder = tempfile.mkdtemp()
    try:
        stack = []
        for number, paths in enumerate(layers):
            top = Path(folder, str(number))
            top.mkdir()
            stack.append(Branch(str(top)))
            for path in paths:
                # A mark is a file, and no directory has its name.
                if not any(part.startswith(".wh.") for part in path.split("/")[:-1]):
                    lay(top, path if path.split("/")[-1].startswith(".wh.") else f"{path}/")
        directories: Sequence[str] = [place.path for place in branches.roots(stack)]
        places = branches.roots(stack)
        for name in ("a", "b", "a", "b"):
            assert set(branches.names(places)) == merged.names(directories, AUFS)
            found = branches.find(places, name)
            assert tuple(place.path for place in found) == merged.lookup(directories, name, AUFS)
            if found and found[0].is_directory:
                places, directories = found, [place.path for place in found]
    finally:
        shutil.rmtree(folder)


def test_where_a_file_comes_from(stack: tuple[Branch, ...], tmp_path: Path) -> None:
    lay(tmp_path, "base/etc/motd", "base/etc/group", "middle/etc/motd", "top/etc/.wh.group", "base/opt/x", "top/opt")
    tree = Aufs(*stack)
    assert [tree.where(path) for path in ("/etc/motd", "etc", "/etc/group", "opt/x")] == [stack[1], stack[0], None, None]


def test_policies(stack: tuple[Branch, ...], tmp_path: Path) -> None:
    lay(tmp_path, "middle/d/")
    places = walk(stack, "d")
    assert top_down_parent(stack, places) == stack[1] and top_down_parent(stack, []) == stack[0]
    turns = round_robin()
    assert [turns(stack[:2], places) for _ in range(3)] == [stack[0], stack[1], stack[0]]
    assert most_free_space(stack, places) == stack[0]  # all have the same: the topmost


OLD = "/a=rw:/b=ro:/c=ro"


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (OLD, ""),
        ("/a=rw:/b=ro", "del:/c"),
        ("/a=ro:/b=ro:/c=ro", "mod:/a=ro"),
        ("/x=rw:/c=ro:/a=ro", "mod:/a=ro,ins:0:/x=rw,del:/c,ins:1:/c=ro,del:/b"),
        ("/x=rw", "ins:0:/x=rw,del:/a,del:/b,del:/c"),
    ],
)
def test_what_the_kernels_own_aufs_is_told(new: str, expected: str) -> None:
    assert options(parse(OLD), "mfs") == f"br:{OLD},create=mfs"
    assert changes(parse(OLD), parse(new)) == expected
