"""Layers as directories, ready to be mounted on one another: each unpacked once, for all images and containers that stand on it.

A directory is named by the layer's ChainID, since what an archive leaves out is as it is in the layers below. (containerd calls these directories
snapshots, and names them so.) A layer that a running container stands on is never removed: its creator has written it down.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from kernel_lab import state
from kernel_lab.images import owners
from kernel_lab.images.holds import Holds
from kernel_lab.images.image import Image, Layer, images
from kernel_lab.images.store import CHUNK, Store
from kernel_lab.images.unpack import Rules, unpack_layer
from kernel_lab.kernel.errors import UsageError
from kernel_lab.unionfs.whiteouts import TRUSTED, USER, Notation

# What a container mounts on, below all layers: an image need not have it, and a container does not seem to have made it.
MOUNT_POINTS = "mountpoints"
PLACES = ("dev", "proc", "sys")
# A layer may be so many bytes once it is decompressed, or so many times what it is compressed: gzip makes at most 1032 of one, and files three.
FLOOR, RATIO = 1 << 30, 200


class Snapshots:
    """The directories in one folder, which is made unless it is there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(mode=0o700, parents=True, exist_ok=True)  # others could run a program in it with its owner's rights (CVE-2021-41091)
        self.holds = Holds(path, ".standing")

    def directories(self, image: Image) -> tuple[Path, ...]:
        """The directories of an image's layers, the topmost first, and below them the mount points; what is not there yet is unpacked.

        Raises UsageError for a layer that is damaged, too large, or none; nothing of it is left.
        """
        below: tuple[Path, ...] = (self._mount_points(),)
        for layer in image.layers:
            below = (self._directory(image.store, layer, below), *below)
        return below

    @contextmanager
    def standing_on(self, directories: Sequence[str | Path]) -> Iterator[None]:
        """Until the block ends, nobody removes these. Raises UsageError when somebody has done so already."""
        with self.holds.hold() as hold:
            with self._locked():
                if gone := [directory for directory in directories if not os.path.isdir(directory)]:
                    raise UsageError(f"{gone[0]}: this layer has been removed since; ask the image for its directories again")
                self.holds.note(hold, (os.path.basename(directory) for directory in directories))
            yield

    def prune(self, *stores: Store) -> tuple[str, ...]:
        """Removes the directories that no image of these stores needs, and nobody stands on. Their names."""
        with self._locked():
            kept = {MOUNT_POINTS, *self.holds.held(), *(_name(layer) for store in stores for image in images(store) for layer in image.layers)}
            there = [entry.name for entry in os.scandir(self.path) if entry.is_dir() and not state.Creator.in_name(entry.name)]
            gone = sorted(set(there) - kept)
            for name in gone:
                state.discard(self.path / name)
        return tuple(gone)

    def _directory(self, store: Store, layer: Layer, below: Sequence[Path]) -> Path:
        directory = self.path / _name(layer)
        if not directory.is_dir():
            with state.locked(self.path / ".unpacking"):
                if not directory.is_dir():
                    self._unpack(store, layer, directory, below)
        return directory

    def _unpack(self, store: Store, layer: Layer, directory: Path, below: Sequence[Path]) -> None:
        rules = Rules(
            self._most(layer),
            notation(),
            owners.on_disk(),
            # An ordinary user can make no device node; no container of his could open it either.
            None if os.geteuid() == 0 else lambda why: None,
            below=tuple(map(str, below)),
        )
        with store.open(layer.blob) as blob:
            unpack_layer(iter(partial(blob.read, CHUNK), b""), directory, rules, digest=layer.blob.digest, diff_id=layer.diff_id)

    def _most(self, layer: Layer) -> int:
        disk = os.statvfs(self.path)
        return min(max(FLOOR, RATIO * layer.blob.size), disk.f_bavail * disk.f_frsize)

    def _mount_points(self) -> Path:
        directory = self.path / MOUNT_POINTS
        for place in PLACES:
            (directory / place).mkdir(mode=0o755, parents=True, exist_ok=True)
        return directory

    def _locked(self) -> AbstractContextManager[None]:
        return state.locked(self.path / ".lock")


def local() -> Snapshots:
    """Those of the user's own images."""
    return Snapshots(state.data_dir() / "snapshots")


def notation() -> Notation:
    """The notation that overlay reads, mounted by this user."""
    return USER if os.geteuid() else TRUSTED


def _name(layer: Layer) -> str:
    return layer.chain_id.replace(":", "-")
