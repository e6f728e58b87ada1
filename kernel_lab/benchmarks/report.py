"""What a benchmark has found, as rows: in a terminal, in a notebook, as JSON, and as a picture."""

import html
import io
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from kernel_lab.kernel.errors import UsageError

HEADERS = ("case", "who", "median ms", "p95 ms", "× floor", "note")
PICTURES = (".pdf", ".png", ".svg")


@dataclass(frozen=True)
class Row:
    """One contestant in one case. Without times it says in its note why it has none."""

    case: str
    who: str
    median_ms: float | None = None
    p95_ms: float | None = None
    times_floor: float | None = None
    note: str = ""
    facts: Mapping[str, float] = field(default_factory=dict)  # what else was measured, by name and unit

    @classmethod
    def of(
        cls, case: str, who: str, times: Sequence[float], floor: Sequence[float], note: str = "", facts: Mapping[str, float] | None = None
    ) -> "Row":
        """From times in milliseconds, and the floor's."""
        median = statistics.median(times)
        p95 = statistics.quantiles(times, n=20, method="inclusive")[-1] if len(times) > 1 else median
        return cls(case, who, round(median, 3), round(p95, 3), round(median / statistics.median(floor), 2) if floor else None, note, facts or {})

    def cells(self) -> tuple[str, ...]:
        numbers = ("–" if number is None else f"{number:.2f}" for number in (self.median_ms, self.p95_ms, self.times_floor))
        return (self.case, self.who, *numbers, self.note)


@dataclass(frozen=True, repr=False)
class Report:
    """`rows`, the machine they were measured on, every single time in milliseconds by case and contestant, and what one start of each `includes`."""

    rows: tuple[Row, ...]
    rounds: int
    machine: Mapping[str, object]
    times: Mapping[tuple[str, str], Sequence[float]] = field(default_factory=dict)
    includes: Mapping[str, str] = field(default_factory=dict)

    def row(self, case: str, who: str) -> Row:
        return next(row for row in self.rows if (row.case, row.who) == (case, who))

    def facts(self) -> dict[str, Any]:
        """All that `json` says."""
        return {"rows": [asdict(row) for row in self.rows], "rounds": self.rounds, "machine": self.machine, "includes": self.includes}

    def json(self) -> str:
        return json.dumps(self.facts(), indent=2, ensure_ascii=False)

    def _notes(self) -> list[str]:
        """Below the table: what was counted, and where."""
        return [*(f"{who}: {what}" for who, what in self.includes.items()), *self._machine()]

    def _machine(self) -> Iterator[str]:
        peers = self.machine.get("peers")
        facts = ", ".join(f"{name} {value}" for name, value in self.machine.items() if name != "peers")
        versions = ", ".join(f"{name} {value}" for name, value in peers.items()) if isinstance(peers, Mapping) else ""
        yield f"{self.rounds} rounds on: {facts}"
        if versions:
            yield f"beside: {versions}"

    def __repr__(self) -> str:
        aligned = ("left", "left", "right", "right", "right", "left")
        return tabulate([row.cells() for row in self.rows], HEADERS, disable_numparse=True, colalign=aligned) + "\n\n" + "\n".join(self._notes())

    def _repr_html_(self) -> str:
        table = tabulate([row.cells() for row in self.rows], HEADERS, tablefmt="html", disable_numparse=True)
        return table + "".join(f"<p>{html.escape(note)}</p>" for note in self._notes())

    def plot(self, file: str | Path | None = None) -> Any:
        """Every time as a stroke and each median as a dot, on one logarithmic scale; the matplotlib figure, also written to `file`."""
        from matplotlib.figure import Figure

        cases = list(dict.fromkeys(case for case, _ in self.times))
        figure = Figure(figsize=(8, 1 + 0.4 * len(self.times)), layout="constrained")
        first = None
        for number, case in enumerate(cases):
            axes = figure.add_subplot(len(cases), 1, number + 1, sharex=first)
            first = first or axes
            self._panel(axes, case)
        if file is not None:
            save(figure, file)
        return figure

    def _panel(self, axes: Any, case: str) -> None:
        from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

        rows = [row for row in self.rows if row.case == case and (case, row.who) in self.times]
        for row in rows:
            times = self.times[case, row.who]
            axes.plot(times, [row.who] * len(times), "|", color="tab:blue", alpha=0.5)
            axes.plot(row.median_ms, row.who, "o", color="tab:red")
            if row.times_floor is not None:
                axes.annotate(f"{row.times_floor:.1f} ×", (row.median_ms, row.who), (0, 6), textcoords="offset points", ha="center", fontsize="small")
        axes.set(xscale="log", title=case, xlabel="milliseconds, from the wish to the end of the command")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(y=0.1)
        axes.grid(axis="x", alpha=0.3)
        axes.invert_yaxis()


def png(figure: Any) -> bytes:
    """A matplotlib figure as PNG."""
    file = io.BytesIO()
    save(figure, file, format="png")
    return file.getvalue()


def save(figure: Any, file: str | Path | io.BytesIO, **options: str) -> None:
    """Writes a matplotlib figure."""
    from matplotlib import font_manager

    figure.savefig(file, **options)
    font_manager._get_font.cache_clear()  # type: ignore[attr-defined]  # for each thread matplotlib keeps the fonts' files open, for good


def in_plain_text(axis: Any, **ticks: Any) -> None:
    """Ticks of a logarithmic axis: for powers of ten matplotlib would set formulas, whose fonts it then keeps open."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axis.set_major_locator(LogLocator(**ticks))
    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set_minor_locator(NullLocator())


def check_picture(file: str | Path) -> None:
    """Raises UsageError for a picture that could not be written, before anything has been measured for it."""
    path = Path(file)
    if path.suffix not in PICTURES:
        raise UsageError(f"plot {str(file)!r}: a picture ends in {', '.join(PICTURES)}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"plot {str(file)!r}: there is no directory {path.absolute().parent}")
