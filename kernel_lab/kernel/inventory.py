"""What is in the kernel now, by kind and name: the namespaces, mounts, links, tables, cgroups and the rest that a snapshot is made of.

Each name tells a thing from its namesake of later, by an index or an inode number: what was taken away and made anew is another thing.
"""

import os
import re
import socket
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from kernel_lab.kernel import procfs
from kernel_lab.kernel.procfs import Process

KINDS = (*procfs.NAMESPACES, "pid_for_children", "time_for_children")
# The inode of what has no path: `socket:[1234]`.
ANONYMOUS = re.compile(r":\[\d+\]$")
CGROUPS = "/sys/fs/cgroup"
CGROUP_DEPTH = 8
LASTING = "vm"  # of a run directory: the lab VM, and what is known about virtualisation here, outlive whoever starts and finds out

# linux/netlink.h, linux/netfilter/nfnetlink.h and nf_tables.h
NETLINK_NETFILTER = 12
NLMSG_ERROR, NLMSG_DONE = 2, 3
NFT_MSG_GETTABLE = 10 << 8 | 1
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NFTA_TABLE_NAME, NFTA_TABLE_HANDLE = 1, 4


def _namespaces(directory: str) -> Iterator[str]:
    for kind in KINDS:
        try:
            yield os.readlink(f"{directory}/{kind}")
        except (PermissionError, ProcessLookupError):
            return
        except FileNotFoundError:
            # A kind that this kernel lacks, a process that has ended, or a new PID namespace that has no process yet.
            continue


def held(processes: Iterable[Process]) -> dict[str, frozenset[int]]:
    """Each namespace, and the processes that are in it."""
    found: dict[str, set[int]] = {}
    for one in processes:
        # Kernel threads (children of number 2) and zombies are in no namespace of their own.
        if one.parent != 2 and one.state != "Z":
            for name in _namespaces(f"/proc/{one.pid}/ns"):
                found.setdefault(name, set()).add(one.pid)
    return {name: frozenset(inside) for name, inside in found.items()}


def mounts() -> list[str]:
    """The lines of the own mount namespace's table."""
    return Path("/proc/self/mountinfo").read_text(errors="surrogateescape").split("\n")


def links(*prefixes: str) -> Iterator[str]:
    """The network links whose names begin with one of `prefixes`."""
    yield from (f"{name} ({index})" for index, name in socket.if_nameindex() if name.startswith(prefixes))


def own_namespaces() -> frozenset[str]:
    """Of each thread: unshare and setns move only the thread that calls them."""
    return frozenset(name for thread in os.listdir("/proc/self/task") for name in _namespaces(f"/proc/self/task/{thread}/ns"))


def descriptors() -> Iterator[str]:
    """Counted by what they are open on: a socket that was closed and opened anew is not one more."""
    targets = Counter(ANONYMOUS.sub("", target) for target in procfs.open_files(os.getpid()).values())
    for target, count in targets.items():
        yield from (f"{target}, number {number}" for number in range(1, count + 1))


def names(directory: str, prefix: str = "") -> Iterator[str]:
    """The files of a directory, which need not exist."""
    try:
        yield from (f"{directory}/{name}" for name in os.listdir(directory) if name.startswith(prefix))
    except OSError:
        return


def cgroups(prefix: str, directory: str = CGROUPS, depth: int = CGROUP_DEPTH, inside: bool = False) -> Iterator[str]:
    """The control groups that carry the prefix, and everything in them. The inode tells one from its namesake of later."""
    try:
        # The kernel counts a cgroup's subdirectories in its link count, so that a leaf need not be listed.
        if os.stat(directory).st_nlink == 2:
            return
        entries = [entry for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for entry in entries:
        own = inside or entry.name.startswith(prefix)
        if own:
            yield f"{entry.path} ({entry.inode()})"
        if depth > 1 or own:
            yield from cgroups(prefix, entry.path, depth - 1, own)


def ipc(processes: Collection[int]) -> Iterator[str]:
    """System V objects. Shared memory names its creator: a segment of a process that lives is that process's business."""
    for kind in ("msg", "sem", "shm"):
        try:
            header, *rows = Path(f"/proc/sysvipc/{kind}").read_text().splitlines()
        except OSError:
            continue
        for row in rows:
            values = dict(zip(header.split(), row.split(), strict=True))
            creator = int(values.get("cpid", "0"))
            if creator == os.getpid() or creator not in processes:
                yield f"{kind} {row.split()[1]}, key {values['key']}"


def records(run: str) -> Iterator[str]:
    """The files below a run directory, other than locks: those stay, since a lock that is removed locks nothing."""
    for directory, folders, files in os.walk(run):
        if directory == run:
            folders[:] = [name for name in folders if name != LASTING]
        yield from (os.path.join(directory, name) for name in files if not name.endswith("lock"))


def tables(prefix: str) -> Iterator[str]:
    """The nftables tables that carry the prefix. Asked by netlink: starting nft would cost more than all the rest of an audit."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as link:
            link.settimeout(5)
            link.send(struct.pack("=IHHIIBBH", 20, NFT_MSG_GETTABLE, NLM_F_REQUEST | NLM_F_DUMP, 1, 0, 0, 0, 0))
            while True:
                answer = link.recv(1 << 16)
                while answer:
                    size, kind = struct.unpack_from("=IH", answer)
                    # NLMSG_DONE ends the answer; NLMSG_ERROR says that we may not ask, or that the kernel has no nftables.
                    if kind in (NLMSG_ERROR, NLMSG_DONE):
                        return
                    attributes = dict(_attributes(answer[20:size]))
                    name = attributes[NFTA_TABLE_NAME].rstrip(b"\0").decode()
                    if name.startswith(prefix):
                        yield f"{name} (family {answer[16]}, handle {int.from_bytes(attributes[NFTA_TABLE_HANDLE], 'big')})"
                    answer = answer[size + 3 & ~3 :]
    except OSError:
        return


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        size, kind = struct.unpack_from("=HH", data)
        yield kind & 0x3FFF, data[4:size]
        data = data[size + 3 & ~3 :]
