"""Terminals, and the socket that carries a descriptor of one."""

from kernel_lab.kernel.flags.naming import Constants, Flags

# asm-generic/ioctls.h (ioctl_tty(2)), linux/socket.h


class TIOC(Constants):
    __prefix__ = "TIOC"

    SCTTY = 0x540E
    SPGRP = 0x5410
    GWINSZ = 0x5413
    SWINSZ = 0x5414
    GPTPEER = 0x5441
    SPTLCK = 0x40045431


class MSG(Flags):
    NOSIGNAL = 0x4000
