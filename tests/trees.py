"""Layers as data: random trees of what a layer has and hides, made as directories, and what they show when they lie on one another."""

import os
from dataclasses import dataclass, field

from hypothesis import strategies as st

from kernel_lab.unionfs.whiteouts import TRUSTED, USER, Notation, OverlayNotation

# Root's containers use the one, an ordinary user's the other.
OVERLAY: OverlayNotation = USER if os.geteuid() else TRUSTED


@dataclass(frozen=True)
class File:
    content: str = ""
    mode: int = 0o644


@dataclass(frozen=True)
class Link:
    target: str


@dataclass(frozen=True)
class Gone:
    """A whiteout."""


@dataclass(frozen=True)
class Directory:
    children: dict[str, "Node"] = field(default_factory=dict)
    mode: int = 0o755
    opaque: bool = False


Node = File | Link | Gone | Directory
Shown = dict[str, Node]  # what there is to see, by path

_names = st.sampled_from("abc")
_leaves = st.one_of(
    st.builds(File, st.sampled_from(["", "one", "two", "longer"]), st.sampled_from([0o644, 0o600])),
    st.builds(Link, st.sampled_from(["x", "y"])),
    st.builds(Gone),
)


def _directories(children: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    return st.builds(Directory, st.dictionaries(_names, children, max_size=3), st.sampled_from([0o755, 0o700]), st.booleans())


nodes: st.SearchStrategy[Node] = st.recursive(_leaves, _directories, max_leaves=10)
layers = st.builds(Directory, st.dictionaries(_names, nodes, max_size=3))


def make(layer: Directory, path: str, notation: Notation) -> None:
    """The layer as a directory; all its files are of the same time."""
    os.mkdir(path)
    for name, node in layer.children.items():
        _make(node, path, name, notation)
    if layer.opaque:
        notation.make_opaque(path)
    os.chmod(path, layer.mode)
    os.utime(path, (0, 0))


def _make(node: Node, directory: str, name: str, notation: Notation) -> None:
    path = f"{directory}/{name}"
    match node:
        case Directory():
            make(node, path, notation)
        case Gone():
            notation.hide(directory, name)
        case Link(target):
            os.symlink(target, path)
            os.utime(path, (0, 0), follow_symlinks=False)
        case File(content, mode):
            with open(path, "w") as file:
                file.write(content)
            os.chmod(path, mode)
            os.utime(path, (0, 0))


def shown(*stack: Directory) -> Shown:
    """What layers show together, the topmost first: each lies on what those below it show."""
    view: Shown = {}
    for layer in reversed(stack):
        view = _on(view, layer, "")
    return view


def _on(view: Shown, layer: Directory, path: str) -> Shown:
    if layer.opaque:
        view = _without(view, path, itself=False)
    for name, node in layer.children.items():
        place = f"{path}/{name}"
        if not isinstance(node, Directory) or not isinstance(view.get(place), Directory):
            view = _without(view, place, itself=True)
        if isinstance(node, Directory):
            view = _on({**view, place: Directory(mode=node.mode)}, node, place)
        elif not isinstance(node, Gone):
            view = {**view, place: node}
    return view


def _without(view: Shown, path: str, itself: bool) -> Shown:
    return {place: node for place, node in view.items() if not place.startswith(f"{path}/") and not (itself and place == path)}
