"""The files of an image or a running container in one tar, flattened: as a container sees them, without layers, history or settings."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from kernel_lab import state
from kernel_lab.images import owners
from kernel_lab.images.image import Image, Layer
from kernel_lab.images.pack import pack
from kernel_lab.images.snapshots import FLOOR, MOST_FILES, RATIO, beside
from kernel_lab.images.store import CHUNK
from kernel_lab.images.unpack import Rules, unpack_root
from kernel_lab.kernel.errors import KernelError, UsageError

Told = Callable[[str], None]


def export_image(image: Image, *, skipped: Told | None = None) -> Iterator[bytes]:
    """The files of an image, in chunks; of an ordinary user's all are root's, as in his containers.

    skipped: is told in words what he cannot have: device nodes. Raises UsageError for a layer that is damaged or too large; KernelError as `pack`.
    """
    tree = beside(image.store).path / f"export.{state.Creator.this().stamp}.{os.urandom(4).hex()}"
    try:
        _unpack(image, tree, skipped)
        yield from pack(tree, None, owner=owners.in_archive(), skipped=skipped)
    finally:
        state.discard(tree)


def export_root(pid: int, *, skipped: Told | None = None) -> Iterator[bytes]:
    """The files of a running container, in chunks, while its processes go on; what is mounted in it is left empty.

    pid: of a process of the container; whoever calls this sees to it that the number stays that process's. skipped: as `pack` has it.
    Raises UsageError for a process that has this machine's own root; KernelError as `pack`, also for a container of somebody else's.
    """
    root = Path(f"/proc/{pid}/root")
    try:
        own = root.samefile("/")
        owner = owners.of_process(pid)
    except OSError as error:
        raise KernelError(error.errno or 0, f"open({str(root)!r})", look="A container is exported by its user, or by root, while it runs.") from error
    if own:
        raise UsageError(f"process {pid}: its root is this machine's, and no container's; nothing is exported")
    yield from pack(root, None, owner=owner, skipped=skipped, living=True)


def _unpack(image: Image, tree: Path, skipped: Told | None) -> None:
    most = max(FLOOR, RATIO * sum(layer.blob.size for layer in image.layers))
    rules = Rules(most, owner=owners.on_disk(), skipped=skipped or (lambda why: None), most_entries=MOST_FILES)
    unpacked = unpack_root((_chunks(image, layer) for layer in image.layers), tree, rules)
    for layer, found in zip(image.layers, unpacked, strict=True):
        if found.diff_id != layer.diff_id:
            raise UsageError(f"{layer.blob.digest}: this layer has the DiffID {found.diff_id}, and not {layer.diff_id}; klab pull it again")


def _chunks(image: Image, layer: Layer) -> Iterator[bytes]:
    with image.store.open(layer.blob) as file:
        yield from iter(partial(file.read, CHUNK), b"")
