"""An image of one platform: what a container is started from, and what it is made of."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from kernel_lab.images import platforms
from kernel_lab.images.descriptor import DOCKER_LAYER, INDEXES, MANIFESTS, OCI_LAYER, Config, Descriptor, Manifest, Platform, chain_ids
from kernel_lab.images.reference import Reference, familiar
from kernel_lab.images.store import Store, name_of
from kernel_lab.kernel.errors import UsageError

LAYERS = (OCI_LAYER.removesuffix("tar"), DOCKER_LAYER.removesuffix("diff.tar"))  # also those that may not be distributed, and docker's foreign ones


class Step(NamedTuple):
    """A line of an image's history, in config.md's words, and the layer that this step has made, if any."""

    line: Mapping[str, Any]
    layer: "Layer | None"


class Layer(NamedTuple):
    """A layer: the blob as it travels, the digest of its archive, and the ChainID, which names it together with all below it."""

    blob: Descriptor
    diff_id: str
    chain_id: str


@dataclass(frozen=True)
class Image:
    """What a manifest of a store means. `find` looks one up; made by hand from a store and the descriptor of a manifest.

    Raises UsageError when its documents are damaged, or do not go together, and for an artifact: what is kept as if it were an image.
    """

    store: Store
    descriptor: Descriptor

    def __post_init__(self) -> None:
        # A signature or a chart has such a manifest too (manifest.md, "Guidelines for Artifact Usage").
        if strange := [layer.media_type for layer in self.manifest.layers if not layer.media_type.startswith(LAYERS)]:
            raise UsageError(f"{self.descriptor.digest}: is no image but an artifact, with {strange[0]} in place of a layer")
        if len(self.config.diff_ids) != len(self.manifest.layers):
            counts = f"{len(self.manifest.layers)} layers, and its configuration {len(self.config.diff_ids)} DiffIDs"
            raise UsageError(f"{self.descriptor.digest}: its manifest has {counts}; an image has one for each (config.md)")

    @classmethod
    def find(cls, store: Store, what: str | Reference, platform: Platform | None = None) -> "Image":
        """The image of a name, digest or id; of an index, the one that runs on `platform`, or here.

        Raises UsageError when there is none, and for an image that does not run on the `platform` that was asked for.
        """
        descriptor = store.resolve(what)
        while descriptor.media_type in INDEXES:
            descriptor = _chosen(store, descriptor, platform or platforms.here(), str(what))
        image = cls(store, descriptor)
        if platform and not platforms.fits(image.platform, platform):
            raise UsageError(f"{what}: runs on {platforms.words(image.platform)}, and {platforms.words(platform)} was asked for")
        return image

    @cached_property
    def manifest(self) -> Manifest:
        return self.store.manifest(self.descriptor)

    @cached_property
    def config(self) -> Config:
        return self.store.config(self.manifest)

    @property
    def id(self) -> str:
        """As docker has it: the digest of its configuration, which by its DiffIDs says all that is in it."""
        return self.manifest.config.digest

    @property
    def short_id(self) -> str:
        """As docker shows it."""
        return self.id.partition(":")[2][:12]

    @property
    def platform(self) -> Platform:
        """What it runs on."""
        return Platform(self.config.architecture, self.config.os, self.config.variant)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The lowest first."""
        diff_ids = self.config.diff_ids
        return tuple(map(Layer, self.manifest.layers, diff_ids, chain_ids(diff_ids)))

    @property
    def history(self) -> tuple[Step, ...]:
        """How it came to be, the first step first. A layer of which nothing is said has an empty line."""
        layers = iter(self.layers)
        steps = [Step(line, None if line.get("empty_layer") else next(layers, None)) for line in self.config.history]
        return *steps, *(Step({}, layer) for layer in layers)

    @property
    def names(self) -> tuple[str, ...]:
        """All names that it has in its store."""
        return tuple(sorted(name for other in self.store.images() if other.digest == self.descriptor.digest and (name := name_of(other))))

    @property
    def size(self) -> int:
        """Bytes of its layers as they travel, and of its configuration."""
        return sum(layer.size for layer in self.manifest.layers) + self.manifest.config.size

    @property
    def settings(self) -> Mapping[str, object]:
        """How it is run, in the specification's words: Entrypoint, Cmd, Env, User, WorkingDir and so on; what is `null` is not said."""
        return {name: value for name, value in self.config.config.items() if value is not None}

    @property
    def stop_signal(self) -> str | None:
        """How a container of it is asked to end; without it by SIGTERM."""
        signal = self.settings.get("StopSignal")
        return str(signal) if signal else None

    def __str__(self) -> str:
        """Its name as docker shows it, or its id."""
        return next((familiar(name) for name in self.names), self.id)


def images(store: Store, *descriptors: Descriptor) -> Iterator[Image]:
    """Every image of a store, or of these manifests and indexes, that has what it takes to run one; of an index, all that are there."""
    for descriptor in store.needs(*(descriptors or store.images()), strict=False):
        if descriptor.media_type in MANIFESTS:
            with suppress(UsageError):  # damaged; or something else than an image, kept as if it were one (image-manifest.md, "artifacts")
                yield Image(store, descriptor)


def _chosen(store: Store, descriptor: Descriptor, wanted: Platform, what: str) -> Descriptor:
    offered = [_with_platform(store, image) for image in store.index(descriptor).manifests]
    if chosen := platforms.choose(offered, wanted):
        return chosen
    there = ", ".join(platforms.words(image.platform) for image in offered if image.platform) or "none that says what it runs on"
    raise UsageError(f"{what}: there is no image for {platforms.words(wanted)} in it; there is: {there}")


def _with_platform(store: Store, descriptor: Descriptor) -> Descriptor:
    """Where the index does not say what an image runs on, its configuration does."""
    if descriptor.platform is None and descriptor.media_type in MANIFESTS:
        with suppress(UsageError):  # not here, or none
            return replace(descriptor, platform=Image(store, descriptor).platform)
    return descriptor
