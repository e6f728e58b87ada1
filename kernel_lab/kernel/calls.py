"""The few system calls that the creator itself makes and that Python's library does not have."""

import ctypes
import errno
import mmap
from collections.abc import Callable
from typing import Any

from kernel_lab.kernel import syscalls
from kernel_lab.kernel.errors import KernelError

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

PR_SET_DUMPABLE, PR_GET_DUMPABLE = 4, 3
_FUTEX_WAIT, _FUTEX_WAKE = 0, 1
# Between the heap of a program at a fixed address and the lowest address that the kernel hands out by itself
# (mmap_base, Documentation/arch/x86/x86_64/mm.rst): nothing else is there, in this process or in a helper that maps it too.
_NEAR = 0x20_0000_0000


def syscall(name: str, *args: Any) -> int:
    """One system call, by number; raises KernelError with its name."""
    answer: int = libc.syscall(syscalls.number(name), *(ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args))
    if answer < 0:
        raise KernelError(ctypes.get_errno(), f"{name}({', '.join(map(str, args))})")
    return answer


def map_memory(size: int, file: int = -1) -> int:
    """The address of `size` bytes to read and write, fresh or of a memory file (mmap(2))."""
    flags = mmap.MAP_SHARED if file >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address = libc.mmap(_NEAR, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, file, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise KernelError(ctypes.get_errno(), f"mmap(NULL, {size})")
    return int(address)


def unmap_memory(address: int, size: int) -> None:
    """Gives memory back (munmap(2))."""
    libc.munmap(address, size)


def executable(code: bytes) -> int:
    """The address of a page that holds `code`: written first, then made readable and executable, never both writable and executable.

    Raises KernelError where the machine refuses executable memory (SELinux's execmem, a hardened kernel).
    """
    size = -(-len(code) // mmap.PAGESIZE) * mmap.PAGESIZE
    address = map_memory(size)
    ctypes.memmove(address, code, len(code))
    if libc.mprotect(address, size, mmap.PROT_READ | mmap.PROT_EXEC):
        number = ctypes.get_errno()
        unmap_memory(address, size)
        raise KernelError(number, "mprotect(PROT_READ|PROT_EXEC)")
    return address


def futex_wait(address: int, value: int, seconds: float | None = None) -> None:
    """Sleeps while the 32-bit word at `address` is `value` (futex(2)); returns after a wake, a signal, or `seconds`."""
    timeout = None if seconds is None else ctypes.byref((ctypes.c_long * 2)(int(seconds), int(seconds % 1 * 1e9)))
    if libc.syscall(syscalls.number("futex"), ctypes.c_void_p(address), _FUTEX_WAIT, value, timeout, None, 0) < 0:
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT):
            raise KernelError(number, "futex(FUTEX_WAIT)")


def futex_wake(address: int) -> None:
    """Sets the word at `address` to 1 and wakes who sleeps on it."""
    ctypes.c_uint32.from_address(address).value = 1
    libc.syscall(syscalls.number("futex"), ctypes.c_void_p(address), _FUTEX_WAKE, 2**31 - 1, None, None, 0)


def set_dumpable(yes: bool) -> None:
    """Whether others of this user may trace this process and open its memory (PR_SET_DUMPABLE, prctl(2))."""
    libc.prctl(PR_SET_DUMPABLE, int(yes), 0, 0, 0)


def dumpable() -> bool:
    """Whether they may now."""
    return bool(libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 1)


def function(address: int, result: Any, *args: Any) -> Callable[..., int]:
    """Machine code as a function that keeps nothing locked while it runs."""
    return ctypes.CFUNCTYPE(result, *args)(address)
