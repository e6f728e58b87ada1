"""The tar of a root file system becomes an image of one layer."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kernel_lab.images import archive
from kernel_lab.images.archive import Archive, Entry
from kernel_lab.images.compression import decompressed, recognised
from kernel_lab.images.descriptor import EXECUTION, Platform, known
from kernel_lab.images.draft import Draft, put_layer
from kernel_lab.images.image import Image
from kernel_lab.images.reference import Reference
from kernel_lab.images.store import Store
from kernel_lab.images.unpack import Rules, components
from kernel_lab.kernel.errors import UsageError
from kernel_lab.unionfs.whiteouts import AUFS_WHITEOUT

# Bytes of an archive that are read and not yet passed on: an extended header, or what stands behind the end.
MOST_BEHIND = 8 << 20
_WHITEOUT = AUFS_WHITEOUT.encode()


def import_(
    store: Store,
    chunks: Iterable[bytes],
    name: str | Reference | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    message: str = "",
    platform: Platform | None = None,
    most: int | None = None,
) -> Image:
    """An image whose layer is the archive, bit for bit, which comes in chunks, compressed or not.

    settings: how it is run, as Draft.with_settings has them. platform: what it runs on, without it this machine.
    most: bytes that the archive may have once it is decompressed; without it, as many as the disk has left.
    Raises UsageError for what no container could stand on: an archive that is damaged, or leads out of its root; nothing of it is left then.
    """
    called = None if name is None else str(Reference.parse(str(name)))
    known(EXECUTION)(dict(settings or {}), "settings")
    draft = Draft.scratch(platform).with_settings(settings or {})
    most = store.free if most is None else most
    with store.adding(tidy=True) as adding:
        layer = put_layer(adding, _checked(decompressed(*recognised(chunks), most), most))
        said = {"comment": message} if message else {}
        return draft.with_layer(layer, created_by="klab import", **said).put(adding, called)


def _checked(chunks: Iterable[bytes], most: int) -> Iterator[bytes]:
    """The same chunks, read as an archive while they pass."""
    passed = _Passed(chunks)
    entries = Archive(passed)
    count = 0
    for entry in entries:
        count += 1
        _check(entry, count, most)
        yield from passed.taken()
        for _, length in entry.segments:
            for _ in entries.data(length):
                yield from passed.taken()
    if not count:
        raise UsageError("there is no file in this archive: an image needs some; is it the right one?")
    yield from passed.taken()


class _Passed:
    """Chunks on their way to a reader; `taken` has those that it has got since."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self._waiting: deque[bytes] = deque()
        self._size = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self._waiting.append(chunk)
            self._size += len(chunk)
            if self._size > MOST_BEHIND:
                raise UsageError(f"an archive has more than {MOST_BEHIND} bytes behind its end; give the archive alone")
            yield chunk

    def taken(self) -> Iterator[bytes]:
        self._size = 0
        while self._waiting:
            yield self._waiting.popleft()


def _check(entry: Entry, count: int, most: int) -> None:
    """What unpacking would refuse later, as far as it can be seen without a disk."""
    if count > Rules.most_entries:
        raise UsageError(f"{entry}: an archive of more than {Rules.most_entries} files")
    if entry.size > most:
        raise UsageError(f"{entry}: a file of {entry.size} bytes with its holes, in an archive that may have {most}")
    parts = components(entry, entry.name)
    if entry.kind == archive.LINK:
        components(entry, entry.link)
    if any(part.startswith(_WHITEOUT) for part in parts):
        raise UsageError(f"{entry}: no file of an image can have a name that begins with {AUFS_WHITEOUT!r}: it would hide another")
    if not parts and entry.kind != archive.DIRECTORY:
        raise UsageError(f"{entry}: is the root of the archive, and no directory")
    if entry.kind == archive.CHARACTER and not entry.device:
        raise UsageError(f"{entry}: a device of the number 0:0, which no device has: overlay would take it for a whiteout")
