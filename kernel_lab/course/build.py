"""Build the notebooks of the labs from their sources: `python -m kernel_lab.course.build [--check] [NN…]`.

Two builds are byte-identical: ids come from the sources, no times are stored, and a cell tagged `measured` keeps the outputs that it has in the
present notebook as long as its source is the same (`--fresh` measures again).
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from kernel_lab.course import lint
from kernel_lab.course.notebook import LABS, Lab, Notebook, find, make, read, tags, text, without_outputs
from kernel_lab.kernel.errors import UsageError


def build(lab: Lab, *, fresh: bool = False) -> list[str]:
    """Execute and write both notebooks of a lab; the problems found, when nothing is written."""
    problems = lint.of_source(lab)
    made = [(path, *_executed(lab, path)) for path in (lab.learner, lab.solved)] if not problems else []
    problems += [problem for _, _, found in made for problem in found]
    if not problems:
        for path, notebook, _ in made:
            _write(path, notebook if fresh else _with_known_measures(notebook, path))
    return problems


def check(lab: Lab) -> list[str]:
    """What differs between a lab's source and its notebooks, and what the lab does not keep to. Nothing is executed."""
    return lint.of_source(lab) + [problem for path in (lab.learner, lab.solved) for problem in _differences(lab, path)]


def orphans(labs: Path, known: Sequence[Lab]) -> list[str]:
    """Notebooks without a source."""
    wanted = {path for lab in known for path in (lab.learner, lab.solved)}
    there = {*labs.glob("*.ipynb"), *labs.glob("solutions/*.ipynb")}
    return [f"labs/{path.relative_to(labs)}: no source in labs/src makes it" for path in sorted(there - wanted)]


def _executed(lab: Lab, path: Path) -> tuple[Notebook, list[str]]:
    from kernel_lab.course.execute import execute  # a check starts no kernel, and need not load what starts one

    notebook = make(lab, solved=path == lab.solved)
    path.parent.mkdir(exist_ok=True)
    outcome = execute(notebook, path.parent, strict=path == lab.solved)
    name = _name(lab, path)
    return notebook, [f"{name}: {outcome.error}"] if outcome.error else lint.of_outputs(name, notebook)


def _with_known_measures(notebook: Notebook, path: Path) -> Notebook:
    known = {cell.id: cell for cell in read(path).cells} if path.exists() else {}
    for cell in notebook.cells:
        if "measured" in tags(cell) and cell.id in known and cell.source == known[cell.id].source:
            cell.outputs = known[cell.id].outputs
    return notebook


def _write(path: Path, notebook: Notebook) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(text(notebook), encoding="utf-8")
    os.replace(draft, path)


def _differences(lab: Lab, path: Path) -> Iterator[str]:
    name = _name(lab, path)
    if not path.exists():
        yield f"{name}: missing; python -m kernel_lab.course.build {lab.number} makes it"
        return
    there, wanted = read(path), make(lab, solved=path == lab.solved)
    if without_outputs(there) != without_outputs(wanted):
        yield f"{name}: differs from labs/src/{lab.source.name} {_first_difference(there, wanted)}; build {lab.number} again"
    elif path.read_text(encoding="utf-8") != text(there):
        yield f"{name}: not written the way that build writes it; build {lab.number} again"
    yield from lint.of_outputs(name, there)


def _first_difference(there: Notebook, wanted: Notebook) -> str:
    pairs = zip(without_outputs(there).cells, without_outputs(wanted).cells, strict=False)
    place = next((count for count, (a, b) in enumerate(pairs, 1) if a != b), None)
    return f"in cell {place}" if place else "in its number of cells or its metadata"


def _name(lab: Lab, path: Path) -> str:
    return f"labs/{path.relative_to(lab.source.parents[1])}"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="labs/build", description="Build the labs' notebooks from labs/src, executed, exercises blank and solved.")
    parser.add_argument("labs", nargs="*", metavar="NN", help="numbers of labs; all of them without any")
    parser.add_argument("--check", action="store_true", help="execute nothing; fail when sources and notebooks differ")
    parser.add_argument("--fresh", action="store_true", help="measure again in cells tagged `measured`")
    parser.add_argument("--folder", type=Path, default=LABS, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    asked = _arguments(argv)
    try:
        labs = find(asked.labs, asked.folder)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    problems = orphans(asked.folder, find(labs=asked.folder))
    for lab in labs:
        found = check(lab) if asked.check else build(lab, fresh=asked.fresh)
        problems += found
        print(f"{lab.name}: {'ok' if not found else f'{len(found)} problems'}")
    print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
