"""The exercises of lab 01: a guest in machine code, a hypervisor that answers its guest, and an interpreter of instructions."""

import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

from kernel_lab.course.exercises import NotYet, exercise, not_yet
from kernel_lab.kernel.errors import UsageError
from kernel_lab.machines.kvm import Machine, missing
from kernel_lab.machines.kvm_code import START
from kernel_lab.machines.kvm_emulator import NAMES, Emulated

# The emulator first: it stops at bytes that are no instruction and names them, where a real processor would fault.
MACHINES: tuple[Callable[[bytes], Any], ...] = (Emulated,) if missing() else (Emulated, Machine)
WHO = "the emulator" if missing() else "the emulator and the processor"
PATIENCE = 2.0


@exercise(
    "01.1",
    wants="bytes of machine code",
    accepts=lambda answer: isinstance(answer, bytes) and len(answer) > 0,
    hints={
        "no instruction": "Your first byte is at 0x7c00; which one is that? If it is a zero, it ran on behind your last one: what stops a processor?",
        "never halts": "The distance of a jump is counted from the instruction behind it, in bytes; a backward one is 256 less that many.",
        "nothing sent": "Nothing came to port 0x10. Which instruction of the first guest of this lab said its 8?",
        "wrong sum": "Follow ax and cx by hand for cx = 3. What is in ax before the loop, how often is that passed, and where does the jump lead?",
    },
)
def total(answer: bytes) -> str | NotYet:
    for machine in MACHINES:
        for number in (1, 3, 22):
            with machine(answer) as vm:
                vm.registers = vm.registers._replace(rcx=number)
                try:
                    exits = vm.run(seconds=PATIENCE)
                except UsageError as error:
                    return not_yet("no instruction", str(error))
            sent = [int(one.value) for one in exits if one.direction == "out" and one.address == 0x10]
            if exits[-1].reason != "hlt":
                return not_yet("never halts")
            if not sent:
                return not_yet("nothing sent")
            if sent != [sum(range(number + 1))]:
                return not_yet("wrong sum", f"for cx = {number} it sent {', '.join(map(str, sent))}")
    return f"run by {WHO}: 1, 6 and 253 for 1, 3 and 22"


SUM = bytes.fromhex("b80000 01c8 49 75fb e610 f4")  # mov ax, 0; add ax, cx; dec cx; jnz; out 0x10, al; hlt
total.answers(
    right=[SUM, bytes.fromhex("31c0 01c8 e2fc e610 f4"), bytes.fromhex("89ca 49 7405 01ca 49 75fb 89d0 e610 f4")],
    wrong={
        "no instruction": [SUM[:-1], b"\x0f\x0b", SUM.replace(b"\x75\xfb", b"\x75\xfc")],
        "never halts": [b"\xeb\xfe", SUM.replace(b"\x75\xfb", b"\x75\xfe")],
        "nothing sent": [b"\xf4", SUM.replace(b"\xe6\x10", b"\xe6\x11")],
        "wrong sum": [
            bytes.fromhex("b006 e610 f4"),
            SUM.replace(b"\x75\xfb", b"\x75\xf8"),
            SUM.replace(b"\x49\x75\xfb", b""),
            SUM.replace(b"\xe6\x10", b"\xe6\x10" * 2),
        ],
    },
)

CALL, REFUSED = 0x50, 0xFFFF  # the port that stands for a hypercall, and the answer to what cannot be done
PRINT = 1
Hypervisor = Callable[[Any, list[bytes]], int]


def caller(number: int, address: int, length: int, text: bytes = b"") -> bytes:
    """A guest that makes one hypercall, and shows the answer on port 0x10."""
    code = b"\xb8" + struct.pack("<H", number) + b"\xbb" + struct.pack("<H", address) + b"\xb9" + struct.pack("<H", length)
    return code + bytes([0xE5, CALL, 0xE7, 0x10, 0xF4]) + text  # mov ax; mov bx; mov cx; in ax, 0x50; out 0x10, ax; hlt


TEXT_AT = START + len(caller(0, 0, 0))


def call(machine: Callable[[bytes], Any], hypervisor: Hypervisor, guest: bytes) -> tuple[list[bytes], int]:
    """What a guest made the hypervisor print, and what it got as an answer."""
    said: list[bytes] = []
    with machine(guest) as vm:
        exits = vm.run(lambda asked: hypervisor(vm, said) if asked.address == CALL else None)
    return said, int(exits[-2].value)


