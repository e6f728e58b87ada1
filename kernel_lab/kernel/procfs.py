"""What /proc says about a process, as small typed objects (man proc(5)).

A process can end between any two reads. A reader that is asked about one process raises `ProcessLookupError` naming it, and
`PermissionError` when the kernel refuses; `start_time` and `alive`, which exist to ask "is it still there?", answer None and False instead,
and the readers of many processes leave out those that ended meanwhile.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

# The names by bit number, from include/uapi/linux/capability.h.
# fmt: off
CAPABILITIES = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap", "linux_immutable",
    "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner", "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace",
    "sys_pacct", "sys_admin", "sys_boot", "sys_nice", "sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write",
    "audit_control", "setfcap", "mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf",
    "checkpoint_restore",
)
# fmt: on

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")

SECCOMP = ("disabled", "strict", "filter")

# The kernel escapes line ends and backslashes in a name that stands on a line of its own (proc_task_name, fs/proc/array.c).
ESCAPE = re.compile(r"\\(.)")


class Process(NamedTuple):
    """One line of /proc/PID/stat: who it is, where it hangs in the tree, and since when (clock ticks after boot)."""

    pid: int
    name: str
    state: str
    parent: int
    group: int
    session: int
    started: int

    @property
    def identity(self) -> tuple[int, int]:
        """Number and start: numbers are given again, and this pair is not."""
        return self.pid, self.started


class Ids(NamedTuple):
    """The four ids that the kernel keeps of a process, for users and for groups (man credentials(7))."""

    real: int
    effective: int
    saved: int
    filesystem: int


class Capabilities(NamedTuple):
    """The five sets of man capabilities(7), by name and without the leading CAP_."""

    effective: frozenset[str]
    permitted: frozenset[str]
    inheritable: frozenset[str]
    bounding: frozenset[str]
    ambient: frozenset[str]


@dataclass(frozen=True)
class Status:
    """What /proc/PID/status says. `pids` is the process's number in each PID namespace, from the reader's inwards."""

    name: str
    state: str
    uids: Ids
    gids: Ids
    groups: tuple[int, ...]
    capabilities: Capabilities
    no_new_privileges: bool
    seccomp: str
    pids: tuple[int, ...]


class Namespace(NamedTuple):
    """A namespace is known by device and inode together (man namespaces(7)); the kind is part of the value for the reader's sake."""

    kind: str
    inode: int
    device: int

    def __str__(self) -> str:
        return f"{self.kind}:[{self.inode}]"


class IdRange(NamedTuple):
    """A line of uid_map or gid_map: `length` ids from `inside` on are those from `outside` on."""

    inside: int
    outside: int
    length: int


class CgroupLine(NamedTuple):
    """A line of /proc/PID/cgroup. Hierarchy 0 without controllers is cgroup v2."""

    hierarchy: int
    controllers: tuple[str, ...]
    path: str

    @property
    def v2(self) -> bool:
        return self.hierarchy == 0


