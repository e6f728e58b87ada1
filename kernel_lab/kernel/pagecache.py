"""The page cache: which part of a file is in memory, and how much of all files is."""

import ctypes
import mmap
import os
from pathlib import Path

from kernel_lab.kernel.calls import libc
from kernel_lab.kernel.errors import KernelError

_PROT_READ = 1
libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


def resident(path: str | Path) -> int:
    """How many bytes of the file are in the page cache, in whole pages (mincore(2)): of a file that this user may write, or owns."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return 0
        address = libc.mmap(None, size, _PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise KernelError(ctypes.get_errno(), f"mmap({path})")
    try:
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        if libc.mincore(address, size, pages):
            raise KernelError(ctypes.get_errno(), f"mincore({path})")
    finally:
        libc.munmap(address, size)
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


def forget(path: str | Path) -> None:
    """Asks the kernel to drop the file's pages, once they are on disk (POSIX_FADV_DONTNEED, posix_fadvise(2))."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached() -> int:
    """Bytes of files in memory, of the whole machine (Cached, proc_meminfo(5))."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Cached:")) * 1024
