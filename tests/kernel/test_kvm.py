"""A virtual machine from Python: what it answers, seen by the guest's own code, and that three processors agree about it."""

import errno
import os
import platform
import signal
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from waiting import soon

from kernel_lab.kernel.errors import KernelError, UsageError
from kernel_lab.machines import kvm
from kernel_lab.machines.kvm import Machine
from kernel_lab.machines.kvm_code import START
from kernel_lab.machines.kvm_emulator import NAMES, ZERO, Emulated
from kernel_lab.machines.kvm_exits import Exit, Hex, Registers
from kernel_lab.machines.kvm_long_mode import long_mode, user_mode

here = pytest.mark.skipif(bool(kvm.missing()), reason=kvm.missing())
machines = pytest.mark.parametrize("machine", [pytest.param(Machine, marks=here), Emulated])

HLT, SPIN = b"\xf4", b"\xeb\xfe"
ADD = bytes.fromhex("b80300 b90500 01c8 e610 f4")  # mov ax, 3; mov cx, 5; add ax, cx; out 0x10, al; hlt
HELLO = bytes.fromhex("be107c b90500 baf803 ac ee e2fc f4 0000") + b"hello"  # lodsb; out dx, al; loop: five times


def said(exits: tuple[Exit, ...]) -> bytes:
    return bytes(int(one.value) for one in exits if one.direction == "out")


@machines
def test_a_sum_comes_out_of_a_port(machine: Callable[[bytes], Machine]) -> None:
    with machine(ADD) as vm:
        before = vm.registers
        assert vm.run() == (Exit("io", "out", Hex(0x10), 1, Hex(8)), Exit("hlt"))
        changed = {name: after for name, _, after in before.changes(vm.registers)}
    assert changed["rax"] == 8 and changed["rcx"] == 5 and changed["rip"] == START + len(ADD)


@machines
def test_the_device_answers_and_the_guest_reads(machine: Callable[[bytes], Machine]) -> None:
    with machine(bytes.fromhex("e510 e711 ba3412 ec ee f4")) as vm:  # in ax, 0x10; out 0x11, ax; mov dx, 0x1234; in al, dx; out dx, al; hlt
        vm.registers = vm.registers._replace(rax=0xFFFF)
        exits = vm.run(lambda asked: 0xABCDE if asked.size == 2 else None)
    ports = [(one.direction, one.address, one.size, one.value) for one in exits[:-1]]
    assert ports == [("in", 0x10, 2, 0xBCDE), ("out", 0x11, 2, 0xBCDE), ("in", 0x1234, 1, 0xFF), ("out", 0x1234, 1, 0xFF)]


@machines
def test_it_says_hello(machine: Callable[[bytes], Machine]) -> None:
    with machine(HELLO) as vm:
        assert said(vm.run()) == b"hello"


@machines
def test_it_comes_back_after_so_many_exits_and_goes_on(machine: Callable[[bytes], Machine]) -> None:
    with machine(HELLO) as vm:
        assert [said(vm.run(exits=2)), said(vm.run(exits=2)), said(vm.run())] == [b"he", b"ll", b"o"]


@machines
def test_after_an_exit_its_instruction_is_done(machine: Callable[[bytes], Machine]) -> None:
    with machine(bytes.fromhex("e410 f4")) as vm:  # in al, 0x10
        vm.run(lambda asked: 0x2A, exits=1)
        assert (vm.registers.rax, vm.registers.rip) == (0x2A, START + 2)
        memory, registers = bytes(vm.memory), vm.registers
    with machine(HLT) as another:
        another.memory[:], another.registers = memory, registers
        assert another.run() == (Exit("hlt"),)
        assert another.registers.rax == 0x2A


@machines
def test_a_guest_that_never_exits_is_stopped_and_can_go_on(machine: Callable[[bytes], Machine]) -> None:
    with machine(SPIN) as vm:
        assert vm.run(seconds=0.05) == (Exit("intr"),)
        vm.memory[START : START + 2] = HLT * 2
        assert vm.run() == (Exit("hlt"),)


