"""Images out of an archive: docker's of every age since 1.10, and OCI's, which is an image layout in a tar.

What an archive has to say comes in any order, so all of it is taken first (parts.py). An index.json tells of manifests, which stay what they are, bit
for bit. Where there is none, docker's manifest.json tells of configurations and layers, and the manifest is made here: the configuration's bytes are
kept, and with them the image's id.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from kernel_lab.images import descriptor as documents
from kernel_lab.images.compression import Compression, decompressed, recognised
from kernel_lab.images.descriptor import (
    DOCKER_CONFIG,
    INDEXES,
    MANIFESTS,
    OCI_CONFIG,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    Config,
    Descriptor,
    Index,
    Manifest,
)
from kernel_lab.images.draft import put_layer
from kernel_lab.images.image import Image
from kernel_lab.images.layout import INDEX
from kernel_lab.images.measured import Measured
from kernel_lab.images.parts import Parts
from kernel_lab.images.reference import Reference
from kernel_lab.images.snapshots import FLOOR, RATIO
from kernel_lab.images.store import Addition, Store, name_of, unnoted
from kernel_lab.kernel.errors import UsageError

DOCKER = "manifest.json"
CONFIGS = (OCI_CONFIG, DOCKER_CONFIG)
KEPT = {Compression.GZIP: OCI_LAYER_GZIP, Compression.ZSTD: OCI_LAYER_ZSTD}
_ITEMS = documents.listing(
    documents.known({"Config": documents.text, "RepoTags": documents.listing(documents.text), "Layers": documents.listing(documents.text)})
)


class Loaded(NamedTuple):
    """A manifest, or an index of several, which is in the store now; and the names that it has got."""

    image: Descriptor
    names: tuple[str, ...]


Found = tuple[Descriptor, str | None]


def load(store: Store, chunks: Iterable[bytes], most: int | None = None) -> list[Loaded]:
    """Adds the images of an archive that comes in chunks, compressed or not, to the store.

    `most` bytes may the archive have once it is decompressed; without it, as many as the disk has left. Raises UsageError for an archive that is
    damaged, hostile or not whole; then the store is as it was.
    """
    with store.adding(tidy=True) as adding, Parts.of(adding, chunks, most) as parts:
        found = list(_manifests(adding, parts) if _is_layout(adding, parts) else _items(adding, parts))
        _check_names(found)
        tagged = [(store.tag(image, name), name) for image, name in found]
    return _together(tagged)


def _check_names(found: Sequence[Found]) -> None:
    """Before the first image has its name: of an archive, all come or none."""
    whose: dict[str, str] = {}
    for image, name in found:
        if name is not None and whose.setdefault(str(Reference.parse(name)), image.digest) != image.digest:
            raise UsageError(f"{name}: two images of the archive have this name: {whose[str(Reference.parse(name))]} and {image.digest}")


def _together(tagged: Iterable[Found]) -> list[Loaded]:
    """Each image once, with all its names."""
    loaded: dict[str, Loaded] = {}
    for image, _ in tagged:
        before = loaded.get(image.digest, Loaded(image, ()))
        name = name_of(image)
        loaded[image.digest] = before._replace(names=(*before.names, *([name] if name and name not in before.names else [])))
    return list(loaded.values())


# OCI's.


def _is_layout(adding: Addition, parts: Parts) -> bool:
    """Whether the index says what the images are.

    docker 25.0 wrote manifests without layers into it; docker itself reads the other document.
    """
    if INDEX not in parts:
        return False
    return DOCKER not in parts or not any(map(partial(_has_no_layers, adding), _index(parts).manifests))


def _has_no_layers(adding: Addition, descriptor: Descriptor) -> bool:
    if descriptor.media_type not in MANIFESTS or not adding.keep(descriptor):
        return False
    manifest = adding.store.manifest(descriptor)
    return manifest.config.media_type in CONFIGS and len(manifest.layers) < len(adding.store.config(manifest).diff_ids)


def _index(parts: Parts) -> Index:
    return Index.read(parts.document(INDEX, INDEX), INDEX)


def _manifests(adding: Addition, parts: Parts) -> Iterator[Found]:
    for descriptor in _index(parts).manifests:
        if descriptor.media_type not in (*INDEXES, *MANIFESTS):
            raise UsageError(f"{INDEX}: {descriptor.media_type}: an image is a manifest or an index")
        yield _there(adding, unnoted(descriptor)), name_of(descriptor)


def _there(adding: Addition, descriptor: Descriptor) -> Descriptor:
    """The image if it is there, or an index of those of its images that are: docker saves an index as it is, and of its images those it has."""
    if adding.keep(descriptor):
        _check(adding.store, descriptor)
        return descriptor
    index = adding.store.index(descriptor) if descriptor.media_type in INDEXES and not _missing(adding.store, [descriptor]) else Index()
    whole = tuple(filter(adding.keep, index.manifests))
    if not whole:
        raise UsageError(f"{descriptor.digest}: the archive has not all of this image: {_missing(adding.store, adding.store.needs(descriptor))}")
    put = adding.put(replace(index, manifests=whole).raw, descriptor.media_type)
    return replace(descriptor, digest=put.digest, size=put.size)


def _missing(store: Store, descriptors: Iterable[Descriptor]) -> str:
    """The first of these that is not there."""
    for descriptor in descriptors:
        try:
            store.open(descriptor).close()
        except UsageError:
            return f"{descriptor.digest} is missing"
    return ""


def _check(store: Store, descriptor: Descriptor) -> None:
    """An image's documents go together; what else a manifest may be of is nobody's image (image-manifest.md, "artifacts")."""
    if descriptor.media_type in MANIFESTS and store.manifest(descriptor).config.media_type in CONFIGS:
        Image(store, descriptor)


# docker's.


def _items(adding: Addition, parts: Parts) -> Iterator[Found]:
    """What manifest.json says: of each image the files of its configuration and its layers, the lowest first."""
    if DOCKER not in parts:
        old = "repositories" in parts
        what = "docker before 1.10 saved such images" if old else "klab import takes the archive of a root file system"
        raise UsageError(f"there is neither {INDEX} nor {DOCKER} in it, so it is no archive of images; {what}")
    layers = _Layers(adding, parts)
    for item in _ITEMS(documents.decoded(parts.document(DOCKER, DOCKER), DOCKER), DOCKER):
        image = _image(adding, parts, item, layers)
        for name in item.get("RepoTags") or (None,):
            yield image, name


def _image(adding: Addition, parts: Parts, item: Mapping[str, Any], layers: "_Layers") -> Descriptor:
    if "Config" not in item:
        raise UsageError(f"{DOCKER}: Config is missing")
    raw = parts.document(item["Config"], DOCKER)
    config, names = Config.read(raw, item["Config"]), item.get("Layers") or ()
    if len(names) != len(config.diff_ids):
        raise UsageError(f"{DOCKER}: {item['Config']} has {len(config.diff_ids)} layers, and {len(names)} files are named for them")
    blobs = tuple(map(layers.put, names, config.diff_ids))
    return adding.put(Manifest(adding.put(raw, OCI_CONFIG), blobs).raw, OCI_MANIFEST)


class _Layers:
    """The layers of an archive of docker's, each in the store once, however many images have it."""

    def __init__(self, adding: Addition, parts: Parts) -> None:
        self._adding = adding
        self._parts = parts
        self._blobs: dict[str, Descriptor] = {}

    def put(self, name: str, diff_id: str) -> Descriptor:
        """The layer of a file, once it has turned out to be the one of this DiffID."""
        if diff_id not in self._blobs:
            found, blob = self._put(name)
            if found != diff_id:
                raise UsageError(f"{name}: a layer has the DiffID {found}, and its image says {diff_id}: the archive is damaged; save it again")
            self._blobs[diff_id] = blob
        return self._blobs[diff_id]

    def _put(self, name: str) -> tuple[str, Descriptor]:
        compression, chunks = recognised(self._parts.chunks(name, DOCKER))
        # Here nobody has a digest of what is compressed, and a blob of a third of the size is what all other ways into a store make.
        archive = decompressed(compression, chunks, max(FLOOR, RATIO * self._parts.size(name, DOCKER)))
        if compression not in KEPT:
            layer = put_layer(self._adding, archive)
            return layer.diff_id, layer.blob
        measured = Measured()
        for _ in measured.of(archive):
            pass
        return measured.digest, self._adding.put(self._parts.chunks(name, DOCKER), KEPT[compression])
