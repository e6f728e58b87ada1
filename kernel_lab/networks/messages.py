"""The requests that networks are made of, in pyroute2's words.

pyroute2 needs a tenth of a second to be imported and a tenth of a millisecond to encode a link: it is imported when the first
network is made, and the message that every container needs is encoded once and then filled in.
"""

import socket
import sys
from functools import cache
from ipaddress import IPv4Interface
from typing import Any

from kernel_lab.kernel.flags import IFF
from kernel_lab.networks.netlink import Request

# linux/netlink.h, linux/rtnetlink.h
_REQUEST, _ACK, _EXCL, _CREATE = 0x1, 0x4, 0x200, 0x400
_NEWLINK, _DELLINK, _NEWADDR = 16, 17, 20
_MAKE = _REQUEST | _ACK | _EXCL | _CREATE

INSIDE = "eth0"
# What the holes of a template hold until they are filled: values that occur nowhere else in it.
_NAME, _MASTER, _PID, _HARDWARE = b"klab????????", b"\x7e\x57\xa5\x01", b"\x7e\x57\xa5\x02", b"\x7e\x57\xa5\x03\x04\x05"
NAME_SIZE = len(_NAME)


def hardware(address: str) -> bytes:
    """The hardware address of who has this IP address. Always the same one, so that nobody's ARP cache can remember a predecessor."""
    return b"\x02\x6b" + socket.inet_aton(address)


def bridge(name: str, address: str) -> Request:
    """A bridge that is up. It has a hardware address of its own, which else would change with its ports."""
    link = {"IFLA_IFNAME": name, "IFLA_ADDRESS": _colons(hardware(address)), "IFLA_LINKINFO": _nest({"IFLA_INFO_KIND": "bridge"})}
    return Request(f"RTM_NEWLINK(bridge {name})", _link(_NEWLINK, _MAKE, link, up=True))


def alias(name: str, text: str) -> Request:
    """A remark beside a link that is there."""
    return Request(f"RTM_NEWLINK({name}, alias {text!r})", _link(_NEWLINK, _REQUEST | _ACK, {"IFLA_IFNAME": name, "IFLA_IFALIAS": text}))


def address(index: int, interface: IPv4Interface) -> Request:
    """An IPv4 address for a link."""
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

    message: Any = ifaddrmsg()  # type: ignore[no-untyped-call]
    message["family"], message["prefixlen"], message["index"] = socket.AF_INET, interface.network.prefixlen, index
    local = str(interface.ip)
    return Request(f"RTM_NEWADDR({interface})", _encoded(message, _NEWADDR, _MAKE, {"IFA_LOCAL": local, "IFA_ADDRESS": local}))


def veth(name: str, master: int, pid: int, address: str) -> Request:
    """A veth pair in one request: the host's end up and in the bridge, the other in the network namespace of `pid`."""
    data = bytearray(_veth())
    for hole, value in ((_NAME, name.encode()), (_MASTER, _number(master)), (_PID, _number(pid)), (_HARDWARE, hardware(address))):
        at = _holes()[hole]
        data[at : at + len(hole)] = value
    return Request(f"RTM_NEWLINK(veth {name}, {INSIDE} of process {pid})", bytes(data))


def remove(name: str) -> Request:
    """A link goes, and with it the other end of a veth pair."""
    return Request(f"RTM_DELLINK({name})", _link(_DELLINK, _REQUEST | _ACK, {"IFLA_IFNAME": name}))


@cache
def _veth() -> bytes:
    peer = {"IFLA_IFNAME": INSIDE, "IFLA_ADDRESS": _colons(_HARDWARE), "IFLA_NET_NS_PID": _as_number(_PID)}
    data = _nest({"VETH_INFO_PEER": _nest(peer)})
    link = {
        "IFLA_IFNAME": _NAME.decode(),
        "IFLA_MASTER": _as_number(_MASTER),
        "IFLA_LINKINFO": _nest({"IFLA_INFO_KIND": "veth", "IFLA_INFO_DATA": data}),
    }
    return _link(_NEWLINK, _MAKE, link, up=True)


@cache
def _holes() -> dict[bytes, int]:
    return {hole: _veth().index(hole) for hole in (_NAME, _MASTER, _PID, _HARDWARE)}


def _link(kind: int, flags: int, attributes: dict[str, Any], *, up: bool = False) -> bytes:
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    message: Any = ifinfmsg()  # type: ignore[no-untyped-call]
    message["flags"] = message["change"] = int(IFF.UP) if up else 0
    return _encoded(message, kind, flags, attributes)


def _encoded(message: Any, kind: int, flags: int, attributes: dict[str, Any]) -> bytes:
    message["header"]["type"], message["header"]["flags"] = kind, flags
    message["attrs"] = list(attributes.items())
    message.encode()
    return bytes(message.data)


def _nest(attributes: dict[str, Any]) -> dict[str, Any]:
    return {"attrs": list(attributes.items())}


def _number(value: int) -> bytes:
    return value.to_bytes(4, sys.byteorder)


def _as_number(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)


def _colons(value: bytes) -> str:
    return value.hex(":")
