"""A blob on its way into a repository: a file that grows, and the digest of what has come, computed while it comes."""

import asyncio
import hashlib
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

CHUNK = 1 << 20
MOST_OPEN = 64  # a client may begin any number of uploads; of those that wait for long, the digest is computed from the file once more


class Upload:
    """An upload that is there: it goes on at its end, and what has come before is read for the digest. Raises FileNotFoundError.

    All of it waits for the disk, and one thread at a time may use it.
    """

    def __init__(self, path: Path, algorithm: str = "sha256") -> None:
        self.path, self.algorithm = path, algorithm
        self.size = 0
        self._hash: Any = hashlib.new(algorithm)
        self._file = path.open("r+b", buffering=0)
        for piece in iter(partial(self._file.read, CHUNK), b""):
            self._count(piece)

    @property
    def digest(self) -> str:
        """Of what has come so far."""
        return f"{self.algorithm}:{self._hash.hexdigest()}"

    def write(self, pieces: Iterable[bytes]) -> None:
        """Adds to it. What has come is there for another process at once; it is on the disk after `sync`."""
        for piece in pieces:
            left = memoryview(piece)
            while left:
                left = left[self._file.write(left) :]
            self._count(piece)

    def mark(self) -> tuple[int, Any]:
        """Where it is now, for `rewind`."""
        return self.size, self._hash.copy()

    def rewind(self, mark: tuple[int, Any]) -> None:
        """Forgets what has come since."""
        self.size, self._hash = mark[0], mark[1].copy()
        self._file.truncate(self.size)
        self._file.seek(self.size)

    def sync(self) -> None:
        """When this returns, the disk has it."""
        os.fsync(self._file.fileno())

    def discard(self) -> None:
        """Removes it."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def _count(self, piece: bytes) -> None:
        self._hash.update(piece)
        self.size += len(piece)


class Uploads:
    """The uploads that a server has at hand, each in one request at a time."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Path, Upload] = OrderedDict()  # the latest last
        self._locks: WeakValueDictionary[Path, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def opened(self, path: Path, algorithm: str | None = None) -> AsyncIterator[Upload]:
        """The upload in this file, with the digest of an algorithm or, without one, of any. Raises FileNotFoundError."""
        async with self._locks.setdefault(path, asyncio.Lock()):
            waiting = self._waiting.pop(path, None)
            if waiting is not None and algorithm in (None, waiting.algorithm):
                upload = waiting
            else:
                upload = await asyncio.to_thread(Upload, path, algorithm or "sha256")
            try:
                yield upload
            finally:
                self._keep(upload)

    def close(self) -> None:
        """Closes all; their files stay, and can be gone on with."""
        for upload in self._waiting.values():
            upload.close()
        self._waiting.clear()

    def _keep(self, upload: Upload) -> None:
        if not upload.closed:
            self._waiting[upload.path] = upload
        if len(self._waiting) > MOST_OPEN:
            self._waiting.popitem(last=False)[1].close()
