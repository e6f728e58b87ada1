"""What stands in where there is no /dev/kvm: the guest's instructions one by one, in Python. That is full emulation, and needs no help at all.

    with Emulated(code) as vm:          # as Machine(code) of kernel_lab.machines.kvm, in real mode
        print(vm.run())

It knows the instructions of the labs' small guests (Intel's manual 2, 16 bits), and of the flags the zero flag alone. The processor that it
imitates may be another than the one that it runs on.
"""

import time
from collections.abc import Callable

from kernel_lab.kernel.errors import UsageError
from kernel_lab.kernel.table import Table
from kernel_lab.machines.kvm_code import START, check
from kernel_lab.machines.kvm_exits import Device, Exit, Hex, Registers, access, nobody

NAMES = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")  # in the order in which instructions number them
AX, CX, DX, SI = 0, 1, 2, 6
ZERO = 1 << 6  # the flag's place in rflags
TWO_REGISTERS = 0xC0  # the byte after the opcode: its highest bits say that both operands are registers
MEMORY = 1 << 16
LOOK = 256  # instructions between two looks at the clock

OPERATIONS: dict[int, Callable[[int, int], int]] = {
    0x01: lambda a, b: a + b,
    0x29: lambda a, b: a - b,
    0x31: lambda a, b: a ^ b,
    0x39: lambda a, b: a - b,  # cmp: the flag alone
    0x89: lambda a, b: b,  # mov: no flag
}
JUMPS: dict[int, Callable[["Emulated"], bool]] = {
    0x74: lambda self: self.zero,
    0x75: lambda self: not self.zero,
    0xE2: lambda self: self._counted(),
    0xEB: lambda self: True,
}


class Emulated:
    """A machine whose processor is this class, with the 64 KB that 16-bit addresses reach. Raises UsageError for code that cannot be."""

    def __init__(self, code: bytes) -> None:
        check(code, MEMORY, MEMORY, MEMORY)
        self.memory = bytearray(MEMORY)
        self.memory[START : START + len(code)] = code
        self.registers = Registers()

    def __enter__(self) -> "Emulated":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def registers(self) -> Registers:
        values = dict(zip(NAMES, map(Hex, self.file), strict=True))
        return Registers(**values, rip=Hex(self.ip), rflags=Hex(2 | ZERO * self.zero))

    @registers.setter
    def registers(self, new: Registers) -> None:
        self.file: list[int] = [getattr(new, name) & 0xFFFF for name in NAMES]
        self.ip: int = new.rip
        self.zero: bool = bool(new.rflags & ZERO)

    def run(self, device: Device = nobody, *, exits: int = 1000, seconds: float = 5.0) -> Table[Exit]:
        """As Machine.run does. Raises UsageError at an instruction that it does not know."""
        seen: list[Exit] = []
        end = time.monotonic() + seconds
        while len(seen) < exits and (not seen or seen[-1].direction):
            for _ in range(LOOK):
                if (happened := self._step(device)) is not None:
                    seen.append(happened)
                    break
            else:
                if time.monotonic() > end:
                    seen.append(Exit("intr"))
        return Table(seen)

    def _step(self, device: Device) -> Exit | None:
        """One instruction: fetch, decode, execute."""
        at, opcode = self.ip, self._fetch()
        low = opcode & 7
        match opcode:
            case 0x90:
                pass
            case 0xF4:
                return Exit("hlt")
            case 0xAC:  # lodsb
                self._set_byte(AX, self.memory[self.file[SI]])
                self._set(SI, self.file[SI] + 1)
            case 0x01 | 0x29 | 0x31 | 0x39 | 0x89:
                self._operate(opcode, self._fetch())
            case 0x74 | 0x75 | 0xE2 | 0xEB:
                distance = self._fetch() ^ 0x80
                if JUMPS[opcode](self):
                    self.ip = self.ip + distance - 0x80 & 0xFFFF
            case _ if opcode & ~7 in (0x40, 0x48):  # inc, dec
                self._set(low, self.file[low] + (1 if opcode < 0x48 else -1), flag=True)
            case _ if opcode & ~7 == 0xB0:  # mov of a byte
                self._set_byte(low, self._fetch())
            case _ if opcode & ~7 == 0xB8:  # mov
                self._set(low, self._fetch() | self._fetch() << 8)
            case _ if opcode & ~0xB == 0xE4:  # in and out
                return self._port(device, opcode, self.file[DX] if opcode & 8 else self._fetch())
            case _:
                raise UsageError(f"{opcode:#04x} at {at:#x}: an instruction that this emulator does not know")
        return None

    def _fetch(self) -> int:
        byte = self.memory[self.ip]
        self.ip = self.ip + 1 & 0xFFFF
        return byte

    def _operate(self, opcode: int, operands: int) -> None:
        if operands < TWO_REGISTERS:
            raise UsageError(f"{opcode:#04x} {operands:#04x} before {self.ip:#x}: this emulator knows it with two registers alone")
        source, target = operands >> 3 & 7, operands & 7
        result = OPERATIONS[opcode](self.file[target], self.file[source])
        if opcode == 0x39:
            self.zero = not result & 0xFFFF
        else:
            self._set(target, result, flag=opcode != 0x89)

    def _port(self, device: Device, opcode: int, port: int) -> Exit:
        size, out = 1 + (opcode & 1), bool(opcode & 2)
        happened = access(device, "io", out, port, self.file[AX].to_bytes(2, "little")[:size])
        if not out:
            self._set(AX, int(happened.value) | (self.file[AX] & 0xFF00 if size == 1 else 0))
        return happened

    def _set(self, register: int, value: int, flag: bool = False) -> None:
        self.file[register] = value & 0xFFFF
        if flag:
            self.zero = not value & 0xFFFF

    def _set_byte(self, register: int, value: int) -> None:
        """The first four byte registers are the low halves of the first four registers, the others their high halves."""
        half, shift = register & 3, 8 * (register >> 2)
        self.file[half] = self.file[half] & ~(0xFF << shift) | value << shift

    def _counted(self) -> bool:
        """What `loop` asks: one less in cx, and is there any left."""
        self._set(CX, self.file[CX] - 1)
        return bool(self.file[CX])
