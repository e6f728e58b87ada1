"""Registries as a lab shows them: what was asked and answered, what has moved, and who has which blob, each from live state."""

from collections import Counter
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from urllib.parse import unquote

from tabulate import tabulate

from kernel_lab.course.images import Digests
from kernel_lab.course.pictures import Box, Picture, boxes
from kernel_lab.images.descriptor import INDEXES, MANIFESTS
from kernel_lab.images.store import Store, name_of
from kernel_lab.registry.documents import CONFIGS
from kernel_lab.registry.progress import Progress
from kernel_lab.registry.server import Answered, Registry

__all__ = ["Digests", "conversation", "holdings", "moved", "quiet"]

quiet = Progress()  # what a pull or a push says comes in the order in which its threads are done
KINDS = {"blobs": "blob", "manifests": "manifest", "token": "token"}  # of what moves, by a word of the path


def conversation(registry: Registry, digests: Digests) -> str:
    """A table of the requests that a registry has answered since it was last asked, here or by `moved`, in their order."""
    rows = [(answered.user or "nobody", *_said(answered, digests)) for answered in _latest(registry)]
    return tabulate(rows, ["who", "request", "answer", "what moved"])


def moved(registry: Registry) -> str:
    """How many blobs and manifests have come to a registry, gone out from it, and been lent inside, since it was last asked: in one line."""
    counted = Counter(filter(None, map(_moved, _latest(registry))))
    came, went, lent = (_together(counted, way) for way in ("came", "went", "lent"))
    return f"came: {came or 'nothing'}; went: {went or 'nothing'}{lent and f'; lent: {lent}'}"


def holdings(digests: Digests, **places: Store | Registry) -> Picture:
    """Who has which blob, and which tags a manifest has there; a registry is shown by repositories. What all of several have is marked."""
    held = {title: _held(store, digests) for title, store in _stores(places)}
    everything = dict.fromkeys(blob for blobs in held.values() for blob in blobs)
    marked = [blob for blob in everything if len(held) > 1 and all(blob in blobs for blobs in held.values())]
    return boxes(*(Box(title, [blobs.get(blob, "") for blob in everything], marked) for title, blobs in held.items()))


def _latest(registry: Registry) -> list[Answered]:
    return [registry.requests.popleft() for _ in range(len(registry.requests))]


def _said(answered: Answered, digests: Digests) -> tuple[str, str, str]:
    kind, way = _moved(answered) or ("", "")
    answer = f"{answered.status} {HTTPStatus(answered.status).phrase}"
    return digests(f"{answered.method} {unquote(answered.path)}"), answer, kind and f"a {kind} {way}"


def _moved(answered: Answered) -> tuple[str, str] | None:
    """What kind of thing has moved, and which way; None of a refusal, of a question, and of what only begins something."""
    kind = next((kind for word, kind in KINDS.items() if word in answered.path.partition("?")[0].split("/")), None)
    if kind is None or answered.status // 100 != 2:
        return None
    if answered.received:
        return kind, "came"
    if "mount=" in answered.path:
        return (kind, "lent") if answered.status == HTTPStatus.CREATED else None
    return (kind, "went") if answered.method == "GET" and answered.sent != 0 else None


def _together(counted: Mapping[tuple[str, str], int], way: str) -> str:
    numbers = [(counted[kind, way], kind) for kind in ("blob", "manifest") if (kind, way) in counted]
    return " and ".join(f"{number} {kind}{'s' * (number > 1)}" for number, kind in numbers)


def _stores(places: Mapping[str, Store | Registry]) -> Iterator[tuple[str, Store]]:
    """A repository's folder is an image layout, too."""
    for title, place in places.items():
        if isinstance(place, Store):
            yield title, place
            continue
        for name in place.repositories.names():
            if repository := place.repositories.find(name):
                yield f"{title}: {name}", Store(repository.layout.path)


def _held(store: Store, digests: Digests) -> dict[str, str]:
    """Each blob that an image needs, and the same with the image's tags."""
    images = store.images()
    tags: dict[str, dict[str, None]] = {}
    for image in images:
        tags.setdefault(image.digest, {}).update({name.rpartition(":")[2]: None} if (name := name_of(image)) else {})
    held = {}
    for descriptor in store.needs(*images):
        blob = f"{_kind(descriptor.media_type)} {digests(descriptor.digest.partition(':')[2])}"
        held[blob] = " ".join((blob, *tags.get(descriptor.digest, ())))
    return held


def _kind(media_type: str) -> str:
    if media_type in (*MANIFESTS, *INDEXES):
        return "manifest"
    return "configuration" if media_type in CONFIGS else "layer"
