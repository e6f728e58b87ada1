"""Which of the host's system calls a process makes, as the kernel has traced them (Documentation/trace/events.rst).

In an instance of its own, so that nobody else's tracing is disturbed. Only root may.
"""

import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kernel_lab.kernel import mountinfo
from kernel_lab.kernel.calls import syscall
from kernel_lab.kernel.errors import KernelError, UsageError
from kernel_lab.kernel.flags import FSCONFIG, FSMOUNT, FSOPEN
from kernel_lab.state import Creator

EVENT = "events/raw_syscalls/sys_enter/enable"
BUFFER = "16384"  # KB for each processor: what has no room is lost, the oldest first
ENTRY = re.compile(r"-(\d+) .*: NR (\d+) \(")

Counted = Callable[[Collection[int]], set[int]]


@contextmanager
def counting() -> Iterator[Counted]:
    """From now on children of this process are traced. The answer, once: the numbers of the calls that these threads have made.

    Raises UsageError where this user cannot trace.
    """
    with _tracefs() as place:
        instance = place / "instances" / f"klab-{Creator.this().stamp}"
        try:
            instance.mkdir()
        except OSError as error:
            raise UsageError(f"{instance}: {error.strerror}; calls are counted by root, where the kernel has tracefs") from None
        try:
            for name, text in (
                ("buffer_size_kb", BUFFER),
                ("options/event-fork", "1"),
                ("set_event_pid", " ".join(os.listdir("/proc/self/task"))),
                (EVENT, "1"),
            ):
                (instance / name).write_text(text)
            yield lambda threads: _made(instance, threads)
        finally:
            instance.rmdir()


@contextmanager
def _tracefs() -> Iterator[Path]:
    """Where it is mounted, or else a mount of it that is in nobody's tree (fsmount(2))."""
    mounted = next((Path(mount.point) for mount in mountinfo.mounts() if mount.kind == "tracefs"), None)
    if mounted:
        yield mounted
        return
    with ExitStack() as opened:

        def descriptor(call: str, *arguments: int | bytes) -> int:
            file = syscall(call, *arguments)
            opened.callback(os.close, file)
            return file

        try:
            made = descriptor("fsopen", b"tracefs", int(FSOPEN.CLOEXEC))
            syscall("fsconfig", made, int(FSCONFIG.CMD_CREATE), None, None, 0)
            mount = descriptor("fsmount", made, int(FSMOUNT.CLOEXEC), 0)
        except KernelError as error:
            raise UsageError(f"tracefs: {error.strerror}; calls are counted by root, where the kernel has tracefs") from None
        yield Path(f"/proc/self/fd/{mount}")


def _made(instance: Path, threads: Collection[int]) -> set[int]:
    (instance / EVENT).write_text("0")  # this process's own calls are traced too, and a trace that grows is never read to its end
    return {int(call) for thread, call in ENTRY.findall((instance / "trace").read_text()) if int(thread) in threads}


def threads(pids: Collection[int]) -> set[int]:
    """Of these processes."""
    return {int(name) for pid in pids for name in os.listdir(f"/proc/{pid}/task")}
