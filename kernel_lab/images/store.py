"""Where images are kept: what an image is in an image layout, how it is called, and what it needs, so that it is there and whole.

skopeo, umoci and podman open the folder as it is. Every blob is found by its own digest, so that a name can only ever mean one content; the index
says which of them are images, and what these are called. An image whose `tag` has returned is there and whole, whoever is killed.
"""

import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

from kernel_lab import state
from kernel_lab.images.descriptor import CONTAINERD_NAME, INDEXES, MANIFESTS, NAME, Config, Descriptor, Index, Manifest, digest_of
from kernel_lab.images.layout import Layout
from kernel_lab.images.reference import HEX_DIGITS, OFFICIAL, Reference, familiar, wrong_digest
from kernel_lab.kernel.errors import UsageError

CHUNK = 1 << 20
OWN = "kernel-lab."  # annotations that begin so are this store's own notes
INDEX_DIGEST = f"{OWN}index.digest"  # annotation of an image of one platform: the index that a registry had in its place
LARGEST_DOCUMENT = 4 << 20  # what is read at once: no client should push a larger manifest (distribution specification, "Pushing Manifests")

Document = TypeVar("Document", Index, Manifest)


class Pruned(NamedTuple):
    """What is gone: the digests of blobs that no image needs, and files of dead makers."""

    digests: tuple[str, ...]
    leftovers: tuple[str, ...]


