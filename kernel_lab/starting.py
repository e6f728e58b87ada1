"""The first process of a container: cloned into its namespaces, placed from outside while it waits, and let go."""

import fcntl
import os
import platform
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache, cached_property
from typing import TypeVar

from kernel_lab import janitor
from kernel_lab.cgroups.group import Group
from kernel_lab.command import Command
from kernel_lab.kernel import dumpable, reaper
from kernel_lab.kernel.calls import futex_wake
from kernel_lab.kernel.executors import Executor, executor, with_own_memory
from kernel_lab.kernel.flags import CLONE
from kernel_lab.kernel.interrupts import Deferred
from kernel_lab.kernel.kinds import KINDS
from kernel_lab.kernel.memory import DONE, Image, Layout
from kernel_lab.kernel.program import Buffer, Handle, Program, Row
from kernel_lab.namespaces.part import Part
from kernel_lab.namespaces.user import User
from kernel_lab.plan import COMMAND_DONE, COMMAND_PID, GIVEN, GO, KNOWN, READY, Plan
from kernel_lab.process import Process, Streams

MFD_EXEC = 0x10  # linux/memfd.h
CHANGING = frozenset({"capset", "setfsgid", "setfsuid", "setgid", "setns", "setregid", "setresgid", "setresuid", "setreuid", "setuid", "unshare"})
STANDS = Command(("stands",))
T = TypeVar("T")


class Table:
    """A plan and its command, laid out once; without a command, its process only stands where the parts have put it.

    The images are kept, so that the next run needs no more than a copy of a few pages.
    """

    def __init__(self, plan: Plan, command: Command | None) -> None:
        self.plan = plan
        self.command = command or STANDS
        # Without a PID namespace its daemons can outlive its first process, which waits until the janitor knows whom to look for.
        self.guarded = command is not None and not plan.flags & CLONE.NEWPID
        self.prepared = tuple(part for part in plan.parts if part.prepares)
        self.blank = (-1,) * len(plan.handles)
        self.placed = tuple(part for part in plan.parts if part.waits)
        self.waits = self.guarded or bool(self.placed)
        self.has_reaper = command is not None and plan.init
        self.program = plan.program(command, self.guarded) if command else plan.standing()
        self.changes_ids = _changes_ids(plan, self.command)
        self.kinds = _new_kinds(self.program, plan.flags)
        self._layout = Layout(self.program, plan.flags, (*GIVEN, *plan.handles))
        self._free: deque[Image] = deque()

    @cached_property
    def executor(self) -> Executor:
        """What runs it. Two kinds of children get memory of their own, and so have nothing of this process's to show, or to close.

        A part of somebody's own may enter another container's namespaces, where others live (see `joining`). And an ordinary user's child that
        changes its ids would close this process to its own user, while other threads' children still have to write their maps (see `dumpable`).
        """
        joins = any(row.call == "setns" for row in self.program)
        return with_own_memory() if joins or (self.changes_ids and os.geteuid() != 0) else executor()

    @cached_property
    def needs_open(self) -> bool:
        """Whether this process is to be open while it starts, or again afterwards."""
        writes_map = self.plan.has(User) and os.geteuid() != 0
        return not self.executor.shared and (writes_map or self.changes_ids)

    def take(self) -> Image:
        """An image that nobody uses."""
        try:
            return self._free.popleft()
        except IndexError:
            return Image(self._layout, self.executor.shared)

    def give_back(self, image: Image) -> None:
        """For the next run; a shared one holds a descriptor, and goes."""
        if image.shared:
            image.close()
        else:
            self._free.append(image)


def _changes_ids(plan: Plan, command: Command) -> bool:
    """Whether a child's ids become others than its creator's: then the kernel closes the memory that both share (commit_creds, prctl(2))."""
    user = plan.part(User)
    others = (row for part in plan.parts if part is not user for row in part.rows(plan))
    return command.user is not None or (user is not None and user.is_another) or any(map(_changes, others))


def _changes(row: Row) -> bool:
    # Of all namespaces, only a user namespace comes with other capabilities.
    if row.call == "unshare" and isinstance(row.args[0], int):
        return bool(row.args[0] & CLONE.NEWUSER)
    return row.call in CHANGING


def _new_kinds(program: Program, flags: CLONE) -> list[str]:
    """The namespaces that are made for it. One that it joins (setns) is another container's, whose processes are none of its own."""
    for row in program:
        if row.call == "unshare" and isinstance(row.args[0], int):
            flags |= CLONE(row.args[0])
    return [kind for kind, flag in KINDS.items() if flag & flags]


