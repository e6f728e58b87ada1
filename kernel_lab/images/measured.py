"""What flows by, hashed and counted, so that a layer is read once."""

import hashlib
from collections.abc import Iterable, Iterator


class Measured:
    """The digest and the size in bytes of what has come so far."""

    def __init__(self, algorithm: str = "sha256") -> None:
        self.algorithm = algorithm
        self._hash = hashlib.new(algorithm)
        self.size = 0

    def of(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same chunks."""
        for chunk in chunks:
            self._hash.update(chunk)
            self.size += len(chunk)
            yield chunk

    @property
    def digest(self) -> str:
        return f"{self.algorithm}:{self._hash.hexdigest()}"
