"""The reaper under emulation, on both processors, by a kernel that answers from a script."""

import signal
import struct
from collections.abc import Sequence

import pytest
from emulator import PROCESSORS, SPACE, STACK, WORD, Emulator, Ended, Processor

from kernel_lab.kernel import reaper

COMMAND = 4194303
ECHILD, EINTR = 10, 4
both = pytest.mark.parametrize("processor", PROCESSORS, ids=lambda processor: processor.name)
Answer = tuple[str, int, int]  # the system call that is expected, its answer, and for wait4 the status of the child that ended


def wait4(pid: int, status: int = 0) -> Answer:
    return "wait4", pid, status


def arrives(number: int) -> Answer:
    return "rt_sigtimedwait", number, 0


FORWARDED: Answer = ("kill", 0, 0)
READY: list[Answer] = [("prctl", 0, 0), ("rt_sigaction", 0, 0), ("rt_sigprocmask", 0, 0)]


class Init:
    """The reaper started as `init ARGUMENT`, by a kernel that expects the script's calls in its order; an exit ends it."""

    def __init__(self, processor: Processor, script: Sequence[Answer], argument: bytes | None = b"%d" % COMMAND) -> None:
        self.names = {number: name for name, number in processor.calls.items()}
        self.script = iter(script)
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self.pointed: dict[str, bytes] = {}
        self.code: int | None = None
        program = reaper.elf(processor.name)
        code = program[len(reaper.executable(processor.name, b"")) :]
        self.machine = machine = Emulator(processor, code, self.kernel)
        self.name, text, stack = STACK + SPACE - 64, STACK + SPACE - 32, STACK + 0x8000
        machine.uc.mem_write(self.name, b"init\0")
        machine.uc.mem_write(text, (argument or b"") + b"\0")
        arguments = [self.name] if argument is None else [self.name, text]
        machine.put(stack, len(arguments), *arguments, 0, 0, 0)
        machine.set(processor.stack, stack)
        machine.run(0)
        assert list(self.script) == []

    def kernel(self, number: int, arguments: tuple[int, ...]) -> int:
        name = self.names[number]
        self.calls.append((name, arguments))
        if name == "exit_group":
            self.code = arguments[0] & WORD
            raise Ended
        expected, answer, status = next(self.script)
        assert name == expected
        if name == "wait4":
            self.machine.uc.mem_write(arguments[1], struct.pack("<i", status))
        pointer = {"rt_sigaction": (1, 32), "rt_sigprocmask": (1, 8), "rt_sigtimedwait": (0, 8)}.get(name)
        if pointer is not None:
            self.pointed[name] = bytes(self.machine.uc.mem_read(arguments[pointer[0]], pointer[1]))
        return answer

    def asked(self, name: str, count: int) -> list[tuple[int, ...]]:
        return [arguments[:count] for called, arguments in self.calls if called == name]


@both
def test_it_blocks_all_signals_and_no_longer_ignores_sigchld_before_it_waits(processor: Processor) -> None:
    init = Init(processor, [*READY, wait4(0), arrives(signal.SIGCHLD), wait4(COMMAND)])
    assert [arguments[:2] for _, arguments in init.calls[:1]] == [(15, init.name)]
    assert [(number, old, size) for number, _, old, size in init.asked("rt_sigaction", 4)] == [(signal.SIGCHLD, 0, 8)]
    assert init.pointed["rt_sigaction"] == bytes(32)
    assert [(how, old, size) for how, _, old, size in init.asked("rt_sigprocmask", 4)] == [(signal.SIG_BLOCK, 0, 8)]
    assert [arguments[1:] for arguments in init.asked("rt_sigtimedwait", 4)] == [(0, 0, 8)]
    assert init.pointed["rt_sigprocmask"] == init.pointed["rt_sigtimedwait"] == b"\xff" * 8
    assert [(pid & 0xFFFFFFFF, options, usage) for pid, _, options, usage in init.asked("wait4", 4)] == [(0xFFFFFFFF, 1, 0)] * 2


@both
def test_it_goes_on_where_a_filter_refuses_what_it_asks_first(processor: Processor) -> None:
    refused = [(name, -1, 0) for name, _, _ in READY]
    init = Init(processor, [*refused, wait4(COMMAND, 7 << 8)])
    assert [how for how, *_ in init.asked("rt_sigprocmask", 4)] == [signal.SIG_BLOCK]
    assert init.code == 7


