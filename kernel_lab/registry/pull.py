"""An image comes from a registry into the store: what is missing, several blobs at once, each verified, and in the end its name.

Of an index, the image of one platform is kept, and beside its name stands the digest of the index; or, when it is asked for, the whole index. What a
pull that fails has fetched whole stays, without an image, until it is pulled again or pruned; of the rest, the beginning stays.
"""

import errno
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice

from kernel_lab.images import platforms
from kernel_lab.images.descriptor import INDEXES, MANIFESTS, Config, Descriptor, Index, Manifest, Platform
from kernel_lab.images.reference import Reference
from kernel_lab.images.store import INDEX_DIGEST, LARGEST_DOCUMENT, Addition, Store, local
from kernel_lab.kernel.errors import UsageError
from kernel_lab.registry import partial
from kernel_lab.registry.client import PIECE, Client
from kernel_lab.registry.documents import check_image, elsewhere, typed
from kernel_lab.registry.endpoints import Endpoints
from kernel_lab.registry.oneline import one_line
from kernel_lab.registry.progress import DOWNLOADING, Progress, automatic
from kernel_lab.registry.transport import RegistryError

AT_ONCE = 3  # docker's max-concurrent-downloads
SHOWN_TAGS = 10
DEEPEST = 4  # indexes within indexes


@dataclass(frozen=True)
class Pulled:
    """An image that has come. `digest` is what its name meant to the registry, of the index where it is one of several platforms."""

    reference: Reference
    image: Descriptor
    digest: str
    transferred: tuple[Descriptor, ...]
    already: tuple[Descriptor, ...]
    newer: bool

    @property
    def status(self) -> str:
        """In docker's words."""
        return f"Downloaded newer image for {self.reference.familiar}" if self.newer else f"Image is up to date for {self.reference.familiar}"


def pull(
    name: str | Reference,
    store: Store | None = None,
    platform: str | Platform | None = None,
    all_platforms: bool = False,
    progress: Progress | None = None,
) -> Pulled:
    """Fetches an image by its tag or digest; without a store, into the user's own.

    Without a platform it is this machine's. Raises UsageError (RegistryError where the registry is the reason); then the store has no new image.
    """
    reference = Reference.parse(str(name))
    asked = platforms.parse(platform) if isinstance(platform, str) else platform
    if asked and all_platforms:
        raise UsageError("one platform is asked for, and all of them: leave one of the two away")
    endpoints = Endpoints.configured()
    *mirrors, last = endpoints.of(reference.registry)
    progress = progress or automatic()
    work = _Pull(reference, store or local(), asked, all_platforms, progress)
    for mirror in mirrors:
        try:
            return work.by(Client(mirror, endpoints=endpoints))
        except UsageError as error:  # a document that nobody here understands is one, too
            progress.say(f"{error}; going on without this mirror")
    return work.by(Client(last, endpoints=endpoints))


def pull_all(name: str, store: Store | None = None, platform: str | Platform | None = None, progress: Progress | None = None) -> Iterator[Pulled]:
    """Fetches the images of all tags of a repository, one after the other. Raises UsageError for a name with a tag, and as `pull` does."""
    repository = bare(name)
    with Client(repository.registry) as client:
        tags = list(client.tags(repository.repository))
    for tag in tags:
        yield pull(replace(repository, tag=tag), store, platform, progress=progress)


def bare(name: str) -> Reference:
    """A repository, all of whose tags are meant. Raises UsageError where one of them is named."""
    if ":" in name.rpartition("/")[2]:  # a digest has one too
        raise UsageError(f"{name}: all tags are asked for, and one image of them: leave one of the two away")
    return Reference.parse(name)


@dataclass(frozen=True)
class _Pull:
    """What is asked for, and who is told."""

    reference: Reference
    store: Store
    platform: Platform | None
    all_platforms: bool
    progress: Progress

    def by(self, client: Client) -> Pulled:
        """With one endpoint's help."""
        partial.discard_old(self.store.path)
        with client, self.store.adding() as adding, self.progress:
            pulled = _Transfer(self, client, adding).run()
        self.progress.say(f"Digest: {pulled.digest}")
        self.progress.say(f"Status: {pulled.status}")
        return pulled


