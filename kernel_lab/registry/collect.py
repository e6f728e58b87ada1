"""What no manifest needs goes: blobs, uploads that nobody goes on with, repositories in which nothing is left (garbage collection).

A push brings blobs before the manifest that needs them, and it may have found some of them here. So what is new, or was asked for by somebody who
may push, stays for a time of grace; with one that is longer than any push, the collection is safe while the registry serves.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from kernel_lab.images.descriptor import Descriptor
from kernel_lab.images.store import Store
from kernel_lab.registry.repositories import Contents, Repositories, Repository, referrer

GRACE = 24 * 3600.0


class Collected(NamedTuple):
    """What is gone: manifests, as `repository@digest`; blobs, as digests, that no repository has any more, and their bytes; uploads."""

    manifests: tuple[str, ...]
    blobs: tuple[str, ...]
    size: int
    uploads: tuple[str, ...]


def collect(repositories: Repositories, grace: float = GRACE, untagged: bool = False) -> Collected:
    """Removes what has not been new for `grace` seconds; with `untagged`, also manifests without a tag that nothing with a tag leads to.

    Raises UsageError where a damaged manifest does not say what it needs: nothing is guessed.
    """
    manifests: list[str] = []
    uploads: list[str] = []
    old = _Old(time.time() - grace)
    for name in repositories.all():
        if repository := repositories.find(name):
            with repository.layout.locked():
                uploads += _uploads(repository, old)
                manifests += [f"{name}@{digest}" for digest in (_manifests(repository, old) if untagged else ())]
                _blobs(repository, old)
                repository.layout.remove_leftovers()
            repositories.remove_if_empty(name)
    repositories.remove_leftovers()
    blobs, size = _pool(repositories)
    return Collected(tuple(manifests), blobs, size, tuple(uploads))


@dataclass(frozen=True)
class _Old:
    """Since when a file must not have changed, in seconds of the epoch."""

    before: float

    def __call__(self, path: Path) -> bool:
        # The last change of any kind: a new name, and the renewal of one that is there, are such.
        return path.stat().st_ctime <= self.before


def _uploads(repository: Repository, old: _Old) -> list[str]:
    expired = sorted(path for path in repository.uploads.glob("*") if old(path))
    for path in expired:
        path.unlink()
    return [path.name for path in expired]


def _manifests(repository: Repository, old: _Old) -> list[str]:
    contents = repository.contents()
    kept = _reached(repository, contents, {digest for digest in contents.manifests if not old(repository.layout.blob(digest))})
    gone = sorted(contents.manifests.keys() - kept)
    if gone:
        left = {digest: manifest for digest, manifest in contents.manifests.items() if digest in kept}
        repository.layout.write_index(replace(contents, manifests=left).index())
    return gone


def _reached(repository: Repository, contents: Contents, new: set[str]) -> set[str]:
    """The digests of what tags and new manifests lead to, and of what refers to that."""
    waiting = set(contents.tags.values()) | new
    reached: set[str] = set()
    abouts = {digest: referrer(repository.layout.blob(digest), manifest)[0] for digest, manifest in contents.manifests.items()}
    while waiting:
        reached |= _needed(repository, [contents.manifests[digest] for digest in waiting])
        waiting = {digest for digest, about in abouts.items() if about in reached} - reached
    return reached


def _blobs(repository: Repository, old: _Old) -> None:
    unneeded = repository.layout.digests() - _needed(repository, list(repository.contents().manifests.values()))
    repository.layout.remove(digest for digest in unneeded if old(repository.layout.blob(digest)))


def _needed(repository: Repository, manifests: list[Descriptor]) -> set[str]:
    return {descriptor.digest for descriptor in Store(repository.layout.path).needs(*manifests)}


def _pool(repositories: Repositories) -> tuple[tuple[str, ...], int]:
    """Files whose only name is the pool's."""
    pool = repositories.pool
    with pool.locked():
        found = {digest: pool.blob(digest).stat() for digest in pool.digests()}
        alone = {digest: status.st_size for digest, status in found.items() if status.st_nlink == 1}
        pool.remove_leftovers()
        return pool.remove(alone), sum(alone.values())
