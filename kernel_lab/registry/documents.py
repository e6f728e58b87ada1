"""What a registry has sent as a manifest: whether it is an image or an index, and whether it is one that we know how to keep."""

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

from kernel_lab.images.descriptor import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    INDEXES,
    MANIFESTS,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    Descriptor,
    Manifest,
)
from kernel_lab.kernel.errors import UsageError
from kernel_lab.registry.client import SCHEMA_1
from kernel_lab.registry.oneline import one_line

CONFIGS = (OCI_CONFIG, DOCKER_CONFIG)
LAYERS = (OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, DOCKER_LAYER, DOCKER_LAYER_GZIP, f"{DOCKER_LAYER}.zstd")
_NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar"
FOREIGN = (
    _NONDISTRIBUTABLE,
    f"{_NONDISTRIBUTABLE}+gzip",
    f"{_NONDISTRIBUTABLE}+zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
)


def typed(descriptor: Descriptor, raw: bytes, what: str) -> Descriptor:
    """A descriptor with the media type that a document itself says, which its digest covers; what came with it is not covered.

    Raises UsageError for what is neither a manifest nor an index, and for what would be both.
    """
    document: Any = None
    with suppress(ValueError, RecursionError):
        document = json.loads(raw)
    said = document.get("mediaType") if isinstance(document, dict) else None
    if descriptor.media_type in SCHEMA_1 or (isinstance(document, dict) and document.get("schemaVersion") == 1):
        raise UsageError(f"{what}: a manifest of schema 1, which docker gave up too: its layers cannot be verified; push the image anew")
    known = (*INDEXES, *MANIFESTS)
    if said in known and descriptor.media_type in known and said != descriptor.media_type:
        raise UsageError(f"{what}: is sent as {descriptor.media_type}, and calls itself {said}; this could mean two things, and is not kept")
    found = said if said is not None else descriptor.media_type
    if found not in known:
        raise UsageError(f"{what}: {one_line(str(found)) or 'what it is, is not said'}; only manifests and indexes of OCI and docker are understood")
    return replace(descriptor, media_type=str(found))


def check_image(manifest: Manifest, what: str) -> None:
    """Raises UsageError for a manifest of something else, and for layers that nobody here could unpack."""
    if manifest.config.media_type not in CONFIGS:
        kind = manifest.others.get("artifactType") or manifest.config.media_type
        raise UsageError(f"{what}: this is no image, but an artifact of type {one_line(str(kind))}")
    for layer in manifest.layers:
        if layer.media_type not in (*LAYERS, *FOREIGN):
            raise UsageError(f"{what}: has a layer of type {one_line(layer.media_type)}, which is not known here")


def elsewhere(layer: Descriptor) -> bool:
    """Whether a layer is one that its owner wants to hand out himself."""
    return layer.media_type in FOREIGN and bool(layer.others.get("urls"))
