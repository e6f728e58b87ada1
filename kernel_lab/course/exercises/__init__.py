"""Exercises: a check looks at what the kernel says about a learner's answer, and chooses one hint by the state that it found.

The checks of lab NN live in `lab_NN.py` beside this file. A check is a function that gets the answer, tries it, and returns what was observed
(a `str`: the answer is right) or `not_yet(state, saw)`: the name of one of the exercise's hints and, where it helps, what was seen.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from kernel_lab.course.exercises.blank import is_blank
from kernel_lab.course.limit import OutOfTime, limit
from kernel_lab.kernel.errors import UsageError

STRICT = "KERNEL_LAB_STRICT"
HINTS = 3  # the fewest that an exercise may have
SECONDS = 30.0  # far more than a container takes to start on a busy machine, and short enough to wait for


class State(Enum):
    BLANK = "○"
    NOT_YET = "✗"
    DONE = "✓"


@dataclass(frozen=True)
class NotYet:
    """What a check returns for an answer that is not right: the state it found, and what it saw."""

    state: str
    saw: str = ""


def not_yet(state: str, saw: str = "") -> NotYet:
    return NotYet(state, saw)


@dataclass(frozen=True)
class Verdict:
    number: str
    state: State
    text: str
    hint: str = ""  # the name of the hint that was given

    def __str__(self) -> str:
        return f"{self.state.value} {self.number} {self.text}"


@dataclass(eq=False)
class Exercise:
    number: str
    wants: str
    hints: Mapping[str, str]
    looks: Callable[[Any], str | NotYet]
    accepts: Callable[[Any], bool]
    seconds: float
    right: Sequence[object] = ()
    wrong: Mapping[str, Sequence[object]] = field(default_factory=dict)
    blank: Sequence[object] = (...,)

    def answers(self, right: Sequence[object], wrong: Mapping[str, Sequence[object]], blank: Sequence[object] = ()) -> None:
        """The answers that prove the check itself: right ones, wrong ones by the hint that each must get, and further blank ones."""
        self.right, self.wrong, self.blank = right, wrong, (..., *blank)

    def judge(self, answer: object) -> Verdict:
        """Never raises, whatever the answer does; the learner's own interrupt passes."""
        if is_blank(answer):
            return Verdict(self.number, State.BLANK, f"not tried yet: this wants {self.wants}")
        try:
            with limit(self.seconds):
                if not self.accepts(answer):
                    return self._no(f"this wants {self.wants}, and got {_named(answer)}")
                return self._verdict(self.looks(answer))
        except OutOfTime as late:
            return self._no(f"{late}: does it loop, or wait for something that never comes?")
        except (Exception, SystemExit) as error:
            return self._no(f"the try ended in {type(error).__name__}: {_one_line(error)}")

    def _verdict(self, found: str | NotYet) -> Verdict:
        if isinstance(found, str):
            return Verdict(self.number, State.DONE, found)
        return self._no(" ".join(filter(None, (found.saw and f"{found.saw.rstrip('.')}.", self.hints[found.state]))), found.state)

    def _no(self, text: str, hint: str = "") -> Verdict:
        return Verdict(self.number, State.NOT_YET, f"not yet: {text}", hint)


def _named(answer: object) -> str:
    return f"the class {answer.__name__}" if isinstance(answer, type) else f"{_one_line(repr(answer))[:60]} ({type(answer).__name__})"


def _one_line(thing: object) -> str:
    return " ".join(str(thing).split())


EXERCISES: dict[str, Exercise] = {}
_done: dict[str, object] = {}


def exercise(
    number: str, *, wants: str, hints: Mapping[str, str], accepts: Callable[[Any], bool] = lambda answer: True, seconds: float = SECONDS
) -> Callable[[Callable[[Any], str | NotYet]], Exercise]:
    """Make an exercise of the check function below it.

    `hints`: state → where to look, at least three; `accepts`: is the answer of the wanted kind at all?
    """
    if not re.fullmatch(r"\d\d\.\d+", number):
        raise UsageError(f"exercise {number!r}: its number is the lab's two digits, a dot and a number, as in 02.1")
    if len({text.strip() for text in hints.values()} - {""}) < max(HINTS, len(hints)):
        raise UsageError(f"exercise {number}: at least {HINTS} hints are needed, each with a text of its own")

    def register(looks: Callable[[Any], str | NotYet]) -> Exercise:
        EXERCISES[number] = Exercise(number, wants, hints, looks, accepts, seconds)
        return EXERCISES[number]

    return register


def of_lab(lab: str) -> list[Exercise]:
    """The exercises of lab "02"; none if it has no module of checks."""
    name = f"{__name__}.lab_{lab}"
    if find_spec(name):
        import_module(name)
    return [found for number, found in sorted(EXERCISES.items()) if number.startswith(f"{lab}.")]


def find(number: str) -> Exercise:
    found = {each.number: each for each in of_lab(number.partition(".")[0])}
    if number not in found:
        raise UsageError(f"there is no exercise {number!r}; this lab has {', '.join(found) or 'none'}")
    return found[number]


def check(number: str, answer: object) -> None:
    """Print what the check of exercise `number` says about the answer. Raises only where KERNEL_LAB_STRICT=1 wants every answer right."""
    verdict = find(number).judge(answer)
    _done.pop(number, None)
    if verdict.state is State.DONE:
        _done[number] = answer
    print(verdict)
    if os.environ.get(STRICT) == "1" and verdict.state is not State.DONE:
        raise AssertionError(str(verdict))


def yours(number: str, otherwise: Any) -> Any:
    """The learner's answer where its check said ✓, else the package's own: the lab goes on either way."""
    return _done.get(number, otherwise)
