"""Images to begin with, made from Debian's packages without a registry."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from kernel_lab import bootstrap, rootfs
from kernel_lab.command import PATH
from kernel_lab.images import owners
from kernel_lab.images.draft import Draft, put_layer
from kernel_lab.images.image import Image
from kernel_lab.images.pack import pack
from kernel_lab.images.reference import Reference
from kernel_lab.images.store import Store
from kernel_lab.kernel.errors import UsageError
from kernel_lab.unionfs.whiteouts import AUFS

Source = Callable[[], Iterator[bytes]]


def make(what: str, store: Store, name: str | None = None, suite: str | None = None) -> Image:
    """`busybox`, or `debian` in the suite that is named, without one in this machine's; called so, or by `name`.

    Raises UsageError for anything else, and for a package that is not installed; RuntimeError with what mmdebstrap has said.
    """
    if name is not None:
        Reference.parse(name)  # before what takes a minute
    if what == "busybox":
        if suite is not None:
            raise UsageError(f"busybox in {suite}: it is this machine's program; a suite is one of Debian's")
        return _put(store, name or "busybox", "busybox", _busybox, {"Cmd": ["sh"]})
    if what == "debian":
        suite = suite or bootstrap.own_suite()
        bootstrap.check_suite(suite)
        recipe = bootstrap.recipe(suite)
        return _put(store, name or f"debian:{suite}", f"debian {suite}", lambda: bootstrap.archive(recipe), {"Cmd": ["bash"]})
    raise UsageError(f"{what!r}: from packages of this machine there is busybox and debian; klab pull fetches others, klab import reads an archive")


def _put(store: Store, name: str, what: str, source: Source, settings: dict[str, object]) -> Image:
    path = {"Env": [f"PATH={PATH}"]}
    with store.adding(tidy=True) as adding:
        layer = put_layer(adding, source())
        draft = Draft.scratch().with_settings(path | settings).with_layer(layer, created_by=f"klab image make {what}")
        return draft.put(adding, name)


def _busybox() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        root.chmod(0o755)
        # The same on every machine that has this version of the program.
        yield from pack(root, AUFS, owner=owners.in_archive(), mtime=rootfs.fill_busybox(root))
