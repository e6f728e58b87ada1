"""Execute labs without a browser, and report: `python -m kernel_lab.course.run [NN…] [--json] [--solutions]`. Nothing is written into labs/."""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from kernel_lab.course import lint
from kernel_lab.course.execute import execute
from kernel_lab.course.exercises import State
from kernel_lab.course.notebook import LABS, Lab, Notebook, find, read, tags
from kernel_lab.kernel.errors import UsageError


@dataclass(frozen=True)
class Report:
    lab: str
    minutes: int | None  # that a learner takes
    seconds: float  # that this run took
    cells: int
    checks: dict[str, int]  # ○, ✗, ✓ → how many
    result: str

    @property
    def ok(self) -> bool:
        return self.result == "ok"


def run(lab: Lab, *, solutions: bool, bar: "tqdm[Any]") -> Report:
    path = lab.solved if solutions else lab.learner
    bar.set_description(lab.name)
    if not path.exists():
        return Report(lab.name, None, 0.0, 0, dict.fromkeys(_marks(), 0), f"no notebook: labs/build {lab.number} makes it")
    notebook = read(path)
    outcome = execute(notebook, path.parent, strict=solutions, each=bar.update)
    checks = _checks(notebook)
    unsolved = solutions and sum(checks.values()) != checks[State.DONE.value]
    result = outcome.error or ("a check is not ✓" if unsolved else "ok")
    return Report(lab.name, lint.minutes(notebook), round(outcome.seconds, 1), len(notebook.cells), checks, result)


def _marks() -> list[str]:
    return [state.value for state in State]


def _checks(notebook: Notebook) -> dict[str, int]:
    found = Counter(mark for cell in notebook.cells if cell.cell_type == "code" for mark in _verdicts(cell))
    return {mark: found[mark] for mark in _marks()}


def _verdicts(cell: Any) -> list[str]:
    """The marks that a cell's checks printed; an exercise that raised before its check is ✗ too."""
    printed = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
    marks = re.findall(rf"^([{''.join(_marks())}]) \d\d\.\d+ ", printed, re.M)
    raised = any(output.output_type == "error" for output in cell.outputs)
    return marks or ([State.NOT_YET.value] if raised and "exercise" in tags(cell) else [])


def _table(reports: Sequence[Report]) -> str:
    rows = [
        (each.lab, each.minutes, each.seconds, each.cells, "  ".join(f"{mark} {count}" for mark, count in each.checks.items()), each.result)
        for each in reports
    ]
    return tabulate(rows, headers=("lab", "minutes", "seconds", "cells", "checks", "result"))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lab run", description="Execute labs without a browser, and report.")
    parser.add_argument("labs", nargs="*", metavar="NN", help="numbers of labs; all of them without any")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    parser.add_argument("--solutions", action="store_true", help="the solved notebooks; every check must be ✓")
    parser.add_argument("--folder", type=Path, default=LABS, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    asked = _arguments(argv)
    try:
        labs = find(asked.labs, asked.folder)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    cells = sum(len(read(path).cells) for lab in labs if (path := lab.solved if asked.solutions else lab.learner).exists())
    with tqdm(total=cells, unit="cell", file=sys.stderr, mininterval=0.5) as bar:
        reports = [run(lab, solutions=asked.solutions, bar=bar) for lab in labs]
    print(json.dumps([asdict(each) for each in reports], ensure_ascii=False, indent=1) if asked.json else _table(reports))
    return 0 if all(each.ok for each in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
