"""What the kernel's no means: a table of rules, asked in order; the first that fits the row and the machine explains it."""

from dataclasses import dataclass

from kernel_lab.kernel.errors import Asked, KernelError
from kernel_lab.kernel.flags import CLONE, shown
from kernel_lab.kernel.rules.machine import Context, Machine
from kernel_lab.kernel.rules.mounts import MOUNTS
from kernel_lab.kernel.rules.namespaces import NAMESPACES
from kernel_lab.kernel.rules.others import OTHERS
from kernel_lab.kernel.rules.programs import PROGRAMS
from kernel_lab.kernel.rules.rule import Rule, Why

__all__ = ["RULES", "Context", "Machine", "Rule", "Why", "clone_refused", "refused", "why"]

RULES = (*NAMESPACES, *MOUNTS, *PROGRAMS, *OTHERS)


@dataclass(frozen=True)
class _Clone:
    """The clone that makes the process itself, which is no row of its table."""

    args: tuple[CLONE]
    call: str = "clone3"

    def __str__(self) -> str:
        return f"clone3({{{shown(self.args[0])}}})"


def why(row: Asked, errno: int, context: Context | None = None) -> Why | None:
    """The rule that the row broke, or None when nobody has written it down."""
    stood_in = context or Context()
    answers = (rule.asked(row, errno, stood_in) for rule in RULES)
    return next((answer for answer in answers if answer), None)


def refused(row: Asked, index: int | None, errno: int, context: Context | None = None) -> KernelError:
    """The error of a refused row: `index` is its place in the table, None for a call that the creator made itself."""
    found = why(row, errno, context)
    return KernelError(errno, str(row), index=index, row=row, rule=found.rule if found else "", look=found.look if found else "")


def clone_refused(errno: int, flags: CLONE, machine: Machine | None = None) -> KernelError:
    """The error of a process that could not be made in new namespaces of these kinds."""
    return refused(_Clone((flags,)), None, errno, Context(flags, machine=machine or Machine()))