@exercise(
    "01.2",
    wants="a function of a machine and a list",
    accepts=callable,
    hints={
        "nothing printed": "Nothing was appended to the list. The guest's question is in `vm.registers`, and the text in `vm.memory`.",
        "wrong text": "bx holds where the text begins in the guest's memory, and cx how many bytes it has. Those are slices of `vm.memory`.",
        "wrong answer": "What your function returns is what the guest finds in ax: how many bytes have been printed.",
        "unknown": "Not every guest is as polite as ours. What should one get that asks for a number which you do not know? See the table above.",
        "outside": "A hypervisor does not trust its guests. Here bx + cx is behind the end of its memory, and a slice in Python is silent.",
    },
)
def hypercall(answer: Hypervisor) -> str | NotYet:
    for machine in MACHINES:
        for text in (b"hello", b"\x00\xffany bytes at all"):
            said, answered = call(machine, answer, caller(PRINT, TEXT_AT, len(text), text + b"..."))
            if not said:
                return not_yet("nothing printed")
            if [bytes(one) for one in said] != [text]:
                return not_yet("wrong text", f"of {text!r} it printed {said!r}")
            if answered != len(text):
                return not_yet("wrong answer", f"{len(text)} bytes were printed, and the guest was told {answered}")
        if (told := call(machine, answer, caller(9, TEXT_AT, 1, b"!"))) != ([], REFUSED):
            return not_yet("unknown", f"the guest called number 9, and was told {told[1]}")
        if (told := call(machine, answer, caller(PRINT, 0xFFFF, 2))) != ([], REFUSED):
            return not_yet("outside", f"the guest was told {told[1]}")
    return f"guests run by {WHO} have printed in one exit each, and two who asked too much were refused"


def answered(vm: Any, said: list[bytes]) -> int:
    number, address, length = (int(one) & 0xFFFF for one in (vm.registers.rax, vm.registers.rbx, vm.registers.rcx))
    if number != PRINT or address + length > len(vm.memory):
        return REFUSED
    said.append(bytes(vm.memory[address : address + length]))
    return length


def _careless(vm: Any, said: list[bytes]) -> int:
    """Right in its manners, and trusting."""
    if vm.registers.rax & 0xFFFF != PRINT:
        return REFUSED
    return _trusting(vm, said)


def _trusting(vm: Any, said: list[bytes]) -> int:
    text = bytes(vm.memory[vm.registers.rbx :][: vm.registers.rcx])
    said.append(text)
    return len(text)


def _whole(vm: Any, said: list[bytes]) -> int:
    said.append(bytes(vm.memory[vm.registers.rbx :]))
    return int(vm.registers.rcx)


def _mute(vm: Any, said: list[bytes]) -> int:
    _trusting(vm, said)
    return 0


hypercall.answers(
    right=[answered],
    wrong={
        "nothing printed": [lambda vm, said: 0, lambda vm, said: vm.registers.rcx],
        "wrong text": [_whole],
        "wrong answer": [_mute],
        "unknown": [_trusting],
        "outside": [_careless],
    },
)

Interpreted = tuple[list[int], list[tuple[int, int]]]
Interpreter = Callable[[bytes], Interpreted]
SP = 4  # a machine of ours has a stack pointer of its own

# Each shows one mistake before the next; at the end whatever chance brings.
PROGRAMS: tuple[tuple[str, str], ...] = (
    ("mov", "b83412 f4"),
    ("mov", "b80100 b90200 ba0300 bb0400 bd0500 be0600 bf0700 f4"),
    ("out", "b83412 e6aa e6bb f4"),
    ("add", "b80500 b90300 01c8 f4"),
    ("sixteen bits", "b8ffff 01c0 49 f4"),
    ("jump", "b90300 bb0100 7501 48 f4 48 48 f4"),
    ("jump", "b90500 b80000 01c8 49 75fb f4"),
    ("flag", "b90100 49 b80500 7501 4a f4 4a f4"),
    ("flag", "b90080 01c9 7501 48 f4"),
)


