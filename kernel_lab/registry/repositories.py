"""What a registry keeps: repositories, each an OCI image layout of its own, whose blobs are names of files that all share.

A blob is one file in the pool (itself a layout, without images), and one more name of it, a hard link, in every repository that has it. So what a
repository may give away is what lies in its own folder, a mount from another one is a link, and nobody needs a file any more when the pool's is its
last name. skopeo and umoci open a repository's folder as it is, with the tags as names.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from kernel_lab import state
from kernel_lab.images.descriptor import INDEXES, MANIFESTS, NAME, Descriptor, Index, Manifest
from kernel_lab.images.layout import LAYOUT, LOCK, Layout, sync_directory
from kernel_lab.images.reference import wrong_digest
from kernel_lab.images.store import LARGEST_DOCUMENT
from kernel_lab.registry.refused import Refused

REPOSITORIES, UPLOADS = "repositories", "uploads"
_SLASH = "+"  # in no repository's name; with folders in folders, `lab/blobs` would lie in the middle of `lab`
_UPLOAD = re.compile("[0-9a-f]{32}")


@dataclass
class Contents:
    """The manifests of a repository by digest, and the digests of its tags."""

    manifests: dict[str, Descriptor] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, index: Index) -> "Contents":
        manifests = {entry.digest: replace(entry, annotations={}) for entry in index.manifests}
        return cls(manifests, {entry.annotations[NAME]: entry.digest for entry in index.manifests if NAME in entry.annotations})

    def index(self) -> Index:
        """One entry for each tag, and for each manifest that has none."""
        tagged = [replace(self.manifests[digest], annotations={NAME: tag}) for tag, digest in sorted(self.tags.items())]
        return Index((*tagged, *(self.manifests[digest] for digest in sorted(self.manifests.keys() - set(self.tags.values())))))

    def find(self, reference: str) -> Descriptor | None:
        """The manifest of a tag or digest."""
        return self.manifests.get(self.tags.get(reference, reference))


class Repository:
    """One that is there. Whatever waits for the disk, or for who is changing something, is a method."""

    def __init__(self, path: Path, pool: Layout) -> None:
        self.layout = Layout(path)
        self.uploads = path / UPLOADS
        self._pool = pool

    # Uploads.

    def begin(self) -> Path:
        """A new, empty upload. When this returns, the disk has it."""
        self.uploads.mkdir(exist_ok=True)
        path = self.uploads / os.urandom(16).hex()
        path.touch(0o600)
        sync_directory(self.uploads)
        sync_directory(self.layout.path)
        return path

    def upload(self, identifier: str) -> Path:
        """An upload to go on with, which does not expire meanwhile. Raises Refused."""
        path = self.uploads / identifier
        with self.layout.locked():
            if not _UPLOAD.fullmatch(identifier) or not path.exists() or self._published(path):
                raise Refused(404, "BLOB_UPLOAD_UNKNOWN", f"{identifier[:40]!r}: there is no such upload; begin another")
            os.utime(path)
        return path

    # Blobs.

    def blob(self, digest: str) -> Path:
        """A blob's file. Raises Refused."""
        path = self.layout.blob(digest)
        if not path.exists():
            raise Refused(404, "BLOB_UNKNOWN", f"{digest}: this repository has no such blob")
        return path

    def retain(self, digest: str) -> None:
        """A blob counts as new from now on: somebody has asked for it who may rely on it. Raises Refused."""
        with self.layout.locked():
            _renew(self.blob(digest))

    def add(self, file: Path, digest: str) -> None:
        """Makes an upload, which the disk has, a blob. When this returns, the disk has that too."""
        with self.layout.locked():
            self._add(file, digest)

    def mount(self, digest: str, source: "Repository") -> None:
        """Takes a blob over from another repository. Raises FileNotFoundError when that has no such blob."""
        with self.layout.locked():
            self.layout.link(source.layout.blob(digest), digest)
            _renew(self.layout.blob(digest))

    def remove_blob(self, digest: str) -> None:
        """Raises Refused when there is none, or a manifest needs it."""
        with self.layout.locked():
            self.blob(digest)
            contents = self.contents()
            if digest in contents.manifests:
                raise Refused(405, "UNSUPPORTED", f"{digest}: this is a manifest; delete it as one")
            self._refuse_if_needed(contents, digest)
            self.layout.remove([digest])

    # Manifests.

    def contents(self) -> Contents:
        return Contents.of(self.layout.index())

    def manifest(self, reference: str) -> Descriptor:
        """Of a tag or digest. Raises Refused."""
        if (found := self.contents().find(reference)) is None:
            raise Refused(404, "MANIFEST_UNKNOWN", f"{reference}: this repository has no such manifest")
        return found

    def put_manifest(self, file: Path, document: Manifest | Index, descriptor: Descriptor, tag: str | None) -> None:
        """Makes an upload, which the disk has, a manifest; then the disk has that too. Raises Refused when not all that it needs is here."""
        with self.layout.locked():
            contents = self.contents()
            self._check(document, contents)
            self._add(file, descriptor.digest)
            contents.manifests[descriptor.digest] = descriptor
            if tag is not None:
                contents.tags[tag] = descriptor.digest
            self.layout.write_index(contents.index())

    def remove_manifest(self, reference: str) -> None:
        """Takes a tag away, or removes the manifest of a digest with all its tags. Raises Refused."""
        with self.layout.locked():
            contents = self.contents()
            digest = self.manifest(reference).digest
            if reference in contents.tags:
                del contents.tags[reference]
            else:
                del contents.manifests[digest]
                self._refuse_if_needed(contents, digest)
                contents.tags = {tag: other for tag, other in contents.tags.items() if other != digest}
            self.layout.write_index(contents.index())
            self.layout.remove({digest} - contents.manifests.keys())

    def referrers(self, subject: str) -> list[dict[str, Any]]:
        """Descriptors of the manifests that say they are about this one, with what these say of themselves (distribution specification)."""
        found = []
        for digest, manifest in sorted(self.contents().manifests.items()):
            with suppress(FileNotFoundError):  # deleted meanwhile
                about, described = referrer(self.layout.blob(digest), manifest)
                found += [described] if about == subject else []
        return found

    # Inside.

    def _add(self, file: Path, digest: str) -> None:
        with self._pool.locked():
            self._link(self._pool, file, digest)
            self._link(self.layout, self._pool.blob(digest), digest)
        _renew(self.layout.blob(digest))
        file.unlink()

    def _link(self, layout: Layout, file: Path, digest: str) -> None:
        """Makes a file a blob of a layout, unless that has it; one of another size is damaged, and is replaced."""
        blob = layout.blob(digest)
        if blob.exists() and blob.stat().st_size != file.stat().st_size:
            # Among the uploads, where it expires if this process is killed now.
            new = self.uploads / os.urandom(16).hex()
            os.link(file, new)
            new.replace(blob)
        layout.link(file, digest)

    def _published(self, upload: Path) -> bool:
        """Whether it is a blob already, whose maker was killed then, and goes: what is added to it would damage the blob."""
        if upload.stat().st_nlink > 1:
            upload.unlink()
            return True
        return False

    def _check(self, document: Manifest | Index, contents: Contents) -> None:
        for needed in children(document):
            # What lies elsewhere, such as Windows' own layers, says where (descriptor.md, "urls"), and need not be here.
            if needed.others.get("urls") and not self.layout.has(needed.digest):
                continue
            stored = contents.manifests.get(needed.digest)
            if isinstance(document, Index) and stored and stored.media_type != needed.media_type:
                said = f"the index says {needed.media_type[:100]}, and it was pushed as {stored.media_type}"
                raise Refused(400, "MANIFEST_INVALID", f"{needed.digest}: {said}")
            if isinstance(document, Index) and needed.media_type in (*INDEXES, *MANIFESTS) and not stored:
                raise Refused(404, "MANIFEST_BLOB_UNKNOWN", f"{needed.digest}: this repository has no such manifest; push it first")
            if why := self.layout.wrong_size(needed):
                unknown = why == "missing"
                hint = "push it first" if unknown else "the manifest says another size"
                raise Refused(404 if unknown else 400, "MANIFEST_BLOB_UNKNOWN" if unknown else "SIZE_INVALID", f"{needed.digest}: {why}; {hint}")

    def _refuse_if_needed(self, contents: Contents, digest: str) -> None:
        for other in contents.manifests.values():
            if digest in _needed(self.layout.blob(other.digest), other.media_type):
                raise Refused(405, "DENIED", f"{digest}: the manifest {other.digest} needs it; delete that first")


