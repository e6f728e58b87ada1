"""An image as a container's root: Mount(ImageRoot(image))."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kernel_lab.images import snapshots
from kernel_lab.images.image import Image
from kernel_lab.images.snapshots import Snapshots
from kernel_lab.kernel.errors import UsageError
from kernel_lab.namespaces.part import Plan, Starting
from kernel_lab.namespaces.user import User
from kernel_lab.unionfs.overlay import Overlay
from kernel_lab.unionfs.writable import Writable


class ImageRoot(Overlay):
    """An image's layers, unpacked where they are not yet, and on top of them what the container writes; `upper` as Overlay's.

    Raises UsageError as `Snapshots.directories` does.
    """

    def __init__(self, image: Image, upper: str | Path | None = None, *, snapshots_: Snapshots | None = None) -> None:
        self.image = image
        self._snapshots = snapshots_ or snapshots.beside(image.store)
        super().__init__(*self._snapshots.directories(image), upper=upper)

    def __repr__(self) -> str:
        upper = "" if self.upper is None else f", upper={self.upper!r}"
        return f"ImageRoot({str(self.image)!r}{upper})"

    def check(self, plan: Plan) -> None:
        """Raises UsageError as Overlay's, and for a user namespace whose ids are not those of the layers."""
        super().check(plan)
        user = plan.part(User)
        # An ordinary user's layers are all his own; root's belong to whom the image says.
        moved = user and (user.is_another if os.geteuid() else any(inside != outside for inside, outside, _ in (*user.uids, *user.gids)))
        if moved:
            raise UsageError(f"{self.image}: its layers would belong to other users in this user namespace; take User() or none")

    @contextmanager
    def prepare(self, start: Starting) -> Iterator[Writable]:
        """As Overlay's; nobody removes the layers meanwhile."""
        with self._snapshots.standing_on(self.lower), super().prepare(start) as made:
            yield made
