"""Runs machine code of both processors without either: Unicorn executes it, and a function of the test plays the kernel."""

from collections.abc import Callable
from dataclasses import dataclass, field

import unicorn
from unicorn import UC_PROT_EXEC, UC_PROT_READ, UC_PROT_WRITE, Uc, arm64_const, x86_const

CODE, DATA, STACK, HALT = 0x10000, 0x200000, 0x7FFF0000, 0x50000  # any pages would do: the code must not depend on where it is
SPACE = 0x10000
WORD = 2**64 - 1
GARBAGE = 0xDEAD_BEEF_DEAD_BEEF


class Ended(Exception):
    """Raised by the test's kernel when the process is no more."""


@dataclass(frozen=True)
class Processor:
    """What the test has to know of a processor: its registers in the roles that the kernel's and C's conventions give them."""

    name: str
    unicorn: tuple[int, int]
    number: int
    arguments: tuple[int, ...]  # of a system call
    parameters: tuple[int, ...]  # of a C function
    answer: int
    stack: int
    saved: tuple[int, ...]  # by the callee
    general: tuple[int, ...]
    lost: tuple[int, ...]  # in a system call
    calls: dict[str, int] = field(hash=False)


def registers(module: object, prefix: str, names: str) -> tuple[int, ...]:
    return tuple(getattr(module, prefix + name.upper()) for name in names.split())


X86 = Processor(
    name="x86_64",
    unicorn=(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64),
    number=x86_const.UC_X86_REG_RAX,
    arguments=registers(x86_const, "UC_X86_REG_", "rdi rsi rdx r10 r8 r9"),
    parameters=registers(x86_const, "UC_X86_REG_", "rdi rsi rdx rcx r8 r9"),
    answer=x86_const.UC_X86_REG_RAX,
    stack=x86_const.UC_X86_REG_RSP,
    saved=registers(x86_const, "UC_X86_REG_", "rbx rbp r12 r13 r14 r15"),
    general=registers(x86_const, "UC_X86_REG_", "rax rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15"),
    lost=registers(x86_const, "UC_X86_REG_", "rcx r11"),
    calls={
        "write": 1, "rt_sigaction": 13, "rt_sigprocmask": 14, "wait4": 61, "kill": 62, "rt_sigtimedwait": 128, "prctl": 157,
        "exit_group": 231, "clone3": 435,
    },
)  # fmt: skip
ARM = Processor(
    name="aarch64",
    unicorn=(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM),
    number=arm64_const.UC_ARM64_REG_X8,
    arguments=registers(arm64_const, "UC_ARM64_REG_", "x0 x1 x2 x3 x4 x5"),
    parameters=registers(arm64_const, "UC_ARM64_REG_", "x0 x1 x2 x3 x4 x5"),
    answer=arm64_const.UC_ARM64_REG_X0,
    stack=arm64_const.UC_ARM64_REG_SP,
    saved=registers(arm64_const, "UC_ARM64_REG_", "x19 x20 x21 x22 x23 x24 x25 x26 x27 x28 x29 x30"),
    general=registers(arm64_const, "UC_ARM64_REG_", " ".join(f"x{i}" for i in range(31))),
    lost=(),
    calls={
        "write": 64, "exit_group": 94, "kill": 129, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigtimedwait": 137, "prctl": 167,
        "wait4": 260, "clone3": 435,
    },
)  # fmt: skip
PROCESSORS = (X86, ARM)

Kernel = Callable[[int, tuple[int, ...]], int]


class Emulator:
    """One process with code, data and a stack. It records each system call, each access to memory, and each byte executed."""

    def __init__(self, processor: Processor, code: bytes, kernel: Kernel) -> None:
        self.processor, self.code, self.kernel = processor, code, kernel
        self.calls: list[tuple[int, tuple[int, ...]]] = []
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, int]] = []
        self.executed: set[int] = set()
        self.ended = False
        self.problem: Exception | None = None
        self.uc = Uc(*processor.unicorn)
        for at in (CODE, HALT):
            self.uc.mem_map(at, SPACE, UC_PROT_READ | UC_PROT_EXEC)
        for at in (DATA, STACK):
            self.uc.mem_map(at, SPACE, UC_PROT_READ | UC_PROT_WRITE)
        self.uc.mem_write(CODE, code)
        for register in processor.general:
            self.set(register, GARBAGE)
        self.uc.hook_add(unicorn.UC_HOOK_CODE, self._executing)
        self.uc.hook_add(unicorn.UC_HOOK_MEM_READ, self._reading)
        self.uc.hook_add(unicorn.UC_HOOK_MEM_WRITE, self._writing)
        if processor is X86:
            self.uc.hook_add(unicorn.UC_HOOK_INSN, self._trap, aux1=x86_const.UC_X86_INS_SYSCALL)
        else:
            self.uc.hook_add(unicorn.UC_HOOK_INTR, self._interrupt)

    def run(self, offset: int, most: int = 20_000) -> None:
        """Executes from `offset` in the code until the process ends or returns to HALT, at most `most` instructions."""
        self.uc.emu_start(CODE + offset, HALT, count=most)
        if self.problem is not None:
            raise self.problem

    def words(self, at: int, count: int) -> list[int]:
        data = self.uc.mem_read(at, 8 * count)
        return [int.from_bytes(data[8 * i : 8 * i + 8], "little") for i in range(count)]

    def put(self, at: int, *words: int) -> None:
        self.uc.mem_write(at, b"".join((word & WORD).to_bytes(8, "little") for word in words))

    def get(self, register: int) -> int:
        return int(self.uc.reg_read(register))

    def set(self, register: int, value: int) -> None:
        self.uc.reg_write(register, value & WORD)

    def _executing(self, uc: Uc, address: int, size: int, _: object) -> None:
        self.executed.update(range(address - CODE, address - CODE + size))

    def _reading(self, uc: Uc, access: int, address: int, size: int, value: int, _: object) -> None:
        self.reads.append((address, size))

    def _writing(self, uc: Uc, access: int, address: int, size: int, value: int, _: object) -> None:
        self.writes.append((address, size))

    def _interrupt(self, uc: Uc, number: int, data: object) -> None:
        self._trap(uc, data)

    def _trap(self, uc: Uc, _: object) -> None:
        processor = self.processor
        number, arguments = self.get(processor.number), tuple(self.get(register) for register in processor.arguments)
        self.calls.append((number, arguments))
        try:
            answer = self.kernel(number, arguments)
        except Ended:
            self.ended = True
            uc.emu_stop()
            return
        except Exception as problem:  # an exception may not pass through Unicorn's C code: run() raises it again
            self.problem = problem
            uc.emu_stop()
            return
        for register in processor.lost:
            self.set(register, GARBAGE)
        self.set(processor.answer, answer)
