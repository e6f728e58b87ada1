"""What the steps of `./lab test` came to: counted from pytest's own report, with the reason of every skip."""

import ast
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from tabulate import tabulate


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
    """From the report in JUnit's XML; a pytest that wrote none, or failed with all its tests passed, counts as one failure."""
    try:
        cases = list(ElementTree.parse(report).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return Outcome(failed=1)
    # One test is two cases when it and then its teardown fail.
    names = {(case.get("classname"), case.get("name")) for case in cases}
    failed = {(case.get("classname"), case.get("name")) for case in cases if case.find("failure") is not None or case.find("error") is not None}
    skips = Counter(_reason(skip) for case in cases if (skip := case.find("skipped")) is not None)
    good = code in (0, NO_TESTS)
    return Outcome(len(names) - len(failed) - skips.total(), len(failed) or (0 if good else 1), skips)


NO_TESTS = 5  # pytest's exit status where it found none


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
