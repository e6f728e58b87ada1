"""What a machine shows of itself: its registers, and why its processor came out of the guest; numbers as the manuals write them."""

from collections.abc import Callable
from typing import NamedTuple

from tabulate import tabulate

from kernel_lab.kernel.table import Table
from kernel_lab.machines.kvm_code import START

OPEN_BUS = -1  # what a PC reads where nothing answers: all ones


class Hex(int):
    """A number that shows itself as 0x2a."""

    def __repr__(self) -> str:
        return hex(self)

    __str__ = __repr__


class Exit(NamedTuple):
    """Why the processor came back. Of a port or an address also: `in` or `out`, which one, how many bytes, and which number they are."""

    reason: str
    direction: str = ""
    address: Hex | str = ""
    size: int | str = ""
    value: Hex | str = ""


class Change(NamedTuple):
    """A register before and after."""

    register: str
    before: Hex
    after: Hex


class Registers(NamedTuple):
    """The general registers of x86-64, as struct kvm_regs has them; outside 64-bit mode, the lower part of the first eight."""

    rax: int = Hex(0)
    rbx: int = Hex(0)
    rcx: int = Hex(0)
    rdx: int = Hex(0)
    rsi: int = Hex(0)
    rdi: int = Hex(0)
    rsp: int = Hex(START)
    rbp: int = Hex(0)
    r8: int = Hex(0)
    r9: int = Hex(0)
    r10: int = Hex(0)
    r11: int = Hex(0)
    r12: int = Hex(0)
    r13: int = Hex(0)
    r14: int = Hex(0)
    r15: int = Hex(0)
    rip: int = Hex(START)
    rflags: int = Hex(2)  # bit 1 is always set

    def _printed(self, form: str) -> str:
        pairs = [(name, Hex(value)) for name, value in self._asdict().items()]
        return tabulate([pairs[row] + pairs[row + 6] + pairs[row + 12] for row in range(6)], tablefmt=form, disable_numparse=True)

    def __repr__(self) -> str:
        return self._printed("plain")

    def _repr_html_(self) -> str:
        return self._printed("html")

    def changes(self, after: "Registers") -> Table[Change]:
        """The registers in which `after` differs."""
        pairs = zip(self._fields, self, after, strict=True)
        return Table(Change(name, Hex(old), Hex(new)) for name, old, new in pairs if old != new)


Device = Callable[[Exit], int | None]


def nobody(asked: Exit) -> int:
    """The device where there is none."""
    return OPEN_BUS


def access(device: Device, reason: str, out: bool, address: int, data: bytes) -> Exit:
    """What the guest has asked the device, with what it answered. An answer of None is that of nobody."""
    size = len(data)
    asked = Exit(reason, "out" if out else "in", Hex(address), size, Hex(int.from_bytes(data, "little")) if out else "")
    answer = device(asked)
    return asked if out else asked._replace(value=Hex((OPEN_BUS if answer is None else answer) & (1 << 8 * size) - 1))
