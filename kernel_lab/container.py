"""A container: parts, and a command that runs in what they make."""

import os
import signal as signals
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from kernel_lab import command as commands
from kernel_lab import janitor, records, state
from kernel_lab.capture import Result, captured
from kernel_lab.command import Command, Limits
from kernel_lab.joining import Joined
from kernel_lab.kernel import procfs
from kernel_lab.kernel.errors import UsageError
from kernel_lab.kernel.evidence import Difference, evidence
from kernel_lab.kernel.interrupts import Deferred
from kernel_lab.kernel.program import Program
from kernel_lab.namespaces.mnt import Mount
from kernel_lab.namespaces.part import Part
from kernel_lab.plan import Plan
from kernel_lab.process import Streams, nothing
from kernel_lab.starting import First, Table, standing
from kernel_lab.state import Creator
from kernel_lab.unionfs.writable import Writable

KEPT_TABLES = 16
PATIENCE = 10.0


class Container:
    """Parts in any order, put together in the kernel's. Raises UsageError for parts that do not go together, before anything is made.

    Each `run` makes a container of its own; `start` makes one that stays until its command ends or `kill`, and that `exec` can join.
    As a context manager it ends what it has started.
    """

    def __init__(self, *parts: Part, name: str | None = None) -> None:
        self.plan = Plan(parts)
        self.parts = parts
        self.name = name
        self._tables: OrderedDict[Command, Table] = OrderedDict()
        self._plain: dict[tuple[str, ...], Table] = {}
        self._creator = os.getpid()
        self._first: First | None = None
        self._record: records.Record | None = None
        self._last_log = ""

    def __repr__(self) -> str:
        return f"Container({', '.join(map(repr, self.parts))})"

    @property
    def program(self) -> Program:
        """The table that `run("true")` would execute. Nothing is made."""
        return self.table(self.command(("true",))).program

    @property
    def setup(self) -> Program:
        """Of that table, the rows that the parts give."""
        return self.plan.setup

    def command(
        self,
        argv: tuple[str, ...],
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | int | None = None,
        rlimits: Limits | None = None,
        terminal: bool = False,
    ) -> Command:
        """The command that these settings mean in this container. Raises UsageError for wrong ones."""
        return commands.settled(self.plan.roots, argv, env, cwd, user, rlimits, terminal)

    def table(self, command: Command) -> Table:
        """The table of a command, made once for as long as it is in use."""
        if self._creator != os.getpid():  # a fork: its tables know another creator
            self._tables.clear()
            self._creator = os.getpid()
        if command not in self._tables:
            for part in self.plan.parts:  # what was right when the container was put together may not be now
                part.check(self.plan)
            self._tables[command] = Table(self.plan, command)
        self._tables.move_to_end(command)
        while len(self._tables) > KEPT_TABLES:
            self._tables.popitem(last=False)
        return self._tables[command]

    def run(
        self,
        *argv: str,
        input: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | int | None = None,
        rlimits: Limits | None = None,
        timeout: float | None = None,
        check: bool = False,
    ) -> Result:
        """Runs a command in a new container to its end, and returns what it has left. One text is split into words as a shell does.

        Raises KernelError for a refused row, TimeoutError after `timeout` seconds, and with `check` a RuntimeError for an exit code other than 0.
        A command that cannot be executed is a Result with code 127 (not found) or 126, and one line of stderr, as in a shell.
        """
        plain = env is None and cwd is None and user is None and rlimits is None
        table = self._plain_table(argv) if plain else self.table(self.command(argv, env, cwd, user, rlimits))
        return captured(lambda streams, deadline: First(table, streams, deadline=deadline), input, timeout, check)

    def _plain_table(self, argv: tuple[str, ...]) -> Table:
        """The table of a command without settings, found by its words alone."""
        # Without a root its environment is the creator's, which may change; and after a fork the creator is another.
        if not self.plan.roots or self._creator != os.getpid():
            self._plain.clear()
            return self.table(self.command(argv))
        try:
            return self._plain[argv]
        except (KeyError, TypeError):
            if len(self._plain) == KEPT_TABLES:
                self._plain.clear()
            return self._plain.setdefault(argv, self.table(self.command(argv)))

    def exec(
        self,
        *argv: str,
        input: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | int | None = None,
        rlimits: Limits | None = None,
        timeout: float | None = None,
        check: bool = False,
    ) -> Result:
        """Runs a command in the started container; otherwise as `run`."""
        first = self.first
        command = self.command(argv, env, cwd, user, rlimits)
        return captured(lambda streams, _: Joined(first, command, streams), input, timeout, check)

    def start(
        self,
        *argv: str,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | int | None = None,
        rlimits: Limits | None = None,
        cgroup: str | Path | None = None,
    ) -> "Container":
        """Starts a command and returns once it runs; its output goes to a log. `cgroup`: the directory of a cgroup v2 to be born in.

        Raises UsageError when one runs already, KernelError for a refused row, and CommandError for a command that cannot be executed.
        """
        return self.start_command(self.command(argv, env, cwd, user, rlimits), cgroup)

    def start_command(self, command: Command, cgroup: str | Path | None = None) -> "Container":
        """`start`, of a command that is settled already."""
        identifier = records.new_id()
        path = state.folder("logs") / f"{identifier}-{Creator.this().stamp}.log"
        with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as log, _opened(cgroup, os.O_PATH | os.O_DIRECTORY) as group:
            try:
                self.launch(command, Streams(nothing(), log, log), group if cgroup else None, identifier, str(path))
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        return self

    def launch(self, command: Command, streams: Streams, cgroup: int | None = None, identifier: str = "", log: str | None = None) -> First:
        """Starts a command on these descriptors, and records the container."""
        if self.running:
            raise UsageError(f"{self}: it runs already; kill() it first, or make another Container")
        if self.name is not None:
            records.check_name(self.name)
        if self._first:
            self.kill()
        janitor.watch_leftovers()
        table = self.table(command)
        first: First | None = None
        try:
            with Deferred():
                first = First(table, streams, cgroup)
            first.settle()
            first.wait_execed()
            first.check()
            self._record = self._recorded(first, identifier or records.new_id(), log)
            records.save(self._record)
        except BaseException:
            if first:
                first.take_back()
            self._record = None
            raise
        self._first = first
        return first

    def _recorded(self, first: First, identifier: str, log: str | None) -> records.Record:
        return records.Record(
            id=identifier,
            name=self.name or records.new_name(),
            pid=first.pid,
            started=procfs.start_time(first.pid) or 0,  # 0: it has ended, and somebody else has reaped it (`exits`)
            creator=Creator.this(),
            command=first.command.argv,
            env=first.command.given if self.plan.roots else (),
            cwd=first.command.cwd,
            user=str(first.command.user) if first.command.user else None,
            created=time.time(),
            log=log,
            parts=tuple(map(repr, self.parts)),
            namespaces=tuple(first.table.kinds),
            **self._root_recorded(first),
        )

    def _root_recorded(self, first: First) -> dict[str, Any]:
        """What its root is made of: what others need to know to see what it has changed."""
        mount = self.plan.part(Mount)
        if not mount or not mount.root:
            return {}
        made, image = first.made.get(mount), mount.root.image
        writes = isinstance(made, Writable)
        layers = (made.upper, *made.lower) if isinstance(made, Writable) else mount.root.layers
        named = {"image": str(image), "image_id": image.id, "stop_signal": image.stop_signal} if image else {"image": mount.root.layers[0]}
        return {"layers": layers, "writes": writes, **named}

    def keep(self, record: records.Record) -> None:
        """Leaves this record behind when the container ends."""
        records.save(record)
        self._record = None

    def forget(self) -> None:
        """Drops the record of what has been started; what it has written stays in `logs()`."""
        record = self._record  # another thread may forget at the same time
        if record:
            self._last_log = self.logs()
            self._record = None
            records.drop(record.id)

    @property
    def running(self) -> bool:
        """Whether a started command has not ended yet."""
        return self._first is not None and not self._first.ended(0)

    @property
    def first(self) -> First:
        """The container's first process. Raises UsageError when nothing runs."""
        if self._first is None or not self.running:
            raise UsageError("the container is not running: start() it first")
        return self._first

    def _started(self) -> First:
        if self._first is None:
            raise UsageError("the container has not been started: start() it first")
        return self._first

    @property
    def pid(self) -> int:
        """The number of its first process, as the host sees it."""
        return self.first.pid

    @property
    def id(self) -> str:
        """Its twelve digits, as `klab ps` shows them."""
        if self._record is None:
            raise UsageError("the container has not been started: start() gives it an id")
        return self._record.id

    def wait(self, timeout: float | None = None) -> int:
        """The exit code of the started command, once it has ended. Raises TimeoutError after `timeout` seconds."""
        return self._started().wait(timeout)

    def signal(self, number: int) -> None:
        """Sends a signal to its first process, which ignores those that it has no handler for if it is process 1 of a PID namespace."""
        if number not in signals.valid_signals():
            raise UsageError(f"signal({number!r}): there are {min(signals.valid_signals())} to {max(signals.valid_signals())} (signal(7))")
        self.first.signal(number)

    def stop(self, grace: float = PATIENCE) -> int:
        """SIGTERM, and after `grace` seconds SIGKILL; returns the exit code."""
        first = self._started()
        with suppress(ProcessLookupError):  # it may have ended just now
            first.signal(signals.SIGTERM)
            first.ended(grace)
        return self.kill()

    def kill(self) -> int:
        """Ends what was started, and everything in the container; returns the exit code, or -1 where it cannot be known (`kernel.exits`).

        What it has written stays in `logs()`.
        """
        first = self._started()
        first.take_back()
        self.forget()
        assert first.code is not None
        return first.code

    def logs(self) -> str:
        """What the started command has written so far, on both streams."""
        record = self._record
        try:
            return Path(record.log).read_text(errors="replace") if record and record.log else self._last_log
        except FileNotFoundError:
            return self._last_log

    def made(self, part: Part) -> object:
        """What a part's `prepare` has made for the started container: its cgroup, its union file system. It goes with the container."""
        return self._started().made[part]

    def evidence(self) -> Difference:
        """What the kernel says of the container beside the host: of the running one, or of one that is made to be looked at."""
        host = evidence(os.getpid())
        if self.running:
            return host.differs(evidence(self.pid))
        with standing(self.plan) as pid:
            return host.differs(evidence(pid))

    def __enter__(self) -> "Container":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._first is not None:
            self.kill()


@contextmanager
def _opened(path: str | Path | None, flags: int) -> Iterator[int]:
    if path is None:
        yield -1
        return
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
