"""The reaper: a complete program of a few hundred bytes, made to be process 1 of a PID namespace.

Started as `init PID`, where PID is its child, the command: it reaps every child that ends, hands every signal it receives on to the command,
and ends as the command does, with its exit code or with 128 + the signal that killed it; with 127 if there is no such child.
It must be executed with all signals blocked, or a signal may be lost before it blocks them itself.
"""

import struct

from kernel_lab.kernel.init import aarch64, x86_64
from kernel_lab.kernel.loop.listing import Listing, assemble, show

LISTINGS: dict[str, Listing] = {"x86_64": x86_64.LISTING, "aarch64": aarch64.LISTING}
EM = {"x86_64": 62, "aarch64": 183}  # elf.h: the number of the processor
ADDRESS = 0x400000
PAGE = 0x10000  # the largest page that either processor uses
FILE_HEADER, PROGRAM_HEADER = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ")
PT_LOAD, PT_GNU_STACK = 1, 0x6474E551
EXECUTE, WRITE, READ = 1, 2, 4


def elf(machine: str) -> bytes:
    """The reaper as an executable file for a machine as `platform.machine()` names it."""
    return executable(machine, assemble(LISTINGS[machine]))


def listing(machine: str) -> str:
    """The reaper's machine code as a table for the eye."""
    return show(LISTINGS[machine])


def executable(machine: str, code: bytes) -> bytes:
    """A static ELF file: its header, the two program headers that elf(5) calls PT_LOAD and PT_GNU_STACK, and the code."""
    headers = FILE_HEADER.size + 2 * PROGRAM_HEADER.size
    size = headers + len(code)
    identity = b"\x7fELF" + bytes([2, 1, 1])  # 64 bits, little-endian, version 1
    start = FILE_HEADER.pack(
        identity, 2, EM[machine], 1, ADDRESS + headers, FILE_HEADER.size, 0, 0, FILE_HEADER.size, PROGRAM_HEADER.size, 2, 0, 0, 0
    )
    load = PROGRAM_HEADER.pack(PT_LOAD, READ | EXECUTE, 0, ADDRESS, ADDRESS, size, size, PAGE)
    # Without this header some kernels make the stack executable.
    stack = PROGRAM_HEADER.pack(PT_GNU_STACK, READ | WRITE, 0, 0, 0, 0, 0, 16)
    return start + load + stack + code
