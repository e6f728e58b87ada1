"""`./lab vm test`: in the lab VM, what can come out differently there: control groups of version 2 alone, under a systemd that delegates."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from kernel_lab.course.notebook import find
from kernel_lab.course.outcomes import Outcome, of_pytest
from kernel_lab.course.suite import ROOT, Run
from kernel_lab.machines.labvm import LabVM

REPORT = "$HOME/report.xml"  # for the shell there
# Not each of a thousand tests: those of what another kernel, systemd's mounts and control groups of version 2 alone may change.
LIMITS = ("cgroup", "cgroup_exec", "cgroup_lifetime", "cli_limits", "container")
KERNEL = (*LIMITS, "kvm", "mount", "net", "overlay", "user")
LABS = (*(f"{number:02}" for number in range(10)), "17")  # the others do not ask the kernel what differs
SHOWS_THE_MACHINE = "08"  # where its controllers are: right with either version, and not the same
# What has been delegated may not hold processes itself (cgroups(7)). The shell goes beforehand to where the kit would move it, for the audit's sake.
DELEGATED = """systemd-run --user --scope --quiet -p Delegate=yes sh -c '
group=/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)
mkdir "$group/klab-creators" && echo $$ >"$group/klab-creators/cgroup.procs" && exec "$@"' sh"""


@dataclass(frozen=True)
class Suite:
    """The steps in one machine; `scratch` is a folder here for what they report."""

    machine: LabVM
    scratch: Path

    def steps(self) -> list[tuple[str, Run]]:
        return [
            ("kernel", lambda: self.kernel(KERNEL)),
            ("limits, delegated", lambda: self.kernel(LIMITS, user="learner", within=DELEGATED)),
            ("notebooks", self.notebooks),
            ("lab 08", lambda: self.lab(SHOWS_THE_MACHINE)),
            ("lab 08, solved", lambda: self.lab(SHOWS_THE_MACHINE, "--solutions")),
        ]

    def kernel(self, names: tuple[str, ...], **how: str) -> Outcome:
        return self.pytest("-m", "not slow", *(f"tests/kernel/test_{name}.py" for name in names), **how)

    def notebooks(self) -> Outcome:
        """Every cell prints what is committed, with version 2 as with version 1."""
        compared = [lab.learner for lab in find() if lab.number in LABS and lab.number != SHOWS_THE_MACHINE and lab.learner.exists()]
        return self.pytest("--nbval", "--nbval-cell-timeout=300", *(str(path.relative_to(ROOT)) for path in compared))

    def lab(self, number: str, *options: str) -> Outcome:
        """Its own checks and its audit are content."""
        return Outcome(passed=1) if self.machine.run(shlex.join(["./lab", "run", number, *options])).returncode == 0 else Outcome(failed=1)

    def pytest(self, *arguments: str, user: str = "root", within: str = "") -> Outcome:
        report = self.scratch / "report.xml"
        command = f"KERNEL_LAB_QUICK=1 {within} ./lab python -m pytest -q --junitxml={REPORT} {shlex.join(arguments)}"
        code = self.machine.run(f"rm -f {REPORT} && {command}", user).returncode
        report.write_text(self.machine.run(f"cat {REPORT}", user, capture=True).stdout)
        return of_pytest(code, report)
