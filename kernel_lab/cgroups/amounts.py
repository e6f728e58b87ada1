"""Numbers with units, as limits are written: 64M, 1.5G, and `max` for no limit."""

import math
import re
from collections.abc import Callable

from kernel_lab.kernel.errors import UsageError

# Docker's spelling (RAMInBytes of docker/go-units): units are powers of 1024, in either case, with or without a B or an iB behind.
SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(?:([kmgt])i?)?b?", re.IGNORECASE)
UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
UNLIMITED = 2**63 - 1
Size = int | str


def size(value: Size, what: str, *, least: int = 0, most: int = UNLIMITED - 1, why: str = "") -> int:
    """Bytes. Raises UsageError for what is no size, or is not between `least` and `most`; `why` names the rule behind these."""
    if value == "max":
        return UNLIMITED
    found = SIZE.fullmatch(str(value)) if isinstance(value, int | str) and not isinstance(value, bool) else None
    if not found:
        raise UsageError(f"{what}={value!r}: a size is a number of bytes, with a unit k, M, G or T if you like (64M, 1.5G), or 'max'")
    amount = float(found[1]) if "." in found[1] else int(found[1])
    given = f"{what}={value!r}" if found[2] else f"{what}={value!r} (bytes)"
    return _between(int(amount * 1024 ** UNITS[(found[2] or "").lower()]), given, least, most, why, shown)


def number(value: int | str, what: str, *, least: int, most: int, unlimited: bool = False, why: str = "") -> int:
    """A whole number. Raises UsageError for what is none, or is not between `least` and `most`; `unlimited`: whether it may be `max`."""
    if unlimited and value == "max":
        return UNLIMITED
    if isinstance(value, bool) or not isinstance(value, int | str) or not re.fullmatch(r"-?[0-9]+", str(value)):
        raise UsageError(f"{what}={value!r}: it is a whole number from {least} to {most}{', or max' if unlimited else ''}")
    return _between(int(value), f"{what}={value!r}", least, most, why, str)


def fraction(value: float | str, what: str, *, least: float, most: float, why: str = "") -> float:
    """A number with or without decimals, infinite for `max`. Raises UsageError as `number`."""
    try:
        amount = math.inf if value == "max" else float(value)
    except (TypeError, ValueError):
        amount = math.nan
    if isinstance(value, bool) or math.isnan(amount) or (math.isinf(amount) and value != "max"):
        raise UsageError(f"{what}={value!r}: it is a number, with decimals if you like (0.5), or 'max'")
    if amount != math.inf and not least <= amount <= most:
        raise UsageError(f"{what}={value!r}: it must be between {least} and {most}: {why}")
    return amount


def _between(amount: int, given: str, least: int, most: int, why: str, form: Callable[[int], str]) -> int:
    if not least <= amount <= most:
        raise UsageError(f"{given}: it must be between {form(least)} and {form(most)}{f': {why}' if why else ''}")
    return amount


def shown(amount: int) -> str:
    """Bytes with the largest unit that leaves no remainder, and `max`."""
    if amount >= UNLIMITED:
        return "max"
    power = next((power for power in (4, 3, 2, 1) if amount and amount % 1024**power == 0), 0)
    return f"{amount // 1024**power}{' kMGT'[power].strip()}"
