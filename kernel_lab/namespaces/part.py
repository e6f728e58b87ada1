"""What a container is put together from: a part gives clone flags, rows for the child, and what the creator does from outside."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, Protocol, TypeVar

from kernel_lab.kernel.flags import CLONE
from kernel_lab.kernel.program import Buffer, Handle, Row

P = TypeVar("P", bound="Part")
T = TypeVar("T")


class Plan(Protocol):
    """What a part may know of the others: who they are, and what the container was given."""

    parts: Sequence["Part"]

    def part(self, kind: type[P]) -> P | None:
        """The part of that kind, if the container has one."""

    def has(self, kind: type["Part"]) -> bool:
        """Whether the container has a part of that kind."""


class Waiting(Protocol):
    """A child that has not gone on yet: what a part works on from outside."""

    pid: int
    pidfd: int

    def fill(self, buffer: Buffer, data: bytes) -> None:
        """Writes into a buffer of the table, before a row reads it."""


class Starting(Protocol):
    """A child that has not been cloned yet."""

    @property
    def plan(self) -> Plan:
        """What it is made from."""

    def fill(self, buffer: Buffer, data: bytes) -> None:
        """Writes into a buffer of the table."""

    def give(self, handle: Handle, value: int) -> None:
        """The value of a handle that no row stores: a descriptor of the creator's."""

    def enter_cgroup(self, descriptor: int) -> None:
        """The child is born in the cgroup v2 whose directory this is."""

    def until_cloned(self, context: AbstractContextManager[T]) -> T:
        """Enters a context that is left as soon as the child is cloned, or cannot be: of a file that is open then it has a copy (clone(2))."""


class Part:
    """One part of a container. It only says what is to be done: it runs nothing in the child, so a wrong one cannot hurt its creator.

    Its rows run in memory that is the creator's until the execve: calls that would change that memory, or fork, are refused.

    `order` says where its rows stand among the other parts': user 10, cgroup 20, time 30, uts 40, others 60, mounts 80, net 90.
    `prepares`: whether the creator has something to do before each clone; `handles`: the handles that it sets then.
    `waits`: whether the child waits, before its rows, until `place` of every such part has done its work.
    """

    flags: CLONE = CLONE(0)
    order: ClassVar[int] = 60
    handles: tuple[Handle, ...] = ()
    prepares: bool = False
    waits: bool = False

    def check(self, plan: Plan) -> None:
        """Raises UsageError for what can be known to be wrong before anything is made."""

    def rows(self, plan: Plan) -> Iterable[Row]:
        """What the child does."""
        return ()

    def prepare(self, start: Starting) -> AbstractContextManager[object]:
        """What the creator does before the clone; leaving the context, once everybody in the container has ended, takes it back.

        What the context gives is the caller's: `container.made(part)`.
        """
        return nullcontext()

    def place(self, child: Waiting) -> AbstractContextManager[object]:
        """What the creator does while the child waits; leaving the context takes it back."""
        return nullcontext()

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({settings})"
