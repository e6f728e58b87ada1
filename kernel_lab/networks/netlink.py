"""The kernel's routing socket (man rtnetlink(7)): several requests in one send, an answer to each.

A socket for each send, not one for the process: opening it takes five microseconds, it belongs to the network namespace of the
thread that asks, and there is nothing that threads, forks or a notebook's event loop could share or disturb.
"""

import errno
import os
import socket
import struct
from typing import NamedTuple

from kernel_lab.kernel.errors import KernelError

# linux/netlink.h
_ROUTE = 0
_SOL_NETLINK, _EXT_ACK = 270, 11
_HEADER = struct.Struct("=IHHII")
_ERROR_HEADER = struct.Struct("=i16x")  # an error, and the header of the request that it answers
_ACK_TLVS = 0x200
_ATTRIBUTE = struct.Struct("=HH")
_MESSAGE_TEXT = 1

_LOOK = {
    errno.EPERM: "Links of the host belong to root (CAP_NET_ADMIN, capabilities(7)); an ordinary user has Net(Usermode()).",
    errno.EOPNOTSUPP: "This kernel lacks the module: modprobe veth, modprobe bridge.",
    errno.ESRCH: "The container ended while its link was being made.",
}


class Request(NamedTuple):
    """A message as the kernel reads it, and how an error names it."""

    what: str
    data: bytes


def ask(*requests: Request, tolerate: int = 0) -> None:
    """Sends the requests at once. The kernel works through all of them before send returns; raises KernelError for the first refused."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _ROUTE) as line:
        line.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
        line.send(b"".join(request.data for request in requests))
        answers = b""
        left = list(requests)
        while left:
            answers = answers or line.recv(65536)
            size, _, flags, _, _ = _HEADER.unpack_from(answers)
            _judge(left.pop(0), answers[:size], flags, tolerate)
            answers = answers[_aligned(size) :]


def index_of(name: str) -> int:
    """The number of a link, which messages name it by; 0 if there is no such link."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def _judge(request: Request, answer: bytes, flags: int, tolerate: int) -> None:
    (negative,) = _ERROR_HEADER.unpack_from(answer, _HEADER.size)
    if negative and -negative != tolerate:
        said = _text(answer) if flags & _ACK_TLVS else ""
        raise KernelError(-negative, request.what, rule=said or f"{os.strerror(-negative)}.", look=_LOOK.get(-negative, ""))


def _text(answer: bytes) -> str:
    """The kernel's own sentence about an error, where it has one (NLMSGERR_ATTR_MSG)."""
    # The request comes back in full behind the error's header, its attributes come behind that.
    (request_size,) = struct.unpack_from("=I", answer, _HEADER.size + 4)
    at = _HEADER.size + 4 + _aligned(request_size)
    while at + _ATTRIBUTE.size <= len(answer):
        size, kind = _ATTRIBUTE.unpack_from(answer, at)
        if kind == _MESSAGE_TEXT:
            return answer[at + _ATTRIBUTE.size : at + size].rstrip(b"\0").decode(errors="replace") + "."
        at += _aligned(max(size, _ATTRIBUTE.size))
    return ""


def _aligned(size: int) -> int:
    return (size + 3) & ~3
