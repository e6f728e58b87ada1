"""Containers without a PID namespace, for the tests of what kills them: made by `unshare`, and with everything in them that makes killing hard."""

import os
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# An ordinary user makes namespaces in a user namespace of its own.
KINDS = ("uts", "ipc") if os.geteuid() == 0 else ("user", "uts", "ipc")
FLAGS = {"user": "--map-root-user", "uts": "--uts", "ipc": "--ipc", "cgroup": "--cgroup", "time": "--time"}
MARK, CREATOR = "KLAB_TEST_BOX", "KLAB_TEST_CREATOR"

# Whatever goes wrong, it ends by itself: nothing else is sure to catch it.
_HOPPER = """
import os, time
os.setsid()
print("hopper", flush=True)
end = time.monotonic() + 60
while time.monotonic() < end:
    if os.fork():
        os._exit(0)
"""
_HEADLESS = """
import ctypes, os, threading, time
os.setsid()
threading.Thread(target=time.sleep, args=(1000,)).start()
print("headless", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""
TENANTS = {
    # Deaf to all signals that one may be deaf to, out of its parent's session, and without a parent.
    "daemon": "setsid sh -c 'trap \"\" TERM HUP INT; setsid sleep 1000 & echo daemon; exec sleep 1000' &",
    # Always a new child somewhere.
    "forker": "setsid sh -c 'echo forker; while :; do sleep 0.001; done' &",
    # Always somewhere else: each process makes the next one and ends.
    "hopper": f"{sys.executable} -c {shlex.quote(_HOPPER)} &",
    # Its first thread has ended before the others: it looks like a zombie, and runs.
    "headless": f"{sys.executable} -c {shlex.quote(_HEADLESS)} &",
    # In namespaces below the container's, and in none of the container's own.
    "nested": "setsid unshare --user --map-root-user --uts --ipc sh -c 'echo nested; exec sleep 1000' &",
}


class Life:
    """A pipe whose one end everything in a box inherits. No list of processes could tell as surely when all of them have ended."""

    def __init__(self) -> None:
        self.end, self.theirs = os.pipe()

    def all_ended(self) -> bool:
        """Whether nobody has it any more; this process gives up its own copy."""
        self._close_theirs()
        poll = select.poll()
        poll.register(self.end, 0)
        return bool(poll.poll(0))

    def close(self) -> None:
        self._close_theirs()
        os.close(self.end)

    def _close_theirs(self) -> None:
        if self.theirs >= 0:
            os.close(self.theirs)
            self.theirs = -1


def box(mark: str, life: int, kinds: Sequence[str] = KINDS, tenants: Sequence[str] = ("daemon",)) -> "subprocess.Popen[str]":
    """The first process of a container, which waits for `go` as one does whose creator has still something to do. `life`: the pipe's other end."""
    script = f"echo waits; read go; {' '.join(TENANTS[tenant] for tenant in tenants)} exec sleep 1000"
    process = subprocess.Popen(
        ["unshare", *(FLAGS[kind] for kind in kinds), "sh", "-c", script] if kinds else ["sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        pass_fds=[life],
        env={name: value for name, value in os.environ.items() if name != CREATOR} | {MARK: mark},
    )
    _hear(process, ["waits"])
    return process


def go(process: "subprocess.Popen[str]", tenants: Sequence[str] = ("daemon",)) -> None:
    """Returns when all the tenants are in."""
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()
    _hear(process, tenants)


def _hear(process: "subprocess.Popen[str]", words: Sequence[str]) -> None:
    assert process.stdout
    missing = set(words)
    while missing:
        line = process.stdout.readline()
        assert line, f"the box ended before it said {missing}"
        missing.discard(line.strip())


def marked(value: str, name: str = MARK) -> list[int]:
    """The living processes whose environment carries the mark; a zombie has none any more."""
    return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and int(pid) != os.getpid() and _carries(pid, f"{name}={value}")]


def _carries(pid: str, mark: str) -> bool:
    # Each thread is asked: where the first one has ended, it has no memory to read.
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                if mark.encode() in Path(f"/proc/{pid}/task/{thread}/environ").read_bytes().split(b"\0"):
                    return True
    return False


def end(process: "subprocess.Popen[str]", mark: str) -> None:
    """Reap the first process, which has been killed, or is now; and whatever a failed test has left."""
    process.kill()
    with process:
        process.wait()
    kill_marked(mark)


def kill_marked(mark: str) -> None:
    """One look may miss a process that is just calling execve, and shows no environment: who has to know asks again, and a `Life`."""
    for pid in marked(mark):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def cleared(life: Life, mark: str) -> bool:
    """Whether nobody of a box is left; who is, is killed."""
    kill_marked(mark)
    return life.all_ended()
