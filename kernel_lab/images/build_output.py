"""What a build tells those who wait, in the words of docker's classic builder."""

import sys
from collections.abc import Callable
from typing import Any, TextIO

from tqdm.auto import tqdm

Write = Callable[[str], object]
SHORT = 12  # digits of an id, as docker shows them


class Output:
    """To a function that takes pieces of text, or a stream."""

    def __init__(self, to: Write | TextIO) -> None:
        self._write: Write = to if callable(to) else to.write
        self._flush: Callable[[], object] = (lambda: None) if callable(to) else to.flush

    def text(self, text: str) -> None:
        """As it comes, in whatever pieces."""
        self._write(text)
        self._flush()

    def line(self, line: str) -> None:
        """A line."""
        self.text(f"{line}\n")

    def step(self, number: int, count: int, source: str) -> None:
        """A step begins."""
        self.line(f"Step {number}/{count} : {source}")

    def arrow(self, words: str) -> None:
        """What has become of it: an id, or where that comes from."""
        self.line(f" ---> {words}")

    def close(self) -> None:
        """Nothing more comes."""


class Bar(Output):
    """In a terminal: the same lines, and below them how far it is."""

    def __init__(self, to: TextIO) -> None:
        super().__init__(to)
        self._to = to
        self._bar: Any = None
        self._rest = ""

    def text(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            # Above the bar, which is drawn again after each.
            tqdm.write(line.rstrip("\r").rpartition("\r")[2], file=self._to)

    def step(self, number: int, count: int, source: str) -> None:
        if self._bar is None:
            self._bar = tqdm(total=count, file=self._to, leave=False, bar_format="{n_fmt}/{total_fmt} |{bar}| {elapsed} {desc}")
        self._bar.n = number - 1
        self._bar.set_description_str(source[:40])
        super().step(number, count, source)

    def close(self) -> None:
        if self._rest:
            self.line("")
        if self._bar is not None:
            self._bar.close()


def automatic(to: TextIO | None = None) -> Output:
    """A bar where somebody sees it move."""
    stream = sys.stdout if to is None else to
    return Bar(stream) if stream.isatty() else Output(stream)
