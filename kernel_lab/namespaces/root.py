"""What a container's root is made of: a directory as it is, or what is put together for each container from several."""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from kernel_lab.kernel.errors import UsageError
from kernel_lab.kernel.flags import MS
from kernel_lab.kernel.program import Handle, Row, call
from kernel_lab.namespaces.part import Plan, Starting


class Origin(Protocol):
    """What a root was made from, when that has a name: an image."""

    @property
    def id(self) -> str:
        """That of its content."""

    @property
    def stop_signal(self) -> str | None:
        """How a container of it is asked to end."""


class Root(Protocol):
    """What `Mount(root)` takes besides a path."""

    @property
    def image(self) -> Origin | None:
        """What it was made from."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The directories in which a path of the root is looked up before there is a mount, the topmost first."""

    @property
    def handles(self) -> tuple[Handle, ...]:
        """As a part's."""

    @property
    def prepares(self) -> bool:
        """As a part's."""

    def check(self, plan: Plan) -> None:
        """Raises UsageError for what can be known to be wrong before anything is made."""

    def rows(self, plan: Plan) -> Iterable[Row]:
        """In the child, in its own mount namespace: afterwards the working directory is the new root, and a mount point."""

    def prepare(self, start: Starting) -> AbstractContextManager[object]:
        """What the creator does before the clone; leaving the context takes it back."""


@dataclass(frozen=True)
class Directory:
    """A directory as it is: what the container writes there stays."""

    path: str
    handles: tuple[Handle, ...] = ()
    prepares: bool = False
    image: Origin | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        return (self.path,)

    def check(self, plan: Plan) -> None:
        if not os.path.isdir(self.path):
            raise UsageError(f"root {self.path!r}: not a directory; the root of a container is one (rootfs.busybox() makes one)")
        if os.path.realpath(self.path) == "/":
            raise UsageError("root '/': it is the root already, and pivot_root(2) cannot swap it with itself; Mount() without a root keeps it")

    def rows(self, plan: Plan) -> Iterable[Row]:
        yield call("mount", self.path, self.path, None, MS.BIND | MS.REC, why="a root must be a mount point")
        yield call("chdir", self.path)

    def prepare(self, start: Starting) -> AbstractContextManager[object]:
        return nullcontext()

    def __repr__(self) -> str:
        return repr(self.path)