class Store:
    """The images in one folder, which is made unless it is there.

    Raises UsageError for a folder that has other things in it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._layout = Layout(self.path)

    # What is there.

    def images(self) -> tuple[Descriptor, ...]:
        """All images, one descriptor for each name; `name_of` knows it."""
        return self._layout.index().manifests

    def resolve(self, what: str | Reference) -> Descriptor:
        """The image of this name, of this digest, or of this id: the digest of its configuration, or enough of its beginning.

        Raises UsageError when there is none, or more than one.
        """
        return self._found(self.images(), str(what))

    def named(self, name: str | Reference) -> tuple[Descriptor, ...]:
        """The images of a name; none for what is a digest or an id."""
        return tuple(_called(self.images(), str(name)))

    @property
    def free(self) -> int:
        """Bytes that its disk has left."""
        disk = os.statvfs(self.path)
        return disk.f_bavail * disk.f_frsize

    def index(self, descriptor: Descriptor) -> Index:
        """The index that a descriptor points to."""
        return _of_its_type(Index.read(self.read(descriptor), descriptor.digest), descriptor)

    def manifest(self, descriptor: Descriptor) -> Manifest:
        """The manifest that a descriptor points to."""
        return _of_its_type(Manifest.read(self.read(descriptor), descriptor.digest), descriptor)

    def config(self, manifest: Manifest) -> Config:
        """An image's configuration."""
        return Config.read(self.read(manifest.config), manifest.config.digest)

    def read(self, descriptor: Descriptor) -> bytes:
        """All bytes of a document, which are those of its digest."""
        if descriptor.size > LARGEST_DOCUMENT:
            raise UsageError(f"{descriptor.digest}: {descriptor.size} bytes are too many for a document; the most is {LARGEST_DOCUMENT}")
        with self.open(descriptor) as file:
            content = file.read(descriptor.size + 1)
        if len(content) != descriptor.size or digest_of(content, descriptor.digest.partition(":")[0]) != descriptor.digest:
            raise UsageError(f"{descriptor.digest}: damaged: these are other bytes; put it again")
        return content

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """A blob, to be read piece by piece. It stays readable, whoever removes it meanwhile."""
        return self._layout.open(descriptor.digest)

    def needs(self, *descriptors: Descriptor, strict: bool = True) -> Iterator[Descriptor]:
        """These, and all that can be reached from them, each once. Where a document is missing, nothing further is known.

        Raises UsageError for a damaged one; without `strict` it counts as missing.
        """
        seen = set()
        waiting = list(reversed(descriptors))
        while waiting:
            descriptor = waiting.pop()
            # With its type: what one manifest calls a layer can be another image.
            if (key := (descriptor.digest, descriptor.media_type)) not in seen:
                seen.add(key)
                yield descriptor
                waiting += reversed(self._children(descriptor, strict))

    def verify(self) -> dict[str, str]:
        """The digest of every blob that is missing or damaged, and what is wrong with it."""
        first = self._damage()
        # Somebody may have removed an image in the middle of it: what is wrong is so the second time too.
        return {digest: why for digest, why in self._damage().items() if digest in first} if first else {}

    # What changes it.

    @contextmanager
    def adding(self, tidy: bool = False) -> Iterator["Addition"]:
        """Until the block ends, nobody removes what is put or kept in it: blobs come before the image that needs them.

        What no image needs then stays until the next `prune`, for whoever tries again; `tidy` removes it at once.

        with store.adding() as adding:
            config = adding.put(raw, OCI_CONFIG)
            ...
            store.tag(manifest, "busybox")
        """
        with self._layout.hold() as hold:
            try:
                yield Addition(self, hold)
            finally:
                if tidy:
                    self._release(hold)

    def tag(self, descriptor: Descriptor, name: str | Reference | None) -> Descriptor:
        """Makes a manifest or an index an image, or gives an image one more name; without a name it is found by its id.

        The name is written whole. An image that had it before keeps none. When this returns, the disk has all of it.
        Raises UsageError when a blob that it needs is not there.
        """
        if descriptor.media_type not in (*INDEXES, *MANIFESTS):
            raise UsageError(f"{descriptor.digest}: {descriptor.media_type}: an image is a manifest or an index")
        called = None if name is None else str(_nameable(name, descriptor))
        image = _with_name(descriptor, called)
        with self._layout.locked():
            self._all_there(image)
            index = self._layout.index()
            before = (_with_name(other, None) if called and name_of(other) == called else other for other in index.manifests)
            self._layout.sync_blobs()
            self._write(index, [*before, image])
        return image

    def untag(self, name: str | Reference) -> Descriptor:
        """Takes a name away; the image stays, if only under its id. Raises UsageError when nothing has this name."""
        with self._layout.locked():
            index = self._layout.index()
            named = _called(index.manifests, str(name))
            if not named:
                raise UsageError(f"{str(name)!r}: there is no image of this name")
            self._write(index, [_with_name(image, None) if image in named else image for image in index.manifests])
        return _with_name(named[0], None)

    def remove(self, what: str | Reference) -> tuple[str, ...]:
        """Removes a name, and its image when it was the last one, or with an id or digest an image with all its names.

        The blobs go too that no other image needs: their digests. Raises UsageError, and has changed nothing, when there is no such image.
        """
        with self._layout.locked():
            index = self._layout.index()
            gone = _called(index.manifests, str(what)) or self._entries(index.manifests, str(what))
            left = [image for image in index.manifests if image not in gone]
            kept = self._kept(left)
            unneeded = {descriptor.digest for descriptor in self.needs(*gone, strict=False)} - kept
            self._write(index, left)
            return self._layout.remove(unneeded)

    def prune(self, unnamed: bool = False, but: Collection[str] = ()) -> Pruned:
        """Removes blobs that no image needs, and what dead makers have left; with `unnamed` also images without a name, but for these digests.

        Raises UsageError, and has changed nothing, where a damaged manifest does not say what it needs.
        """
        with self._layout.locked():
            index = self._layout.index()
            left = [image for image in index.manifests if name_of(image) is not None or not unnamed or image.digest in but]
            unneeded = self._layout.digests() - self._kept(left)
            if unnamed:
                self._write(index, left)
            return Pruned(self._layout.remove(unneeded), self._layout.remove_leftovers())

    # Inside.

    def _write(self, index: Index, images: Iterable[Descriptor]) -> None:
        self._layout.write_index(replace(index, manifests=tuple(_settled(images))))

    def _children(self, descriptor: Descriptor, strict: bool) -> tuple[Descriptor, ...]:
        if descriptor.media_type not in (*INDEXES, *MANIFESTS) or not self._layout.has(descriptor.digest):
            return ()
        try:
            if descriptor.media_type in INDEXES:
                return self.index(descriptor).manifests
            manifest = self.manifest(descriptor)
            return (manifest.config, *manifest.layers)
        except UsageError:
            if strict:
                raise
            return ()

    def _kept(self, images: Iterable[Descriptor]) -> set[str]:
        """The digests that must stay: of what the images need, and of what somebody is adding."""
        return {descriptor.digest for descriptor in self.needs(*images)} | self._layout.held()

    def _release(self, hold: Path) -> None:
        with self._layout.locked():
            held = self._layout.release(hold)
            with suppress(UsageError):  # of a damaged image, which `prune` names: what it needs is not known, and all stays
                self._layout.remove(held - self._kept(self._layout.index().manifests))

    def _all_there(self, image: Descriptor) -> list[str]:
        """The digests of all that an image needs. Raises UsageError when a blob of these is not there."""
        digests = []
        for descriptor in self.needs(image):
            if (why := self._layout.wrong_size(descriptor)) is not None:
                raise UsageError(f"{descriptor.digest}: {why}, and {image.digest} needs it; put it first")
            digests.append(descriptor.digest)
        return digests

    def _damage(self) -> dict[str, str]:
        needed = list(self.needs(*self.images(), strict=False))
        others = self._layout.digests() - {descriptor.digest for descriptor in needed}
        wrong = {descriptor.digest: why for descriptor in needed if (why := self._wrong(descriptor))}
        return wrong | {digest: why for digest in sorted(others) if (why := self._layout.wrong_content(digest))}

    def _wrong(self, descriptor: Descriptor) -> str | None:
        if why := self._layout.wrong_size(descriptor) or self._layout.wrong_content(descriptor.digest):
            return why
        try:
            self._children(descriptor, strict=True)
        except UsageError as error:
            return str(error)
        return None

    def _found(self, images: Iterable[Descriptor], text: str) -> Descriptor:
        found = next(iter(_called(images, text)), None) or self._of_digest(images, text)
        if not found:
            names = ", ".join(sorted(familiar(name) for name in map(name_of, images) if name)) or "none that has a name"
            raise UsageError(f"{text!r}: there is no image of this name or id; the images here: {names}")
        return found

    def _of_digest(self, images: Iterable[Descriptor], text: str) -> Descriptor | None:
        """The manifest or index of a digest, or the manifest whose configuration's digest begins with an id."""
        start = text if ":" in text else f"sha256:{text}"
        if not re.fullmatch("(sha256|sha512):[a-f0-9]+", start):
            return None
        of_id: dict[str, Descriptor] = {}
        for descriptor in self.needs(*images, strict=False):
            if descriptor.media_type in (*INDEXES, *MANIFESTS) and descriptor.digest == start:
                return descriptor
            if descriptor.media_type in MANIFESTS and (children := self._children(descriptor, strict=False)):
                of_id.setdefault(children[0].digest, descriptor)
        ids = sorted(digest for digest in of_id if digest.startswith(start))
        if len(ids) > 1:
            raise UsageError(f"{text!r}: more than one image's id begins so: {', '.join(ids)}")
        return of_id[ids[0]] if ids else None

    def _entries(self, images: Iterable[Descriptor], text: str) -> list[Descriptor]:
        """All names of one image that is known by its digest or id."""
        found = self._found(images, text)
        entries = [image for image in images if image.digest == found.digest]
        if not entries:
            raise UsageError(f"{text!r}: belongs to an index of several images; remove that by its name or digest")
        return entries


