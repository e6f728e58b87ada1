"""The files of an OCI image layout (image-layout.md): blobs, each under its own digest, and an index of those that are images.

What is written is written under a name of its maker's, and renamed into place when the disk has it: at any moment a process may be killed, and all
that is in its place is whole. Several processes may work in one folder, each with the lock while it changes it; other programs know nothing of it.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from kernel_lab import state
from kernel_lab.images.descriptor import Descriptor, Index
from kernel_lab.images.holds import Holds
from kernel_lab.images.reference import HEX_DIGITS, wrong_digest
from kernel_lab.kernel.errors import UsageError

LAYOUT, INDEX, BLOBS, LOCK = "oci-layout", "index.json", "blobs", "lock"
VERSION = "1.0.0"
_NEW, _ADDING = ".new", ".adding"


class Layout:
    """The folder at `path`, which is made unless it is there.

    Raises UsageError for a folder that has other things in it, and for a digest that is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._holds = Holds(path, _ADDING)
        if not (path / LAYOUT).exists():
            self._make()
        _check_version(path / LAYOUT)

    def locked(self) -> AbstractContextManager[None]:
        """Alone among all that change something here."""
        return state.locked(self.path / LOCK)

    def index(self) -> Index:
        """Raises UsageError when it is missing."""
        try:
            return Index.read((self.path / INDEX).read_bytes(), str(self.path / INDEX))
        except FileNotFoundError:
            raise UsageError(f"{self.path}: {INDEX} is missing, without which there is no image layout") from None

    def write_index(self, index: Index) -> None:
        """When this returns, the disk has it."""
        self._write(INDEX, index.raw)

    def digests(self) -> set[str]:
        """Of all blobs."""
        found = (f"{path.parent.name}:{path.name}" for path in (self.path / BLOBS).glob("*/*"))
        return {digest for digest in found if not wrong_digest(digest)}

    def blob(self, digest: str) -> Path:
        """The file that a blob is, or would be."""
        if why := wrong_digest(digest):
            raise UsageError(why)
        return self.path / BLOBS / digest.replace(":", "/")

    def has(self, digest: str) -> bool:
        """Whether there is a blob, in whatever state."""
        return self.blob(digest).exists()

    def open(self, digest: str) -> BinaryIO:
        """A blob. It stays readable, whoever removes it meanwhile. Raises UsageError when it is missing."""
        try:
            return open(self.blob(digest), "rb")
        except FileNotFoundError:
            raise UsageError(f"{digest}: missing in {self.path}; put it again") from None

    def wrong_size(self, descriptor: Descriptor) -> str | None:
        """What is wrong with a blob at first sight, in words."""
        try:
            size = self.blob(descriptor.digest).stat().st_size
        except FileNotFoundError:
            return "missing"
        return None if size == descriptor.size else f"damaged: {size} bytes instead of {descriptor.size}"

    def wrong_content(self, digest: str) -> str | None:
        """What is wrong with a blob once it is read, in words."""
        algorithm = digest.partition(":")[0]
        try:
            with open(self.blob(digest), "rb") as file:
                found = f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"
        except FileNotFoundError:
            return None  # removed just now
        return None if found == digest else f"damaged: its content has the digest {found}"

    def hold(self) -> AbstractContextManager[Path]:
        """A file for the digests of what nobody may remove until the block ends."""
        return self._holds.hold()

    def note(self, hold: Path, digests: Iterable[str]) -> None:
        """Holds these too. Who calls this has the lock."""
        self._holds.note(hold, digests)

    def release(self, hold: Path) -> set[str]:
        """Holds nothing there any more: what it was. Who calls this has the lock."""
        return self._holds.release(hold)

    def held(self) -> set[str]:
        """The digests that somebody holds who lives."""
        return self._holds.held()

    def put(self, hold: Path, pieces: Iterable[bytes], media_type: str, digest: str | None, size: int | None) -> Descriptor:
        """Writes a blob, and holds it; one that is there is replaced.

        When this returns, the disk has its content; its name, after `sync_blobs`. Raises UsageError, and leaves nothing behind, when it has not the
        digest or the size in bytes that it should have.
        """
        if digest is not None and (why := wrong_digest(digest)):
            raise UsageError(why)
        with self._new_file() as file:
            found = _copied(pieces, file, media_type, digest, size)
            _sync(file)
            blob = self.blob(found.digest)
            with self.locked():
                self.note(hold, [found.digest])
                blob.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file.name, blob)
        return found

    def link(self, file: Path, digest: str) -> None:
        """Makes a file that the same disk has a blob by one more name, unless there is that blob. When this returns, the disk has the name."""
        blob = self.blob(digest)
        blob.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.link(file, blob)
        self.sync_blobs()

    def sync_blobs(self) -> None:
        """When this returns, the disk has the names of all blobs."""
        for path in filter(Path.exists, (self.path / BLOBS / part for part in (*HEX_DIGITS, ""))):
            sync_directory(path)

    def remove(self, digests: Iterable[str]) -> tuple[str, ...]:
        """Removes blobs. Those that were there."""
        gone = sorted(filter(self.has, digests))
        for digest in gone:
            self.blob(digest).unlink()
        return tuple(gone)

    def remove_leftovers(self) -> tuple[str, ...]:
        """Removes the files that dead makers have left. Their names."""
        left = sorted(name for name in os.listdir(self.path) if (maker := _maker(name)) and not maker.alive())
        for name in left:
            (self.path / name).unlink(missing_ok=True)
        return tuple(left)

    def _make(self) -> None:
        try:
            self.path.mkdir(0o700, parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UsageError(f"{self.path}: images are kept in a folder, and this is none") from None
        # What a killed maker has left may be there, and what one does who has been faster; what is anybody else's may not.
        if strange := [name for name in os.listdir(self.path) if name not in (LAYOUT, INDEX, BLOBS, LOCK) and not _maker(name)]:
            raise UsageError(f"{self.path}: has {strange[0]!r} and no {LAYOUT}; images are kept in an image layout or an empty folder")
        with self.locked():
            if not (self.path / LAYOUT).exists():
                (self.path / BLOBS / "sha256").mkdir(parents=True, exist_ok=True)
                self._write(INDEX, Index().raw)
                self._write(LAYOUT, json.dumps({"imageLayoutVersion": VERSION}).encode())  # last: with it, all is there

    def _write(self, name: str, content: bytes) -> None:
        with self._new_file() as file:
            file.write(content)
            _sync(file)
            os.replace(file.name, self.path / name)
        sync_directory(self.path)

    @contextmanager
    def _new_file(self) -> Iterator[BinaryIO]:
        """A file that is gone in the end, unless it has been given another name."""
        # In the folder itself, where `klab cleanup` finds what the dead have left.
        path = self.path / f"{_NEW}.{state.Creator.this().stamp}.{os.urandom(4).hex()}"
        try:
            with open(path, "xb") as file:
                yield file
        finally:
            path.unlink(missing_ok=True)


def _check_version(path: Path) -> None:
    with suppress(ValueError, TypeError, KeyError):
        if json.loads(path.read_bytes())["imageLayoutVersion"] == VERSION:
            return
    raise UsageError(f"{path}: only image layouts of version {VERSION} are understood")


def _maker(name: str) -> state.Creator | None:
    """Who has made the file of this name for himself; of any other file, nobody."""
    return state.Creator.in_name(name) if name.startswith((f"{_NEW}.", f"{_ADDING}.")) else None


def _copied(pieces: Iterable[bytes], file: BinaryIO, media_type: str, digest: str | None, size: int | None) -> Descriptor:
    algorithm = digest.partition(":")[0] if digest else "sha256"
    hashed = hashlib.new(algorithm)
    count = 0
    for piece in pieces:
        count += len(piece)
        # At once: a sender that never ends would fill the disk.
        if size is not None and count > size:
            raise UsageError(f"{digest or media_type}: {size} bytes were announced, and more have come")
        hashed.update(piece)
        file.write(piece)
    found = f"{algorithm}:{hashed.hexdigest()}"
    if size not in (None, count):
        raise UsageError(f"{digest or media_type}: {size} bytes were announced, and {count} have come")
    if digest not in (None, found):
        raise UsageError(f"{digest}: what has come is something else: {found}")
    return Descriptor(media_type, found, count)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Until then, a power cut may take a new name away (fsync(2))."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
