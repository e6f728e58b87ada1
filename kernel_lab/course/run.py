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
from kernel_lab.course.notebook import LABS, Lab, find, read, tags
from kernel_lab.kernel.errors import UsageError

WIDTH = 80  # of a result, in the table


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
    verdicts = [verdict for cell in notebook.cells if cell.cell_type == "code" for verdict in _verdicts(cell)]
    unsolved = [verdict for verdict in verdicts if solutions and verdict[0] != State.DONE.value]
    result = outcome.error or "; ".join(unsolved) or "ok"
    return Report(lab.name, lint.minutes(notebook), round(outcome.seconds, 1), len(notebook.cells), _counted(verdicts), result)


def _marks() -> list[str]:
    return [state.value for state in State]


def _counted(verdicts: Sequence[str]) -> dict[str, int]:
    found = Counter(verdict[0] for verdict in verdicts)
    return {mark: found[mark] for mark in _marks()}


def _verdicts(cell: Any) -> list[str]:
    """What a cell's checks printed, a mark at the beginning; an exercise that raised before its check is ✗ too."""
    printed = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
    said = re.findall(rf"^[{''.join(_marks())}] \d\d\.\d+ .*", printed, re.M)
    raised = any(output.output_type == "error" for output in cell.outputs)
    return said or ([f"{State.NOT_YET.value} an exercise raised"] if raised and "exercise" in tags(cell) else [])


def _table(reports: Sequence[Report]) -> str:
    rows = [
        (each.lab, each.minutes, each.seconds, each.cells, "  ".join(f"{mark} {count}" for mark, count in each.checks.items()), each.result)
        for each in reports
    ]
    return tabulate(rows, headers=("lab", "minutes", "seconds", "cells", "checks", "result"), maxcolwidths=[*[None] * 5, WIDTH])


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
