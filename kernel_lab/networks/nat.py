"""The way out: packets of a bridge's containers leave under the host's own address (man nft(8), masquerade).

The rule stands in a table of its own, `klab-BRIDGE`, so that nobody else's rules are touched, and goes with it. What such a table
cannot do is allow what another one forbids: docker sets the policy of forwarding to drop, and then its own chain has to allow ours:
`iptables -I DOCKER-USER -i klab0 -j ACCEPT` and the same with `-o klab0`.

The host must pass packets on between its links (net.ipv4.ip_forward). If it did not before the first bridge, an empty table says so as long
as there is one: the kernel itself remembers, for every process, whatever becomes of ours.
"""

import errno
import os
import shutil
import subprocess
from contextlib import AbstractContextManager, nullcontext
from ipaddress import IPv4Network
from pathlib import Path

from kernel_lab import state
from kernel_lab.kernel.errors import KernelError, UsageError

FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
PREFIX = "klab-"
WAS_OFF = f"{PREFIX}ip_forward_was_0"


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
    if not (found := _installed()):
        raise UsageError("a bridge with nat needs nft, which is not installed: apt install nftables, or Bridge(…, nat=False)")
    return found


def _installed() -> str | None:
    # /usr/sbin is not in an ordinary user's PATH.
    return shutil.which("nft", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def alone() -> AbstractContextManager[None]:
    """Alone on this machine: forwarding, and the choice of a subnet, concern also those who keep their records elsewhere.

    Whoever may not change forwarding can make no bridge either, and disturbs nobody.
    """
    return state.locked(FORWARD) if os.access(FORWARD, os.W_OK) else nullcontext()


def make(bridge: str, subnet: IPv4Network) -> None:
    """Raises KernelError for what the kernel refuses, and then nothing is left. As with all that follows, whoever calls is alone."""
    off = FORWARD.read_text().strip() == "0"
    _nft(ruleset(bridge, subnet) + (f"table ip {WAS_OFF} {{ }}\n" if off else ""), f"table {table(bridge)}")
    if off:
        try:
            _write_forward("1")
        except KernelError:
            remove(bridge)
            raise


def remove(bridge: str) -> None:
    """The table goes, if it is there, and with the last one the host's forwarding is as it was before the first."""
    _delete(table(bridge))
    if _tables() == [WAS_OFF]:
        restore()


def restore() -> None:
    """Forwarding is off again, as it was before the first bridge."""
    _write_forward("0")
    _delete(WAS_OFF)


def tables() -> list[str]:
    """The kit's tables that are in the kernel. Whoever may not change forwarding, or not even look, has made none."""
    if not (_installed() and os.access(FORWARD, os.W_OK)):
        return []
    try:
        return _tables()
    except KernelError as error:
        # Root of a user namespace, in a network namespace that is somebody else's.
        if error.errno != errno.EPERM:
            raise
        return []


def _tables() -> list[str]:
    words = (line.split() for line in _nft("list tables ip\n", "list tables").splitlines())
    return [name for *_, name in words if name.startswith(PREFIX)]


def _delete(name: str) -> None:
    # Deleting what is not there is an error, adding what is there is none: so the pair works in both cases.
    _nft(f"add table ip {name}\ndelete table ip {name}\n", f"delete table {name}")


def _write_forward(value: str) -> None:
    try:
        FORWARD.write_text(value)
    except OSError as error:
        look = "Inside a container /proc/sys is read-only: use Bridge(…, nat=False) there."
        raise KernelError(error.errno or errno.EIO, f'write("{FORWARD}", "{value}")', look=look) from None


def _nft(commands: str, what: str) -> str:
    done = subprocess.run([check_installed(), "-f", "-"], input=commands, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"nft ended with {done.returncode}"]
        look = "The kernel needs nf_tables and nft_masq (modprobe nft_masq), and the caller CAP_NET_ADMIN."
        number = errno.EPERM if os.strerror(errno.EPERM) in done.stderr else errno.EOPNOTSUPP
        raise KernelError(number, f"nft: {what}", rule=said[0] + ".", look=look)
    return done.stdout
