"""A stack of layers: what each has of a path is what a union of them shows; its words, its picture, and the paths to click on."""

import shutil
import xml.etree.ElementTree as xml
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_lab.course.stack import Layer, Stack
from kernel_lab.kernel.errors import UsageError
from kernel_lab.unionfs.branches import Branch, walk
from kernel_lab.unionfs.whiteouts import AUFS

SVG = "{http://www.w3.org/2000/svg}"
NAMES = ("a", "b")
PATHS = [*NAMES, *map("/".join, product(NAMES, NAMES)), *map("/".join, product(NAMES, NAMES, NAMES))]
WHAT = ("file", "directory", "opaque", "whiteout")
MODES = {"mine": "rw", "app": "ro+wh", "base": "ro+wh"}


def make(layer: Path, path: str, what: str) -> None:
    """Something under a path, where it fits in."""
    place = layer / path
    if place.parent.is_dir() and not place.exists():
        match what:
            case "file":
                place.touch()
            case "directory" | "opaque":
                place.mkdir()
        if what == "opaque":
            AUFS.make_opaque(str(place))
    if place.parent.is_dir() and what == "whiteout":
        AUFS.hide(str(place.parent), place.name)


def branches(folder: Path, **modes: str) -> list[Branch]:
    for name in modes:
        (folder / name).mkdir()
    return [Branch(str(folder / name), mode) for name, mode in modes.items()]


def stack(folder: Path, *paths: str, **modes: str) -> Stack:
    return Stack([Layer.of(Branch(str(folder / name), mode)) for name, mode in (modes or MODES).items()], *paths)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three layers, with something of every kind."""
    branches(tmp_path, **MODES)
    for layer, path, what in (
        ("base", "motd", "file"),
        ("base", "gone", "file"),
        ("base", "etc", "directory"),
        ("base", "etc/old", "file"),
        ("base", "opt", "directory"),
        ("base", "opt/tool", "file"),
        ("app", "motd", "file"),
        ("app", "etc", "opaque"),
        ("app", "opt", "file"),
        ("mine", "gone", "whiteout"),
        ("mine", "etc", "directory"),
        ("mine", "etc/new", "file"),
    ):
        make(tmp_path / layer, path, what)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "states"),
    [
        ("motd", ["", "shown", "hidden"]),
        ("gone", ["whiteout", "", "hidden"]),
        ("etc", ["shown", "shown", "hidden"]),
        ("/etc/new", ["shown", "opaque", ""]),
        ("etc/old", ["", "opaque", "hidden"]),
        ("opt", ["", "shown", "hidden"]),
        ("opt/tool", ["", "a file", "hidden"]),
        ("nowhere/at/all", ["", "", ""]),
    ],
)
def test_each_layer_has_the_path_or_hides_it_or_neither(folder: Path, path: str, states: list[str]) -> None:
    assert stack(folder, path).states(path) == states


@given(st.lists(st.tuples(st.sampled_from([*MODES]), st.sampled_from(PATHS), st.sampled_from(WHAT)), max_size=24))
@settings(derandomize=True, deadline=None, max_examples=150)
def test_what_is_shown_is_what_the_union_shows(tmp_path_factory: pytest.TempPathFactory, made: list[tuple[str, str, str]]) -> None:
    folder = tmp_path_factory.mktemp("layers")
    layers = branches(folder, mine="rw", app="ro", base="ro+wh")
    for name, path, what in made:
        make(folder / name, path, what)
    drawn = Stack(list(map(Layer.of, layers)), *PATHS)
    for path in PATHS:
        shown = [branch for branch, state in zip(layers, drawn.states(path), strict=True) if state == "shown"]
        assert shown == [place.branch for place in walk(layers, path)], path
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("motd", "/motd: comes from app. It hides what base has. On a write it is copied up to mine first, and changed there."),
        ("etc", "/etc: comes from mine and app. It hides what base has. On a write it is changed there, in mine."),
        ("etc/new", "/etc/new: comes from mine. On a write it is changed there, in mine."),
        ("gone", "/gone: not there: the whiteout in mine hides what base has."),
        ("etc/old", "/etc/old: not there: the opaque directory in app hides what base has."),
        ("opt/tool", "/opt/tool: not there: the file in the place of its directory in app hides what base has."),
        ("etc/never", "/etc/never: not there: the opaque directory in app hides it."),
        ("nowhere", "/nowhere: not there: no layer has it."),
    ],
)
def test_it_says_where_a_file_comes_from(folder: Path, path: str, words: str) -> None:
    assert stack(folder, path).explain(path) == words


def test_marks_in_a_branch_that_is_ro_hide_nothing(folder: Path) -> None:
    assert stack(folder, "etc/old", mine="rw", app="ro", base="ro").states("etc/old") == ["", "", "shown"]


def test_a_write_goes_to_the_writable_layer_that_has_the_directory(folder: Path) -> None:
    (folder / "app/etc/.wh..wh..opq").unlink()
    (folder / "mine/etc/new").unlink()
    (folder / "mine/etc").rmdir()
    two = stack(folder, "etc/old", mine="rw", app="rw", base="ro")
    assert "copied up to app first" in two.explain("etc/old")
    assert "copied up to mine first" in stack(folder, "etc/old").explain("etc/old")
    assert "EROFS" in stack(folder, "etc/old", app="ro", base="ro").explain("etc/old")


def test_it_prints_as_a_table(folder: Path) -> None:
    name, *cells = repr(stack(folder, "motd", "gone")).splitlines()[2].split()
    assert (name, cells) == ("mine", ["–", "whiteout"])


def test_without_a_path_there_is_nothing_to_show(folder: Path) -> None:
    with pytest.raises(UsageError, match="no path"):
        stack(folder)


def test_the_picture_is_well_formed_and_each_cell_has_its_place(folder: Path) -> None:
    drawn = stack(folder, "motd", "etc/new", "gone", "a & b")
    svg = xml.fromstring(drawn._repr_svg_())
    card, *cells = svg.iter(f"{SVG}rect")
    corners = {(int(cell.attrib["x"]), int(cell.attrib["y"])) for cell in cells}
    assert len(corners) == len(cells)
    for cell in cells:
        assert int(cell.attrib["x"]) + int(cell.attrib["width"]) <= int(card.attrib["width"])
        assert int(cell.attrib["y"]) + int(cell.attrib["height"]) <= int(card.attrib["height"])
    texts = [text.text for text in svg.iter(f"{SVG}text")]
    assert texts == ["what is seen", *MODES, "motd", "motd", "motd", "etc/new", "etc/new", "etc/new", "gone", "gone"]
    assert drawn._repr_svg_() == stack(folder, "motd", "etc/new", "gone", "a & b")._repr_svg_()


def test_a_click_explains_and_looks_again(folder: Path) -> None:
    explorer = stack(folder, "motd", "gone").explorer()
    assert "comes from app" in explorer.said.value
    explorer.choice.value = "/gone"
    assert "whiteout in mine" in explorer.said.value
    before = explorer.picture.value
    (folder / "mine/.wh.gone").unlink()
    explorer.choice.value = "/motd"
    explorer.choice.value = "/gone"
    assert "comes from base" in explorer.said.value and explorer.picture.value != before


def test_an_explorer_is_text_where_there_are_no_widgets(folder: Path) -> None:
    drawn = stack(folder, "motd", "gone")
    assert drawn.explorer()._repr_mimebundle_()["text/plain"] == f"{drawn.explain('motd')}\n{drawn.explain('gone')}"
