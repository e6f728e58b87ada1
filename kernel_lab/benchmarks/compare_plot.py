"""The picture of a comparison: a panel for each column, every single time as a stroke, on a logarithmic scale. Black on an opaque card:
readable in grey, and on a dark page."""

import statistics
from typing import Any

from kernel_lab.benchmarks.columns import Cell
from kernel_lab.benchmarks.report import in_plain_text
from kernel_lab.benchmarks.rows import Comparison, Measured

# What is drawn where there are no times, or where the times say less: the fact, and its unit.
FACTS = {
    "memory": ("next_mb", "MB for each next one"),
    "disk": ("mb_a_second", "MB/s"),
    "network": ("mb_a_second", "MB/s"),
    "isolation": ("calls", "calls of the host's within reach"),
}
ACROSS = 3
HERE, ELSEWHERE = "black", "white"


def drawn(comparison: Comparison) -> Any:
    """Hollow marks are stored measurements, of another machine or another day."""
    from matplotlib.figure import Figure

    cases = [case for case in comparison.cases if any(_value(one, case) for one in comparison.measured)]
    down = -(-len(cases) // ACROSS) or 1
    figure = Figure(figsize=(11, 0.6 + down * (0.9 + 0.24 * len(comparison.measured))), dpi=80, layout="constrained", facecolor="white")
    names = [one.who for one in comparison.measured]
    for number, case in enumerate(cases):
        axes = figure.add_subplot(down, ACROSS, number + 1)
        for place, one in enumerate(comparison.measured):
            _mark(axes, place, one, case)
        _dress(axes, case, names, labelled=number % ACROSS == 0)
    return figure


def _value(one: Measured, case: str) -> float | None:
    """What the dot stands for: a fact, or the median of the times in milliseconds."""
    cell = one.cells.get(case, Cell())
    if case == "isolation" and cell.facts.get("shared") != cell.facts.get("of"):
        return cell.facts.get("host_calls")  # its kernel answers all the others, and is its own
    if case in FACTS:
        value = cell.facts.get(FACTS[case][0]) or (cell.facts.get("first_mb") if case == "memory" else None)
        return value if value and value > 0 else None
    return statistics.median(cell.times) if cell.times else None


def _mark(axes: Any, place: int, one: Measured, case: str) -> None:
    value = _value(one, case)
    if value is None:
        axes.text(0.02, place, "–", transform=axes.get_yaxis_transform(), va="center", color="0.4")
        return
    if case not in FACTS:
        times = one.cells[case].times
        axes.plot(times, [place] * len(times), "|", color="0.5", markersize=7, alpha=0.6)
    axes.plot(value, place, "o", markersize=5, markeredgecolor="black", markerfacecolor=ELSEWHERE if one.stored else HERE)
    axes.annotate(f"{value:,.0f}" if value >= 10 else f"{value:.2g}", (value, place), (6, 4), textcoords="offset points", fontsize="x-small")


def _dress(axes: Any, case: str, names: list[str], labelled: bool) -> None:
    axes.set(title=case, xscale="log", ylim=(len(names) - 0.5, -0.5))
    axes.set_xlabel(FACTS[case][1] if case in FACTS else "milliseconds", fontsize="small")
    axes.set_yticks(range(len(names)), names if labelled else [""] * len(names), fontsize="small")
    # At least a factor of thirty is shown, so that what is nearly the same looks so.
    low, high = axes.get_xlim()
    wide = max(1.5, (30 * low / high) ** 0.5)
    axes.set_xlim(low / wide, high * wide * 2)  # room for the last label
    in_plain_text(axes.xaxis, numticks=6)
    axes.grid(axis="x", alpha=0.3)
