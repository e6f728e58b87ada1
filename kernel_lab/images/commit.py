"""What a container has written becomes a layer, and with it an image."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kernel_lab.images import owners
from kernel_lab.images.draft import Draft, put_layer
from kernel_lab.images.image import Image
from kernel_lab.images.pack import pack
from kernel_lab.images.snapshots import notation


def commit(
    upper: str | Path,
    parent: Image,
    name: str | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    created_by: str = "",
    author: str = "",
    comment: str = "",
) -> Image:
    """An image of one layer more than its parent: the directory `upper`, in overlay's notation. `settings` as Draft.with_settings has them.

    It is in the parent's store. Raises UsageError and KernelError as `pack` does; nothing of it is left then.
    """
    said = {key: value for key, value in {"created_by": created_by, "author": author, "comment": comment}.items() if value}
    with parent.store.adding() as adding:
        adding.keep(parent.descriptor)
        layer = put_layer(adding, pack(Path(upper), notation(), owner=owners.in_archive()))
        draft = Draft.on(parent).with_settings(settings or {}).with_layer(layer, **said)
        return draft.put(adding, name)