@dataclass(frozen=True)
class Addition:
    """An image on its way into a store."""

    store: Store
    hold: Path

    def put(
        self,
        content: bytes | BinaryIO | Iterable[bytes],
        media_type: str = "application/octet-stream",
        digest: str | None = None,
        size: int | None = None,
    ) -> Descriptor:
        """Puts a blob, in one pass and piece by piece; where it is there already, it is replaced by the same, which mends a damaged one.

        Raises UsageError, and leaves nothing behind, when it has not the digest or the size in bytes that it should have.
        """
        return self.store._layout.put(self.hold, _pieces(content), media_type, digest, size)

    def keep(self, descriptor: Descriptor) -> bool:
        """Whether the store has this blob, and all that it needs; then they stay until the addition ends."""
        with self.store._layout.locked():
            try:
                needed = self.store._all_there(descriptor)
            except UsageError:
                return False
            self.store._layout.note(self.hold, needed)
        return True


def local() -> Store:
    """The user's own images."""
    return Store(state.data_dir() / "images")


def name_of(image: Descriptor) -> str | None:
    """What an image is called: the whole reference, or what another program wrote in its place.

    docker writes the tag alone, as annotations.md would have it, and the reference where containerd looks for it.
    """
    name, containerds = image.annotations.get(NAME), image.annotations.get(CONTAINERD_NAME)
    return name if containerds is None or (name and _whole(name) == name) else containerds


