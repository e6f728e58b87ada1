"""The process that a benchmark is run from: large and threaded, as a notebook's kernel is."""

import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager

MEGABYTES = 500
THREADS = 12


@contextmanager
def burden(megabytes: int = MEGABYTES, threads: int = THREADS) -> Iterator[None]:
    """This process with that much memory more, every page of it in use, and with at least so many threads."""
    memory = mmap.mmap(-1, megabytes << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:: mmap.PAGESIZE] = b"\1" * (len(memory) // mmap.PAGESIZE)
    end = threading.Event()
    others = [threading.Thread(target=end.wait, daemon=True) for _ in range(threads - threading.active_count())]
    for other in others:
        other.start()
    try:
        yield
    finally:
        end.set()
        for other in others:
            other.join()
        memory.close()
