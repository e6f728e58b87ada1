"""A lab's source, and the two notebooks that are made from it: the learner's with the exercises blank, and the solved one."""

import copy
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import nbformat

from kernel_lab.kernel.errors import UsageError

LABS = Path(__file__).parents[2] / "labs"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}
# What Jupyter and nbval must do with a cell of ours. An exercise may raise: a learner's mistake must not stop Run All.
TAGS = {"exercise": ["exercise", "raises-exception"], "measured": ["measured", "nbval-ignore-output"]}
PAIR = re.compile(r"^(?P<indent>[ \t]*)# solution\n(?P<solution>.*?)(?:^[ \t]*# blank\n(?P<blank>.*?))?(?:^[ \t]*# end\n|\Z)", re.M | re.S)
MARKER = re.compile(r"^[ \t]*# (solution|blank|end)$", re.M)

Notebook = Any  # nbformat's NotebookNode: a dict with attributes
_node: Callable[[dict[str, Any]], Notebook] = nbformat.from_dict
_format: Callable[..., str] = nbformat.writes
_parse: Callable[..., Notebook] = nbformat.reads
_read_source: Callable[[Path], Notebook] = jupytext.read


@dataclass(frozen=True)
class Lab:
    source: Path

    @property
    def name(self) -> str:
        return self.source.stem

    @property
    def number(self) -> str:
        return self.name[:2]

    @property
    def learner(self) -> Path:
        return self.source.parents[1] / f"{self.name}.ipynb"

    @property
    def solved(self) -> Path:
        return self.source.parents[1] / "solutions" / f"{self.name}.ipynb"


def find(numbers: Sequence[str] = (), labs: Path = LABS) -> list[Lab]:
    """The labs with these numbers ("02", or "02_uts"); without any, all."""
    found = [Lab(path) for path in sorted((labs / "src").glob("[0-9][0-9]_*.md"))]
    unknown = [number for number in numbers if not any(number in (lab.number, lab.name) for lab in found)]
    if unknown:
        raise UsageError(f"no lab {', '.join(unknown)} in {labs / 'src'}: there are {', '.join(lab.name for lab in found) or 'none'}")
    return [lab for lab in found if not numbers or lab.number in numbers or lab.name in numbers]


def source_cells(lab: Lab) -> list[Notebook]:
    return list(_read_source(lab.source).cells)


def make(lab: Lab, *, solved: bool) -> Notebook:
    """The notebook of a lab, not executed. A cell's id comes from its source, so that it is the same in both notebooks and in every build."""
    kept = [cell for cell in source_cells(lab) if "instructor" not in tags(cell)]
    ids = _ids(f"{cell.cell_type}\n{cell.source}" for cell in kept)
    cells = [_cell(cell, ident, solved) for cell, ident in zip(kept, ids, strict=True)]
    return _node({"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5})


def tags(cell: Notebook) -> list[str]:
    return list(cell.metadata.get("tags", []))


def text(notebook: Notebook) -> str:
    """The one way in which a notebook is written to a file."""
    return _format(notebook, version=4) + "\n"


def read(path: Path) -> Notebook:
    return _parse(path.read_text(encoding="utf-8"), as_version=4)


def without_outputs(notebook: Notebook) -> Notebook:
    bare = copy.deepcopy(notebook)
    for cell in bare.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    return bare


def choose(source: str, *, solved: bool) -> str:
    """Keep one side of each `# solution` … `# blank` … `# end`; the markers go. Without a blank side the learner gets `...`."""

    def side(pair: re.Match[str]) -> str:
        return str(pair["solution"] if solved else pair["blank"] or f"{pair['indent']}...\n")

    chosen = PAIR.sub(side, source + "\n").rstrip("\n")
    if MARKER.search(PAIR.sub(_both_sides, source + "\n")):
        raise UsageError(f"a marker without its pair (# solution, # blank, # end) in the cell that begins {source.splitlines()[0]!r}")
    return chosen


def _both_sides(pair: re.Match[str]) -> str:
    return f"{pair['solution']}{pair['blank'] or ''}"


def _cell(cell: Notebook, ident: str, solved: bool) -> dict[str, Any]:
    marked = [tag for each in tags(cell) for tag in TAGS.get(each, [each])]
    made = {"cell_type": cell.cell_type, "id": ident, "metadata": {"tags": marked} if marked else {}, "source": choose(cell.source, solved=solved)}
    return made | ({"outputs": [], "execution_count": None} if cell.cell_type == "code" else {})


def _ids(contents: Iterable[str]) -> list[str]:
    seen: Counter[str] = Counter()
    ids = []
    for content in contents:
        seen[content] += 1
        ids.append(hashlib.sha256(f"{seen[content]}\n{content}".encode()).hexdigest()[:12])
    return ids
