"""A way out that needs no root: a network stack in an ordinary process, which takes what a container sends out of its `eth0` (a tap device)
and says it again through sockets of its own (man pasta(1), slirp4netns(1))."""

import errno
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kernel_lab.kernel.errors import KernelError, UsageError
from kernel_lab.networks.messages import INSIDE

TUN = "/dev/net/tun"
PATIENCE = 20.0
# The stack ends when it is told to, and also when its creator is killed: then this pipe's other end closes, and `read` returns.
# When it ends by itself, nobody may be left who would kill its number later.
_TIED = """
exec 3<&0
"$@" 3<&- </dev/null & stack=$!
{ read -r end <&3; kill -KILL $stack; } & reader=$!
exec 3<&-
wait $stack
kill -KILL $reader 2>/dev/null
"""


def _pasta(pid: int) -> list[str]:
    # Unlike its defaults: no port of either side appears on the other, and the gateway does not stand for the host's loopback.
    closed = ["-t", "none", "-u", "none", "-T", "none", "-U", "none", "--no-map-gw"]
    # Started by root it would become nobody, who may not enter a namespace of root's.
    user = ["--runas", "0"] if os.geteuid() == 0 else []
    entered = ["--userns", f"/proc/{pid}/ns/user", "--netns", f"/proc/{pid}/ns/net"]
    return ["pasta", "--foreground", "--quiet", "--config-net", "--ns-ifname", INSIDE, *closed, *user, *entered]


def _slirp4netns(pid: int) -> list[str]:
    return ["slirp4netns", "--configure", "--mtu=65520", "--disable-host-loopback", str(pid), INSIDE]


_PROGRAMS: dict[str, Callable[[int], list[str]]] = {"pasta": _pasta, "slirp4netns": _slirp4netns}


class Usermode:
    """A network of one container, which reaches what its creator reaches, and which nobody reaches.

    `program`: pasta or slirp4netns; without it, the first that is installed. pasta needs a container with a user namespace of its own.
    """

    def __init__(self, program: str | None = None) -> None:
        if program is not None and program not in _PROGRAMS:
            raise UsageError(f"Usermode({program!r}): there is {' and '.join(_PROGRAMS)}")
        self.program = program

    def check(self, own_users: bool) -> None:
        """Raises UsageError for what the machine or the container lacks. `own_users`: whether it has a user namespace of its own."""
        self._chosen(own_users)
        try:
            os.close(os.open(TUN, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            raise UsageError(f"{self!r} needs {TUN}: {error.strerror}: as root, modprobe tun; chmod 0666 {TUN}") from None

    @contextmanager
    def attached(self, pid: int) -> Iterator[None]:
        """The network namespace of `pid` has an `eth0`, an address and a default route, as long as this lasts."""
        own_users = os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")
        command = _PROGRAMS[self._chosen(own_users)](pid)
        with tempfile.TemporaryFile() as said:
            # In a session of its own, where a terminal's Ctrl-C does not reach it.
            stack = subprocess.Popen(
                ["sh", "-c", _TIED, "klab-usermode", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
            )
            try:
                _await_route(pid, stack, said.fileno(), command)
                yield
            finally:
                _end(stack)

    def __repr__(self) -> str:
        return f"Usermode({self.program!r})" if self.program else "Usermode()"

    def _chosen(self, own_users: bool) -> str:
        # pasta gives its capabilities up before it opens the namespaces, and gets them back only in a user namespace that it enters.
        if self.program == "pasta" and not own_users:
            raise UsageError(f"{self!r} needs User() in the container: pasta enters only a user namespace other than its own")
        for program in [self.program] if self.program else ["pasta", "slirp4netns"] if own_users else ["slirp4netns"]:
            if shutil.which(program):
                return program
        raise UsageError(f"{self!r} needs {self.program or 'pasta or slirp4netns'}: apt install passt (then with User()), or apt install slirp4netns")


def _await_route(pid: int, stack: subprocess.Popen[bytes], said: int, command: list[str]) -> None:
    """Both programs set the default route last."""
    end = time.monotonic() + PATIENCE
    while not _has_route(pid):
        if stack.poll() is not None or time.monotonic() > end:
            lines = os.pread(said, 65536, 0).decode(errors="replace").splitlines()
            # pasta also says that there is nobody to log to.
            words = [line for line in lines if line.strip() and "syslog" not in line]
            raise KernelError(errno.ENETUNREACH, " ".join(command), rule=words[-1] if words else "It ended without a word.")
        time.sleep(0.002)


def _has_route(pid: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/net/route").read_text().splitlines()
    except OSError:
        raise KernelError(errno.ESRCH, f"the network of process {pid}", rule="The container ended while its network was being made.") from None
    return any(fields[0] == INSIDE and fields[1] == "00000000" for fields in map(str.split, lines))


def _end(stack: subprocess.Popen[bytes]) -> None:
    assert stack.stdin
    stack.stdin.close()
    stack.wait()