@contextmanager
def _asking(pid: int, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # ENOENT: the directory is gone. ESRCH: it was there when opened and gone when read. EINVAL: a process that ended has no maps any more.
        # EACCES of a zombie: its directories are root's from its end on, whosever it was (task_dump_owner, fs/proc/base.c).
        if error.errno in (errno.ENOENT, errno.ESRCH, errno.EINVAL) or (error.errno == errno.EACCES and _is_zombie(pid)):
            raise ProcessLookupError(errno.ESRCH, f"process {pid} has ended, or never was: /proc/{pid}/{what} cannot be read") from None
        if error.errno in (errno.EACCES, errno.EPERM):
            why = f"/proc/{pid}/{what} is not readable for user {os.geteuid()}: process {pid} is another user's, or not dumpable"
            raise PermissionError(error.errno, why) from None
        raise


def _is_zombie(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/stat", "rb") as file:
        return _process(file.read()).state in "ZX"
    return True


def read(pid: int, what: str) -> bytes:
    """The bytes of /proc/PID/`what`."""
    with _asking(pid, what), open(f"/proc/{pid}/{what}", "rb", buffering=0) as file:
        return file.readall()


def _process(line: bytes) -> Process:
    # The name stands in parentheses and may hold spaces, parentheses and line ends itself: the last ")" ends it.
    head, _, tail = line.rpartition(b")")
    pid, _, name = head.partition(b" (")
    fields = tail.split()
    return Process(int(pid), name.decode(errors="replace"), fields[0].decode(), int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))


def process(pid: int) -> Process:
    """Who `pid` is now."""
    return _process(read(pid, "stat"))


def processes() -> dict[int, Process]:
    """Every process of the reader's PID namespace, by number; one that ends meanwhile is left out."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            # Plain descriptors, since an audit calls this hundreds of times and a file object doubles the cost.
            file = os.open(f"/proc/{entry}/stat", os.O_RDONLY)
            try:
                found[int(entry)] = _process(os.read(file, 4096))
            finally:
                os.close(file)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def start_time(pid: int) -> int | None:
    """When `pid` started, in clock ticks since boot; None if there is no such process. Number and start together name a process for good."""
    try:
        return process(pid).started
    except ProcessLookupError:
        return None


def alive(pid: int, started: int) -> bool:
    """Whether the process that had number `pid` and started at `started` still runs. A zombie has ended; only its parent does not know yet."""
    try:
        now = process(pid)
    except ProcessLookupError:
        return False
    return now.started == started and now.state not in "ZX"


def environ(pid: int) -> dict[str, str]:
    """The environment that `pid` was started with; what it changed afterwards is not to be seen here."""
    pairs = (pair.partition("=") for pair in os.fsdecode(read(pid, "environ")).split("\0"))
    return {name: value for name, equals, value in pairs if equals}


def children(pid: int) -> tuple[int, ...]:
    """The living children and the zombies of `pid`, lowest number first."""
    process(pid)
    return tuple(sorted(one.pid for one in processes().values() if one.parent == pid))


def _names(mask: str) -> frozenset[str]:
    # A kernel newer than the list above may know more: those are shown by number, as capsh does.
    bits = int(mask, 16)
    return frozenset(CAPABILITIES[bit] if bit < len(CAPABILITIES) else str(bit) for bit in range(bits.bit_length()) if bits >> bit & 1)


def _ids(text: str) -> Ids:
    return Ids(*map(int, text.split()))


def status(pid: int) -> Status:
    """What /proc/PID/status says."""
    # Split at line ends and tabs alone: a process may give itself a name with any other kind of space in it, and at its ends.
    lines = (line.partition(":\t") for line in read(pid, "status").decode(errors="replace").split("\n"))
    field = {name: value for name, _, value in lines}
    return Status(
        name=ESCAPE.sub(lambda match: "\n" if match[1] == "n" else match[1], field["Name"]),
        state=field["State"][0],
        uids=_ids(field["Uid"]),
        gids=_ids(field["Gid"]),
        groups=tuple(map(int, field["Groups"].split())),
        capabilities=Capabilities(*(_names(field[name]) for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"))),
        no_new_privileges=field["NoNewPrivs"] == "1",
        # Absent where the kernel was built without seccomp.
        seccomp=SECCOMP[int(field.get("Seccomp", "0"))],
        pids=tuple(map(int, field["NSpid"].split())),
    )


def namespaces(pid: int) -> dict[str, Namespace]:
    """The namespaces that `pid` is in, by kind; a kind that this kernel was built without is left out."""
    with _asking(pid, "ns"):
        kinds = [kind for kind in os.listdir(f"/proc/{pid}/ns") if kind in NAMESPACES]
    found = {}
    for kind in sorted(kinds):
        with _asking(pid, f"ns/{kind}"):
            place = os.stat(f"/proc/{pid}/ns/{kind}")
        found[kind] = Namespace(kind, place.st_ino, place.st_dev)
    return found


def _ranges(text: bytes) -> tuple[IdRange, ...]:
    return tuple(IdRange(*map(int, line.split())) for line in text.splitlines())


def uid_map(pid: int) -> tuple[IdRange, ...]:
    """The user ids of `pid`'s user namespace; "outside" is as the reader's own user namespace numbers them (man user_namespaces(7))."""
    return _ranges(read(pid, "uid_map"))


def gid_map(pid: int) -> tuple[IdRange, ...]:
    """The same for group ids."""
    return _ranges(read(pid, "gid_map"))


def cgroups(pid: int) -> tuple[CgroupLine, ...]:
    """The cgroups that `pid` is a member of: one for each v1 hierarchy, and the v2 one (man cgroups(7)), v2 first."""
    found = []
    for line in os.fsdecode(read(pid, "cgroup")).split("\n")[:-1]:
        hierarchy, controllers, path = line.split(":", 2)
        found.append(CgroupLine(int(hierarchy), tuple(filter(None, controllers.split(","))), path))
    return tuple(sorted(found))


def open_files(pid: int) -> dict[int, str]:
    """What each file descriptor of `pid` is open on: a path, or for what has none the kernel's word, such as `socket:[1234]`."""
    found = {}
    with _asking(pid, "fd"):
        # The directory is read through a descriptor of its own: where it is the reader's own table, that one is not part of the answer.
        directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY)
        try:
            entries = os.listdir(directory)
            for entry in entries:
                try:
                    found[int(entry)] = os.readlink(entry, dir_fd=directory)
                except FileNotFoundError:
                    continue
        finally:
            os.close(directory)
    if pid == os.getpid():
        found.pop(directory, None)
    return dict(sorted(found.items()))
