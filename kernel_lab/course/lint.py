"""What every lab keeps to: its size, its rhythm, its first and last cell, exercises with hints, stable outputs."""

import re
from collections.abc import Iterator
from typing import Any

from kernel_lab.course import exercises
from kernel_lab.course.notebook import Lab, Notebook, make, source_cells, tags

RHYTHM = ("Question", "Predict", "See it", "Break it first", "Build it", "Add it to the runtime", "Against the real thing", "Clean up and prove it")
INSTRUCTOR = ("Ask", "Demo", "Trap", "Minutes")
CELLS, MINUTES, LINES, EXERCISES = range(25, 46), range(20, 41), 12, 2
KNOWN_TAGS = {"exercise", "fails", "instructor", "measured"}


def of_source(lab: Lab) -> list[str]:
    """What is wrong with a lab's source; each line names the file."""
    cells = source_cells(lab)
    learner = make(lab, solved=False)
    found = [*_size(learner), *_rhythm(learner), *_instructor(cells), *_ends(lab, learner), *_tags(cells), *_code(learner), *_exercises(lab, learner)]
    return [f"labs/src/{lab.source.name}: {problem}" for problem in found]


def of_outputs(name: str, notebook: Notebook) -> list[str]:
    """What is wrong with the outputs of a committed notebook: nbval would not compare them, or would see them change."""
    return [f"{name}: cell {count}: {problem}" for count, cell in _code_cells(notebook) for problem in _output(cell)]


def minutes(notebook: Notebook) -> int | None:
    """The minutes that the lab's text says it takes: the first number before the word, `25 minutes`."""
    said = re.search(r"(\d+)\**\s+minutes", _prose(notebook.cells))
    return int(said[1]) if said else None


def _size(learner: Notebook) -> Iterator[str]:
    if len(learner.cells) not in CELLS:
        yield f"{len(learner.cells)} cells in the learner's notebook; {CELLS[0]} to {CELLS[-1]} are wanted"
    if minutes(learner) not in MINUTES:
        yield f"its text says it takes {minutes(learner)} minutes; {MINUTES[0]} to {MINUTES[-1]} are wanted, as in `25 minutes`"


def _rhythm(learner: Notebook) -> Iterator[str]:
    headings = re.findall(r"^## +(.*)$", _prose(learner.cells), re.M)
    at = 0
    for part in RHYTHM:
        place = next((count for count, heading in enumerate(headings) if count >= at and heading.startswith(part)), None)
        if place is None:
            yield f"no heading `## {part}` in its place ({' → '.join(RHYTHM)})"
        else:
            at = place + 1


def _instructor(cells: list[Notebook]) -> Iterator[str]:
    said = _prose([cell for cell in cells if "instructor" in tags(cell)])
    lacking = [word for word in INSTRUCTOR if not re.search(rf"\b{word}\b", said)]
    if lacking:
        yield f"its instructor cells lack {', '.join(lacking)}"


def _ends(lab: Lab, learner: Notebook) -> Iterator[str]:
    sources = [cell.source for _, cell in _code_cells(learner)] or [""]
    if not re.search(rf'^lab\("{lab.number}"', sources[0], re.M):
        yield f'its first code cell does not call lab("{lab.number}")'
    if not re.search(r"^audit\(\)", sources[-1], re.M):
        yield "its last code cell does not call audit()"


def _tags(cells: list[Notebook]) -> Iterator[str]:
    for count, cell in enumerate(cells, 1):
        unknown = [tag for tag in tags(cell) if tag not in KNOWN_TAGS and not tag.startswith("needs:")]
        if unknown:
            yield f"cell {count} of the source: unknown tag {', '.join(unknown)}"
        if "fails" in tags(cell) and "fails(" not in cell.source:
            yield f"cell {count} of the source is tagged `fails` and has no `with fails():`"


def _code(learner: Notebook) -> Iterator[str]:
    for count, cell in _code_cells(learner):
        lines = cell.source.splitlines()
        if len(lines) > LINES and "exercise" not in tags(cell):
            yield f"cell {count} has {len(lines)} lines; at most {LINES} are wanted outside exercises"
        if cell.source.rstrip().endswith(";"):
            yield f"cell {count} ends in a semicolon, which hides its value here and not in a comparison"


def _exercises(lab: Lab, learner: Notebook) -> Iterator[str]:
    code = [cell for _, cell in _code_cells(learner)]
    asked = {number: cell for cell in code for number in re.findall(r'check\("([\d.]+)"', cell.source)}
    known = {each.number for each in exercises.of_lab(lab.number)}
    if len(asked) < EXERCISES:
        yield f"{len(asked)} exercises; at least {EXERCISES} are wanted"
    for number in sorted(known ^ asked.keys()):
        yield f"exercise {number} {'has no check in kernel_lab/course/exercises' if number in asked else 'is never asked'}"
    for number, cell in asked.items():
        if "exercise" not in tags(cell):
            yield f"the cell of exercise {number} is not tagged `exercise`"


def _output(cell: Any) -> Iterator[str]:
    if cell.source and cell.execution_count is None:
        yield "not executed"
    for output in cell.outputs:
        if output.output_type == "error":
            yield f"raised {output.ename}: {output.evalue}"
        if output.get("name") == "stderr":
            yield f"wrote to stderr: {output.text.strip()[:80]}"
        if "image/png" in output.get("data", {}) and "measured" not in tags(cell):
            yield "makes a PNG, whose bytes differ between machines: tag it `measured`, or draw an SVG"


def _code_cells(notebook: Notebook) -> Iterator[tuple[int, Any]]:
    return ((count, cell) for count, cell in enumerate(notebook.cells, 1) if cell.cell_type == "code")


def _prose(cells: list[Notebook]) -> str:
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
