"""The kernel's structs as bytes, each with the form in which a table of system calls shows it."""

import ipaddress
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from kernel_lab.kernel.errors import UsageError
from kernel_lab.kernel.flags import AF, CLONE, IFF, POLL, RTF, SA, SIG, SIG_HANDLER, shown

IFNAMSIZ = 16  # linux/if.h, with the NUL at the end
RLIM_INFINITY = 2**64 - 1


@dataclass(frozen=True)
class Struct:
    """Memory which is passed by its address."""

    data: bytes
    shown: str

    def __str__(self) -> str:
        return self.shown


def _checked(what: str, value: int, most: int) -> int:
    if not 0 <= value <= most:
        raise UsageError(f"{what} is {value}: it must be between 0 and {most}")
    return value


def _address(text: str) -> bytes:
    try:
        return socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        raise UsageError(f"{text!r} is not an IPv4 address like 10.0.0.1") from None


def clone_args(
    flags: CLONE,
    *,
    pidfd: int = 0,
    child_tid: int = 0,
    parent_tid: int = 0,
    exit_signal: int = SIG.CHLD,
    stack: int = 0,
    stack_size: int = 0,
    tls: int = 0,
    set_tid: int = 0,
    set_tid_size: int = 0,
    cgroup: int = 0,
) -> Struct:
    """struct clone_args of clone3, version 2 (Linux 5.7): eleven 64-bit words."""
    words = (flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup)
    leaving = SIG(exit_signal) if exit_signal in SIG.__members__.values() else exit_signal
    return Struct(struct.pack("<11Q", *words), f"{{flags={shown(flags)}, exit_signal={shown(leaving)}}}")


def sockaddr_in(address: str, port: int = 0) -> Struct:
    """An IPv4 address and port; both in network byte order."""
    data = struct.pack("<H", AF.INET) + struct.pack(">H", _checked("a port", port, 65535)) + _address(address) + bytes(8)
    return Struct(data, f"{address}:{port}" if port else address)


def ifreq(name: str, *, flags: IFF | None = None, address: str | None = None, number: int | None = None) -> Struct:
    """struct ifreq: the name of an interface, and at most one value (a number is an mtu or an index)."""
    coded = name.encode()
    if not coded or b"\0" in coded or len(coded) >= IFNAMSIZ:
        raise UsageError(f"interface name {name!r}: the kernel takes 1 to {IFNAMSIZ - 1} bytes")
    if [flags, address, number].count(None) < 2:
        raise UsageError("a struct ifreq holds one value: flags, address or number")
    if flags is not None:
        value, text = struct.pack("<h", flags), f", {shown(flags)}"
    elif address is not None:
        value, text = sockaddr_in(address).data, f", {address}"
    elif number is not None:
        value, text = struct.pack("<i", number), f", {number}"
    else:
        value, text = b"", ""
    return Struct(coded.ljust(IFNAMSIZ, b"\0") + value.ljust(24, b"\0"), f'{{"{name}"{text}}}')


def rtentry(destination: str, gateway: str | None = None) -> Struct:
    """struct rtentry of SIOCADDRT: a route to a network like 10.0.0.0/24, or 0.0.0.0/0 for the default route."""
    try:
        network = ipaddress.IPv4Network(destination)
    except ValueError as error:
        raise UsageError(f"{destination!r} is not an IPv4 network: {error}") from None
    flags = RTF.UP | (RTF.GATEWAY if gateway else RTF(0))
    addresses = (sockaddr_in(a).data for a in (str(network.network_address), gateway or "0.0.0.0", str(network.netmask)))
    data = bytes(8) + b"".join(addresses) + struct.pack("<Hhi", flags, 0, 0) + bytes(56)
    return Struct(data, f"{{{network}{f' via {gateway}' if gateway else ''}, {shown(flags)}}}")


def timespec(seconds: int, nanoseconds: int = 0) -> Struct:
    """The kernel wants fewer than 10^9 nanoseconds."""
    return Struct(struct.pack("<qq", seconds, _checked("nanoseconds", nanoseconds, 10**9 - 1)), f"{{{seconds} s, {nanoseconds} ns}}")


def rlimit64(soft: int, hard: int | None = None) -> Struct:
    """struct rlimit64 of prlimit64."""
    hard = soft if hard is None else hard
    if soft > hard:
        raise UsageError(f"the soft limit {soft} is above the hard limit {hard}: setrlimit(2) forbids it")
    data = struct.pack("<QQ", _checked("a limit", soft, RLIM_INFINITY), _checked("a limit", hard, RLIM_INFINITY))
    return Struct(data, f"{{soft={_limit(soft)}, hard={_limit(hard)}}}")


def _limit(value: int) -> str:
    return "unlimited" if value == RLIM_INFINITY else str(value)


def pollfd(fd: int, events: POLL) -> Struct:
    """One struct pollfd."""
    return Struct(struct.pack("<ihh", fd, events, 0), f"{{fd={fd}, {shown(events)}}}")


def sigset(signals: Iterable[int]) -> Struct:
    """A set of signals as rt_sigprocmask takes it: bit 0 is signal 1, eight bytes."""
    chosen = sorted({_signal(number) for number in signals})
    names = (shown(SIG(number)) if number in SIG.__members__.values() else str(number) for number in chosen)
    return Struct(struct.pack("<Q", sum(1 << number - 1 for number in chosen)), f"{{{', '.join(names)}}}")


def _signal(number: int) -> int:
    if not 1 <= number <= 64:
        raise UsageError(f"signal {int(number)}: signals are numbered 1 to 64")
    return int(number)


def sigaction(handler: int, flags: SA = SA(0), mask: Iterable[int] = ()) -> Struct:  # noqa: B008
    """The kernel's own struct sigaction: handler, flags, restorer, mask."""
    blocked = sigset(mask)
    named = SIG_HANDLER(handler) if handler in SIG_HANDLER.__members__.values() else handler
    return Struct(struct.pack("<QQQ", handler, flags, 0) + blocked.data, f"{{{shown(named)}, {shown(flags)}, {blocked.shown}}}")
