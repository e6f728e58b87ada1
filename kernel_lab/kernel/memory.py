"""A program laid out in memory, as the loop walks it: rows, then cells, then what their arguments point to."""

import ctypes
import mmap
import os
import signal
import struct
from dataclasses import dataclass, field

from kernel_lab.kernel import syscalls
from kernel_lab.kernel.calls import libc, map_memory, unmap_memory
from kernel_lab.kernel.flags import CLONE, shown
from kernel_lab.kernel.program import Address, Arg, Buffer, Handle, Program, Row, Strings, Words
from kernel_lab.kernel.structs import Struct

WORDS = 12
CLONE_WORDS = 11
ROW = 8 * WORDS
INDIRECT, STORE, RESULT, JUMP, TOLERATE = 7, 8, 9, 10, 11  # the words of a row after its call number and six arguments
NOT_RUN = -(2**63)
ALIGN = 16
CELL = "q8x"
_NONE = CLONE(0)


DONE = Buffer("done", 8, fill=b"\1")  # the kernel clears it when the child no longer uses this memory: it has called execve, or ended
PIDFD = Buffer("pidfd", 8)
OLD_MASK = Buffer("old_mask", 8)


def clone_args(flags: CLONE, done: Buffer, exit_signal: int, *, pidfd: Buffer | None = None, pid: Buffer | None = None) -> Words:
    """`struct clone_args` (clone(2)) of a child that shares memory and stack pointer until its execve, with every signal handler reset.

    `pid`: where the kernel writes the child's number. The row's answer would not do: parent and child both write theirs, in either order.
    """
    flags |= CLONE.VM | CLONE.CLEAR_SIGHAND | CLONE.CHILD_CLEARTID
    flags |= (CLONE.PIDFD if pidfd else _NONE) | (CLONE.PARENT_SETTID if pid else _NONE)
    pointers = [Address(buffer) if buffer else 0 for buffer in (pidfd, done, pid)]
    return Words((int(flags), *pointers, exit_signal, 0, 0, 0, 0, 0, 0), f"{{{shown(flags)}}}")