class First(Process):
    """The process that a container begins and ends with.

    Raises KernelError at once when the kernel refuses the clone; a refused row is raised by `check`, once the process has ended or called execve.
    `cgroup`: the directory of a cgroup v2, as a descriptor, to be born in. Whoever makes one defers interrupts until it is written down.
    """

    _prepared: ExitStack | None = None
    _placed: ExitStack | None = None
    _guard: janitor.Guard | None = None

    def __init__(self, table: Table, streams: Streams, cgroup: int | None = None, deadline: float | None = None) -> None:
        super().__init__()
        self._deadline = deadline
        self.table, self.plan = table, table.plan
        self.command, self.program = table.command, table.program
        self.image = table.take()
        self.image.reset(*streams, reaper_file() if table.has_reaper else -1, *table.blank)
        if cgroup is not None:
            self.image.enter_cgroup(cgroup)
        self._needs_settling = table.needs_open
        if table.needs_open:
            self.be(dumpable.kept())
        self.made: dict[Part, object] = {}
        self._start()

    def _start(self) -> None:
        try:
            with ExitStack() as self._brief:
                if self.table.prepared:
                    self._prepare()
                self.child = self.cloned(self.table.executor.start, self.image)
                self.pid, self.pidfd = self.child.pid, self.child.pidfd
        except BaseException:
            self._give_up()
            raise
        if self.table.waits:
            self._place_or_take_back()

    def _give_up(self) -> None:
        if self.pidfd >= 0:
            self.take_back()
            return
        with self._prepared or nullcontext():
            self.unhide()
            self.table.give_back(self.image)

    def _place_or_take_back(self) -> None:
        try:
            self._place()
        except BaseException as error:
            try:
                if isinstance(error, Exception) and self.ended(0):
                    # Nothing can be placed in a process that a refused row has ended: that row is what went wrong.
                    self.wait()
                    self.check()
            finally:
                self.take_back()
            raise

    def _prepare(self) -> None:
        self._prepared = ExitStack()
        for part in self.table.prepared:
            self.made[part] = self._prepared.enter_context(part.prepare(self))

    def give(self, handle: Handle, value: int) -> None:
        """The value of a handle that no row stores."""
        self.image.give(handle, value)

    def enter_cgroup(self, descriptor: int) -> None:
        """The child is born in the cgroup v2 whose directory this is."""
        self.image.enter_cgroup(descriptor)

    def until_cloned(self, context: AbstractContextManager[T]) -> T:
        """Enters a context that is left as soon as the child is cloned, or cannot be."""
        return self._brief.enter_context(context)

    def fill(self, buffer: Buffer, data: bytes) -> None:
        """Writes into a buffer of the table, before a row reads it."""
        self.image.fill(buffer, data)

    def _place(self) -> None:
        if self.table.placed:
            self._placed = ExitStack()
            for part in self.table.placed:
                self._placed.enter_context(part.place(self))
            futex_wake(self.image.buffer(GO))
        if self.table.guarded:
            while self.image.cell(READY) < 0 and not self.ended(0.0001):
                Deferred.check()
                if self._deadline is not None and time.monotonic() > self._deadline:
                    raise TimeoutError(f"{self.command.argv[0]}: not begun in time: a part's row does not return")
            self._guard = janitor.guard(self.pid, self.table.kinds)
            futex_wake(self.image.buffer(KNOWN))

    def wait_execed(self) -> None:
        self.child.wait_execed(DONE)
        if self.table.has_reaper and self.image.number(COMMAND_PID):
            self.child.wait_execed(COMMAND_DONE)

    def _others_ended(self) -> bool:
        if self._guard is None:
            return True
        if not self.ended(0):
            return False
        self._guard.kill_all()
        return True

    def _let_die(self) -> None:
        for made in self.made.values():
            if isinstance(made, Group):
                made.thaw()  # who is frozen by version 1 does not even die (freezer-subsystem.rst)

    def _release(self) -> None:
        with self._prepared or nullcontext(), self._placed or nullcontext():
            if self._guard:
                self._guard.release()
            self.child.close()
            self.table.give_back(self.image)


@contextmanager
def standing(plan: Plan) -> Iterator[int]:
    """The pid of a process that is where the parts put it, and does nothing there. Raises KernelError for a refused row."""
    first: First | None = None
    try:
        with Deferred():
            first = First(Table(plan, None), Streams(-1, -1, -1))
        while first.image.cell(READY) < 0:
            if first.ended(0.001):
                first.wait()
                first.check()
        yield first.pid
    finally:
        if first:
            first.take_back()


@cache
def reaper_file() -> int:
    """The reaper as a file that has no name, for execveat(2)."""
    try:
        file = os.memfd_create("klab-init", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | MFD_EXEC)
    except OSError:  # before Linux 6.3 every such file could be executed, and the flag is unknown
        file = os.memfd_create("klab-init", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(file, reaper.elf(platform.machine()))
    # Inside it can be reached as /proc/1/exe, and it is every container's: nobody may write to it (the class of CVE-2019-5736).
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    return file
