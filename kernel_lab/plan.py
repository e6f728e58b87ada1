"""From parts and a command to the one table: the parts in the order that the kernel needs, whatever order the caller has listed."""

from collections.abc import Iterable, Iterator, Sequence
from errno import EACCES, EAGAIN, ENOENT, ENOTDIR
from functools import reduce
from operator import or_

from kernel_lab.command import Command
from kernel_lab.kernel import creator
from kernel_lab.kernel.errors import UsageError
from kernel_lab.kernel.flags import AT, CLONE, CLOSE_RANGE, PR, SIG, SIG_HOW
from kernel_lab.kernel.flags.terminals import TIOC
from kernel_lab.kernel.kinds import KINDS
from kernel_lab.kernel.memory import clone_args
from kernel_lab.kernel.program import Buffer, Handle, Program, Row, Strings, call
from kernel_lab.kernel.structs import rlimit64, sigaction, sigset, timespec
from kernel_lab.namespaces import dev
from kernel_lab.namespaces.mnt import Mount
from kernel_lab.namespaces.part import P, Part
from kernel_lab.namespaces.pid import PID
from kernel_lab.namespaces.user import User

STDIN, STDOUT, STDERR, REAPER = Handle("stdin"), Handle("stdout"), Handle("stderr"), Handle("reaper")
GIVEN = (STDIN, STDOUT, STDERR, REAPER)
COMMAND = Handle("command")
READY = Handle("ready")
GO, KNOWN = Buffer("go", 8), Buffer("known", 8)  # the creator sets them, and wakes the child
COMMAND_PID = Buffer("command_pid", 8)
COMMAND_DONE = Buffer("command_done", 8, fill=b"\1")
LAST = 2**32 - 1
MOST_ROWS = 10_000
NAMESPACES = reduce(or_, KINDS.values())
# What acts on the memory that the table itself is in, which is its creator's, or makes a second process that walks through it.
CREATORS = frozenset({"brk", "clone", "clone3", "fork", "madvise", "mmap", "mprotect", "mremap", "munmap", "remap_file_pages", "vfork"})


class Plan:
    """The parts of one container, checked and in order. Raises UsageError for an unknown part, the same part twice, or what a part finds wrong."""

    def __init__(self, parts: Sequence[Part]) -> None:
        for part in parts:
            if not isinstance(part, Part):
                raise UsageError(f"{part!r} is no part: there are UTS, Mount, IPC, User, PID, Net, Cgroup, CgroupNS, Time, and Part for your own")
            if part.flags & ~NAMESPACES:
                raise UsageError(f"{type(part).__name__}.flags {part.flags!r}: a part's flags are those of new namespaces (clone(2))")
        kinds = [type(part) for part in parts]
        if twice := next((kind for kind in kinds if kinds.count(kind) > 1), None):
            raise UsageError(f"{twice.__name__} twice: a container has each part once")
        self.parts: Sequence[Part] = tuple(sorted(parts, key=lambda part: part.order))
        for part in self.parts:
            part.check(self)
        mount = self.part(Mount)
        self.roots = mount.root.layers if mount and mount.root else ()
        self.has_dev = mount is not None and mount.dev
        self.handles = tuple(handle for part in self.parts for handle in part.handles)

    def part(self, kind: type[P]) -> P | None:
        return next((part for part in self.parts if isinstance(part, kind)), None)

    def has(self, kind: type[Part]) -> bool:
        return self.part(kind) is not None

    @property
    def flags(self) -> CLONE:
        """The namespaces that the clone makes."""
        flags = CLONE(0)
        for part in self.parts:
            flags |= part.flags
        return flags

    @property
    def waits(self) -> bool:
        """Whether the creator has something to do from outside while the child waits."""
        return any(part.waits for part in self.parts)

    @property
    def init(self) -> bool:
        """Whether process 1 is the reaper."""
        pid = self.part(PID)
        return pid is not None and pid.init

    def program(self, command: Command, guarded: bool = False) -> Program:
        """The whole table; `guarded`: the janitor is told of it before the command runs. Raises UsageError when a part yields what is no row."""
        return Program((*self._frame(command, guarded), *_ends(self.init)))

    @property
    def setup(self) -> Program:
        """The rows that the parts give, without what every container needs around them."""
        return Program(row for part in self.parts for row in _rows(part, self))

    def standing(self) -> Program:
        """The table of a process that enters all that the parts make, and stands there to be looked at."""
        # Nobody who waits for a descriptor to be closed everywhere shall wait for one that only stands.
        closed = call("close_range", 3, LAST, 0, why="nothing of the creator's is open")
        ready = call("getpid", into=READY, why="ready to be looked at")
        stands = call("ppoll", None, 0, None, None, 8, why="until it is killed")
        return Program((*self._entering(False), closed, ready, stands, *_ends(False)))

    def _entering(self, guarded: bool) -> Iterator[Row]:
        yield from dies_with_creator()
        # As late as it can be: what the creator does meanwhile takes time, too.
        waiting = next((number for number, part in enumerate(self.parts) if part.waits), len(self.parts))
        for part in self.parts[:waiting]:
            yield from _rows(part, self)
        if self.waits:
            yield _wait(GO, "wait until the creator has done its part from outside")
        for part in self.parts[waiting:]:
            yield from _rows(part, self)
        if guarded:
            yield call("getpid", into=READY, why="its namespaces are made now:")
            yield _wait(KNOWN, "wait until the janitor knows them")

    def _frame(self, command: Command, guarded: bool) -> Iterator[Row]:
        yield from self._entering(guarded)
        yield from standard_streams(command)
        if command.terminal and self.has_dev:
            yield from dev.console()
        yield from process_settings(command)
        if command.user or self.has(User):
            # The kernel forgets the signal when a process changes its ids (prctl(2)).
            yield from dies_with_creator()
        if self.init:
            yield from _reaped(command)
        yield from execute(command)


