"""How a flag prints itself: by the name that the kernel's headers give it, MS_REC|MS_PRIVATE."""

from enum import IntEnum, IntFlag


class Flags(IntFlag):
    """Bits that may be joined by |. A class MS with a member REC prints MS_REC, unless a __prefix__ says otherwise."""

    __prefix__ = ""

    @classmethod
    def header_name(cls, name: str) -> str:
        return (cls.__prefix__ or f"{cls.__name__}_") + name

    @classmethod
    def unnamed(cls, bits: int) -> str:
        return hex(bits)

    def __str__(self) -> str:
        return shown(self)

    def __repr__(self) -> str:
        return shown(self)


class Constants(IntEnum):
    """Values of which one is chosen."""

    __prefix__ = ""

    @classmethod
    def header_name(cls, name: str) -> str:
        return (cls.__prefix__ or f"{cls.__name__}_") + name

    def __str__(self) -> str:
        return shown(self)

    def __repr__(self) -> str:
        return shown(self)


def shown(value: int) -> str:
    """A flag as a C programmer writes it; unknown bits in hexadecimal."""
    if isinstance(value, Flags):
        return _shown_flags(value)
    if isinstance(value, Constants):
        return value.header_name(value.name)
    if isinstance(value, IntEnum):  # signal.SIGTERM and the like
        return value.name
    return str(int(value))


def _shown_flags(flags: Flags) -> str:
    kind, left, names = type(flags), int(flags), list[tuple[int, str]]()
    if left == 0:
        return next((kind.header_name(name) for name, member in kind.__members__.items() if member == 0), "0")
    # Widest first: SOCK_RAW is 3, and not SOCK_STREAM|SOCK_DGRAM.
    for name, member in sorted(kind.__members__.items(), key=lambda item: -int(item[1]).bit_count()):
        bits = int(member)
        if bits and left & bits == bits:
            names.append((bits, kind.header_name(name)))
            left &= ~bits
    named = [name for _, name in sorted(names)]
    return "|".join([*named, kind.unnamed(left)] if left else named)
