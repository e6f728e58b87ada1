"""Layers as they lie on one another: which of them has a file, what hides it, and what happens when somebody writes to it."""

import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import ipywidgets
from tabulate import tabulate

from kernel_lab.course.pictures import CHAR, FRAME, GROUND, INK, LINE, MARGIN, MARK, PAD, TITLE
from kernel_lab.unionfs.whiteouts import Notation

SHOWN, HIDDEN, GONE, NOTHING = "shown", "hidden", "whiteout", ""
FILLS = {SHOWN: "#cfe8d5", HIDDEN: "#eceff1", GONE: "#f6d5c8"}


class Cell(NamedTuple):
    """What one layer has of one path: the file that is seen, one that is hidden, a whiteout, or nothing."""

    layer: str
    state: str


class Stack:
    """A stack of layers, drawn from their directories. `layers`: by name, the topmost, which is the one that is written to, first."""

    def __init__(self, layers: Mapping[str, str | os.PathLike[str]], notation: Notation, paths: Sequence[str]) -> None:
        self.layers = {name: os.fspath(directory) for name, directory in layers.items()}
        self.notation = notation
        self.paths = [path.strip("/") for path in paths]

    def cells(self, path: str) -> list[Cell]:
        """From the top down."""
        hidden, cells = False, []
        for name, directory in self.layers.items():
            state = self._state(directory, path)
            if state == SHOWN and hidden:
                state = HIDDEN
            hidden = hidden or state == GONE or self._covers(directory, path) or (state == SHOWN and not os.path.isdir(f"{directory}/{path}"))
            cells.append(Cell(name, state))
        return cells

    def _state(self, directory: str, path: str) -> str:
        parent, name = os.path.split(f"{directory}/{path}")
        if os.path.isdir(parent) and self.notation.has(parent, name):
            return SHOWN
        return GONE if self._whiteout(directory, path) else NOTHING

    def _whiteout(self, directory: str, path: str) -> bool:
        """Of the path itself, or of a directory that it is in."""
        above, name = os.path.split(path)
        parent = os.path.join(directory, above)
        if os.path.isdir(parent) and self.notation.hides(parent, name):
            return True
        return bool(above) and self._whiteout(directory, above)

    def _covers(self, directory: str, path: str) -> bool:
        """Whether a directory on the way hides all that the layers below have in it."""
        above = os.path.dirname(path)
        return bool(above) and (
            (os.path.isdir(f"{directory}/{above}") and self.notation.is_opaque(f"{directory}/{above}")) or self._covers(directory, above)
        )

    def explain(self, path: str) -> str:
        """In words: where it comes from, what hides it, and what a write does."""
        top, *_ = self.layers
        cells = self.cells(path.strip("/"))
        seen = next((cell.layer for cell in cells if cell.state == SHOWN), None)
        gone = next((cell.layer for cell in cells if cell.state == GONE), None)
        hidden = [cell.layer for cell in cells if cell.state == HIDDEN]
        if seen is None:
            why = f"a whiteout in {gone} hides it" if gone else "no layer has it"
            return f"/{path}: not there, since {why}. Who creates it makes it in {top}."
        rest = f" It hides what {' and '.join(hidden)} has by that name." if hidden else ""
        written = "changed where it is" if seen == top else f"copied up to {top} first, and changed there"
        return f"/{path}: comes from {seen}.{rest} On a write it is {written}."

    def explorer(self) -> "Explorer":
        """A list of the paths to click on, each with its explanation."""
        return Explorer(self)

    def __repr__(self) -> str:
        columns = [[cell.state or "–" for cell in self.cells(path)] for path in self.paths]
        return tabulate([[name, *(column[row] for column in columns)] for row, name in enumerate(self.layers)], ("", *self.paths))

    def _repr_svg_(self) -> str:
        label = max(map(len, (*self.layers, "what is seen"))) * (CHAR + 1) + 2 * PAD
        widths = [len(path) * (CHAR + 1) + 2 * PAD for path in self.paths]
        height = LINE + PAD
        width, tall = label + sum(widths) + 2 * MARGIN, (len(self.layers) + 1) * (height + 6) + 2 * MARGIN
        body = [_label(name, MARGIN, MARGIN + row * (height + 6), label - 6, height) for row, name in enumerate(("what is seen", *self.layers))]
        x = MARGIN + label
        for path, wide in zip(self.paths, widths, strict=True):
            body += self._column(path, x, wide - 6, height)
            x += wide
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{tall}" viewBox="0 0 {width} {tall}" role="img" '
            f'aria-label="{escape(repr(self))}" font-family="monospace" font-size="12" fill="{INK}">\n'
            f'<rect width="{width}" height="{tall}" rx="8" fill="{GROUND}"/>\n' + "\n".join(body) + "\n</svg>"
        )

    def _column(self, path: str, x: int, wide: int, height: int) -> list[str]:
        cells = self.cells(path)
        seen = SHOWN if any(cell.state == SHOWN for cell in cells) else NOTHING
        return [_cell(path, state, x, MARGIN + row * (height + 6), wide, height) for row, state in enumerate((seen, *(cell.state for cell in cells)))]


def _label(text: str, x: int, y: int, wide: int, height: int) -> str:
    box = f'<rect x="{x}" y="{y}" width="{wide}" height="{height}" rx="4" fill="{TITLE}" stroke="{FRAME}"/>'
    return f'{box}<text x="{x + PAD}" y="{y + height // 2 + 4}" font-weight="bold">{escape(text)}</text>'


def _cell(path: str, state: str, x: int, y: int, wide: int, height: int) -> str:
    if state == NOTHING:
        return ""
    style = {HIDDEN: ' fill="#8795a1"', GONE: f' fill="{MARK}" text-decoration="line-through"'}.get(state, "")
    box = f'<rect x="{x}" y="{y}" width="{wide}" height="{height}" rx="4" fill="{FILLS[state]}" stroke="{FRAME}"/>'
    return f'{box}<text x="{x + wide // 2}" y="{y + height // 2 + 4}" text-anchor="middle"{style}>{escape(path)}</text>'


class Explorer:
    """The picture, and below it the paths to click on."""

    def __init__(self, stack: Stack) -> None:
        self.choice = ipywidgets.Select(options=stack.paths, rows=min(len(stack.paths), 8))
        self.said = ipywidgets.HTML(escape(stack.explain(stack.paths[0])))
        self.choice.observe(lambda change: setattr(self.said, "value", escape(stack.explain(change["new"]))), names="value")
        self._view = ipywidgets.VBox([ipywidgets.HTML(stack._repr_svg_()), ipywidgets.HBox([self.choice, self.said])])
        self._stack = stack

    def __repr__(self) -> str:
        return "\n".join(map(self._stack.explain, self._stack.paths))

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        shown: dict[str, Any] = dict(self._view._repr_mimebundle_(**options))
        return shown | {"text/plain": repr(self)}
