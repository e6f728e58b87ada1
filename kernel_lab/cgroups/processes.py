"""The processes of a group and of the groups in it: who they are, stopped, and ended, all of them at once."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from errno import EBUSY, ENOTEMPTY, ETIMEDOUT

from kernel_lab.cgroups import files
from kernel_lab.kernel import procfs
from kernel_lab.kernel.errors import KernelError

PATIENCE = 10.0
# How a group is stopped: the file of version 2, and that of the v1 controller freezer.
V2_FREEZE, V1_FREEZE = "cgroup.freeze", "freezer.state"


def pids(directory: str) -> list[int]:
    """The processes in a group, lowest number first; zombies are in none any more."""
    found: set[int] = set()
    for place in groups(directory):
        with suppress(OSError):  # a group in it may have gone meanwhile, and a threaded one does not say (EOPNOTSUPP)
            found.update(map(int, files.read(f"{place}/cgroup.procs").split()))
    return sorted(found)


def groups(directory: str) -> list[str]:
    """A group and those in it, the innermost first, as they can be removed."""
    return [place for place, _, _ in os.walk(directory, topdown=False)]


def freeze(directory: str, patience: float = PATIENCE) -> None:
    """Returns when every process stands still. Raises KernelError (ETIMEDOUT) when some do not within `patience` seconds; then none does."""

    def frozen() -> bool:
        # v1 is told until it is done: a process that was just being made is missed (freezer-subsystem.rst, FREEZING).
        _set_frozen(directory, True)
        return is_frozen(directory)

    try:
        _until(frozen, directory, "freeze", patience)
    except BaseException:
        thaw(directory)
        raise


def thaw(directory: str) -> None:
    """They go on."""
    _set_frozen(directory, False)


def is_frozen(directory: str) -> bool:
    """Whether all of them stand still."""
    if _is_v1(directory):
        return files.read(f"{directory}/{V1_FREEZE}") == "FROZEN"
    return files.numbers(f"{directory}/cgroup.events")["frozen"] == 1


def _is_v1(directory: str) -> bool:
    return os.path.exists(f"{directory}/{V1_FREEZE}")


def _set_frozen(directory: str, yes: bool) -> None:
    if _is_v1(directory):
        files.write(f"{directory}/{V1_FREEZE}", "FROZEN" if yes else "THAWED")
    else:
        files.write(f"{directory}/{V2_FREEZE}", str(int(yes)))


def kill(directory: str, patience: float = PATIENCE) -> None:
    """Ends every process. Raises KernelError (ETIMEDOUT) when some are still there after `patience` seconds."""

    def ended() -> bool:
        if pids(directory):
            _kill(directory)
        return not pids(directory)

    _until(ended, directory, "kill", patience)


def _kill(directory: str) -> None:
    if os.path.exists(f"{directory}/cgroup.kill"):  # v2, since Linux 5.14
        files.write(f"{directory}/cgroup.kill", "1")
    elif any(os.path.exists(f"{directory}/{file}") for file in (V1_FREEZE, V2_FREEZE)):
        _kill_frozen(directory)
    else:
        _kill_each(directory)


def _kill_frozen(directory: str) -> None:
    """Frozen, nobody can fork away from the list while it is being read."""
    _set_frozen(directory, True)
    try:
        _kill_each(directory)
    finally:
        thaw(directory)


def _kill_each(directory: str) -> None:
    for pid in pids(directory):
        with suppress(ProcessLookupError):
            # The number may by now be another process's; the descriptor is of one process for good, and the question is asked again about that one.
            descriptor = os.pidfd_open(pid)
            try:
                if pid in pids(directory):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            finally:
                os.close(descriptor)


def remove(directory: str, patience: float = PATIENCE) -> None:
    """Removes a group and those in it, unless they are gone already. The kernel still counts a process for a moment after its end: it is asked again.

    Raises KernelError (EBUSY) that names the processes which are still in it after `patience` seconds.
    """
    _until(lambda: _removed(directory), directory, "rmdir", patience)


def end(directory: str) -> None:
    """Ends who is in a group that nobody looks after any more, and removes it. Raises KernelError, but not when others were faster."""
    try:
        kill(directory)
        remove(directory)
    except KernelError:
        if os.path.exists(directory):
            raise


def _removed(directory: str) -> bool:
    for place in groups(directory):
        try:
            os.rmdir(place)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in (EBUSY, ENOTEMPTY):
                raise KernelError(error.errno or 0, f"rmdir({place})") from None
            return False
    return True


def _until(done: Callable[[], bool], directory: str, what: str, patience: float) -> None:
    end = time.monotonic() + patience
    pause = 0.0005
    while not done():
        if time.monotonic() > end:
            left = ", ".join(f"{pid} ({_name(pid)})" for pid in pids(directory)) or "processes that have just ended"
            errno = EBUSY if what == "rmdir" else ETIMEDOUT
            raise KernelError(errno, f"{what} {directory}", rule=f"after {patience:g} s there are still {left}.")
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def _name(pid: int) -> str:
    """A process for a message, with the letter of its state: one in D cannot be stopped or ended."""
    try:
        process = procfs.process(pid)
    except ProcessLookupError:
        return "ended"
    return f"{process.name}, {process.state}"
