"""The loop for real: on this machine's processor in a child that shares the test's memory, and aarch64's under qemu."""

import ctypes
import mmap
import os
import platform
import signal
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from rows import NOT_RUN, RESULT, SIZE, WORD, Row

from kernel_lab.kernel import loop, reaper, syscalls

EBADF, EINVAL = 9, 22
CLONE_VM, CLONE_PIDFD, CLONE_THREAD = 0x100, 0x1000, 0x10000
NO_FILE = 2**31 - 1


class Native:
    """This machine's loop, in memory as the kit holds it: written, then made executable and no longer writable."""

    def __init__(self) -> None:
        machine = platform.machine()
        code = loop.code(machine)
        self.pages = mmap.mmap(-1, mmap.PAGESIZE)
        self.pages.write(code)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.pages))
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_EXEC) == 0
        pointer = ctypes.c_void_p
        self.entry = ctypes.CFUNCTYPE(ctypes.c_long, pointer, ctypes.c_size_t, pointer, pointer, pointer)(address + loop.START[machine])
        self.cells = (ctypes.c_int64 * 8)()
        self.pidfd = ctypes.c_int(-1)

    def start(self, rows: Sequence[Row], flags: int = CLONE_VM | CLONE_PIDFD) -> int:
        """What the loop answers in the creator."""
        self.table = (ctypes.c_char * (SIZE * len(rows)))()
        address = ctypes.addressof
        self.table[:] = b"".join(row.packed(address(self.table), address(self.cells)) for row in rows)
        args = (ctypes.c_uint64 * 11)(flags, address(self.pidfd), 0, 0, signal.SIGCHLD)
        every, old = ctypes.c_uint64(WORD), ctypes.c_uint64(0)
        return int(self.entry(address(args), 88, address(self.table), address(every), address(old)))

    def end(self) -> tuple[int, int]:
        """How the child ended: CLD_EXITED or CLD_KILLED, and its code or signal."""
        ended = os.waitid(os.P_PIDFD, self.pidfd.value, os.WEXITED)
        os.close(self.pidfd.value)
        assert ended is not None
        return ended.si_code, ended.si_status

    def results(self) -> list[int]:
        words = struct.unpack(f"<{len(self.table) // 8}q", bytes(self.table))
        return list(words[RESULT :: SIZE // 8])


@pytest.fixture
def native() -> Native:
    if platform.machine() not in loop.MACHINES:
        pytest.skip(f"needs a processor that the loop is written for: this machine is {platform.machine()}")
    return Native()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def row(call: str, *arguments: int, store: int | None = None, tolerate: int = 0, machine: str | None = None) -> Row:
    return Row(syscalls.number(call, machine), (*arguments, 0, 0, 0, 0, 0, 0)[:6], store=store, tolerate=tolerate)


def test_a_child_that_shares_the_memory_runs_the_table(native: Native, pipe: tuple[int, int]) -> None:
    read, write = pipe
    text = ctypes.create_string_buffer(b"Hello")
    rows = [row("close", NO_FILE, tolerate=1 << EBADF), row("write", write, ctypes.addressof(text), 5, store=1), row("exit_group", 7)]
    assert native.start(rows) > 0
    assert native.end() == (os.CLD_EXITED, 7)
    assert os.read(read, 100) == b"Hello"
    assert native.results() == [-EBADF, 5, NOT_RUN]
    assert list(native.cells) == [0, 5, 0, 0, 0, 0, 0, 0]


def test_the_first_error_stops_it(native: Native) -> None:
    assert native.start([row("getpid"), row("close", NO_FILE), row("exit_group", 1)]) > 0
    assert native.end() == (os.CLD_EXITED, 127)
    assert native.results()[1:] == [-EBADF, NOT_RUN]


def test_signals_are_blocked_in_the_child_and_as_before_in_the_creator(native: Native) -> None:
    mask = (ctypes.c_uint64 * 1)()
    table = [row("rt_sigprocmask", signal.SIG_BLOCK, 0, ctypes.addressof(mask), 8), row("exit_group")]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        held = signal.pthread_sigmask(signal.SIG_BLOCK, set())
        assert native.start(table) > 0
        assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == held
        assert native.end() == (os.CLD_EXITED, 0)
        assert native.start(table, CLONE_THREAD) == -EINVAL, "a thread without CLONE_SIGHAND"
        assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == held
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    kill_and_stop = 1 << signal.SIGKILL - 1 | 1 << signal.SIGSTOP - 1
    assert mask[0] == WORD & ~kill_and_stop


@pytest.mark.needs("qemu-aarch64-static")
def test_aarch64_runs_a_table_under_qemu(tmp_path: Path) -> None:
    """The program is an instruction that loads the rows' address, the walk, three rows, and the text that one of them writes."""
    machine = "aarch64"
    walk = loop.code(machine)[loop.WALK[machine] :]
    rows_at = -(-(4 + len(walk)) // 8) * 8
    adr_x0_rows = struct.pack("<I", 0x10000000 | (rows_at & 3) << 29 | (rows_at >> 2) << 5)
    rows = reaper.ADDRESS + len(reaper.executable(machine, b"")) + rows_at
    text = rows + 3 * SIZE
    table = [
        row("close", NO_FILE, tolerate=1 << EBADF, machine=machine),
        row("write", 1, text, 6, machine=machine),
        row("exit_group", 7, machine=machine),
    ]
    code = (adr_x0_rows + walk).ljust(rows_at, b"\0") + b"".join(one.packed(rows, 0) for one in table) + b"Hello\n"
    program = bytearray(reaper.executable(machine, code))
    program[68] |= reaper.WRITE  # p_flags of PT_LOAD: here the rows are part of the file, and their results are written
    path = tmp_path / "table"
    path.write_bytes(program)
    path.chmod(0o700)
    ended = subprocess.run(["qemu-aarch64-static", path], capture_output=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, b"Hello\n", b"")