def _wait(word: Buffer, why: str) -> Row:
    return call("futex", word, 0, 0, None, None, 0, tolerate={EAGAIN}, why=why)


def _rows(part: Part, plan: Plan) -> Iterator[Row]:
    rows = part.rows(plan)
    if not isinstance(rows, Iterable):
        raise UsageError(f"{type(part).__name__}.rows gave {rows!r}: it gives rows, made by call(name, arguments…)")
    for number, row in enumerate(rows):
        if not isinstance(row, Row):
            raise UsageError(f"{type(part).__name__}.rows gave {row!r}: a row is made by call(name, arguments…)")
        if row.call in CREATORS:
            raise UsageError(f"{type(part).__name__}.rows gave {row.call}: no row may change the memory that the table itself is in, its creator's")
        if number == MOST_ROWS:
            raise UsageError(f"{type(part).__name__}.rows does not end: more than {MOST_ROWS} rows")
        yield row


def dies_with_creator() -> Iterator[Row]:
    """The process is killed when its creator ends, and ends by itself if that has happened already."""
    yield call("prctl", PR.SET_PDEATHSIG, SIG.KILL, why="nothing outlives its creator")
    yield call("ppoll", creator.pollfd(), 1, timespec(0), None, 8, positive="orphan", why="unless it has ended before it was asked")


def standard_streams(command: Command) -> Iterator[Row]:
    """A session of its own, and as descriptors 0, 1 and 2 what the creator has opened for it, or a terminal of its own."""
    yield call("setsid", into=Handle("session"), why="no terminal's signals reach it")
    if command.terminal:
        yield from dev.terminal(STDIN, STDOUT, command.user.uid if command.user else None)
        return
    for number, handle in enumerate((STDIN, STDOUT, STDERR)):
        yield call("dup3", handle, number, 0, why=str(handle))


def process_settings(command: Command) -> Iterator[Row]:
    """Working directory, limits and ids, signals as a new program expects them, and no descriptor of the creator's."""
    if command.cwd is not None:
        yield call("chdir", command.cwd, why="working directory")
    for number, soft, hard in command.limits:
        yield call("prlimit64", 0, number, rlimit64(soft % 2**64, hard % 2**64), None, why="limit")
    if command.user:
        groups = command.user.groups
        yield call("setgroups", len(groups), _gids(groups) if groups else None, why="supplementary groups")
        yield call("setresgid", *[command.user.gid] * 3, why="group")
        yield call("setresuid", *[command.user.uid] * 3, why="user")
    for number in (SIG.CHLD, SIG.PIPE, SIG.XFSZ):
        yield call("rt_sigaction", number, sigaction(0), None, 8, why="what the creator ignores, a new program must not")
    yield call("close_range", 3, LAST, CLOSE_RANGE.CLOEXEC, why="the creator's descriptors end at the execve")


def _gids(groups: tuple[int, ...]) -> Buffer:
    data = b"".join(number.to_bytes(4, "little") for number in groups)
    return Buffer("groups", len(data), data)


def execute(command: Command) -> Iterator[Row]:
    """The last rows: signals may come again, and the command takes the process over."""
    yield call("rt_sigprocmask", SIG_HOW.SETMASK, sigset([]), None, 8, why="from here on signals are received")
    env = Strings(tuple(f"{name}={value}" for name, value in command.env), "environment")
    argv = Strings(command.argv)
    *others, last = command.candidates
    for path in others:
        yield call("execve", path, argv, env, tolerate={ENOENT, ENOTDIR, EACCES}, why="the next place of PATH, if it is not here")
    yield call("execve", last, argv, env, why="become the command")


def _reaped(command: Command) -> Iterator[Row]:
    arguments = clone_args(CLONE(0), COMMAND_DONE, SIG.CHLD, pid=COMMAND_PID)
    yield call("clone3", arguments, 88, into=COMMAND, positive="init", why="the command is process 2,")
    if command.terminal:
        # Otherwise a terminal's Ctrl-C would reach the command twice: from the terminal, and from the reaper that passes it on.
        yield call("setpgid", 0, 0, why="in a process group of its own,")
        yield call("ioctl", 0, TIOC.SPGRP, Buffer("group", 4, (2).to_bytes(4, "little")), why="the one that the terminal's keys reach")


def _ends(init: bool) -> Iterator[Row]:
    if init:
        yield call("execveat", REAPER, "", Strings(("init", "2")), Strings(()), AT.EMPTY_PATH, label="init", why="and process 1 becomes the reaper")
    yield call("exit_group", 1, label="orphan", why="the creator has gone")
