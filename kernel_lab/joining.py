"""A command in a running container: a table too, that enters the container's namespaces and becomes the command."""

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from typing import Protocol

from kernel_lab.cgroups.group import Doors, Group
from kernel_lab.cgroups.part import enter
from kernel_lab.command import Command
from kernel_lab.kernel.errors import UsageError
from kernel_lab.kernel.executors import executor, with_own_memory
from kernel_lab.kernel.exits import taken
from kernel_lab.kernel.flags import CLONE
from kernel_lab.kernel.kinds import KINDS
from kernel_lab.kernel.memory import Image, Layout, clone_args
from kernel_lab.kernel.procfs import namespaces, uid_map
from kernel_lab.kernel.program import Handle, Program, Row, call
from kernel_lab.plan import COMMAND, COMMAND_DONE, COMMAND_PID, STDERR, STDIN, STDOUT, dies_with_creator, execute, process_settings, standard_streams
from kernel_lab.process import Process, Streams

TARGET = Handle("container")


class Running(Protocol):
    """A container's first process, as one who joins it needs to know it."""

    @property
    def pid(self) -> int: ...
    @property
    def pidfd(self) -> int: ...


def own_namespaces(pid: int) -> CLONE:
    """The namespaces of a process that are not this process's."""
    flags = CLONE(0)
    for kind, there in namespaces(pid).items():
        # Asked for by name: an ordinary user may not list its own while another thread has closed this process (`dumpable`).
        here = os.stat(f"/proc/self/ns/{kind}")
        if (there.inode, there.device) != (here.st_ino, here.st_dev):
            flags |= KINDS[kind]
    return flags


def program(command: Command, flags: CLONE, root: bool = True, groups: Sequence[Handle] = ()) -> Program:
    """The table of a command that joins the namespaces `flags` of the process whose pidfd is TARGET; `root`: whether 0 is an id there.

    `groups`: the doors of its control groups (version 1).
    """
    return Program(_rows(command, flags, root, groups))


def _rows(command: Command, flags: CLONE, root: bool, groups: Sequence[Handle]) -> Iterator[Row]:
    yield from enter(groups)
    yield from dies_with_creator()
    if flags:
        yield call("setns", TARGET, flags, why="into the container's namespaces, all at once")
    if flags & CLONE.NEWUSER and root:
        yield call("setresgid", 0, 0, 0, why="be group root there")
        yield call("setresuid", 0, 0, 0, why="be root there")
    if flags & CLONE.NEWPID:
        # setns(2): a process never changes its own PID namespace; its children are born into the new one.
        sibling = clone_args(CLONE.PARENT, COMMAND_DONE, 0, pid=COMMAND_PID)
        yield call("clone3", sibling, 88, into=COMMAND, positive="leave", why="born inside, and the creator's own child (CLONE_PARENT)")
    # Only now: a session ends with the process that made it, and the one that stays outside ends at once.
    yield from standard_streams(command)
    yield from process_settings(command)
    yield from dies_with_creator()
    yield from execute(command)
    yield call("exit_group", 0, label="leave", why="the one that stays outside has done its part")
    yield call("exit_group", 1, label="orphan", why="the creator has gone")


def _group_of(pid: int) -> Group | None:
    """The control groups that a container is in, if the kit has made it any."""
    try:
        return Group.of(pid)
    except UsageError:
        return None


class Joined(Process):
    """A command that has been started in a running container.

    Until the command has called execve it shares this process's memory, and others live where it is: this process is closed to them meanwhile.
    """

    def __init__(self, target: Running, command: Command, streams: Streams) -> None:
        super().__init__()
        flags = own_namespaces(target.pid)
        self.command = command
        self._has_sibling = bool(flags & CLONE.NEWPID)
        group = _group_of(target.pid)
        # A process that shares its memory may not enter a time namespace (EUSERS, setns(2)); and in a full memory group it would be the largest of
        # all as long as it shares its creator's: the kernel would kill both in the container's place (oom_badness, mm/oom_kill.c).
        alone = flags & CLONE.NEWTIME or (group and group.memory_limit is not None)
        self._executor = with_own_memory() if alone else executor()
        with group.doors() if group else nullcontext(Doors((), None)) as doors:
            groups = tuple(Handle(f"group {number}") for number in range(len(doors.procs)))
            self.program = program(command, flags, any(line.inside == 0 for line in uid_map(target.pid)), groups)
            self.image = Image(Layout(self.program, CLONE(0), (STDIN, STDOUT, STDERR, TARGET, *groups)), self._executor.shared)
            self.image.reset(*streams, target.pidfd, *doors.procs)
            if doors.directory is not None:
                self.image.enter_cgroup(doors.directory)
            self.hide()
            self._start()

    def _start(self) -> None:
        try:
            self.child = self.cloned(self._executor.start, self.image)
        except BaseException:
            self.unhide()
            raise
        self.pid, self.pidfd = self.child.pid, self.child.pidfd
        if self._has_sibling:
            try:
                self._go_on_with_sibling()
            except BaseException:
                self.take_back()
                raise

    def _go_on_with_sibling(self) -> None:
        """The first process only makes the command's, which is this process's child as well; then it ends."""
        self.ended()
        if pid := self.image.number(COMMAND_PID):
            try:
                command = os.pidfd_open(pid)
            except ProcessLookupError:
                raise taken() from None
            with suppress(ChildProcessError):  # somebody else has been told, and nobody has to know
                os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
            os.close(self.pidfd)
            self.pid, self.pidfd = pid, command

    def wait_execed(self) -> None:
        self.child.wait_execed()
        if self._has_sibling and self.image.number(COMMAND_PID):
            self.child.wait_execed(COMMAND_DONE)

    def _release(self) -> None:
        self.child.close()
        self.image.close()
