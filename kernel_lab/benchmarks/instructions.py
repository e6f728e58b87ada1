"""How long one instruction of a guest takes, by whoever carries it out; all of them run a loop of two instructions, `dec` and `jnz`.

The guest announces the beginning and the end of its loop on the first serial port of a PC, so that no start of anything is counted.
"""

import platform
import struct
import time
from collections.abc import Callable, Mapping
from ctypes import c_long
from mmap import PAGESIZE

from kernel_lab.benchmarks.report import png
from kernel_lab.kernel.calls import executable, function, unmap_memory
from kernel_lab.machines.kvm import Machine, missing
from kernel_lab.machines.kvm_emulator import Emulated
from kernel_lab.machines.kvm_long_mode import user_mode
from kernel_lab.machines.kvm_pc import computer

LOOP = "b9{} ffc9 75fc"  # mov ecx, turns; dec ecx; jnz: for 64-bit mode
INNER = 0xFFFF  # turns of the inner loop: what a register of 16 bits counts
TURNS = 100_000_000
PATIENCE = 60.0
PYTHON, EMULATOR, KERNEL, PROGRAM, OUTSIDE = "Python, one by one", "QEMU, translated", "KVM, real mode", "KVM, ring 3", "no machine"


def counting(turns: int) -> bytes:
    """A guest for real mode that goes `turns` times through an inner loop, and says `a` before it and `b` after it, each on a line of its own."""
    begin, end = (bytes.fromhex(f"baf803 b0{ord(letter):02x} ee b00a ee") for letter in "ab")  # mov dx, 0x3f8; mov al, letter; out dx, al; …
    loop = b"\xbb" + struct.pack("<H", turns) + bytes.fromhex("b9ffff 49 75fd 4b 75f7")  # mov bx, turns; mov cx, 0xffff; dec cx; jnz; dec bx; jnz
    return begin + loop + end + b"\xf4"


def by_machine(machine: Callable[[bytes], Machine | Emulated], turns: int) -> float:
    """Nanoseconds for an instruction in a machine of ours: of KVM, or of Python."""
    times: list[float] = []
    with machine(counting(turns)) as vm:
        vm.run(lambda asked: times.append(time.perf_counter()), seconds=PATIENCE)
    return (times[2] - times[1]) * 1e9 / (2 * turns * INNER)


def by_function(interpreter: Callable[[bytes], object]) -> float:
    """Nanoseconds for an instruction by a function that interprets a guest's bytes, from the first to `hlt`."""
    begin = time.perf_counter()
    interpreter(bytes.fromhex("b9ffff 49 75fd f4"))
    return (time.perf_counter() - begin) * 1e9 / (2 * INNER)


def by_qemu(turns: int) -> float:
    """Nanoseconds for an instruction by QEMU's emulator, which translates a guest's code into that of the host, once for all turns."""
    with computer(counting(turns)) as machine:
        begin, end = (machine.console.wait(f"^{letter}", PATIENCE).seconds for letter in "ab")
    return (end - begin) * 1e9 / (2 * turns * INNER)


def in_ring_3(turns: int) -> float:
    """Nanoseconds for an instruction of a program in a guest of KVM."""
    code = LOOP.format(struct.pack("<I", turns).hex()) + " 890425 00000010"  # mov [0x10000000], eax: an address without memory
    with Machine(bytes.fromhex(code), mode=user_mode) as vm:
        begin = time.perf_counter()
        vm.run(exits=1, seconds=PATIENCE)
        return (time.perf_counter() - begin) * 1e9 / (2 * turns)


def outside(turns: int) -> float:
    """Nanoseconds for the same instruction in this very process, with no machine around it."""
    code = bytes.fromhex(LOOP.format(struct.pack("<I", turns).hex()) + " c3")  # ret
    address = executable(code)
    try:
        begin = time.perf_counter()
        function(address, c_long)()
        return (time.perf_counter() - begin) * 1e9 / (2 * turns)
    finally:
        unmap_memory(address, PAGESIZE)


def everybody(pc: bool) -> dict[str, float]:
    """Nanoseconds for an instruction by each that is here; `pc`: with QEMU. The best of three, since others use the machine, too."""
    ways: dict[str, Callable[[], float]] = {PYTHON: lambda: by_machine(Emulated, 1)}
    if pc:
        ways[EMULATOR] = lambda: by_qemu(2000)
    if not missing():
        ways |= {KERNEL: lambda: by_machine(Machine, 2), PROGRAM: lambda: in_ring_3(TURNS)}
    if platform.machine() == "x86_64":
        ways[OUTSIDE] = lambda: outside(TURNS)
    return {name: min(way() for _ in range(3)) for name, way in ways.items()}


def picture(took: Mapping[str, float], unit: str = "nanoseconds for an instruction", scale: str = "log") -> bytes:
    """A bar for each, as PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, StrMethodFormatter

    figure = Figure(figsize=(8, 0.8 + 0.4 * len(took)), layout="constrained")
    axes = figure.add_subplot()
    labels = [f"{value:.0f}" if value >= 10 else f"{value:.2g}" for value in took.values()]
    axes.bar_label(axes.barh(list(took), list(took.values())), labels, padding=3)
    axes.set(xscale=scale, xlabel=unit, xmargin=0.15)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # powers of ten would be set by mathtext, which keeps its fonts open
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", alpha=0.3)
    axes.invert_yaxis()
    return png(figure)
