"""`./lab test`: every check of the kit, one step after the other, all of them even when one fails, and then what they came to."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from kernel_lab.cleanup import leftovers
from kernel_lab.course.notebook import find
from kernel_lab.course.ordinary import NAME, inside, ordinary_user, readable
from kernel_lab.course.outcomes import Finished, Outcome, expected, of_pytest, summary, unexpected, vanished

ROOT = Path(__file__).parents[2]
EXPECTED_SKIPS = "tests/expected-skips.txt"
LONG = ("08", "09")  # labs that measure, and take their time for it
Run = Callable[[], Outcome]


@dataclass(frozen=True)
class Suite:
    """The steps for one checkout: `scratch` is a folder for what they write, `arguments` go to every pytest."""

    project: Path
    scratch: Path
    quick: bool = False
    arguments: tuple[str, ...] = ()
    python: str = sys.executable
    account: str = NAME

    def steps(self) -> list[tuple[str, Run]]:
        if self.arguments:
            return [("tests", lambda: self.pytest(*self.arguments))]
        if os.geteuid() != 0:
            print("You are an ordinary user: tests run rootless, and labs run without a comparison of what they print (that is root's).")
        return [
            ("ruff", lambda: self.module("ruff", "check", "--no-cache", ".")),
            ("mypy", lambda: self.module("mypy")),
            ("build --check", lambda: self.module("kernel_lab.course.build", "--check")),
            ("unit", lambda: self.pytest("tests/unit")),
            ("kernel", lambda: self.pytest("tests/kernel")),
            *(self._as_root() if os.geteuid() == 0 else [("labs", self.labs), ("solutions", lambda: self.labs("--solutions"))]),
            ("cleanup", self.cleanup),
        ]

    def _as_root(self) -> list[tuple[str, Run]]:
        if self.quick:
            return [("notebooks", self.notebooks)]
        return [
            ("kernel, ordinary user", self.rootless),
            ("labs", self.labs),
            ("notebooks", self.notebooks),
            # What the first pass left behind would show here.
            ("notebooks again", self.notebooks),
        ]

    def module(self, *argv: str) -> Outcome:
        return _verdict(self._run([self.python, "-m", *argv]).returncode)

    def pytest(self, *argv: str) -> Outcome:
        report = self.scratch / "report.xml"
        report.unlink(missing_ok=True)
        return of_pytest(self._run(self._pytest(self.python, report, *argv)).returncode, report)

    def rootless(self) -> Outcome:
        """The kernel tests again, as an ordinary user who is made for them."""
        if not shutil.which("useradd"):
            return Outcome(skips=Counter({"needs useradd: not on the PATH": 1}))
        with ordinary_user(self.account) as user, readable(self.project, user) as project:
            interpreter = inside(project, self.project, Path(self.python))
            report = user.home / "report.xml"
            code = user.run(self._pytest(str(interpreter), report, "tests/kernel"), project)
            return of_pytest(code, report)

    def labs(self, *options: str) -> Outcome:
        """Every lab once, as `./lab run` does it."""
        done = self._run([self.python, "-m", "kernel_lab.course.run", "--json", *options], stdout=subprocess.PIPE)
        try:
            results = {each["lab"]: each["result"] for each in json.loads(done.stdout)}
        except ValueError:
            return Outcome(failed=1)
        for lab, result in results.items():
            print(f"{lab}: {result}")
        good = sum(result == "ok" for result in results.values())
        return Outcome(good, len(results) - good)

    def notebooks(self) -> Outcome:
        """Every cell prints what is committed."""
        labs = [lab for lab in find(labs=self.project / "labs") if not (self.quick and lab.number in LONG)]
        paths = [path for lab in labs for path in (lab.learner, lab.solved) if path.exists()]
        return self.pytest("--nbval", "--nbval-cell-timeout=120", *map(str, paths)) if paths else Outcome()

    def cleanup(self) -> Outcome:
        """`klab cleanup` has nothing to do: no step left anything of the kit's behind."""
        found = leftovers()
        for each in found:
            print(f"{each.kind} {each.name}: {each.why}")
        return Outcome(failed=len(found)) if found else Outcome(passed=1)

    def _pytest(self, python: str, report: Path, *argv: str) -> list[str]:
        quick = ["-m", "not slow"] if self.quick else []
        return [python, "-m", "pytest", "-q", f"--junitxml={report}", *quick, *argv]

    def _run(self, argv: Sequence[str], stdout: int | None = None) -> "subprocess.CompletedProcess[str]":
        # The owner's own settings of IPython, Jupyter and matplotlib would change what a notebook prints.
        own = {name: str(self.scratch / name) for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "MPLCONFIGDIR")}
        quick = {"KERNEL_LAB_QUICK": "1"} if self.quick else {}
        return subprocess.run(argv, cwd=self.project, env=os.environ | own | quick, stdout=stdout, text=True, stdin=subprocess.DEVNULL, check=False)


def _verdict(code: int) -> Outcome:
    return Outcome(passed=1) if code == 0 else Outcome(failed=1)


def run(steps: Iterable[tuple[str, Run]]) -> list[Finished]:
    """Run every step under a heading; one that raises has failed, and the next goes on."""
    return [_finish(name, step) for name, step in steps]


def _finish(name: str, step: Run) -> Finished:
    print(f"\n── {name} " + "─" * (76 - len(name)), flush=True)
    begun = time.monotonic()
    try:
        outcome = step()
    except Exception:
        traceback.print_exc()
        outcome = Outcome(failed=1)
    seconds = time.monotonic() - begun
    if outcome == Outcome():
        print("0 tests")
    print(f"({name}: {seconds:.1f} s)", flush=True)
    return Finished(name, outcome, seconds)


def expected_skips(finished: Sequence[Finished], listed: str) -> Outcome:
    """Nothing is skipped by accident: on the machine that decides, every reason is one that was written down."""
    expectation = expected(listed)
    for line in vanished(finished, expectation):
        print(f"expected, and not seen this time: {line}")
    surprises = unexpected(finished, expectation)
    for line in surprises:
        print(f"not in {EXPECTED_SKIPS}: {line}")
    return Outcome(failed=len(surprises)) if surprises else Outcome(passed=1)


def conclude(finished: Sequence[Finished], listed: str | None) -> int:
    """Print what the steps came to, their skips compared with those that are listed, and give the exit status."""
    done = list(finished)
    if listed is not None:
        done += run([("expected skips", lambda: expected_skips(finished, listed))])
    print(f"\n{summary(done)}", flush=True)
    return 1 if any(each.outcome.failed for each in done) else 0


def main(argv: Sequence[str] | None = None, project: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(prog="lab test", description="Every test, or only those that pytest's arguments name.", allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="leave out slow tests, the ordinary user, long labs and the second pass of notebooks")
    asked, arguments = parser.parse_known_args(argv)
    with _ended_by_signals(), tempfile.TemporaryDirectory(prefix="klab-suite-") as scratch:
        finished = run(Suite(project, Path(scratch), asked.quick, tuple(arguments)).steps())
        decides = os.environ.get("CI") == "true" and not arguments
        return conclude(finished, (project / EXPECTED_SKIPS).read_text() if decides else None)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the suite as Ctrl-C does: with the ordinary user taken away."""

    def leave(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    raise SystemExit(main())
