"""An image goes from the store to a registry: only the blobs that it does not have, several at once, and then the manifests that need them."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from kernel_lab.images.descriptor import INDEXES, MANIFESTS, Descriptor
from kernel_lab.images.reference import Reference
from kernel_lab.images.store import INDEX_DIGEST, Store, local, name_of
from kernel_lab.kernel.errors import UsageError
from kernel_lab.registry.client import Client
from kernel_lab.registry.documents import elsewhere
from kernel_lab.registry.progress import UPLOADING, Progress, automatic
from kernel_lab.registry.pull import at_once, bare

MOST_SOURCES = 3  # repositories that are asked to lend a blob


@dataclass(frozen=True)
class Pushed:
    """An image that has been sent. `mounted` are blobs that another repository of the registry has lent; `skipped` their owner hands out himself."""

    reference: Reference
    digest: str
    transferred: tuple[Descriptor, ...]
    mounted: tuple[Descriptor, ...]
    already: tuple[Descriptor, ...]
    skipped: tuple[Descriptor, ...]


def push(name: str | Reference, store: Store | None = None, progress: Progress | None = None) -> Pushed:
    """Sends an image of the store, or of the user's own, to the registry and under the tag that its name says.

    Raises UsageError when there is none of this name, and RegistryError for what the registry refuses.
    """
    reference = Reference.parse(str(name))
    if reference.digest is not None:
        raise UsageError(f"{reference}: an image is sent under a tag; give it one, and push that")
    store = store or local()
    image = store.resolve(reference)
    progress = progress or automatic()
    progress.say(f"The push refers to repository [{reference.name}]")
    with Client(reference.registry) as client:
        pushed = _Push(reference, store, client, progress).run(image)
    if INDEX_DIGEST in image.annotations:
        progress.say(f"Info: this is the image of one platform; those of the index {image.annotations[INDEX_DIGEST]} are not all here")
    progress.say(f"{reference.tag}: digest: {image.digest} size: {image.size}")
    return pushed


def push_all(name: str, store: Store | None = None, progress: Progress | None = None) -> Iterator[Pushed]:
    """Sends all images of a repository that have a tag, one after the other. Raises UsageError for a name with a tag, and as `push` does."""
    repository, store = bare(name), store or local()
    tagged = [reference for image in store.images() if (reference := _reference(image)) and reference.tag and reference.name == repository.name]
    if not tagged:
        raise UsageError(f"{repository.name}: no image here has this name and a tag")
    for reference in tagged:
        yield push(replace(reference, digest=None), store, progress)


@dataclass
class _Push:
    """The work of one push."""

    reference: Reference
    store: Store
    client: Client
    progress: Progress
    transferred: list[Descriptor] = field(default_factory=list)
    mounted: list[Descriptor] = field(default_factory=list)
    already: list[Descriptor] = field(default_factory=list)
    skipped: list[Descriptor] = field(default_factory=list)
    lenders: dict[str, list[str]] = field(default_factory=dict)

    def run(self, image: Descriptor) -> Pushed:
        with self.store.adding() as adding:
            # Whoever removes the image meanwhile does not take away what is being sent.
            if not adding.keep(image):
                raise UsageError(f"{self.reference}: is not whole; pull it again, or see what is wrong with Store.verify()")
            blobs = {part.digest: part for part in self.store.needs(image) if part.media_type not in (*INDEXES, *MANIFESTS)}
            self.lenders = self._lenders()
            with self.progress:
                for blob in blobs.values():
                    self.progress.blob(blob, "Preparing")
                at_once(self.client, self._send, list(blobs.values()))
            for part in self._documents(image, set()):
                version = str(self.reference.tag) if part is image else part.digest
                self.client.put_manifest(self.reference.repository, version, part, self.store.read(part))
        return Pushed(self.reference, image.digest, *map(tuple, (self.transferred, self.mounted, self.already, self.skipped)))

    def _documents(self, top: Descriptor, seen: set[str]) -> Iterator[Descriptor]:
        """An index and all manifests and indexes that it points to, each once, and before what points to it."""
        seen.add(top.digest)
        for child in self.store.index(top).manifests if top.media_type in INDEXES else ():
            if child.media_type in (*INDEXES, *MANIFESTS) and child.digest not in seen:
                yield from self._documents(child, seen)
        yield top

    def _send(self, blob: Descriptor) -> None:
        repository = self.reference.repository
        if elsewhere(blob):
            self._done(blob, self.skipped, "Skipped foreign layer")
        elif self.client.has_blob(repository, blob.digest, to_push=True):
            self._done(blob, self.already, "Layer already exists")
        elif lender := self._mounted(blob):
            self._done(blob, self.mounted, f"Mounted from {lender}")
        else:
            self.progress.blob(blob, UPLOADING)
            self.client.upload(repository, blob, partial(self.store.open, blob), partial(self.progress.moved, blob))
            self._done(blob, self.transferred, "Pushed")

    def _mounted(self, blob: Descriptor) -> str | None:
        """The repository that has lent a blob."""
        lenders = self.lenders.get(blob.digest, [])[:MOST_SOURCES]
        return next((lender for lender in lenders if self.client.mount(self.reference.repository, blob, lender)), None)

    def _done(self, blob: Descriptor, group: list[Descriptor], status: str) -> None:
        group.append(blob)
        self.progress.done(blob, status)

    def _lenders(self) -> dict[str, list[str]]:
        """For each blob the other repositories of this registry that may have it: an image here has the name of one."""
        found: dict[str, list[str]] = {}
        for image in self.store.images():
            other = _reference(image)
            if other and other.registry == self.reference.registry and other.repository != self.reference.repository:
                for blob in self.store.needs(image, strict=False):
                    found.setdefault(blob.digest, []).append(other.repository)
        return found


def _reference(image: Descriptor) -> Reference | None:
    """What an image is called; another program's name for it may be none of ours."""
    name = name_of(image)
    try:
        return Reference.parse(name) if name else None
    except UsageError:
        return None
