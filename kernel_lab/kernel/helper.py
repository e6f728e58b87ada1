"""Run as a program by `portable.py`: maps the table where its creator has it, clones, and walks the rows in the child through ctypes.

It has the standard library alone (-I -S), one thread, and no lock that a clone could leave locked.
"""

import ctypes
import errno
import os
import platform
import signal
import sys

CLONE3 = 435  # the same on every architecture
EXIT_GROUP = {"x86_64": 231, "i386": 252}.get(platform.machine(), 94)
VM, PIDFD, PARENT, CHILD_CLEARTID = 0x100, 0x1000, 0x8000, 0x200000
ROW_WORDS, INDIRECT, STORE, RESULT, JUMP, TOLERATE = 12, 7, 8, 9, 10, 11
PROT_READ_WRITE, MAP_SHARED, MAP_FIXED_NOREPLACE = 3, 1, 0x100000

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)


def word(address: int) -> ctypes.c_int64:
    return ctypes.c_int64.from_address(address)


def syscall(number: int, *args: int) -> int:
    """The kernel's own answer: -errno for a refusal."""
    answer: int = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, args))
    return -ctypes.get_errno() if answer == -1 else answer


def clone(args: int, extra: int = 0) -> int:
    """clone3 with a copy of the creator's arguments, less what is only right for a child that shares memory."""
    words = (ctypes.c_uint64 * 11).from_buffer_copy(ctypes.string_at(args, 88))
    words[0] = (words[0] & ~(VM | PIDFD | CHILD_CLEARTID)) | extra
    if words[0] & PARENT:
        words[4] = 0  # a sibling's exit signal is its parent's (clone(2))
    return syscall(CLONE3, ctypes.addressof(words), 88)


def argument(row: int, position: int, indirect: int) -> int:
    value = word(row + 8 * (1 + position)).value
    return word(value).value if indirect >> position & 1 else value


def walk(row: int) -> None:
    """The rows, as the machine code walks them. Does not return."""
    while True:
        number, indirect = word(row).value, word(row + 8 * INDIRECT).value
        args = [argument(row, position, indirect) for position in range(6)]
        answer = clone(args[0]) if number == CLONE3 else syscall(number, *args)
        word(row + 8 * RESULT).value = answer
        if store := word(row + 8 * STORE).value:
            word(store).value = answer
        if -4095 <= answer < 0 and not (answer > -64 and word(row + 8 * TOLERATE).value >> -answer & 1):
            syscall(EXIT_GROUP, 127)
        row = word(row + 8 * JUMP).value if answer > 0 and word(row + 8 * JUMP).value else row + 8 * ROW_WORDS


def main(address: int, size: int, file: int, clone_args: int, pid: int) -> None:
    mapped = libc.mmap(address, size, PROT_READ_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, file, 0)
    if mapped != address:
        word_errno = ctypes.get_errno() or errno.EEXIST
        sys.exit(f"helper: the table's memory at {address:#x} is taken here: {os.strerror(word_errno)}")
    os.close(file)
    alive, held = os.pipe()  # closed by execve or by the end of every process of the table
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    answer = clone(clone_args, PARENT)
    if answer == 0:
        os.close(1)
        os.close(alive)
        os.read(0, 1)  # the creator has a descriptor of this process
        walk(address)
    word(pid).value = answer
    os.close(held)
    os.close(1)  # tells the creator that the clone is done
    os.read(alive, 1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
