"""A rule of the kernel that a call may break, as data."""

from collections.abc import Callable
from dataclasses import dataclass

from kernel_lab.kernel.errors import Asked
from kernel_lab.kernel.rules.machine import Context


@dataclass(frozen=True)
class Why:
    """The rule that was broken, and where to look or what to do."""

    rule: str
    look: str


@dataclass(frozen=True)
class Rule:
    """`why` answers when this is the rule that was broken, and with None when it is not. Without calls it may be any call's."""

    calls: frozenset[str]
    errnos: frozenset[int]
    why: Callable[[Asked, Context], Why | None]

    def asked(self, row: Asked, errno: int, context: Context) -> Why | None:
        if errno not in self.errnos or (self.calls and row.call not in self.calls):
            return None
        return self.why(row, context)


When = Callable[[Asked, Context], bool]


def found(calls: str, errnos: int | tuple[int, ...], why: Callable[[Asked, Context], Why | None]) -> Rule:
    """A rule whose words depend on what was asked."""
    return Rule(frozenset(calls.split()), frozenset((errnos,) if isinstance(errnos, int) else errnos), why)


def says(calls: str, errnos: int | tuple[int, ...], rule: str, look: str, when: When | None = None) -> Rule:
    """A rule with fixed words; `when` tells it from the others of the same call and errno."""
    return found(calls, errnos, lambda row, context: Why(rule, look) if when is None or when(row, context) else None)