def _chance(dice: random.Random) -> bytes:
    """A program of the six instructions, whose jumps lead forward."""
    registers = [number for number in range(8) if number != SP]

    def one() -> bytes:
        a, b, byte = dice.choice(registers), dice.choice(registers), dice.randrange(256)
        choices = (bytes([0xB8 + a, byte, dice.choice((0, 255))]), bytes([0x01, 0xC0 | a << 3 | b]), bytes([0x48 + a]), bytes([0xE6, byte]))
        return dice.choice(choices)

    def jump() -> bytes:
        over = one()
        return bytes([0x75, len(over)]) + over

    return b"".join(dice.choice((one, one, one, jump))() for _ in range(10)) + b"\xf4"


def by_machine(machine: Callable[[bytes], Any], code: bytes) -> Interpreted:
    """What really happens: the eight registers, and what was sent to which port."""
    with machine(code) as vm:
        exits = vm.run()
        registers = [int(getattr(vm.registers, name)) for name in NAMES]
    registers[SP] = 0
    return registers, [(int(one.address), int(one.value)) for one in exits[:-1]]


@exercise(
    "01.3",
    wants="a function of bytes",
    accepts=callable,
    hints={
        "mov": "A number in code has its low byte first; and registers are numbered ax, cx, dx, bx, sp, bp, si, di: 0xbb is which of them?",
        "out": "al is the low half of ax: how many bits does one byte have? And each is a pair of port and byte.",
        "add": "01 c8 is add ax, cx. The byte behind 01 names two registers, of three bits each: the lowest are the one that changes.",
        "sixteen bits": "What does a register hold that has 16 bits, all of them 1, when one more is added? And 0, when one is taken away?",
        "jump": "A distance above 127 leads backwards. From where is it counted, once the jump itself has been read?",
        "flag": "The zero flag says whether the last result of add or dec was 0, in 16 bits. Which instructions leave it as it is? At first it is 0.",
        "chance": "Each instruction alone is right. Run this one by yours and by Emulated, and compare the registers after each.",
    },
)
def interpreter(answer: Interpreter) -> str | NotYet:
    dice = random.Random(1)
    programs = [(state, bytes.fromhex(code)) for state, code in PROGRAMS] + [("chance", _chance(dice)) for _ in range(50)]
    for state, code in programs:
        registers, sent = answer(code)
        found = [*registers[:SP], 0, *registers[SP + 1 :]], [tuple(pair) for pair in sent]
        for machine in MACHINES:
            if found != (expected := by_machine(machine, code)):
                return not_yet(state, f"{code.hex(' ')}: {_difference(found, expected)}")
    return f"{len(programs)} programs left the same registers and sent the same bytes as when run by {WHO}"


def _difference(found: tuple[Sequence[int], Sequence[object]], expected: Interpreted) -> str:
    for name, mine, its in zip(NAMES, found[0], expected[0], strict=False):
        if mine != its:
            return f"{name[1:]} is {mine:#x}, and should be {its:#x}"
    return f"it sent {found[1]}, and not {expected[1]}"


class Interpreting:
    """The interpreter, with places where it can be wrong."""

    def __init__(self, *mistakes: str) -> None:
        self.mistakes = mistakes

    def __call__(self, code: bytes) -> Interpreted:
        registers, sent, at, zero = [0] * 8, [], 0, False
        mask = 0xFFFF_FFFF if "sixteen bits" in self.mistakes else 0xFFFF
        while code[at] != 0xF4:
            opcode, operand = code[at], code[at + 1]
            target = opcode & 7
            if opcode >> 3 == 0xB8 >> 3:
                registers[target] = int.from_bytes(code[at + 1 : at + 3], "big" if "mov" in self.mistakes else "little")
                zero, at = (False if "flag" in self.mistakes else zero), at + 3
            elif opcode >> 3 == 0x48 >> 3:
                registers[target] = registers[target] - 1 & mask
                zero, at = not registers[target], at + 1
            elif opcode == 0x01:
                source, target = operand >> 3 & 7, operand & 7
                if "add" in self.mistakes:
                    source, target = target, source
                added = 0 if "chance" in self.mistakes and source == 7 else registers[source]
                registers[target] = registers[target] + added & mask
                zero, at = not registers[target], at + 2
            elif opcode == 0x75:
                distance = operand - 256 * (operand > 127)
                at += (0 if zero else distance) + (1 if "jump" in self.mistakes else 2)
            elif opcode == 0xE6:
                sent.append((operand, registers[0] & (0xFFFF if "out" in self.mistakes else 0xFF)))
                at += 2
        return registers, sent


interpret = Interpreting()
interpreter.answers(right=[interpret], wrong={mistake: [Interpreting(mistake)] for mistake in interpreter.hints})
