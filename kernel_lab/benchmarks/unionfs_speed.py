"""How fast a tree of files is: reading a large file, looking at many, making many. For a directory, an overlay, a union in user space alike.

`first`: the kernel's caches have been dropped before, so that files come from the disk and names from the file system. `cached`: the file that is
read is in the page cache, but not as the union's own. `again`: the same once more at once.
"""

import mmap
import os
import time
from pathlib import Path

CHUNK = 1 << 20
BYTES = 256 << 20
FILES = 10_000
NEW = 1_000


def lay_out(directory: Path) -> None:
    """What is measured: one large file, and a directory of many small ones. It belongs into the lowest layer, before that is mounted."""
    with open(directory / "large", "wb") as file:
        for _ in range(BYTES // CHUNK):
            file.write(os.urandom(CHUNK))
        file.flush()
        os.fsync(file.fileno())  # so that nothing is still being written while it is read
    (directory / "many").mkdir()
    for number in range(FILES):
        (directory / "many" / f"{number:05}").touch()


def drop_caches() -> None:
    """As if the machine had just been started (proc_sys_vm(5)); only root may."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def read(tree: str | Path) -> float:
    """Bytes a second, reading the large file from its beginning to its end in pieces of 1 MiB."""
    buffer = mmap.mmap(-1, CHUNK)
    begin = time.perf_counter()
    with open(f"{tree}/large", "rb", buffering=0) as file:
        total = 0
        while count := file.readinto(buffer):
            total += count
    return total / (time.perf_counter() - begin)


def look(tree: str | Path) -> float:
    """Seconds for a `stat` of each of the small files."""
    paths = [f"{tree}/many/{number:05}" for number in range(FILES)]
    begin = time.perf_counter()
    for path in paths:
        os.stat(path)
    return time.perf_counter() - begin


def make(tree: str | Path) -> float:
    """Seconds to make new files, each with one byte in it, in a directory that is new too."""
    directory = f"{tree}/new-{os.urandom(4).hex()}"
    begin = time.perf_counter()
    os.mkdir(directory)
    for number in range(NEW):
        with open(f"{directory}/{number}", "wb", buffering=0) as file:
            file.write(b"x")
    return time.perf_counter() - begin
