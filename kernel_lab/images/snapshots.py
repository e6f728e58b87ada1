"""Layers as directories, ready to be mounted on one another: each unpacked once, for all images and containers that stand on it.

A directory is named by the layer's ChainID, since what an archive leaves out is as it is in the layers below. (containerd calls these directories
snapshots, and names them so.) A layer that a running container stands on is never removed: its creator has written it down. So has who unpacks
those that lie on it. One that is to go is first given a name of its remover's: under its own it is whole, whoever is killed.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
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
from kernel_lab.unionfs.layers import MOST
from kernel_lab.unionfs.whiteouts import USER

# What a container mounts on, below all layers: an image need not have it, and a container does not seem to have made it.
MOUNT_POINTS = "mountpoints"
PLACES = ("dev", "proc", "sys")
# A layer may be so many bytes once it is decompressed, or so many times what it is compressed: gzip makes at most 1032 of one, and files three.
FLOOR, RATIO = 1 << 30, 200
MOST_FILES = 1_000_000  # of one layer: that many directories take 100 MB of memory meanwhile


class Snapshots:
    """The directories in one folder, which is made unless it is there. Raises UsageError for a folder of somebody else's."""

    def __init__(self, path: Path) -> None:
        self.path = state.ours(path, 0o700)  # others could run a program in it with its owner's rights (CVE-2021-41091)
        self.holds = Holds(path, ".standing")

    def directories(self, image: Image) -> tuple[Path, ...]:
        """The directories of an image's layers, the topmost first, and below them the mount points; what is not there yet is unpacked.

        Raises UsageError for a layer that is damaged, too large, or none, and nothing of it is left; and for more layers than overlay takes.
        """
        if len(image.layers) >= MOST:
            raise UsageError(f"{image}: has {len(image.layers)} layers; overlay takes {MOST} (OVL_MAX_STACK), and one is for mount points")
        below: tuple[Path, ...] = ()
        with self._held(map(_name, image.layers)):
            for layer in image.layers:
                below = (self._directory(image.store, layer, below), *below)
        return (*below, self._mount_points())

    @contextmanager
    def standing_on(self, directories: Sequence[str | Path]) -> Iterator[None]:
        """Until the block ends, nobody removes these. Raises UsageError when somebody has done so already."""
        with self._held(map(os.path.basename, directories)):
            if gone := [directory for directory in directories if not os.path.isdir(directory)]:
                raise UsageError(f"{gone[0]}: this layer has been removed since; ask the image for its directories again")
            yield

    def prune(self, *stores: Store) -> tuple[str, ...]:
        """Removes the directories that no image of these stores needs, and nobody stands on: their names. And what dead makers have left."""
        with self._locked():
            kept = {MOUNT_POINTS, *self.holds.held(), *(_name(layer) for store in stores for image in images(store) for layer in image.layers)}
            there = {entry.name for entry in os.scandir(self.path) if entry.is_dir() and not state.Creator.in_name(entry.name)}
            gone = sorted(there - kept)
            going = [self._given_up(name) for name in gone]
        for path in (*going, *self._leftovers()):
            state.discard(path)
        return tuple(gone)

    @contextmanager
    def _held(self, names: Iterable[str]) -> Iterator[None]:
        with self.holds.hold() as hold:
            with self._locked():
                self.holds.note(hold, names)
            yield

    def _given_up(self, name: str) -> Path:
        return (self.path / name).rename(self.path / f"{name}.{state.Creator.this().stamp}.{os.urandom(4).hex()}")

    def _leftovers(self) -> list[Path]:
        return [path for path in self.path.iterdir() if (maker := state.Creator.in_name(path.name)) and not maker.alive()]

    def _directory(self, store: Store, layer: Layer, below: Sequence[Path]) -> Path:
        directory = self.path / _name(layer)
        if not directory.is_dir():
            with state.locked(self.path / ".unpacking"):
                if not directory.is_dir():
                    _unpack(store, layer, directory, below)
        return directory

    def _mount_points(self) -> Path:
        directory = self.path / MOUNT_POINTS
        for path in (directory, *(directory / place for place in PLACES)):
            path.mkdir(exist_ok=True)
            if stat.S_IMODE(path.stat().st_mode) != 0o755:  # as the umask would have it
                path.chmod(0o755)
        return directory

    def _locked(self) -> AbstractContextManager[None]:
        return state.locked(self.path / ".lock")


def beside(store: Store) -> Snapshots:
    """Those of a store's images, in the folder `snapshots` beside it."""
    return Snapshots(store.path.absolute().parent / "snapshots")


def _unpack(store: Store, layer: Layer, directory: Path, below: Sequence[Path]) -> None:
    rules = Rules(
        max(FLOOR, RATIO * layer.blob.size),
        USER,  # of its marks only the device is made, which is every notation's
        owners.on_disk(),
        # An ordinary user can make no device node, and no container of his could open it; nor set some attributes, as docker without root.
        lambda why: None,
        MOST_FILES,
        tuple(map(str, below)),
    )
    with store.open(layer.blob) as blob:
        unpack_layer(iter(partial(blob.read, CHUNK), b""), directory, rules, digest=layer.blob.digest, diff_id=layer.diff_id)


def _name(layer: Layer) -> str:
    return layer.chain_id.replace(":", "-")
