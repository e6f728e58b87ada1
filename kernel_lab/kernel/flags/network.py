"""Sockets and network interfaces."""

import os

from kernel_lab.kernel.flags.naming import Constants, Flags

# linux/socket.h, linux/net.h, linux/if.h, linux/sockios.h


class AF(Constants):
    UNIX = 1
    INET = 2
    INET6 = 10
    NETLINK = 16
    PACKET = 17


class SOCK(Flags):
    STREAM = 1
    DGRAM = 2
    RAW = 3
    SEQPACKET = 5
    NONBLOCK = os.O_NONBLOCK
    CLOEXEC = os.O_CLOEXEC


class IFF(Flags):
    UP = 0x1
    BROADCAST = 0x2
    LOOPBACK = 0x8
    POINTOPOINT = 0x10
    RUNNING = 0x40
    NOARP = 0x80
    PROMISC = 0x100
    ALLMULTI = 0x200
    MULTICAST = 0x1000


class SIOC(Constants):
    __prefix__ = "SIOC"

    ADDRT = 0x890B
    DELRT = 0x890C
    GIFFLAGS = 0x8913
    SIFFLAGS = 0x8914
    GIFADDR = 0x8915
    SIFADDR = 0x8916
    GIFNETMASK = 0x891B
    SIFNETMASK = 0x891C
    GIFMTU = 0x8921
    SIFMTU = 0x8922
    GIFHWADDR = 0x8927
    GIFINDEX = 0x8933


class RTF(Flags):
    UP = 0x1
    GATEWAY = 0x2
    HOST = 0x4


# asm-generic/poll.h


class POLL(Flags):
    __prefix__ = "POLL"

    IN = 0x1
    PRI = 0x2
    OUT = 0x4
    ERR = 0x8
    HUP = 0x10
    NVAL = 0x20
