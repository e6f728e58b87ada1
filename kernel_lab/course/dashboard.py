"""A live view of a control group: sliders change its limits, and curves follow what its processes use."""

import logging
import threading
import time
from dataclasses import dataclass
from typing import Any

import ipywidgets
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kernel_lab.benchmarks.report import png
from kernel_lab.cgroups.group import Group
from kernel_lab.kernel.errors import KernelError, UsageError

EVERY = 0.25  # seconds between two looks
MEGABYTE = 1 << 20
CURVES = {"cpus": "CPUs", "memory": "memory, MB", "pids": "processes"}
# The first use on a machine takes a while, and would say so on stderr, in the middle of a notebook.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Sample:
    """What a group has used up to a moment: CPUs since the sample before, memory in megabytes, processes; and its limits, as the sliders said."""

    seconds: float
    cpus: float
    memory: float | None
    pids: int | None
    limits: dict[str, float]


class Dashboard:
    """Sliders for limits of a running container, and curves of what it uses, drawn for `seconds` from when it is shown, or until nobody is in it.

    `cpus`, `memory` (in megabytes) and `pids` each make a slider: where it stands at first, and its two ends. One can be moved by hand, or by
    `board.sliders["cpus"].value = 0.2`. A limit that the kernel refuses is said on the board, and raises KernelError.
    """

    def __init__(self, group: Group, seconds: float = 30.0, **limits: tuple[float, float, float]) -> None:
        if unknown := limits.keys() - CURVES.keys():
            raise UsageError(f"{min(unknown)}: there is no such slider; there are {', '.join(CURVES)}")
        self.group = group
        self.seconds = seconds
        self.samples: list[Sample] = []
        self._said = ipywidgets.Label()
        self._picture = ipywidgets.Image(format="png")
        self.sliders = {name: self._slider(name, *ends) for name, ends in limits.items()}
        self._view = ipywidgets.VBox([*self.sliders.values(), self._said, self._picture])
        self._ended = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="klab-dashboard", daemon=True)

    def _slider(self, name: str, value: float, low: float, high: float) -> Any:
        kind, step = (ipywidgets.FloatSlider, 0.05) if name == "cpus" else (ipywidgets.IntSlider, 1)
        slider = kind(value=value, min=low, max=high, step=step, description=CURVES[name], continuous_update=False)
        slider.observe(lambda change: self._set(name, change["new"]), names="value")
        self._set(name, value)
        return slider

    def _set(self, name: str, value: float) -> None:
        limit: Any = {name: int(value) * MEGABYTE if name == "memory" else value}
        try:
            self.group.set(**limit)
        except KernelError as error:
            self._said.value = str(error)
            raise
        self._said.value = ""

    def watch(self) -> None:
        """Begins to look, in a thread of its own, which ends by itself."""
        if self._watching.ident is None:
            self._watching.start()

    def wait(self, samples: int) -> list[Sample]:
        """So many samples of the time from now on. Raises TimeoutError when the board stops looking before."""
        self.watch()
        first = len(self.samples) + 1  # the one that is being taken has begun before
        while len(self.samples) < first + samples:
            if not self._watching.is_alive():
                raise TimeoutError(f"the dashboard looks no more: {self.seconds:g} s are over, it was closed, or nobody is left in the group")
            time.sleep(EVERY / 5)
        return self.samples[first : first + samples]

    def close(self) -> None:
        """Stops looking; the last picture stays."""
        self._ended.set()
        if self._watching.ident is not None:
            self._watching.join()

    def _watch(self) -> None:
        begin = before = time.monotonic()
        try:
            used = self.group.stats().cpu_seconds
            while not self._ended.wait(EVERY) and before - begin < self.seconds and self.group.processes():
                now, stats = time.monotonic(), self.group.stats()
                memory = None if stats.memory is None else stats.memory / MEGABYTE
                limits = {name: slider.value for name, slider in self.sliders.items()}
                self.samples.append(Sample(now - begin, (stats.cpu_seconds - used) / (now - before), memory, stats.pids, limits))
                before, used = now, stats.cpu_seconds
                self._picture.value = self.picture()
        except (OSError, UsageError):
            return  # the group has gone with its container

    def picture(self) -> bytes:
        """The curves so far, and the limits as dashes, as PNG."""
        samples = list(self.samples)
        counted = [name for name in CURVES if samples and getattr(samples[-1], name) is not None] or ["cpus"]
        figure = Figure(figsize=(3 * len(counted), 2.4), dpi=80)
        figure.subplots_adjust(left=0.06, right=0.98, bottom=0.2, top=0.88)  # matplotlib finds better ones, for twice the time
        FigureCanvasAgg(figure)
        seconds = [sample.seconds for sample in samples]
        for axes, name in zip(figure.subplots(1, len(counted), squeeze=False).flat, counted, strict=True):
            axes.plot(seconds, [getattr(sample, name) for sample in samples])
            if name in self.sliders:
                axes.step(seconds, [sample.limits[name] for sample in samples], where="pre", color="gray", linestyle="--")
            axes.set(title=CURVES[name], xlabel="seconds", ylim=(0, None))
        return png(figure)

    def __repr__(self) -> str:
        return f"Dashboard({', '.join(self.sliders)})"

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        self.watch()
        shown: dict[str, Any] = self._view._repr_mimebundle_(**options)
        return shown | {"text/plain": repr(self)}  # the widget's own text holds the picture's bytes, which no two runs have in common
