"""What flows by, hashed and counted, so that a layer is read once."""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

# A piece of this size or more is hashed by a second thread, while the first one goes on with it: hashlib lets others run meanwhile.
LARGE = 1 << 16


class Measured:
    """The digest and the size in bytes of what has come so far."""

    def __init__(self, algorithm: str = "sha256") -> None:
        self.algorithm = algorithm
        self._hash = hashlib.new(algorithm)
        self._hashing: Future[None] | None = None
        self.size = 0

    def of(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same chunks."""
        with ThreadPoolExecutor(1) as second:
            for chunk in chunks:
                self._wait()
                if len(chunk) < LARGE:
                    self._hash.update(chunk)
                else:
                    self._hashing = second.submit(self._hash.update, chunk)
                self.size += len(chunk)
                yield chunk

    @property
    def digest(self) -> str:
        self._wait()
        return f"{self.algorithm}:{self._hash.hexdigest()}"

    def _wait(self) -> None:
        """For the one piece that may be on its way: they are hashed in their order."""
        if self._hashing:
            self._hashing.result()
            self._hashing = None
