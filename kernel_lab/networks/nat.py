"""The way out: packets of a bridge's containers leave under the host's own address (man nft(8), masquerade).

The rule stands in a table of its own, `klab-BRIDGE`, so that nobody else's rules are touched, and goes with it. What such a table
cannot do is allow what another one forbids: docker sets the policy of forwarding to drop, and then its own chain has to allow ours:
`iptables -I DOCKER-USER -i klab0 -j ACCEPT` and the same with `-o klab0`.
"""

import errno
import os
import shutil
import subprocess
from ipaddress import IPv4Network
from pathlib import Path

from kernel_lab.kernel.errors import KernelError, UsageError

FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
PREFIX = "klab-"


def table(bridge: str) -> str:
    """The name of a bridge's table."""
    return PREFIX + bridge


def ruleset(bridge: str, subnet: IPv4Network) -> str:
    """What nft is given to make the table: one transaction, after which all of it is there or nothing."""
    return (
        f"table ip {table(bridge)} {{\n"
        "  chain postrouting {\n"
        "    type nat hook postrouting priority srcnat;\n"
        f'    ip saddr {subnet} oifname != "{bridge}" masquerade\n'
        "  }\n"
        "}\n"
    )


def check_installed() -> str:
    """The path of nft; UsageError where it is not installed."""
    # /usr/sbin is not in an ordinary user's PATH.
    found = shutil.which("nft", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if not found:
        raise UsageError("a bridge with nat=True needs nft, which is not installed: apt install nftables, or Bridge(…, nat=False)")
    return found


def make(bridge: str, subnet: IPv4Network) -> None:
    _nft(ruleset(bridge, subnet), f"table {table(bridge)}")


def remove(bridge: str) -> None:
    # Deleting what is not there is an error, adding what is there is none: so the pair works in both cases.
    name = table(bridge)
    _nft(f"add table ip {name}\ndelete table ip {name}\n", f"delete table {name}")


def tables() -> list[str]:
    """The kit's tables that are in the kernel, by the name of their bridge."""
    words = (line.split() for line in _nft("list tables ip\n", "list tables").splitlines())
    return [name.removeprefix(PREFIX) for *_, name in words if name.startswith(PREFIX)]


def forwarding_on(memory: Path) -> None:
    """The host passes packets on from one link to another; what it was before is remembered, once."""
    if FORWARD.read_text().strip() == "0":
        memory.write_text("0")
        _write_forward("1")


def forwarding_back(memory: Path) -> None:
    """As it was before the first bridge."""
    if memory.exists():
        _write_forward(memory.read_text())
        memory.unlink()


def _write_forward(value: str) -> None:
    try:
        FORWARD.write_text(value)
    except OSError as error:
        look = "Inside a container /proc/sys is read-only: start that one with it, or use Bridge(…, nat=False)."
        raise KernelError(error.errno or errno.EIO, f'write("{FORWARD}", "{value}")', look=look) from None


def _nft(commands: str, what: str) -> str:
    done = subprocess.run([check_installed(), "-f", "-"], input=commands, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"nft ended with {done.returncode}"]
        look = "The kernel needs nf_tables and nft_masq (modprobe nft_masq), and the caller CAP_NET_ADMIN."
        raise KernelError(errno.EOPNOTSUPP, f"nft: {what}", rule=said[0] + ".", look=look)
    return done.stdout
