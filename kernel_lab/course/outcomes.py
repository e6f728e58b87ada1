"""What the steps of `./lab test` came to: counted from pytest's own report, with the reason of every skip."""

import ast
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from tabulate import tabulate

NO_TESTS = 5  # pytest's exit status where it found none


@dataclass(frozen=True)
class Outcome:
    passed: int = 0
    failed: int = 0
    skips: Counter[str] = field(default_factory=Counter)  # reason → how often

    @property
    def skipped(self) -> int:
        return self.skips.total()

    def __add__(self, other: "Outcome") -> "Outcome":
        return Outcome(self.passed + other.passed, self.failed + other.failed, self.skips + other.skips)


@dataclass(frozen=True)
class Finished:
    step: str
    outcome: Outcome
    seconds: float


def of_pytest(code: int, report: Path) -> Outcome:
    """From its report in JUnit's XML. A pytest that wrote none, or that is unhappy although no test failed, counts as one failure."""
    try:
        cases = list(ElementTree.parse(report).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return Outcome(failed=1)
    # A test whose teardown fails too is there twice.
    names = {_name(case) for case in cases}
    failed = {_name(case) for case in cases if case.find("failure") is not None or case.find("error") is not None}
    skips = {_name(case): _reason(skip) for case in cases if (skip := case.find("skipped")) is not None and _name(case) not in failed}
    unhappy = code not in (0, NO_TESTS) and not failed
    return Outcome(len(names) - len(failed) - len(skips), len(failed) + unhappy, Counter(skips.values()))


def _name(case: ElementTree.Element) -> tuple[str, str]:
    return case.get("classname", ""), case.get("name", "")


def _reason(skip: ElementTree.Element) -> str:
    message = skip.get("message", "")
    if message == "collection skipped":  # a whole file's: the reason is the last of a printed triple
        message = str(ast.literal_eval(skip.text or "('',)")[-1])
    return " ".join(message.removeprefix("Skipped: ").split())


def expected(text: str) -> dict[str, set[str]]:
    """Step → reasons, from lines of the form `step: reason`."""
    listed: dict[str, set[str]] = {}
    for line in text.splitlines():
        step, colon, reason = line.partition(": ")
        if colon and not line.startswith("#"):
            listed.setdefault(step, set()).add(reason.strip())
    return listed


def unexpected(finished: Iterable[Finished], listed: Mapping[str, set[str]]) -> list[str]:
    return [f"{each.step}: {reason}" for each in finished for reason in each.outcome.skips if reason not in listed.get(each.step, set())]


def vanished(finished: Iterable[Finished], listed: Mapping[str, set[str]]) -> list[str]:
    seen = {each.step: set(each.outcome.skips) for each in finished}
    return [f"{step}: {reason}" for step, reasons in listed.items() for reason in sorted(reasons - seen.get(step, set()))]


def summary(finished: Iterable[Finished]) -> str:
    """The table of steps, that of skips, and the line that counts."""
    done = list(finished)
    total = sum((each.outcome for each in done), Outcome())
    rows = [(each.step, each.outcome.passed, each.outcome.failed, each.outcome.skipped, f"{each.seconds:.1f}") for each in done]
    steps = tabulate(rows, headers=("step", "passed", "failed", "skipped", "seconds"), colalign=("left", *["right"] * 4))
    skips = [(each.step, times, reason) for each in done for reason, times in sorted(each.outcome.skips.items())]
    why = tabulate(skips, headers=("step", "skipped", "reason"))
    counts = f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped"
    return "\n\n".join([steps, *([why] if skips else []), counts])
