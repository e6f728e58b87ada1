"""What a pull or a push tells those who wait, in docker's words: bars in a terminal or a notebook, and lines where there is neither."""

import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from kernel_lab.images.descriptor import Descriptor
from kernel_lab.registry.documents import CONFIGS

DOWNLOADING, UPLOADING = "Downloading", "Pushing"
MOVING = (DOWNLOADING, UPLOADING)
SHORT = 12  # digits of a digest, as docker shows them


class Progress:
    """Says nothing, and what the others say too: threads may share it.

    Inside of `with` blobs are moved; around it lines are said.
    """

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        pass

    def say(self, line: str) -> None:
        """Of the whole."""

    def blob(self, blob: Descriptor, status: str) -> None:
        """What becomes of a blob now."""

    def moved(self, blob: Descriptor, count: int) -> None:
        """So many bytes more of it, or fewer, have been moved."""

    def done(self, blob: Descriptor, status: str) -> None:
        """What has become of it."""


class Lines(Progress):
    """One line for each thing that happens."""

    def __init__(self, write: Callable[[str], object] = print) -> None:
        self._write = write
        self._lock = threading.Lock()

    def say(self, line: str) -> None:
        with self._lock:
            self._write(line)

    def blob(self, blob: Descriptor, status: str) -> None:
        if status not in MOVING:
            self.done(blob, status)

    def done(self, blob: Descriptor, status: str) -> None:
        if _shown(blob):
            self.say(f"{short(blob.digest)}: {status}")


class Bars(Lines):
    """A bar for each blob, which is made by the first word about it: for a notebook, in the thread that its cell runs in."""

    def __init__(self, write: Callable[[str], object] = print) -> None:
        super().__init__(write)
        self._bars: dict[str, Any] = {}

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for bar in self._bars.values():
            bar.close()
        self._bars.clear()

    def say(self, line: str) -> None:
        if self._bars:
            tqdm.write(line, file=sys.stdout)  # above them
        else:
            super().say(line)

    def blob(self, blob: Descriptor, status: str) -> None:
        if not _shown(blob):
            return
        if blob.digest not in self._bars:
            self._bars[blob.digest] = tqdm(total=blob.size, unit="B", unit_scale=True, file=sys.stdout, miniters=1)
        _describe(self._bars[blob.digest], blob, status)

    def moved(self, blob: Descriptor, count: int) -> None:
        if bar := self._bars.get(blob.digest):
            bar.update(count)

    def done(self, blob: Descriptor, status: str) -> None:
        if bar := self._bars.get(blob.digest):
            bar.update(blob.size - bar.n)  # in a notebook, one that is not full has failed
            _describe(bar, blob, status)
        else:
            super().done(blob, status)


def _describe(bar: Any, blob: Descriptor, status: str) -> None:
    # What does not move has no bar.
    bar.bar_format = None if status in MOVING else "{desc}"
    bar.set_description_str(f"{short(blob.digest)}: {status}")


def _shown(blob: Descriptor) -> bool:
    """docker counts layers alone."""
    return blob.media_type not in CONFIGS


def automatic(write: Callable[[str], object] = print) -> Progress:
    """Bars where somebody sees them move, and lines for a pipe or a file."""
    return Bars(write) if sys.stdout.isatty() or "ipykernel.zmqshell" in sys.modules else Lines(write)


def short(digest: str) -> str:
    return digest.partition(":")[2][:SHORT]
