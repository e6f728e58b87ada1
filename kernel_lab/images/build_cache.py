"""What a build has done before: an image of every step, each with a mark that says what it stands on and what made it.

docker's classic builder keeps its cache so. The images are in the store like others, and have no names: they are there whole or not at all, share
their layers with the image that comes of them, and go with `klab image prune`.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from kernel_lab.images.descriptor import Descriptor
from kernel_lab.images.image import Image
from kernel_lab.images.store import OWN, Addition, Store, name_of

# Annotations of an image in the store's index.
PARENT = f"{OWN}build.parent"  # the id of the image that the step stands on
KEY = f"{OWN}build.key"

SCRATCH = "scratch"


def key(parent: str, words: str, settings: Mapping[str, Any], more: str = "") -> str:
    """Of a step: the image that it stands on, what it does in the words of the history, the settings that come of it, and what else counts."""
    return hashlib.sha256(json.dumps([parent, words, settings, more], sort_keys=True).encode()).hexdigest()


def marks(parent: str, key: str) -> Mapping[str, str]:
    """The annotations of what a step has made."""
    return {PARENT: parent, KEY: key}


def find(adding: Addition, key: str) -> Image | None:
    """What such a step has made before, if all of it is still there; then it stays until the addition ends."""
    for descriptor in reversed(adding.store.images()):
        if descriptor.annotations.get(KEY) == key and adding.keep(descriptor):
            return Image(adding.store, descriptor)
    return None


def intermediate(store: Store) -> set[str]:
    """The digests of images without a name on which later steps stand; docker does not list these either."""
    images = store.images()
    parents = {descriptor.annotations.get(PARENT) for descriptor in images}
    return {one.digest for one in images if name_of(one) is None and KEY in one.annotations and _id(store, one) in parents}


def _id(store: Store, descriptor: Descriptor) -> str:
    return store.manifest(descriptor).config.digest