def unnoted(image: Descriptor) -> Descriptor:
    """Without this store's notes, which say what the kit has found or made itself: nobody else's word counts for that."""
    return replace(image, annotations={key: value for key, value in image.annotations.items() if not key.startswith(OWN)})


def _called(images: Iterable[Descriptor], text: str) -> list[Descriptor]:
    """The images of a name. A reference with a digest is of the image that has both, whatever its tag."""
    # A digest has the form of a name and a tag, and is none.
    if not wrong_digest(text):
        return []
    named = [(image, name) for image in images if (name := name_of(image)) is not None]
    with suppress(UsageError):
        asked = Reference.parse(text)
        if asked.digest is not None:
            return [image for image, name in named if asked.digest in _digests(image) and _repository(name) == asked.name]
        whole = [image for image, name in named if name == str(asked)]
        # Other programs write down what was typed: a short name, which means the same.
        if found := whole or [image for image, name in named if _whole(name) == str(asked)]:
            return found
    return [image for image, name in named if name == text]


def _digests(image: Descriptor) -> tuple[str | None, ...]:
    """Its own, and that of the index that it was chosen from."""
    return image.digest, image.annotations.get(INDEX_DIGEST)


def _whole(name: str) -> str | None:
    with suppress(UsageError):
        return str(Reference.parse(name))
    return None


def _repository(name: str) -> str | None:
    with suppress(UsageError):
        return Reference.parse(name).name
    return None


def _nameable(name: str | Reference, descriptor: Descriptor) -> Reference:
    reference = Reference.parse(str(name))
    if reference.digest not in (None, descriptor.digest):
        raise UsageError(f"{name}: this is the name of another image, since {descriptor.digest} is the digest of the one that is to have it")
    if reference.repository.removeprefix(OFFICIAL) in HEX_DIGITS:
        raise UsageError(f"{name}: the name of a digest's algorithm would make it look like a digest; choose another")
    return reference


def _with_name(image: Descriptor, name: str | None) -> Descriptor:
    others = {key: value for key, value in image.annotations.items() if key not in (NAME, CONTAINERD_NAME)}
    return replace(image, annotations=others if name is None else others | {NAME: name})


def _settled(images: Iterable[Descriptor]) -> Iterator[Descriptor]:
    """Each image once for every name, and without a name only where it has none."""
    images = list(images)
    named = {image.digest for image in images if name_of(image) is not None}
    seen = set()
    for image in images:
        key = (image.digest, name_of(image))
        if key not in seen and (key[1] is not None or image.digest not in named):
            seen.add(key)
            yield image


def _of_its_type(document: Document, descriptor: Descriptor) -> Document:
    if document.media_type not in (None, descriptor.media_type):
        raise UsageError(f"{descriptor.digest}: mediaType: {document.media_type}, and what points to it says {descriptor.media_type}")
    return document


def _pieces(content: bytes | BinaryIO | Iterable[bytes]) -> Iterable[bytes]:
    if isinstance(content, bytes):
        return (content,)
    read = getattr(content, "read", None)
    return iter(partial(read, CHUNK), b"") if read else content