@dataclass
class Layout:
    """The bytes of a program for address 0, and where the addresses in them stand: laid out once, loaded wherever memory is."""

    program: Program
    flags: CLONE = _NONE
    given: tuple[Handle, ...] = ()
    data: bytearray = field(default_factory=bytearray)
    relocations: list[int] = field(default_factory=list)
    cells: dict[Handle, int] = field(default_factory=dict)
    buffers: dict[Buffer, int] = field(default_factory=dict)
    interned: dict[bytes, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.data.extend(bytes(ROW * len(self.program)))
        self.given_at = len(self.data)
        for handle in (*self.given, *(row.into for row in self.program if row.into)):
            if handle not in self.cells:
                self.cells[handle] = self._append(struct.pack(f"<{CELL}", -1))
        for index, row in enumerate(self.program):
            self._row(index * ROW, row)
        self.clone_args = self._data(clone_args(self.flags, DONE, signal.SIGCHLD, pidfd=PIDFD))
        self._data(OLD_MASK)

    def results(self, raw: bytes) -> Program:
        """The program with the kernel's answers so far, from an image's bytes."""
        words = struct.unpack_from(f"<{WORDS * len(self.program)}q", raw)[RESULT::WORDS]
        contents = {buffer: raw[offset : offset + buffer.size] for buffer, offset in self.buffers.items()}
        return self.program.with_results([None if word == NOT_RUN else word for word in words], contents)

    def _append(self, data: bytes) -> int:
        self.data.extend(bytes(-len(self.data) % ALIGN))
        self.data.extend(data)
        return len(self.data) - len(data)

    def _word(self, offset: int, value: int) -> None:
        struct.pack_into("<Q", self.data, offset, value & (2**64 - 1))

    def _point(self, offset: int, target: int) -> None:
        self._word(offset, target)
        self.relocations.append(offset)

    def _row(self, at: int, row: Row) -> None:
        self._word(at, syscalls.number(row.call))
        for position, arg in enumerate(row.args):
            self._argument(at + 8 * (1 + position), arg)
        indirect = sum(1 << position for position, arg in enumerate(row.args) if isinstance(arg, Handle))
        self._word(at + 8 * INDIRECT, indirect)
        if row.into:
            self._point(at + 8 * STORE, self.cells[row.into])
        self._word(at + 8 * RESULT, NOT_RUN)
        if row.positive:
            self._point(at + 8 * JUMP, self.program.labels[row.positive] * ROW)
        self._word(at + 8 * TOLERATE, sum(1 << number for number in row.tolerate))

    def _argument(self, offset: int, arg: Arg) -> None:
        if arg is None:
            self._word(offset, 0)
        elif isinstance(arg, int):
            self._word(offset, int(arg))
        elif isinstance(arg, Handle):
            self._point(offset, self._cell(arg))
        else:
            self._point(offset, self._data(arg))

    def _cell(self, handle: Handle) -> int:
        if handle not in self.cells:
            raise LookupError(f"{handle}: no row before stores it and nobody gives it")
        return self.cells[handle]

    def _data(self, arg: Buffer | str | bytes | Struct | Words | Strings) -> int:
        match arg:
            case Buffer():
                if arg not in self.buffers:
                    self.buffers[arg] = self._append(arg.fill.ljust(arg.size, b"\0"))
                return self.buffers[arg]
            case Words(items):
                return self._array([(self._data(item.buffer), True) if isinstance(item, Address) else (item, False) for item in items])
            case Strings(items):
                return self._array([*((self._intern(_c_string(item)), True) for item in items), (0, False)])
            case Struct():
                return self._intern(arg.data)
            case _:
                return self._intern(_c_string(arg))

    def _array(self, words: list[tuple[int, bool]]) -> int:
        start = self._append(bytes(8 * len(words)))
        for position, (value, is_address) in enumerate(words):
            (self._point if is_address else self._word)(start + 8 * position, value)
        return start

    def _intern(self, data: bytes) -> int:
        if data not in self.interned:
            self.interned[data] = self._append(data)
        return self.interned[data]


def _c_string(text: str | bytes) -> bytes:
    return (os.fsencode(text) if isinstance(text, str) else text) + b"\0"


class Image:
    """A layout at its address. The kernel writes answers into it, so one image serves one run at a time; `reset` makes it new.

    `shared` memory is backed by a file without a name (memfd_create(2)) whose descriptor another process can map at the same address.
    """

    def __init__(self, layout: Layout, shared: bool = False) -> None:
        self.layout = layout
        self.shared = shared
        self.size = -(-len(layout.data) // mmap.PAGESIZE) * mmap.PAGESIZE
        self.file = os.memfd_create("kernel-lab", os.MFD_CLOEXEC) if shared else -1
        if shared:
            os.ftruncate(self.file, self.size)
        self.address = map_memory(self.size, self.file)
        self._bytes = self._relocated()
        self._memory = memoryview((ctypes.c_char * len(self._bytes)).from_address(self.address)).cast("B")
        self._given = struct.Struct("<" + CELL * len(layout.given))
        # What every start needs, looked up once: clone3's arguments, the word that its child clears, and where the old mask goes.
        self.clone_args = self.address + layout.clone_args
        self.old_mask = self.buffer(OLD_MASK)
        self._pidfd = ctypes.c_int32.from_address(self.buffer(PIDFD))
        self.reset()

    def _relocated(self) -> bytes:
        data = bytearray(self.layout.data)
        for offset in self.layout.relocations:
            struct.pack_into("<Q", data, offset, struct.unpack_from("<Q", data, offset)[0] + self.address)
        return bytes(data)

    def reset(self, *given: int) -> None:
        """As before any run, with the handles of `layout.given` set."""
        self._memory[:] = self._bytes
        self.given = given
        self.cgroup = -1
        if given:
            self._given.pack_into(self._memory, self.layout.given_at, *given)

    def give(self, handle: Handle, value: int) -> None:
        """The value of a handle of `layout.given`, in place of that of the reset."""
        struct.pack_into("<q", self._memory, self.layout.cells[handle], value)
        self.given = (*self.given, value)

    def fill(self, buffer: Buffer, data: bytes) -> None:
        """Writes into a buffer from its beginning. Raises ValueError for more than it holds."""
        if len(data) > buffer.size:
            raise ValueError(f"{len(data)} bytes do not fit into {buffer}, which holds {buffer.size}")
        at = self.layout.buffers[buffer]
        self._memory[at : at + len(data)] = data

    def raw(self) -> bytes:
        """All of it as it is now: `Layout.results` reads it."""
        return bytes(self._memory)

    def buffer(self, buffer: Buffer) -> int:
        """The address of a buffer."""
        return self.address + self.layout.buffers[buffer]

    def enter_cgroup(self, descriptor: int) -> None:
        """The child is born in the cgroup v2 whose directory this is (CLONE_INTO_CGROUP, clone(2))."""
        flags, *_, cgroup = (ctypes.c_uint64.from_address(self.clone_args + 8 * word) for word in range(CLONE_WORDS))
        flags.value |= CLONE.INTO_CGROUP
        cgroup.value = self.cgroup = descriptor

    @property
    def pidfd(self) -> int:
        """The descriptor that clone3 has given the creator."""
        return self._pidfd.value

    def cell(self, handle: Handle) -> int:
        """The value that a handle has taken."""
        return ctypes.c_int64.from_address(self.address + self.layout.cells[handle]).value

    def number(self, buffer: Buffer) -> int:
        """The number at the start of a buffer."""
        return ctypes.c_int32.from_address(self.buffer(buffer)).value

    def close(self) -> None:
        """Gives the memory back; no child may be using it."""
        if self.address:
            unmap_memory(self.address, self.size)
            self.address = 0
        if self.file >= 0:
            os.close(self.file)
            self.file = -1

    def __del__(self) -> None:
        if libc is not None:  # the interpreter takes its modules apart before its last objects
            self.close()
