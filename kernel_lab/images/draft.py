"""An image that is being made, step by step: each step adds a layer or changes the settings, and leaves a line of history (config.md)."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from kernel_lab.images import platforms
from kernel_lab.images.compression import gzipped
from kernel_lab.images.descriptor import (
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Config,
    Descriptor,
    Manifest,
    Platform,
)
from kernel_lab.images.image import Image
from kernel_lab.images.measured import Measured
from kernel_lab.images.store import Addition
from kernel_lab.kernel.errors import UsageError

OCI_TYPES = {DOCKER_LAYER: OCI_LAYER, DOCKER_LAYER_GZIP: OCI_LAYER_GZIP}


@dataclass(frozen=True)
class Draft:
    """The configuration so far, and the layers, which are in the store."""

    config: Config
    layers: tuple[Descriptor, ...] = ()

    @classmethod
    def scratch(cls, platform: Platform | None = None) -> "Draft":
        """An image of nothing; `platform`: without it, this machine's."""
        runs_on = platform or platforms.here()
        return cls(Config(runs_on.architecture, runs_on.os, (), runs_on.variant))

    @classmethod
    def on(cls, image: Image) -> "Draft":
        """What is added comes on top of this image."""
        # A manifest of OCI's has no types of docker's in it; the bytes are the same.
        layers = (replace(layer, media_type=OCI_TYPES.get(layer.media_type, layer.media_type)) for layer in image.manifest.layers)
        return cls(image.config, tuple(layers))

    def with_layer(self, layer: "PutLayer", **history: str) -> "Draft":
        """One more layer, and its line of history: `created_by`, `comment`, `author`, and `created`, without it now."""
        config = replace(self._noted(history), diff_ids=(*self.config.diff_ids, layer.diff_id))
        return replace(self, config=config, layers=(*self.layers, layer.blob))

    def with_settings(self, settings: Mapping[str, Any]) -> "Draft":
        """Other settings, in the specification's words; one that is None is taken away. Raises UsageError for one that is not as config.md has it."""
        changed = {name: value for name, value in {**self.config.config, **settings}.items() if value is not None}
        config = replace(self.config, config=changed)
        Config.read(config.raw, "settings")
        return replace(self, config=config)

    def with_history(self, **history: str) -> "Draft":
        """A line of history of a step that made no layer, otherwise as `with_layer`."""
        return replace(self, config=self._noted(history, empty_layer=True))

    def put(self, adding: Addition, name: str | None = None, annotations: Mapping[str, str] | None = None) -> Image:
        """Writes it into the store; there it is an image of this name, or without one. `annotations`: of the store's index, and no part of it."""
        config = adding.put(self.config.raw, OCI_CONFIG)
        manifest = adding.put(Manifest(config, self.layers).raw, OCI_MANIFEST)
        return Image(adding.store, adding.store.tag(replace(manifest, annotations=annotations or {}), name))

    def _noted(self, history: Mapping[str, str], **more: bool) -> Config:
        created = history.get("created") or now()
        line = {**history, "created": created, **more}
        return replace(self.config, created=created, author=history.get("author", self.config.author), history=(*self.config.history, line))


@dataclass(frozen=True)
class PutLayer:
    """A layer that is in the store."""

    blob: Descriptor
    diff_id: str


def put_layer(adding: Addition, chunks: Iterable[bytes]) -> PutLayer:
    """Compresses a layer's archive into the store, in one pass; the same archive is the same blob."""
    archive = Measured()
    blob = adding.put(gzipped(archive.of(chunks)), OCI_LAYER_GZIP)
    return PutLayer(blob, archive.digest)


def now() -> str:
    """The time as config.md has it (RFC 3339); or that of SOURCE_DATE_EPOCH, in seconds, for an image that is the same whenever it is made.

    Raises UsageError when that is no number.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch is None:
        return datetime.now(UTC).isoformat().replace("+00:00", "Z")
    try:
        return datetime.fromtimestamp(int(epoch), UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"SOURCE_DATE_EPOCH={epoch!r}: it is a number of seconds since 1970") from None
