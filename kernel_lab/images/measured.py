"""What flows by, hashed and counted, so that a layer is read once."""

import hashlib
from collections.abc import Iterable, Iterator


class Measured:
    """The digest and the size in bytes of what has come so far."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.size = 0

    def of(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same chunks."""
        for chunk in chunks:
            self._hash.update(chunk)
            self.size += len(chunk)
            yield chunk

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"
