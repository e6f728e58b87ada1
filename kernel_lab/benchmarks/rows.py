"""The rows of a comparison: kept as they come, shown as a table, as JSON, and as pictures."""

import dataclasses
import hashlib
import html
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from kernel_lab import state
from kernel_lab.benchmarks.columns import Cell
from kernel_lab.benchmarks.report import Row, save

PACKAGE = Path(__file__).parents[1]
STORED = Path(__file__).with_name("stored")


@dataclass
class Measured:
    """A row: a runner, when and on which machine it was measured, its cells by column. `absent`: why there are none; `stored`: measured elsewhere."""

    who: str
    includes: str
    version: str | None
    date: str
    machine: Mapping[str, object] = field(default_factory=dict)
    cells: dict[str, Cell] = field(default_factory=dict)
    absent: str = ""
    stored: bool = False

    @classmethod
    def begun(cls, who: str, includes: str, version: str | None) -> "Measured":
        return cls(who, includes, version, time.strftime("%Y-%m-%d"))

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Measured":
        return cls(**{**fields, "cells": {case: Cell(**cell) for case, cell in fields["cells"].items()}})

    @property
    def origin(self) -> str:
        """Of a stored one: where and when it was measured."""
        return f"stored: {self.machine.get('cpu')}, Linux {self.machine.get('kernel')}, {self.date}" if self.stored else ""

    def row(self, case: str) -> Row:
        """One of its cells as every benchmark has them."""
        cell = self.cells.get(case, Cell(note=self.absent))
        note = "; ".join(filter(None, (cell.note, self.origin)))
        if not cell.times:
            return Row(case, self.who, note=note, facts=cell.facts)
        return Row.of(case, self.who, cell.times, cell.floor, note, cell.facts)


def brought_along(machine: str = "*") -> list[Measured]:
    """The rows that the kit brings along, of one machine or of all."""
    rows = [row for path in sorted(STORED.glob(f"{machine}.json")) for row in json.loads(path.read_text())]
    return [dataclasses.replace(Measured.of(row), stored=True) for row in rows]


@dataclass(frozen=True)
class Store:
    """Where this machine's rows are kept for this kit."""

    directory: Path
    machine: Mapping[str, object]

    @classmethod
    def of_this(cls, machine: Mapping[str, object], size: Sequence[int]) -> "Store":
        """Another machine, another kit, or other rounds, and it begins from nothing."""
        sources = b"".join(path.read_bytes() for path in sorted(PACKAGE.rglob("*.[pch]*")) if path.suffix in (".py", ".c", ".h"))
        key = hashlib.sha256(json.dumps([machine, list(size)], sort_keys=True).encode() + sources).hexdigest()[:12]
        return cls(state.data_dir() / "compare" / key, machine)

    def read(self, who: str) -> Measured | None:
        path = self._path(who)
        return Measured.of(json.loads(path.read_text())) if path.exists() else None

    def write(self, row: Measured) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        row.machine = self.machine
        state.write_atomically(self._path(row.who), json.dumps(dataclasses.asdict(row), indent=1, ensure_ascii=False))

    def elsewhere(self, who: str) -> Measured | None:
        """The row as another machine has it, if the kit brings it along."""
        return next((row for row in brought_along() if row.who == who), None)

    def _path(self, who: str) -> Path:
        return self.directory / f"{who.lower().replace(', ', '-').replace(' ', '-')}.json"


@dataclass(frozen=True, repr=False)
class Comparison:
    """All rows, the columns that were asked for, and this machine."""

    cases: tuple[str, ...]
    measured: tuple[Measured, ...]
    machine: Mapping[str, object]

    @property
    def rows(self) -> tuple[Row, ...]:
        """Column by column, as every benchmark has them."""
        return tuple(one.row(case) for case in self.cases for one in self.measured)

    def row(self, case: str, who: str) -> Row:
        return next(row for row in self.rows if (row.case, row.who) == (case, who))

    def json(self) -> str:
        rows = [dataclasses.asdict(row) for row in self.rows]
        raw = [dataclasses.asdict(one) for one in self.measured]
        return json.dumps({"rows": rows, "machine": self.machine, "measured": raw}, indent=1, ensure_ascii=False)

    def _notes(self) -> Iterator[str]:
        for one in self.measured:
            yield f"{one.who}{f' {one.version}' if one.version else ''}: {one.absent or one.includes}{f' ({one.origin})' if one.stored else ''}"
            said = [f"{case}: {cell.note}" for case, cell in one.cells.items() if cell.note and case in self.cases]
            yield from (f"  {text}" for text in said)
        machine = ", ".join(f"{key} {value}" for key, value in self.machine.items() if value)
        yield f"×: times a plain process's, measured in turns with it. On: {machine}"

    def _table(self, form: str) -> str:
        cells = [[one.who + "*" * one.stored, *(one.cells.get(case, Cell()).short or "–" for case in self.cases)] for one in self.measured]
        return tabulate(cells, ("", *self.cases), tablefmt=form, disable_numparse=True)

    def __repr__(self) -> str:
        return "\n".join([self._table("simple"), "", *self._notes()])

    def _repr_html_(self) -> str:
        return self._table("html") + "".join(f"<p>{html.escape(note)}</p>" for note in self._notes())

    def plot(self, file: str | Path | None = None) -> Any:
        """A panel for each column that has numbers; the matplotlib figure, also written to `file`."""
        from kernel_lab.benchmarks.compare_plot import drawn

        figure = drawn(self)
        if file is not None:
            save(figure, file)
        return figure
