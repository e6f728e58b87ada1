"""Small pictures of boxes and links, drawn from live state: the same state gives the same SVG, byte for byte.

Each is an opaque card. JupyterLab and GitHub show a picture as an image, which cannot see the page's colours; so it brings its own ground.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from kernel_lab.kernel.errors import UsageError

CHAR, LINE, PAD, GAP, MARGIN = 7, 17, 12, 44, 16  # px; a character of 12 px monospace is 7.2 wide in every common font
INK, GROUND, FRAME, TITLE, MARK = "#1f2933", "#fbfaf7", "#8795a1", "#e4ecf2", "#b4450c"


@dataclass(frozen=True)
class Box:
    """A titled box with lines of text; the marked ones stand out."""

    title: str
    lines: Sequence[str] = ()
    marked: Iterable[str] = ()


@dataclass(frozen=True)
class Link:
    """A line between two boxes, named by their titles."""

    a: str
    b: str
    label: str = ""


@dataclass(frozen=True)
class _Placed:
    box: Box
    x: int
    y: int
    width: int
    height: int

    @property
    def middle(self) -> tuple[int, int]:
        return self.x + self.width // 2, self.y + self.height // 2


class Picture:
    """Rows of boxes, one below the other, with links between them."""

    def __init__(self, rows: Sequence[Sequence[Box]], links: Sequence[Link] = ()) -> None:
        self.rows = [list(row) for row in rows if row]
        self.links = list(links)
        titles = [box.title for row in self.rows for box in row]
        unknown = {end for link in self.links for end in (link.a, link.b)} - set(titles)
        if unknown or len(set(titles)) < len(titles):
            raise UsageError(f"a picture's boxes need a title of their own, and its links must name them: {titles}, {sorted(unknown)}")

    def __repr__(self) -> str:
        shown = [" | ".join(f"[{_plain(box)}]" for box in row) for row in self.rows]
        return "\n".join(shown + [f"{link.a} -- {link.b}{link.label and f' ({link.label})'}" for link in self.links])

    def _repr_svg_(self) -> str:
        placed, width, height = self._layout()
        by_title = {each.box.title: each for each in placed}
        body = [_link(by_title[link.a], by_title[link.b]) for link in self.links]
        body += [_box(each) for each in placed]
        body += [_label(by_title[link.a], by_title[link.b], link.label) for link in self.links if link.label]
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="{escape(repr(self))}" font-family="monospace" font-size="12" fill="{INK}">\n'
            f'<rect width="{width}" height="{height}" rx="8" fill="{GROUND}"/>\n' + "\n".join(body) + "\n</svg>"
        )

    def _layout(self) -> tuple[list[_Placed], int, int]:
        widths = [sum(map(_width, row)) + sum(self._gap(a, b) for a, b in pairwise(row)) for row in self.rows]
        width = max([*widths, 0]) + 2 * MARGIN
        placed: list[_Placed] = []
        y = MARGIN
        for row, taken in zip(self.rows, widths, strict=True):
            tall = max(map(_height, row))
            x = (width - taken) // 2
            for box, following in zip(row, [*row[1:], None], strict=True):
                placed.append(_Placed(box, x, y + (tall - _height(box)) // 2, _width(box), _height(box)))
                x += _width(box) + (self._gap(box, following) if following else 0)
            y += tall + GAP + (LINE if self.links else 0)
        return placed, width, y - GAP - (LINE if self.links else 0) + MARGIN

    def _gap(self, a: Box, b: Box) -> int:
        labels = [link.label for link in self.links if {link.a, link.b} == {a.title, b.title}]
        return max([GAP, *(len(label) * CHAR + GAP for label in labels)])


def boxes(*several: Box, links: Sequence[Link] = ()) -> Picture:
    """Boxes side by side."""
    return Picture([several], links)


def rows(*several: Sequence[Box], links: Sequence[Link] = ()) -> Picture:
    """Rows of boxes, the first on top: a topology."""
    return Picture(several, links)


def side_by_side(**views: Mapping[str, object]) -> Picture:
    """The same facts seen from several places (`host=…, box=…`): what differs from the first view is marked."""
    first = next(iter(views.values()), {})
    return Picture([[_view(name, view, first) for name, view in views.items()]])


def _view(name: str, view: Mapping[str, object], first: Mapping[str, object]) -> Box:
    wide = max(map(len, view), default=0)
    lines = {key: f"{key:<{wide}}  {value}" for key, value in view.items()}
    return Box(name, list(lines.values()), [lines[key] for key in view if view[key] != first.get(key)])


def _plain(box: Box) -> str:
    lines = ", ".join(" ".join(line.split()) for line in box.lines)
    return f"{box.title}: {lines}" if lines else box.title


def _width(box: Box) -> int:
    return max(len(text) for text in (box.title, *box.lines)) * (CHAR + 1) + 2 * PAD


def _height(box: Box) -> int:
    return LINE + PAD + (len(box.lines) * LINE + PAD if box.lines else 0)


def _box(at: _Placed) -> str:
    head = LINE + PAD
    marked = set(at.box.marked)
    parts = [
        f'<rect x="{at.x}" y="{at.y}" width="{at.width}" height="{at.height}" rx="5" fill="#fff" stroke="{FRAME}"/>',
        f'<rect x="{at.x + 1}" y="{at.y + 1}" width="{at.width - 2}" height="{head - 2}" rx="4" fill="{TITLE}"/>',
        _text(at.middle[0], at.y + head // 2 + 4, at.box.title, 'text-anchor="middle" font-weight="bold"'),
    ]
    for count, line in enumerate(at.box.lines):
        style = f'fill="{MARK}" font-weight="bold"' if line in marked else ""
        parts.append(_text(at.x + PAD, at.y + head + PAD // 2 + count * LINE + 12, line, style))
    return "\n".join(parts)


def _link(a: _Placed, b: _Placed) -> str:
    (x1, y1), (x2, y2) = _ends(a, b)
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{INK}" stroke-width="1.5"/>'


def _ends(a: _Placed, b: _Placed) -> tuple[tuple[int, int], tuple[int, int]]:
    """Boxes of one row are joined at their sides, others at top and bottom."""
    if a.y < b.y + b.height and b.y < a.y + a.height:
        left, right = sorted((a, b), key=lambda each: each.x)
        return (left.x + left.width, left.middle[1]), (right.x, right.middle[1])
    upper, lower = sorted((a, b), key=lambda each: each.y)
    return (upper.middle[0], upper.y + upper.height), (lower.middle[0], lower.y)


def _label(a: _Placed, b: _Placed, label: str) -> str:
    (x1, y1), (x2, y2) = _ends(a, b)
    x, y, wide = (x1 + x2) // 2, (y1 + y2) // 2, len(label) * (CHAR + 1)
    ground = f'<rect x="{x - wide // 2}" y="{y - 9}" width="{wide}" height="18" fill="{GROUND}"/>'
    return ground + _text(x, y + 4, label, 'text-anchor="middle"')


def _text(x: int, y: int, text: str, style: str = "") -> str:
    return f'<text x="{x}" y="{y}" xml:space="preserve"{style and " " + style}>{escape(text)}</text>'