class _Transfer:
    """The work of one pull."""

    def __init__(self, pull: _Pull, client: Client, adding: Addition) -> None:
        self._pull = pull
        self._client = client
        self._adding = adding
        self._store = pull.store
        self._repository = pull.reference.repository
        self._transferred: list[Descriptor] = []
        self._already: list[Descriptor] = []

    def run(self) -> Pulled:
        reference = self._pull.reference
        top, raw = self._top()
        self._pull.progress.say(f"{reference.tag or reference.digest}: Pulling from {self._repository}")
        image, raw = (top, raw) if self._pull.all_platforms and top.media_type in INDEXES else self._chosen(top, raw)
        self._adding.put(raw, image.media_type, image.digest)
        self._fetch_blobs(self._manifests(image))
        image = Descriptor(image.media_type, image.digest, image.size, {} if image.digest == top.digest else {INDEX_DIGEST: top.digest})
        # Its own digest, if it was not called by a tag: an image's name cannot have another's.
        name = replace(reference, tag=None, digest=image.digest) if reference.digest else reference
        newer = self._called(name) != image.digest
        image = self._store.tag(image, name)
        return Pulled(reference, image, top.digest, tuple(self._transferred), tuple(self._already), newer)

    # Manifests.

    def _top(self) -> tuple[Descriptor, bytes]:
        """What the name means to the registry."""
        reference = self._pull.reference
        try:
            found, raw = self._client.manifest(self._repository, reference.digest or str(reference.tag))
        except RegistryError as error:
            raise self._explained(error) from None
        return typed(found, raw, str(reference)), raw

    def _chosen(self, found: Descriptor, raw: bytes) -> tuple[Descriptor, bytes]:
        """The image itself, or that of an index for the platform."""
        what, asked = str(self._pull.reference), self._pull.platform
        for _ in range(DEEPEST):
            if found.media_type in MANIFESTS:
                self._check(found, raw, of_index=found.platform is not None)
                return found, raw
            manifests = Index.read(raw, what).manifests
            child = platforms.choose(manifests, asked or platforms.here())
            if child is None:
                there = ", ".join(dict.fromkeys(_words(other.platform) for other in manifests if other.platform)) or "none that says its own"
                raise UsageError(f"{what}: has no image for {_words(asked or platforms.here())}; the platforms that it has: {there}")
            found, raw = child, self._child(child)
        raise UsageError(f"{what}: indexes of indexes, more than {DEEPEST} deep, are not followed")

    def _manifests(self, top: Descriptor) -> list[Descriptor]:
        """The image, or all that an index points to, however deep."""
        manifests, waiting, seen = [], [top], {top.digest}
        while waiting:
            found = waiting.pop()
            if found.media_type in MANIFESTS:
                manifests.append(found)
                continue
            children = [child for child in self._store.index(found).manifests if child.digest not in seen]
            seen |= {child.digest for child in children}
            for child in children:
                self._adding.put(self._child(child), child.media_type, child.digest)
            waiting += children
        return manifests

    def _child(self, child: Descriptor) -> bytes:
        """What an index points to."""
        if self._adding.keep(child):
            return self._store.read(child)
        found, raw = self._client.manifest(self._repository, child.digest)
        found = typed(found, raw, child.digest)
        if (found.media_type, found.size) != (child.media_type, child.size):
            said = f"{one_line(child.media_type)} of {child.size} bytes"
            raise UsageError(f"{child.digest}: the index says that it is {said}, and it is {found.media_type} of {found.size}")
        return raw

    def _check(self, found: Descriptor, raw: bytes, of_index: bool) -> None:
        """Raises UsageError for what is no image, and for one of another platform than was asked for."""
        what = str(self._pull.reference)
        manifest = Manifest.read(raw, what)
        check_image(manifest, what)
        config = self._config(manifest)
        if len(config.diff_ids) != len(manifest.layers):
            raise UsageError(f"{what}: its manifest has {len(manifest.layers)} layers, and its configuration {len(config.diff_ids)}")
        own = Platform(config.architecture, config.os, config.variant)
        asked = self._pull.platform or platforms.here()
        if of_index or platforms.fits(own, asked):
            return
        if self._pull.platform or own.os != asked.os:
            raise UsageError(f"{what}: is for {_words(own)} alone, and {_words(asked)} was asked for")
        self._pull.progress.say(f"WARNING: {what} is for {_words(own)}, and this machine is {_words(asked)}")

    def _config(self, manifest: Manifest) -> Config:
        """The configuration, which is small, and needed to know whether the layers are."""
        config = manifest.config
        if config.size > LARGEST_DOCUMENT:
            raise UsageError(f"{config.digest}: a configuration of {config.size} bytes; the most is {LARGEST_DOCUMENT}")
        if not self._kept(config):
            self._fetch(config)
        return self._store.config(manifest)

    def _explained(self, error: RegistryError) -> UsageError:
        """Why an image is not there, as far as the registry says."""
        reference = self._pull.reference
        if error.status in (401, 403):
            return RegistryError(f"{error}; or there is no such repository", error.status, error.codes)
        if error.status != 404 or reference.digest is not None:
            return error
        try:
            tags = list(islice(self._client.tags(self._repository), SHOWN_TAGS + 1))  # there may be thousands
        except RegistryError as unlisted:
            if unlisted.status != 404:
                return error
            return RegistryError(f"{reference.name}: {reference.registry} has no such repository", 404, error.codes)
        shown = ", ".join(tags[:SHOWN_TAGS]) or "none"
        more = " and others" if len(tags) > SHOWN_TAGS else ""
        return RegistryError(f"{reference}: there is no such tag; the tags of {reference.name}: {shown}{more}", 404, error.codes)

    def _called(self, name: Reference) -> str | None:
        """The digest of the image that has this name until now."""
        return next((image.digest for image in self._store.named(name)), None)

    # Blobs.

    def _fetch_blobs(self, images: Iterable[Descriptor]) -> None:
        manifests = map(self._store.manifest, images)
        blobs = {blob.digest: blob for manifest in manifests for blob in (manifest.config, *manifest.layers)}
        known = {blob.digest for blob in (*self._transferred, *self._already)}
        missing = [blob for digest, blob in blobs.items() if digest not in known and not self._kept(blob)]
        for blob in missing:
            self._pull.progress.blob(blob, "Pulling fs layer")
        at_once(self._client, self._fetch, missing)

    def _fetch(self, blob: Descriptor) -> None:
        """A blob that was missing is in the store, and stays."""
        with partial.opened(self._store.path, blob.digest, self._client.wait) as part:
            if self._kept(blob):  # another pull has been at it until now
                return
            begun = part.size
            try:
                self._download(blob, part)
            except _Wrong:
                if not begun:
                    raise
                self._download(blob, part)  # what was kept may have been damaged
        self._transferred.append(blob)
        self._pull.progress.done(blob, "Pull complete")

    def _kept(self, blob: Descriptor) -> bool:
        if there := self._adding.keep(blob):
            self._already.append(blob)
            self._pull.progress.done(blob, "Already exists")
        return there

    def _download(self, blob: Descriptor, part: partial.Partial) -> None:
        try:
            self._adding.put(self._pieces(blob, part), blob.media_type, blob.digest, blob.size)
        except RegistryError as error:
            if error.status == 404 and elsewhere(blob):
                raise RegistryError(f"{error}; its owner hands it out himself, and links in manifests are not followed", 404) from None
            raise
        except UsageError as error:
            part.discard()
            raise _Wrong(f"{self._pull.reference.name}: {self._client.endpoint} does not send what it should: {error}") from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            part.discard()
            raise UsageError(f"{self._store.path}: no space left for {blob.digest}, which has {blob.size} bytes; make room and pull again") from None
        part.discard()

    def _pieces(self, blob: Descriptor, part: partial.Partial) -> Iterator[bytes]:
        """What an earlier pull has left, and the rest from the registry."""
        progress = self._pull.progress
        progress.blob(blob, DOWNLOADING)
        if part.size > blob.size:
            part.discard()
        start = part.size
        for piece in part.read(PIECE):
            progress.moved(blob, len(piece))
            yield piece
        lost = threading.Event()

        def retrying(seconds: float) -> None:
            lost.set()
            progress.blob(blob, f"Retrying in {math.ceil(seconds)} seconds")

        for piece in self._client.blob(self._repository, blob, start, retrying):
            if lost.is_set():
                lost.clear()
                progress.blob(blob, DOWNLOADING)
            part.append(piece)
            progress.moved(blob, len(piece))
            yield piece


def _words(platform: Platform) -> str:
    return one_line(platforms.words(platform))


class _Wrong(RegistryError):
    """What has come is not what was asked for."""


def at_once(client: Client, work: Callable[[Descriptor], None], blobs: Sequence[Descriptor]) -> None:
    """Does it for all blobs, a few at the same time; where one fails, or the user interrupts, the others are given up."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = [pool.submit(work, blob) for blob in blobs]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        except BaseException:
            client.cancel()
            for future in futures:
                future.cancel()
            raise