@machines
def test_an_exception_of_the_device_comes_through(machine: Callable[[bytes], Machine]) -> None:
    def broken(asked: Exit) -> int:
        raise ZeroDivisionError

    with machine(ADD) as vm, pytest.raises(ZeroDivisionError):
        vm.run(broken)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


@machines
@pytest.mark.parametrize(("code", "words"), [(b"", "at least one"), ("f4", "bytes"), (bytes(1 << 16), "does not fit")])
def test_wrong_code_is_refused(machine: Callable[[object], object], code: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        machine(code)


@here
@pytest.mark.parametrize("memory", [0, -4096, 4096, 0x10001, 1 << 31])
def test_wrong_memory_is_refused(memory: int) -> None:
    with pytest.raises(UsageError, match=rf"memory of {memory} bytes.*4096"):
        Machine(HLT, memory)


def test_an_unknown_instruction_is_named() -> None:
    with Emulated(b"\x90\x0f\x0b") as vm, pytest.raises(UsageError, match=r"0x0f at 0x7c01"):
        vm.run()


@here
def test_long_mode_has_64_bits() -> None:
    # mov rax, 0x1122334455667788; bswap rax; shr rax, 32; out 0x10, eax; hlt
    with Machine(bytes.fromhex("48b8 8877665544332211 480fc8 48c1e820 e710 f4"), mode=long_mode) as vm:
        assert vm.run() == (Exit("io", "out", Hex(0x10), 4, Hex(0x88776655)), Exit("hlt"))
        assert vm.registers.rax == 0x88776655
        assert vm.special.efer & 1 << 10, "the processor says that long mode is active"


@here
def test_an_address_without_memory_asks_the_device() -> None:
    # mov eax, [0x10000000]; mov [0x10000004], eax; hlt
    with Machine(bytes.fromhex("8b042500000010 89042504000010 f4"), mode=long_mode) as vm:
        exits = vm.run(lambda asked: 0xCAFE)
    assert exits == (
        Exit("mmio", "in", Hex(0x10000000), 4, Hex(0xCAFE)),
        Exit("mmio", "out", Hex(0x10000004), 4, Hex(0xCAFE)),
        Exit("hlt"),
    )


@here
def test_a_string_instruction_makes_an_exit_for_each_element() -> None:
    # mov si, 0x7c00; mov dx, 0x10; mov cx, 4; rep outsb; hlt
    code = bytes.fromhex("be007c ba1000 b90400 f36e f4")
    with Machine(code) as vm:
        assert said(vm.run()) == code[:4]


@here
@pytest.mark.parametrize("mode", [long_mode, user_mode])
def test_a_fault_without_an_interrupt_table_ends_the_machine(mode: kvm.Mode) -> None:
    with Machine(b"\x0f\x0b", mode=mode) as vm:  # ud2
        assert vm.run() == (Exit("shutdown"),)


@here
def test_a_program_in_ring_3_may_not_halt_the_machine() -> None:
    with Machine(HLT, mode=long_mode) as kernel, Machine(HLT, mode=user_mode) as program:
        assert (kernel.special.cs.selector & 3, program.special.cs.selector & 3) == (0, 3)
        assert (kernel.run(), program.run()) == ((Exit("hlt"),), (Exit("shutdown"),))


@here
def test_an_interrupt_stops_it_and_the_signals_are_as_before() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with Machine(SPIN) as vm:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            vm.run(seconds=60)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before and not signal.sigpending()


@here
def test_another_signal_does_not_stop_it() -> None:
    """Its handler changes the guest's code: the guest goes on, and meets it."""
    with Machine(SPIN) as vm:
        handler = signal.signal(signal.SIGUSR1, lambda *_: vm.memory.__setitem__(slice(START, START + 2), HLT * 2))
        try:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            assert vm.run(seconds=60) == (Exit("hlt"),)
        finally:
            signal.signal(signal.SIGUSR1, handler)


@here
def test_it_is_stopped_though_its_signal_was_blocked_before() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {kvm.KICK})
    try:
        with Machine(SPIN) as vm:
            assert vm.run(seconds=0.05) == (Exit("intr"),)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@here
