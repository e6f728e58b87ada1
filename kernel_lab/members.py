"""Which processes belong to a container that has no PID namespace, and how all of them end.

A daemon leaves its parent and its session behind, but not its namespaces. So a member is a process that is in one of the container's own
namespaces, or in one below (user and PID namespaces are nested, and nobody gets out upwards), or in the session of the container's first process.

Whoever wants to kill them all races against them; what is done about each race stands where it is done.
This module is loaded by the janitor, which is to start at once: it imports little.
"""

import errno
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from io import FileIO

# include/uapi/linux/nsfs.h: _IO(0xb7, 2)
NS_GET_PARENT = 0xB702
KINDS = ("user", "uts", "ipc", "mnt", "net", "pid", "cgroup", "time")
NESTED = frozenset({"user", "pid"})
# A process that has unshared one of these is not in it itself, but its children are, and for `time` what it becomes by execve.
LINKS = {"pid": "pid_for_children", "time": "time_for_children"}
# What /proc answers for a process that has ended, and for the namespaces of one that may not be looked at.
GONE = (FileNotFoundError, ProcessLookupError)
REFUSED = (*GONE, PermissionError)

Identity = tuple[int, int]


def identity(namespace: str | int) -> Identity:
    """Device and inode: what names a namespace (man namespaces(7))."""
    status = os.stat(namespace)
    return status.st_dev, status.st_ino


class Members:
    """The members of one container. The open files pin its namespaces: the kernel gives the inode number of a dead namespace to the next one."""

    def __init__(self, session: int, namespaces: Mapping[str, FileIO]) -> None:
        if session <= 1:
            raise ValueError(f"{session}: not the number of a container's first process")
        self.session = session
        self.namespaces = dict(namespaces)
        self._own = {kind: identity(file.fileno()) for kind, file in namespaces.items()}

    @classmethod
    def of(cls, pid: int, kinds: Iterable[str] = KINDS, patience: float = 5.0) -> "Members":
        """Those of the container whose first process is `pid`. Its own namespaces are those of `kinds` that are not this process's too."""
        opened = ((kind, _opened(f"/proc/{pid}/ns/{LINKS.get(kind, kind)}", patience)) for kind in kinds)
        return cls(pid, {kind: file for kind, file in opened if file and identity(file.fileno()) != identity(f"/proc/self/ns/{kind}")})

    def pids(self) -> list[int]:
        """The members alive now, as far as one look can tell."""
        return self.each(lambda pid: None)

    def kill_all(self, patience: float = 30.0) -> None:
        """Kill every member. Call it before the first process is reaped: only until then is its number, and so that of the session, nobody else's."""
        end = time.monotonic() + patience
        pause = 0.001
        quiet = 0
        # A member in the middle of a fork when it is killed may still get a child that stands in no list yet: so twice nothing.
        while quiet < 2:
            left = self.each(self._kill)
            quiet = 0 if left else quiet + 1
            if left:
                if time.monotonic() > end:
                    raise TimeoutError(errno.ETIMEDOUT, f"these processes of the container of {self.session} outlive SIGKILL: {left}")
                time.sleep(pause)
                pause = min(pause * 1.5, 0.1)

    def close(self) -> None:
        """Let go of the namespaces; whatever is in them is no longer known."""
        for file in self.namespaces.values():
            file.close()
        self.namespaces = {}
        self._own = {}
        # Not 0: that is the session of the kernel's threads, and of every process whose session began outside our PID namespace.
        self.session = -1

    def each(self, act: Callable[[int], None]) -> list[int]:
        """Act on every member alive, and return their numbers.

        A list of processes is old when it is read: one that forks and ends, over and over, is always a number ahead of it. So what has been given out
        since the list was made is looked at too, until no new number has been given out during a look.
        """
        found = []
        known = last_number()
        pids: Iterable[int] = _listed()
        while True:
            for pid in pids:
                if self._alive_member(pid):
                    found.append(pid)
                    act(pid)
            now = last_number()
            if now == known:
                return found
            # The numbers start again from below when they have reached kernel.pid_max.
            pids = range(known + 1, now + 1) if now > known else _listed()
            known = now

    def _kill(self, pid: int) -> None:
        # The number may by now be another process's: the descriptor is of one process for good, and the question is asked again about that one.
        # If that one ends in between, the answer may be about its successor, but the signal goes to nobody.
        try:
            descriptor = os.pidfd_open(pid)
        except OSError as error:
            # EINVAL, ENOENT: a thread has this number, no process.
            if error.errno not in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
                raise
            return
        try:
            if self._alive_member(pid):
                with suppress(ProcessLookupError, PermissionError):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)

    def _alive_member(self, pid: int) -> bool:
        return pid not in (1, os.getpid()) and (self._in_session(pid) or self._in_namespaces(pid)) and _alive(pid)

    def _in_session(self, pid: int) -> bool:
        try:
            return os.getsid(pid) == self.session
        except REFUSED:
            return False

    def _in_namespaces(self, pid: int) -> bool:
        try:
            return self._shares(f"/proc/{pid}/ns")
        except FileNotFoundError:
            pass
        except (ProcessLookupError, PermissionError):
            return False
        # The first thread has ended, and with it its namespaces, but not the others need have. Only then are they asked: a tool outside may have
        # sent a thread of its own in, and is not a member for that.
        with suppress(*REFUSED):
            return any(self._shares(f"/proc/{pid}/task/{thread}/ns") for thread in os.listdir(f"/proc/{pid}/task") if int(thread) != pid)
        return False

    def _shares(self, directory: str) -> bool:
        for kind, own in self._own.items():
            here = identity(f"{directory}/{kind}")
            if here == own:
                return True
            if kind in NESTED and here != identity(f"/proc/self/ns/{kind}"):
                with FileIO(f"{directory}/{kind}") as file:
                    if own in _ancestors(file):
                        return True
        return False


def _ancestors(namespace: FileIO) -> Iterator[Identity]:
    """The namespaces around a user or PID namespace, outwards, up to our own."""
    with suppress(PermissionError):
        parent = FileIO(fcntl.ioctl(namespace, NS_GET_PARENT))
        with parent:
            yield identity(parent.fileno())
            yield from _ancestors(parent)


def _alive(pid: int) -> bool:
    """Whether `pid` runs still. A zombie does not, unless it is a first thread that has ended before the others."""
    try:
        with FileIO(f"/proc/{pid}/stat") as file:
            fields = file.readall().rpartition(b")")[2].split()
    except GONE:
        return False
    return fields[0] not in b"ZX" or int(fields[17]) > 1


def _listed() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def last_number() -> int:
    """The process number given out last."""
    with FileIO("/proc/loadavg") as file:
        return int(file.readall().split()[-1])


def _opened(namespace: str, patience: float) -> FileIO | None:
    """The namespace; None where there is none: in a kernel without this kind, in a process that has ended, before a PID namespace's first process."""
    # Until its execve, the first process shares its creator's memory; and while that is guarded against another container's eyes (PR_SET_DUMPABLE),
    # an ordinary user may not look at either.
    end = time.monotonic() + patience
    while True:
        # FileIO and not os.open: an interrupt would lose a bare number, and with it the descriptor.
        try:
            return FileIO(namespace)
        except GONE:
            return None
        except PermissionError:
            if time.monotonic() > end:
                raise
            time.sleep(0.002)