@both
def test_a_command_that_ended_before_is_seen_at_once(processor: Processor) -> None:
    assert Init(processor, [*READY, wait4(COMMAND, 7 << 8)]).code == 7


@both
def test_it_reaps_until_nobody_is_left_who_ended(processor: Processor) -> None:
    ended = [wait4(100), wait4(101, 9), wait4(102, 1 << 8), wait4(0)]
    init = Init(processor, [*READY, *ended, arrives(signal.SIGCHLD), *ended, arrives(signal.SIGCHLD), wait4(5), wait4(COMMAND, 3 << 8)])
    assert init.code == 3


@both
def test_it_ends_with_the_commands_exit_code(processor: Processor) -> None:
    for code in range(256):
        assert Init(processor, [*READY, wait4(COMMAND, code << 8)]).code == code


@both
def test_it_ends_with_128_and_the_signal_that_killed_the_command(processor: Processor) -> None:
    for number in range(1, 65):
        for core in (0, 0x80):
            assert Init(processor, [*READY, wait4(COMMAND, number | core)]).code == 128 + number


@both
def test_every_signal_but_sigchld_is_handed_on(processor: Processor) -> None:
    numbers = [number for number in range(1, 65) if number != signal.SIGCHLD]
    turns = [answer for number in numbers for answer in (arrives(number), FORWARDED, wait4(0))]
    init = Init(processor, [*READY, wait4(0), *turns, arrives(signal.SIGCHLD), wait4(COMMAND)])
    assert init.asked("kill", 2) == [(COMMAND, number) for number in numbers]


@both
def test_an_interrupted_wait_and_a_refused_kill_are_no_end(processor: Processor) -> None:
    refused = ("kill", -3, 0)
    assert Init(processor, [*READY, wait4(0), arrives(-EINTR), wait4(0), arrives(15), refused, wait4(COMMAND, 5 << 8)]).code == 5


@both
@pytest.mark.parametrize("argument", [None, b"", b"0", b"-1", b"x", b" 7"])
def test_without_a_pid_it_ends_with_127(processor: Processor, argument: bytes | None) -> None:
    asks_its_name = [] if argument is None else READY[:1]
    assert Init(processor, asks_its_name, argument).code == 127


@both
def test_without_any_child_it_ends_with_127(processor: Processor) -> None:
    assert Init(processor, [*READY, wait4(-ECHILD)]).code == 127


@both
@pytest.mark.parametrize("pid", [1, 2, 9, 10, 32768, 4194304])
def test_the_pid_is_read_as_a_decimal_number(processor: Processor, pid: int) -> None:
    init = Init(processor, [*READY, wait4(0), arrives(signal.SIGTERM), FORWARDED, wait4(pid, 6 << 8)], b"%d" % pid)
    assert init.asked("kill", 2) == [(pid, signal.SIGTERM)]
    assert init.code == 6


@both
def test_the_file_is_a_small_static_program_whose_pages_and_stack_are_not_both_writable_and_executable(processor: Processor) -> None:
    program = reaper.elf(processor.name)
    assert len(program) < 512
    assert program[:7] == b"\x7fELF\x02\x01\x01"
    kind, machine, _, entry, headers = struct.unpack_from("<HHIQQ", program, 16)
    assert (kind, machine) == (2, {"x86_64": 62, "aarch64": 183}[processor.name])
    size, count = struct.unpack_from("<HH", program, 54)
    segments = [struct.unpack_from("<IIQQQQQQ", program, headers + i * size) for i in range(count)]
    (load,) = (segment for segment in segments if segment[0] == 1)
    _, rights, offset, address, _, in_file, in_memory, align = load
    assert (rights, offset, in_file, in_memory) == (0b101, 0, len(program), len(program))
    assert address % align == offset % align
    assert headers + count * size == entry - address
    (stack,) = (segment for segment in segments if segment[0] == 0x6474E551)
    assert stack[1] == 0b110


@both
def test_the_listing_shows_every_line(processor: Processor) -> None:
    shown = reaper.listing(processor.name)
    for _, text, why in reaper.LISTINGS[processor.name]:
        assert text in shown and why in shown
