"""What no manifest needs goes: blobs, uploads that nobody goes on with, repositories in which nothing is left (garbage collection).

A push brings blobs before the manifest that needs them, and it may have found some of them here. So what is new, or was asked for by somebody who
may push, stays for a time of grace; with one that is longer than any push, the collection is safe while the registry serves.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from kernel_lab.images.descriptor import INDEXES
from kernel_lab.images.store import Store
from kernel_lab.kernel.errors import UsageError
from kernel_lab.registry.repositories import Contents, Repositories, Repository, children, referrer

GRACE = 24 * 3600.0


class Collected(NamedTuple):
    """What is gone: manifests, as `repository@digest`; blobs, as digests, that no repository has any more, and their bytes; uploads."""

    manifests: tuple[str, ...]
    blobs: tuple[str, ...]
    size: int
    uploads: tuple[str, ...]


def collect(repositories: Repositories, grace: float = GRACE, untagged: bool = False) -> Collected:
    """Removes what has not been new for `grace` seconds; with `untagged`, also manifests without a tag that nothing with a tag leads to.

    Raises UsageError in the end for repositories of which a missing or damaged manifest does not say what it needs: nothing is guessed there.
    """
    manifests: list[str] = []
    uploads: list[str] = []
    damaged: list[str] = []
    old = _Old(time.time() - grace)
    for name in repositories.all():
        try:
            if repository := repositories.find(name):
                with repository.layout.locked():
                    uploads += _uploads(repository, old)
                    manifests += [f"{name}@{digest}" for digest in (_manifests(repository, old) if untagged else ())]
                    _blobs(repository, old)
                    repository.layout.remove_leftovers()
                repositories.remove_if_empty(name)
        except UsageError as error:
            damaged.append(f"{name}: {error}")
    repositories.remove_leftovers()
    blobs, size = _pool(repositories)
    if damaged:
        raise UsageError(f"{'; '.join(damaged)}; there all is kept, and in the other repositories what nobody needs is gone")
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
    needs = _needs(repository, contents)
    kept = _reached(repository, contents, needs, {digest for digest in needs if not old(repository.layout.blob(digest))})
    gone = sorted(contents.manifests.keys() - kept)
    if gone:
        left = {digest: manifest for digest, manifest in contents.manifests.items() if digest in kept}
        repository.layout.write_index(replace(contents, manifests=left).index())
    return gone


def _reached(repository: Repository, contents: Contents, needs: Mapping[str, set[str]], new: set[str]) -> set[str]:
    """The digests of what tags and new manifests lead to, and of what refers to that."""
    waiting = set(contents.tags.values()) | new
    reached: set[str] = set()
    abouts = {digest: referrer(repository.layout.blob(digest), manifest)[0] for digest, manifest in contents.manifests.items()}
    while waiting:
        reached |= waiting
        needed = {child for digest in waiting for child in needs[digest] if child in needs}
        waiting = (needed | {digest for digest, about in abouts.items() if about in reached}) - reached
    return reached


def _blobs(repository: Repository, old: _Old) -> None:
    needs = _needs(repository, repository.contents())
    unneeded = repository.layout.digests() - needs.keys() - set[str]().union(*needs.values())
    repository.layout.remove(digest for digest in unneeded if old(repository.layout.blob(digest)))


def _needs(repository: Repository, contents: Contents) -> dict[str, set[str]]:
    """For each manifest the digests of what it says that it needs. Raises UsageError for one that is missing or damaged."""
    # What was pushed as a manifest is one, and nothing else is: whatever the descriptors of others call it.
    store = Store(repository.layout.path)
    needs = {}
    for digest, manifest in contents.manifests.items():
        document = store.index(manifest) if manifest.media_type in INDEXES else store.manifest(manifest)
        needs[digest] = {child.digest for child in children(document)}
    return needs


def _pool(repositories: Repositories) -> tuple[tuple[str, ...], int]:
    """Files whose only name is the pool's."""
    pool = repositories.pool
    with pool.locked():
        found = {digest: pool.blob(digest).stat() for digest in pool.digests()}
        alone = {digest: status.st_size for digest, status in found.items() if status.st_nlink == 1}
        pool.remove_leftovers()
        return pool.remove(alone), sum(alone.values())