def test_it_runs_and_is_stopped_in_any_thread() -> None:
    done: list[object] = []

    def work() -> None:
        with Machine(SPIN) as vm:
            done.append(vm.run(seconds=0.05))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert soon(lambda: len(done) == 2) and done == [(Exit("intr"),)] * 2
    for thread in threads:
        thread.join()


def ours() -> list[str]:
    """What of a virtual machine this process holds: descriptors and maps."""
    files = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.islink(entry.path)]
    return [name for name in [*files, *Path("/proc/self/maps").read_text().split()] if "kvm" in name]


@here
def test_it_is_a_few_descriptors_and_they_go() -> None:
    with Machine(HLT):
        assert {"anon_inode:kvm-vm", "anon_inode:kvm-vcpu:0", "/dev/kvm"} <= set(ours())
    assert ours() == []


@here
@pytest.mark.parametrize("at", range(1, 6))
def test_a_refusal_midway_leaves_nothing_behind(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = [], kvm.syscall

    def refused(name: str, *args: object) -> int:
        calls.append(name)
        if len(calls) == at + 1:  # the first one asks for the version
            raise KernelError(errno.ENOMEM, name)
        return real(name, *args)

    monkeypatch.setattr(kvm, "syscall", refused)
    with pytest.raises(KernelError, match=r"ioctl\(KVM_\w+\): ENOMEM"), Machine(HLT):
        pass
    assert ours() == []


@here
def test_a_register_has_64_bits() -> None:
    with Machine(HLT) as vm, pytest.raises(UsageError, match="rbx = -1"):
        vm.registers = vm.registers._replace(rbx=-1)


def test_registers_and_exits_are_tables() -> None:
    with Emulated(ADD) as vm:
        exits, registers = vm.run(), vm.registers
    assert [line.split() for line in repr(exits).splitlines()[2:]] == [["io", "out", "0x10", "1", "0x8"], ["hlt"]]
    assert repr(registers).splitlines()[0].split() == ["rax", "0x8", "rsp", "0x7c00", "r12", "0x0"]
    assert exits._repr_html_().count("<tr>") == 3 and "0x7c0b" in registers._repr_html_()


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOENT, "modprobe"), (errno.ENODEV, "modprobe"), (errno.ENXIO, "modprobe"), (errno.EACCES, "usermod"), (errno.EPERM, "usermod")],
)
def test_a_lack_says_how_to_go_on(number: int, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> object:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("builtins.open", refused)
    assert remedy in kvm.missing() and os.strerror(number) in kvm.missing() and "\n" not in kvm.missing()


def test_a_node_with_nothing_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kvm").write_text("")
    monkeypatch.setattr(kvm, "DEVICE", str(tmp_path / "kvm"))
    assert "kvm: Inappropriate ioctl for device: load the driver" in kvm.missing()


def test_another_processor_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(UsageError, match="for x86-64, and this processor is aarch64"):
        Machine(HLT)


# Small programs without jumps back, each ending in hlt; every instruction that the emulator knows, but for those that need memory.
REGISTER, BYTE = some.integers(0, 7), some.integers(0, 255)
WORD = some.integers(0, 0xFFFF).map(lambda value: struct.pack("<H", value))
EXTREME = some.sampled_from([b"\x00\x00", b"\x01\x00", b"\xff\xff", b"\x00\x80"])
INSTRUCTION = some.one_of(
    some.builds(lambda r, word: bytes([0xB8 + r]) + word, REGISTER, WORD | EXTREME),
    some.builds(lambda r, byte: bytes([0xB0 + r, byte]), REGISTER, BYTE),
    some.builds(lambda op, a, b: bytes([op, 0xC0 | a << 3 | b]), some.sampled_from([0x01, 0x29, 0x31, 0x39, 0x89]), REGISTER, REGISTER),
    some.builds(lambda op, r: bytes([op + r]), some.sampled_from([0x40, 0x48]), REGISTER),
    some.builds(lambda op, port: bytes([op, port]), some.sampled_from([0xE4, 0xE5, 0xE6, 0xE7]), BYTE),
    some.sampled_from([b"\xec", b"\xed", b"\xee", b"\xef", b"\x90"]),
)
JUMP = some.builds(lambda op, over: bytes([op, len(over)]) + over, some.sampled_from([0x74, 0x75, 0xE2, 0xEB]), INSTRUCTION)
PROGRAM = some.lists(INSTRUCTION | JUMP, min_size=1, max_size=12).map(b"".join).map(lambda code: code + HLT)

Outcome = tuple[list[tuple[str, int, int, int]], dict[str, int]]


def answer(port: int, size: int) -> int:
    return (port * 7 + 0x5A5A) & (1 << 8 * size) - 1


def outcome(machine: Callable[[bytes], Machine], code: bytes) -> Outcome:
    with machine(code) as vm:
        exits = vm.run(lambda asked: answer(int(asked.address), int(asked.size)))
        assert exits[-1].reason == "hlt"
        ports = [(one.direction, int(one.address), int(one.size), int(one.value)) for one in exits[:-1]]
        return ports, compared(vm.registers)


def compared(registers: Registers) -> dict[str, int]:
    """All that the emulator knows: eight registers, where it is, and the zero flag."""
    return {name: int(getattr(registers, name)) for name in (*NAMES, "rip")} | {"zero": int(registers.rflags) & ZERO}


def by_unicorn(code: bytes) -> Outcome:
    from unicorn import UC_ARCH_X86, UC_HOOK_INSN, UC_MODE_16, Uc, x86_const

    ports: list[tuple[str, int, int, int]] = []

    def read(uc: Uc, port: int, size: int, _: object) -> int:
        ports.append(("in", port, size, answer(port, size)))
        return answer(port, size)

    def write(uc: Uc, port: int, size: int, value: int, _: object) -> None:
        ports.append(("out", port, size, value & (1 << 8 * size) - 1))

    uc = Uc(UC_ARCH_X86, UC_MODE_16)
    uc.mem_map(0, 1 << 16)
    uc.mem_write(START, code)
    uc.hook_add(UC_HOOK_INSN, read, aux1=x86_const.UC_X86_INS_IN)
    uc.hook_add(UC_HOOK_INSN, write, aux1=x86_const.UC_X86_INS_OUT)
    uc.reg_write(x86_const.UC_X86_REG_SP, START)
    uc.emu_start(START, START + len(code) - 1)
    names = {name: getattr(x86_const, f"UC_X86_REG_{name[1:].upper()}") for name in NAMES}
    flags = uc.reg_read(x86_const.UC_X86_REG_EFLAGS)
    return ports, {name: uc.reg_read(number) for name, number in names.items()} | {"rip": START + len(code), "zero": flags & ZERO}


@pytest.mark.needs("module:unicorn")
@given(PROGRAM)
@settings(max_examples=200)
def test_the_emulator_and_unicorn_agree(code: bytes) -> None:
    assert outcome(Emulated, code) == by_unicorn(code)


@here
@given(PROGRAM)
@settings(max_examples=100)
def test_the_processor_and_the_emulator_agree(code: bytes) -> None:
    assert outcome(Machine, code) == outcome(Emulated, code)


@here
def test_a_loop_in_ring_3_is_run_by_the_processor_itself() -> None:
    """No budget of time: ten million turns of a loop are more than any emulator of KVM's does in the time that a processor takes for them."""
    code = bytes.fromhex("b9 80969800 ffc0 ffc9 75fa 890425 00000010")  # mov ecx, 10^7; inc eax; dec ecx; jnz; mov [0x10000000], eax
    with Machine(code, mode=user_mode) as vm:
        begun = time.perf_counter()
        assert vm.run(exits=1, seconds=60) == (Exit("mmio", "out", Hex(0x10000000), 4, Hex(10**7)),)
        guest = time.perf_counter() - begun
    with Emulated(bytes.fromhex("b9ffff 40 e2fd f4")) as vm:
        begun = time.perf_counter()
        vm.run(seconds=60)
        emulated = time.perf_counter() - begun
    assert guest / 10**7 < emulated / 0xFFFF