class Repositories:
    """All of a registry, in one folder, which is made unless it is there. Raises UsageError for a folder that has other things in it."""

    def __init__(self, path: Path) -> None:
        self.pool = Layout(path)
        self.path = path / REPOSITORIES
        self.path.mkdir(exist_ok=True)
        sync_directory(path)

    def names(self) -> list[str]:
        """Of the repositories that have a manifest, in order."""
        return sorted(name for name in self.all() if (repository := self.find(name)) and repository.contents().manifests)

    def all(self) -> list[str]:
        """The names of all, in order."""
        return sorted(name.replace(_SLASH, "/") for name in os.listdir(self.path) if not name.startswith("."))

    def find(self, name: str) -> Repository | None:
        path = self._folder(name)
        return Repository(path, self.pool) if (path / LAYOUT).exists() else None

    def begin(self, name: str) -> Path:
        """A new upload in a repository, which is made unless it is there."""
        with self._made(name) as repository:
            return repository.begin()

    def mount(self, name: str, digest: str, source: Repository) -> bool:
        """Takes a blob over into a repository, which is made unless it is there. Whether the other one had it."""
        if not source.layout.has(digest):
            return False
        with self._made(name) as repository:
            try:
                repository.mount(digest, source)
            except FileNotFoundError:  # removed just now
                return False
        return True

    def remove_if_empty(self, name: str) -> bool:
        """Removes a repository that has neither manifest nor blob nor upload. Whether it was one."""
        with self._locked():
            repository = self.find(name)
            if repository is None or repository.contents().manifests or repository.layout.digests() or any(repository.uploads.glob("*")):
                return False
            # Another name first: a process that is killed in the middle must leave no half of a repository.
            gone = self.path / f".{os.urandom(8).hex()}"
            self._folder(name).rename(gone)
            shutil.rmtree(gone)
        return True

    def remove_leftovers(self) -> None:
        """What a process has left that was killed while it removed a repository."""
        with self._locked():
            for left in self.path.glob(".?*"):
                if left.is_dir():
                    shutil.rmtree(left)

    @contextmanager
    def _made(self, name: str) -> Iterator[Repository]:
        # Until there is something in it, it could be removed as empty.
        with self._locked():
            new = not (self._folder(name) / LAYOUT).exists()
            repository = Repository(self._folder(name), self.pool)
            if new:
                sync_directory(self.path)
            yield repository

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # Taken before a repository's lock, and that before the pool's.
        with state.locked(self.path / f".{LOCK}"):
            yield

    def _folder(self, name: str) -> Path:
        return self.path / name.replace("/", _SLASH)


