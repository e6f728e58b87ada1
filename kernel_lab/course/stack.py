"""The layers of a container's root as they lie on one another: which of them a file comes from, what hides it, and what happens on a write."""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import ipywidgets
from tabulate import tabulate

from kernel_lab.container import Container
from kernel_lab.course.pictures import CHAR, FRAME, GROUND, INK, LINE, MARGIN, MARK, PAD, TITLE
from kernel_lab.kernel.errors import UsageError
from kernel_lab.namespaces.mnt import Mount
from kernel_lab.unionfs.aufs import Aufs
from kernel_lab.unionfs.branches import Branch
from kernel_lab.unionfs.whiteouts import AUFS, Notation, is_directory
from kernel_lab.unionfs.writable import Writable

SHOWN, HIDDEN, WHITEOUT, OPAQUE, FILE, NOTHING = "shown", "hidden", "whiteout", "opaque", "a file", ""
MARKS = {WHITEOUT: "the whiteout", OPAQUE: "the opaque directory", FILE: "the file in the place of its directory"}
STYLES = {
    SHOWN: ("#cfe8d5", ""),
    HIDDEN: ("#eceff1", f' fill="{FRAME}"'),
    WHITEOUT: ("#f6d5c8", f' fill="{MARK}" text-decoration="line-through"'),
    OPAQUE: ("#f6d5c8", f' fill="{MARK}"'),
    FILE: ("#f6d5c8", f' fill="{MARK}"'),
}
GAP = 6  # px between two cells

_numbers = itertools.count(1)


class Sight(NamedTuple):
    """What one layer has of a path: whether the path itself, and if so whether a directory; and its mark, which hides all that is below."""

    has: bool
    is_directory: bool = False
    mark: str = NOTHING

    @property
    def ends(self) -> bool:
        """Whether what the layers below have is hidden."""
        return bool(self.mark) or (self.has and not self.is_directory)


@dataclass(frozen=True)
class Layer:
    """A directory of a union. `marked`: whether its marks hide anything; in a branch `ro` of AUFS they do not."""

    path: str
    notation: Notation
    writable: bool
    marked: bool = True

    @classmethod
    def of(cls, branch: Branch) -> "Layer":
        return cls(branch.path, AUFS, branch.writable, branch.has_whiteouts)

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    def sight(self, path: str) -> Sight:
        """What this layer alone says of a path of the union."""
        place, mark = self.path, self._opaque(self.path)
        for name in path.split("/"):
            if not is_directory(place):
                return Sight(False, mark=FILE)
            if self.marked and self.notation.hides(place, name):
                mark = WHITEOUT
            if not self.notation.has(place, name):
                return Sight(False, mark=mark)
            place = f"{place}/{name}"
            mark = self._opaque(place) or mark
        return Sight(True, is_directory(place), mark)

    def _opaque(self, place: str) -> str:
        return OPAQUE if self.marked and is_directory(place) and self.notation.is_opaque(place) else NOTHING


