"""Images into an archive, which is two at once: an OCI image layout in a tar, and what docker loads.

So does docker since version 25. OCI's tools read index.json, docker's manifest.json, and both find the same blobs. The same images make the same
bytes: nothing of the machine or the hour is in them.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from kernel_lab.images import archive, platforms
from kernel_lab.images.archive import Entry, encode
from kernel_lab.images.descriptor import CONTAINERD_NAME, INDEXES, MANIFESTS, NAME, Descriptor, Index
from kernel_lab.images.image import Image
from kernel_lab.images.layout import BLOBS, INDEX, LAYOUT, VERSION
from kernel_lab.images.loading import DOCKER
from kernel_lab.images.measured import Measured
from kernel_lab.images.reference import Reference
from kernel_lab.images.store import CHUNK, Addition, Store, name_of, unnoted
from kernel_lab.kernel.errors import UsageError

Named = tuple[Descriptor, Reference | None]


def save(store: Store, names: Sequence[str | Reference]) -> Iterator[bytes]:
    """The archive, in chunks, of the images of these names, digests or ids; an image has those of its names in it that are given.

    Of an index of several platforms it has the images that are in the store. Raises UsageError, before anything comes, when there is no such image or
    a part of it is missing; and in the midst of it for a damaged one.
    """
    if not names:
        raise UsageError("an archive needs an image: name one or more; klab images lists them")
    images = dict.fromkeys(_named(store, str(name)) for name in names)
    return _archive(store, sorted(images, key=lambda named: (str(named[1] or ""), named[0].digest)))


def _named(store: Store, asked: str) -> Named:
    image = store.resolve(asked)
    # What is asked for by a digest or an id has no name, as docker has it.
    called = name_of(image) if store.named(asked) else None
    return image, None if called is None else Reference.parse(called)


def _archive(store: Store, images: Sequence[Named]) -> Iterator[bytes]:
    with store.adding() as adding:  # so that nobody removes anything meanwhile
        whole = {image.digest: _whole(adding, image) for image, _ in images}
        documents = {LAYOUT: {"imageLayoutVersion": VERSION}, INDEX: _index(images).json(), DOCKER: list(_items(store, images, whole))}
        blobs = {blob.digest: blob for image, _ in images for blob in (image, *store.needs(*whole[image.digest]))}
        for name, value in documents.items():
            yield from _document(name, value)
        yield from _folders(blobs)
        for _, blob in sorted(blobs.items()):
            yield from _blob(store, blob)
        yield archive.END


def _whole(adding: Addition, image: Descriptor) -> tuple[Descriptor, ...]:
    """The image; or of an index, the images that are there."""
    if adding.keep(image):
        return (image,)
    there = tuple(filter(adding.keep, adding.store.index(image).manifests)) if image.media_type in INDEXES else ()
    if not there:
        raise UsageError(f"{image.digest}: a part of this image is missing in {adding.store.path}; klab pull or klab load it again")
    return there


def _index(images: Iterable[Named]) -> Index:
    """The whole name stands where OCI's tools look for one, and where containerd and podman do."""
    return Index(tuple(replace(image, annotations=_annotations(image, reference)) for image, reference in images))


def _annotations(image: Descriptor, reference: Reference | None) -> dict[str, str]:
    others = {key: value for key, value in unnoted(image).annotations.items() if key not in (NAME, CONTAINERD_NAME)}
    return others if reference is None else others | {NAME: str(reference), CONTAINERD_NAME: str(reference)}


def _items(store: Store, images: Iterable[Named], whole: Mapping[str, Sequence[Descriptor]]) -> Iterator[dict[str, Any]]:
    """What docker reads: it takes compressed layers, and of an index it knows nothing."""
    tags: dict[Descriptor, list[str]] = {}
    for image, reference in images:
        manifests = [found for found in store.needs(*whole[image.digest]) if found.media_type in MANIFESTS]
        chosen = platforms.choose(manifests, platforms.here()) or manifests[0]
        named = tags.setdefault(replace(chosen, annotations={}), [])
        if reference and reference.tag:
            # docker understands the short form as well, and podman takes that for one of its own machine's.
            named.append(f"{reference.name}:{reference.tag}")
    for chosen, named in tags.items():
        manifest = Image(store, chosen).manifest
        yield {"Config": _path(manifest.config), "RepoTags": named or None, "Layers": list(map(_path, manifest.layers))}


def _path(blob: Descriptor) -> str:
    return f"{BLOBS}/{blob.digest.replace(':', '/')}"


def _folders(blobs: Iterable[str]) -> Iterator[bytes]:
    for folder in ("", *sorted({digest.partition(":")[0] for digest in blobs})):
        yield encode(Entry(f"{BLOBS}/{folder}".rstrip("/").encode() + b"/", archive.DIRECTORY, mode=0o755))


def _document(name: str, value: object) -> Iterator[bytes]:
    content = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return _file(name, [content], len(content))


def _blob(store: Store, blob: Descriptor) -> Iterator[bytes]:
    with store.open(blob) as file:
        yield from _file(_path(blob), _checked(blob, iter(partial(file.read, CHUNK), b"")), blob.size)


def _checked(blob: Descriptor, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same chunks, which are the blob's: whoever saves an image may remove it then."""
    measured = Measured(blob.digest.partition(":")[0])
    yield from measured.of(chunks)
    if measured.digest != blob.digest:
        raise UsageError(f"{blob.digest}: damaged in the store, and so is this archive; klab pull or klab load it again")


def _file(name: str, chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    yield encode(Entry(name.encode(), size=size))
    yield from chunks
    yield bytes(-size % archive.BLOCK)
