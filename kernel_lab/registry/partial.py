"""What has come of a blob, kept until all of it has: so that a later pull goes on where an earlier one was interrupted.

The files lie in the store's folder, each under its blob's digest. Nothing in them is trusted: whoever puts the blob into the store hashes all of it.
"""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

FOLDER = ".partial"
KEPT = 7 * 24 * 3600  # seconds, after which nobody is thought to come back
LOOK = 0.2  # seconds between looks at what another process downloads


class Partial:
    """The beginning of a blob, in a file that this pull alone has open to write."""

    def __init__(self, path: Path, file: FileIO) -> None:
        self._path = path
        self._file = file

    @property
    def size(self) -> int:
        return self._file.seek(0, 2)

    def read(self, piece: int) -> Iterator[bytes]:
        """All of it."""
        self._file.seek(0)
        while chunk := self._file.read(piece):
            yield chunk

    def append(self, piece: bytes) -> None:
        left = memoryview(piece)
        while left:
            left = left[self._file.write(left) :]

    def discard(self) -> None:
        """It is not needed any more, or wrong."""
        self._file.truncate(0)
        self._path.unlink(missing_ok=True)


@contextmanager
def opened(store: Path, digest: str, wait: Callable[[float], None]) -> Iterator[Partial]:
    """The beginning of a blob, once no other pull is at it; whatever has been appended stays, unless it is discarded."""
    folder = store / FOLDER
    folder.mkdir(0o700, exist_ok=True)
    path = folder / digest.replace(":", "-")
    # Without a buffer: what has been appended is there when the disk is full.
    with open(path, "a+b", buffering=0) as file:
        while not _locked(file):
            wait(LOOK)
        part = Partial(path, file)
        try:
            yield part
        finally:
            if not part.size:
                part.discard()


def discard_old(store: Path, kept: float = KEPT) -> None:
    """Removes what nobody has gone on with for so many seconds, unless somebody is at it now."""
    for path in (store / FOLDER).glob("*"):
        with suppress(FileNotFoundError), open(path, "rb", buffering=0) as file:
            if path.stat().st_mtime <= time.time() - kept and _locked(file):
                path.unlink(missing_ok=True)


def _locked(file: FileIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
