"""The picture of a density: for each next one its memory and its time. Readable in grey, and on a dark page: an opaque card."""

from collections.abc import Iterator, Mapping
from typing import Any

from kernel_lab.benchmarks.accounts import MEGABYTE
from kernel_lab.benchmarks.density import Crowd
from kernel_lab.benchmarks.report import in_plain_text

# Told apart by their dashes and marks as well as by their colours (Okabe and Ito's, which stay apart in grey).
STYLES = (("#0072b2", "-", "o"), ("#d55e00", "--", "s"), ("#009e73", "-.", "^"), ("#cc79a7", ":", "D"), ("#e69f00", "-", "v"), ("#000000", "--", "x"))
MARKS = 12
APART = 30


def drawn(crowds: Mapping[str, Crowd]) -> Any:
    """Two panels on one axis: the number of those that run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 3.4), dpi=72, layout="constrained", facecolor="white")
    memory, time = figure.subplots(1, 2)
    for (who, crowd), style in zip(_that_ran(crowds), STYLES * len(crowds), strict=False):
        numbers = range(1, crowd.count + 1)
        _line(memory, numbers, [used / MEGABYTE for used in crowd.used], style, who)
        time.plot(numbers, [second * 1000 for second in crowd.seconds], ",", color="0.6")
        _line(time, numbers, _smoothed([second * 1000 for second in crowd.seconds]), style, who)
    memory.set(title="memory in use", xlabel="how many run", ylabel="MB, of the whole machine", ylim=(0, None))
    time.set(title="time for the next one", xlabel="how many run", ylabel="milliseconds")
    time.set_yscale("log")
    in_plain_text(time.yaxis, subs=(1, 2, 5))
    if _apart(crowds):
        memory.set_yscale("log", nonpositive="mask")
        memory.set_ylim(0.1, None)
        in_plain_text(memory.yaxis)
        for axes in (memory, time):
            axes.set_xscale("log")
            in_plain_text(axes.xaxis, subs=(1, 2, 5))
    for axes in (memory, time):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    return figure


def _apart(crowds: Mapping[str, Crowd]) -> bool:
    """Whether what one of them takes could not be seen beside what another one takes: containers beside machines."""
    each = [max(crowd.used[-1], 1) / crowd.count for _, crowd in _that_ran(crowds)]
    return bool(each) and max(each) > APART * min(each)


def _that_ran(crowds: Mapping[str, Crowd]) -> Iterator[tuple[str, Crowd]]:
    yield from ((who, crowd) for who, crowd in crowds.items() if crowd.count)


def _line(axes: Any, numbers: range, values: list[float], style: tuple[str, str, str], who: str) -> None:
    colour, dash, mark = style
    axes.plot(numbers, values, dash, color=colour, marker=mark, markevery=max(1, len(values) // MARKS), markersize=4, label=who)


def _smoothed(values: list[float], width: int = 9) -> list[float]:
    """The median of each value and its neighbours."""
    import statistics

    half = width // 2
    return [statistics.median(values[max(0, number - half) : number + half + 1]) for number in range(len(values))]