class Stack:
    """A picture of layers, the topmost first, and of what each of them has of some paths: the directories are read anew whenever it is shown."""

    def __init__(self, layers: Sequence[Layer], *paths: str) -> None:
        if not paths:
            raise UsageError("Stack: no path; it shows what each layer has of the paths that it is given")
        self.layers = list(layers)
        self.paths = [path.strip("/") for path in paths]

    @classmethod
    def of(cls, box: Container, *paths: str) -> "Stack":
        """The layers of a running container's root. Raises UsageError when that is no union."""
        mount = box.plan.part(Mount)
        match box.made(mount) if mount and mount.prepares else None:
            case Writable() as overlay:
                upper, lower = Layer(overlay.upper, overlay.notation, True), [Layer(path, overlay.notation, False) for path in overlay.lower]
                return cls([upper, *lower], *paths)
            case Aufs() as union:
                return cls(list(map(Layer.of, union.branches)), *paths)
        raise UsageError(f"{box}: its root is one directory, and no stack of them; Mount(Overlay(…)) and Mount(Aufs(…)) have one")

    def states(self, path: str) -> list[str]:
        """What each layer has of the path, from the top down: `shown`, `hidden`, one of the marks, or nothing."""
        states: list[str] = []
        covered = False
        for layer in self.layers:
            sight = layer.sight(path.strip("/"))
            # Under a directory, only a directory is shown.
            shown = sight.has and not covered and (SHOWN not in states or sight.is_directory)
            states.append(SHOWN if shown else HIDDEN if sight.has else sight.mark)
            covered = covered or sight.ends
        return states

    def explain(self, path: str) -> str:
        """In words: where it comes from, what it hides or is hidden by, and what a write does."""
        path = path.strip("/")
        states = self.states(path)
        named = {state: [layer.name for layer, found in zip(self.layers, states, strict=True) if found == state] for state in states}
        if SHOWN not in named:
            return f"/{path}: not there: {_why_not(named)}."
        hides = f" It hides what {_and(named[HIDDEN])} has." if HIDDEN in named else ""
        return f"/{path}: comes from {_and(named[SHOWN])}.{hides} {self._on_write(states.index(SHOWN), path)}"

    def _on_write(self, number: int, path: str) -> str:
        if self.layers[number].writable:
            return f"On a write it is changed there, in {self.layers[number].name}."
        above = [layer for layer in self.layers[:number] if layer.writable]
        if not above:
            return "On a write: EROFS, as no layer above is writable."
        parent = os.path.dirname(path)
        target = next((layer for layer in above if layer.sight(parent).has), above[0]) if parent else above[0]
        return f"On a write it is copied up to {target.name} first, and changed there."

    def explorer(self) -> "Explorer":
        """The picture with its paths to click on."""
        return Explorer(self)

    def __repr__(self) -> str:
        columns = [[state or "–" for state in self.states(path)] for path in self.paths]
        return tabulate([[layer.name, *(column[row] for column in columns)] for row, layer in enumerate(self.layers)], ("", *self.paths))

    def _repr_svg_(self) -> str:
        names = ["what is seen", *(layer.name for layer in self.layers)]
        texts = [names, *([path] * len(names) for path in self.paths)]
        widths = [max(map(len, column)) * (CHAR + 1) + 2 * PAD for column in texts]
        width, height = sum(widths) + GAP * len(self.paths) + 2 * MARGIN, len(names) * (LINE + PAD + GAP) - GAP + 2 * MARGIN
        cells = [_cell(name, MARGIN, row, widths[0], TITLE, ' font-weight="bold"') for row, name in enumerate(names)]
        x = MARGIN + widths[0] + GAP
        for path, wide in zip(self.paths, widths[1:], strict=True):
            states = self.states(path)
            seen = SHOWN if SHOWN in states else NOTHING
            cells += [_cell(path, x, row, wide, *STYLES[state]) for row, state in enumerate((seen, *states)) if state]
            x += wide + GAP
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="{escape(repr(self))}" font-family="monospace" font-size="12" fill="{INK}">\n'
            f'<rect width="{width}" height="{height}" rx="8" fill="{GROUND}"/>\n' + "\n".join(cells) + "\n</svg>"
        )


def _cell(text: str, x: int, row: int, wide: int, fill: str, style: str) -> str:
    height = LINE + PAD
    y = MARGIN + row * (height + GAP)
    box = f'<rect x="{x}" y="{y}" width="{wide}" height="{height}" rx="4" fill="{fill}" stroke="{FRAME}"/>'
    return f'{box}<text x="{x + wide // 2}" y="{y + height // 2 + 4}" text-anchor="middle"{style}>{escape(text)}</text>'


def _why_not(named: Mapping[str, Sequence[str]]) -> str:
    """`named`: the layers by what they have, what is topmost first."""
    mark = next((state for state in named if state in MARKS), None)
    if mark is None:
        return "no layer has it"
    return f"{MARKS[mark]} in {named[mark][0]} hides {f'what {_and(named[HIDDEN])} has' if HIDDEN in named else 'it'}"


def _and(names: Sequence[str]) -> str:
    return " and ".join(names)


class Explorer:
    """The picture of a stack, and below it its paths, to click on one and read where it comes from."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.choice = ipywidgets.Select(options=[f"/{path}" for path in stack.paths], rows=min(len(stack.paths), 8))
        self.picture, self.said = ipywidgets.HTML(), ipywidgets.HTML()
        self.choice.observe(lambda change: self._look(), names="value")
        # The page finds the view by its name, which stands in the notebook: the same whenever it is built.
        self._view = ipywidgets.VBox([self.picture, ipywidgets.HBox([self.choice, self.said])], model_id=f"klab-explorer-{next(_numbers)}")
        self._look()

    def _look(self) -> None:
        """The layers may have changed since the last click."""
        self.picture.value, self.said.value = self.stack._repr_svg_(), escape(self.stack.explain(self.choice.value))

    def __repr__(self) -> str:
        return "\n".join(map(self.stack.explain, self.stack.paths))

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        shown: dict[str, Any] = self._view._repr_mimebundle_(**options)
        return shown | {"text/plain": repr(self)}
