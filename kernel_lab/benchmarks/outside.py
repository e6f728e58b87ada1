"""What the caller of an OCI runtime makes before, as a shell user would: a network namespace with a veth into a bridge, and an overlay for a root."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from kernel_lab.benchmarks.contestant import Network


def wrapped(words: Sequence[str], network: Network, file: Path) -> list[str]:
    """A shell's command line: makes the namespace in `file` and its link, runs `words`, and lets go of the namespace, with which the link ends."""
    inside = ("link set lo up", "link set eth0 up", f"addr add {network.address} dev eth0", f"route add default via {network.gateway}")
    # The number of the shell is in the link's name, since the kernel takes its time to remove the one before.
    script = f"""
        unshare --net={file} true || exit
        trap 'umount {file}' EXIT
        ip link add klab$$ up master {network.bridge} type veth peer name eth0 netns {file} || exit
        printf '%s\\n' {shlex.join(inside)} | nsenter --net={file} ip -batch - || exit
        {shlex.join(words)}
    """
    file.touch()
    return ["sh", "-c", script]


def joined(words: Sequence[str], file: Path) -> list[str]:
    """These words in the namespace of `file`."""
    return ["nsenter", f"--net={file}", *words]


def layered(words: Sequence[str], lower: Path, folder: Path) -> list[str]:
    """A shell's command line: mounts an overlay at `merged` in `folder`, runs `words`, and takes all of it away again."""
    script = f"""
        cd {folder} && mkdir upper work merged || exit
        trap 'umount merged; rm -r upper work merged' EXIT
        mount -t overlay -o volatile,index=off,lowerdir={lower},upperdir=upper,workdir=work overlay merged || exit
        {shlex.join(words)}
    """
    return ["sh", "-c", script]
