"""A command in a running container: a table too, that enters the container's namespaces and becomes the command."""

import os
from collections.abc import Iterator
from typing import Protocol

from kernel_lab.command import Command
from kernel_lab.kernel.executors import executor, with_own_memory
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
    host, there = namespaces(os.getpid()), namespaces(pid)
    flags = CLONE(0)
    for kind, flag in KINDS.items():
        if there.get(kind) != host.get(kind):
            flags |= flag
    return flags


def program(command: Command, flags: CLONE, root: bool = True) -> Program:
    """The table of a command that joins the namespaces `flags` of the process whose pidfd is TARGET; `root`: whether 0 is an id there."""
    return Program(_rows(command, flags, root))


def _rows(command: Command, flags: CLONE, root: bool) -> Iterator[Row]:
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
    yield from standard_streams(command.terminal)
    yield from process_settings(command)
    yield from dies_with_creator()
    yield from execute(command)
    yield call("exit_group", 0, label="leave", why="the one that stays outside has done its part")
    yield call("exit_group", 1, label="orphan", why="the creator has gone")


class Joined(Process):
    """A command that has been started in a running container.

    Until the command has called execve it shares this process's memory, and others live where it is: this process is closed to them meanwhile.
    """

    def __init__(self, target: Running, command: Command, streams: Streams) -> None:
        super().__init__()
        flags = own_namespaces(target.pid)
        self.command = command
        self._has_sibling = bool(flags & CLONE.NEWPID)
        self.program = program(command, flags, any(line.inside == 0 for line in uid_map(target.pid)))
        # A process that shares its memory may not enter a time namespace (EUSERS, setns(2)).
        self._executor = with_own_memory() if flags & CLONE.NEWTIME else executor()
        self.image = Image(Layout(self.program, CLONE(0), (STDIN, STDOUT, STDERR, TARGET)), self._executor.shared)
        self.image.reset(*streams, target.pidfd)
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
            self._go_on_with_sibling()

    def _go_on_with_sibling(self) -> None:
        """The first process only makes the command's, which is this process's child as well; then it ends."""
        self.child.wait_execed()
        if pid := self.image.number(COMMAND_PID):
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
            os.close(self.pidfd)
            self.pid, self.pidfd = pid, os.pidfd_open(pid)

    def wait_execed(self) -> None:
        self.child.wait_execed()
        if self._has_sibling and self.image.number(COMMAND_PID):
            self.child.wait_execed(COMMAND_DONE)

    def _release(self) -> None:
        self.child.close()
        self.image.close()