def children(document: Manifest | Index) -> tuple[Descriptor, ...]:
    """What a manifest or an index needs."""
    return document.manifests if isinstance(document, Index) else (document.config, *document.layers)


def read_document(raw: bytes, media_type: str) -> Manifest | Index:
    """Raises UsageError for what is not what its type says."""
    return Index.read(raw) if media_type in INDEXES else Manifest.read(raw)


def subject(document: Manifest | Index) -> str | None:
    """The digest of the manifest that this one is about. Raises UsageError."""
    about = document.others.get("subject")
    return None if about is None else Descriptor.read(about, "subject").digest


def _renew(blob: Path) -> None:
    # Of a file's times the one of its last change of any kind says when it was added or asked for; that of its content stays.
    os.chmod(blob, 0o600)


def _document(blob: Path, media_type: str) -> Manifest | Index:
    with open(blob, "rb") as file:
        return read_document(file.read(LARGEST_DOCUMENT), media_type)


# The content of a blob never changes.
@lru_cache(maxsize=1024)
def _needed(blob: Path, media_type: str) -> frozenset[str]:
    return frozenset(child.digest for child in children(_document(blob, media_type)))


@lru_cache(maxsize=4096)
def referrer(blob: Path, manifest: Descriptor) -> tuple[str | None, dict[str, Any]]:
    """What a manifest is about, and its own descriptor, for a list of referrers."""
    document = _document(blob, manifest.media_type)
    # An image's own type is that of its configuration, where it has not said another (distribution specification, "Listing Referrers").
    kind = document.others.get("artifactType") or (document.config.media_type if isinstance(document, Manifest) else None)
    described = manifest.json() | ({"artifactType": kind} if kind else {})
    return subject(document), described | ({"annotations": dict(document.annotations)} if document.annotations else {})


def valid_digest(text: str) -> str:
    """Raises Refused."""
    if why := wrong_digest(text):
        raise Refused(400, "DIGEST_INVALID", why[:200])
    return text
