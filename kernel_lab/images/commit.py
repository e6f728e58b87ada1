"""What a container has written becomes a layer, and with it an image."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kernel_lab.images.draft import Draft, put_layer
from kernel_lab.images.image import Image
from kernel_lab.images.inside import packed
from kernel_lab.images.reference import Reference
from kernel_lab.kernel.errors import UsageError
from kernel_lab.unionfs.layers import check_directory


def commit(
    upper: str | Path,
    parent: Image,
    name: str | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    created_by: str = "",
    author: str = "",
    comment: str = "",
    check: Callable[[], None] = lambda: None,
) -> Image:
    """An image of one layer more than its parent: the directory `upper`, in overlay's notation. `settings` as Draft.with_settings has them.

    check: called when all has been read; raises where it may not have been whole then.

    It is in the parent's store; sockets are left out, as docker does. Raises UsageError for a parent that is not whole, and for what a layer cannot
    say, and KernelError for what may not be read; nothing of it is left then.
    """
    check_directory("upper", str(upper))
    said = {key: value for key, value in {"created_by": created_by, "author": author, "comment": comment}.items() if value}
    changed = Draft.on(parent).with_settings(settings or {})
    if name is not None:
        Reference.parse(name)
    with parent.store.adding(tidy=True) as adding:
        if not adding.keep(parent.descriptor):
            raise UsageError(f"{parent}: not all that it is made of is in its store any more; fetch it again")
        layer = put_layer(adding, packed(Path(upper)))
        check()
        return changed.with_layer(layer, **said).put(adding, name)
