"""Rules for devices as a program for the kernel: version 2 has no files for them, it asks an eBPF program (cgroups-v2, Device controller).

The program is asked at each mknod(2) and open(2) of a device by a process of the group. Its context is `struct bpf_cgroup_dev_ctx` (linux/bpf.h):
three 32-bit words, of which the first holds what is asked for in its upper half and the kind of device in its lower. It answers 1 for yes and 0
for no, as the last value of r0. Nothing here calls the kernel; `bpf` loads what this module makes.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kernel_lab.cgroups.devices import Rule
from kernel_lab.kernel.table import Table

KINDS = {"b": 1, "c": 2}  # BPF_DEVCG_DEV_*
ACCESS = {"m": 1, "r": 2, "w": 4}  # BPF_DEVCG_ACC_*
EVERYTHING = sum(ACCESS.values())
# The class, size and operation of an instruction, as linux/bpf.h and linux/bpf_common.h put them together.
LOAD_WORD = 0x61  # BPF_LDX | BPF_MEM | BPF_W
MOVE, MOVE_NUMBER = 0xBF, 0xB7  # BPF_ALU64 | BPF_MOV, of a register and of a number
AND, SHIFT_RIGHT = 0x57, 0x77  # BPF_ALU64 | BPF_AND and BPF_RSH, by a number
JUMP_UNLESS = 0x55  # BPF_JMP | BPF_JNE, compared with a number
JUMP_32_UNLESS = 0x56  # BPF_JMP32 | BPF_JNE: numbers of devices have all 32 bits, and a number of an instruction is signed
JUMP_IF_ANY = 0x45  # BPF_JMP | BPF_JSET
EXIT = 0x95  # BPF_JMP | BPF_EXIT
TEXTS = {
    LOAD_WORD: "r{to} = *(u32 *)(r{of} + {offset})",
    MOVE: "r{to} = r{of}",
    MOVE_NUMBER: "r{to} = {number}",
    AND: "r{to} &= {number:#x}",
    SHIFT_RIGHT: "r{to} >>= {number}",
    JUMP_UNLESS: "if r{to} != {number} goto +{offset}",
    JUMP_32_UNLESS: "if w{to} != {number} goto +{offset}",
    JUMP_IF_ANY: "if r{to} & {number:#x} goto +{offset}",
    EXIT: "exit",
}
ANSWER, CONTEXT, KIND, ASKED, MAJOR, MINOR = range(6)  # the registers r0 to r5


class Instruction(NamedTuple):
    """One `struct bpf_insn`: an operation, on the registers `to` and `of`, with an offset and a number; and what it is for."""

    code: int
    to: int = 0
    of: int = 0
    offset: int = 0
    number: int = 0
    why: str = ""

    @property
    def data(self) -> bytes:
        """Its eight bytes."""
        return struct.pack("<BBhI", self.code, self.of << 4 | self.to, self.offset, self.number)

    def __str__(self) -> str:
        return TEXTS[self.code].format(**self._asdict())


class Line(NamedTuple):
    """An instruction for the eye."""

    number: int
    bytes: str
    instruction: str
    why: str


class DeviceProgram(tuple[Instruction, ...]):
    """Instructions in their order; printed, an assembler's listing."""

    @property
    def data(self) -> bytes:
        """What bpf(2) is given."""
        return b"".join(instruction.data for instruction in self)

    @property
    def listing(self) -> Table[Line]:
        """The program as it is printed."""
        return Table(Line(number, one.data.hex(" ", 4), str(one), one.why) for number, one in enumerate(self))

    def __repr__(self) -> str:
        return repr(self.listing)

    def _repr_html_(self) -> str:
        return self.listing._repr_html_()


def program(rules: Iterable[Rule]) -> DeviceProgram:
    """Allows what a rule allows, and nothing else."""
    rules = tuple(rules)
    if any(rule.kind == "a" for rule in rules):
        # What stood behind an answer to everything could not be reached, and the kernel's verifier refuses such a program.
        return DeviceProgram(_answer(1, "everything: yes"))
    return DeviceProgram((*_asked(), *(instruction for rule in rules for instruction in _allow(rule)), *_answer(0, "nothing has allowed it: no")))


def _asked() -> Iterator[Instruction]:
    yield Instruction(LOAD_WORD, KIND, CONTEXT, 0, why="access_type:")
    yield Instruction(MOVE, ASKED, KIND)
    yield Instruction(AND, KIND, number=0xFFFF, why="the kind of device (1: block, 2: character)")
    yield Instruction(SHIFT_RIGHT, ASKED, number=16, why="what is asked for (1: mknod, 2: read, 4: write)")
    yield Instruction(LOAD_WORD, MAJOR, CONTEXT, 4, why="its major number")
    yield Instruction(LOAD_WORD, MINOR, CONTEXT, 8, why="its minor number")


def _allow(rule: Rule) -> Iterator[Instruction]:
    refused = EVERYTHING & ~sum(ACCESS[letter] for letter in rule.access)
    tests = [Instruction(JUMP_UNLESS, KIND, number=KINDS[rule.kind])]
    if refused:
        # All that is asked for must be in one rule, as with devices.allow (match_exception, security/device_cgroup.c).
        tests.append(Instruction(JUMP_IF_ANY, ASKED, number=refused))
    if rule.major is not None:
        tests.append(Instruction(JUMP_32_UNLESS, MAJOR, number=rule.major))
    if rule.minor is not None:
        tests.append(Instruction(JUMP_32_UNLESS, MINOR, number=rule.minor))
    body = (*tests, *_answer(1, f"{rule}: yes"))
    for position, test in enumerate(tests):
        yield test._replace(offset=len(body) - position - 1, why=f"{rule}: it is something else" if position == 0 else "")
    yield from body[len(tests) :]


def _answer(value: int, why: str) -> Iterator[Instruction]:
    yield Instruction(MOVE_NUMBER, ANSWER, number=value, why=why)
    yield Instruction(EXIT)
