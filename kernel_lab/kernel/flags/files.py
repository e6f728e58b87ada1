"""Mounts, open files and file modes."""

import os

from kernel_lab.kernel.flags.naming import Constants, Flags

# linux/mount.h


class MS(Flags):
    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    SYNCHRONOUS = 16
    REMOUNT = 32
    MANDLOCK = 64
    DIRSYNC = 128
    NOSYMFOLLOW = 256
    NOATIME = 1024
    NODIRATIME = 2048
    BIND = 4096
    MOVE = 8192
    REC = 16384
    SILENT = 32768
    POSIXACL = 1 << 16
    UNBINDABLE = 1 << 17
    PRIVATE = 1 << 18
    SLAVE = 1 << 19
    SHARED = 1 << 20
    RELATIME = 1 << 21
    STRICTATIME = 1 << 24
    LAZYTIME = 1 << 25


class MOUNT_ATTR(Flags):
    RDONLY = 0x1
    NOSUID = 0x2
    NODEV = 0x4
    NOEXEC = 0x8
    NOATIME = 0x10
    STRICTATIME = 0x20
    NODIRATIME = 0x80
    IDMAP = 0x100000
    NOSYMFOLLOW = 0x200000


class OPEN_TREE(Flags):
    CLONE = 1
    CLOEXEC = os.O_CLOEXEC
    AT_EMPTY_PATH = 0x1000
    AT_RECURSIVE = 0x8000

    @classmethod
    def header_name(cls, name: str) -> str:
        return name if name.startswith("AT_") else f"OPEN_TREE_{name}"


class MOVE_MOUNT(Flags):
    F_SYMLINKS = 0x1
    F_AUTOMOUNTS = 0x2
    F_EMPTY_PATH = 0x4
    T_SYMLINKS = 0x10
    T_AUTOMOUNTS = 0x20
    T_EMPTY_PATH = 0x40
    SET_GROUP = 0x100
    BENEATH = 0x200


class FSOPEN(Flags):
    CLOEXEC = 1


class FSMOUNT(Flags):
    CLOEXEC = 1


class FSPICK(Flags):
    CLOEXEC = 1
    SYMLINK_NOFOLLOW = 2
    NO_AUTOMOUNT = 4
    EMPTY_PATH = 8


class FSCONFIG(Constants):
    SET_FLAG = 0
    SET_STRING = 1
    SET_BINARY = 2
    SET_PATH = 3
    SET_PATH_EMPTY = 4
    SET_FD = 5
    CMD_CREATE = 6
    CMD_RECONFIGURE = 7
    CMD_CREATE_EXCL = 8


# linux/fs.h


class MNT(Flags):
    """The flags of umount2."""

    FORCE = 1
    DETACH = 2
    EXPIRE = 4
    UMOUNT_NOFOLLOW = 8

    @classmethod
    def header_name(cls, name: str) -> str:
        return name if name.startswith("UMOUNT") else f"MNT_{name}"


# asm/fcntl.h: some of these values differ between x86-64 and aarch64, so that they come from the C library.


class O(Flags):  # noqa: E742
    RDONLY = os.O_RDONLY
    WRONLY = os.O_WRONLY
    RDWR = os.O_RDWR
    CREAT = os.O_CREAT
    EXCL = os.O_EXCL
    NOCTTY = os.O_NOCTTY
    TRUNC = os.O_TRUNC
    APPEND = os.O_APPEND
    NONBLOCK = os.O_NONBLOCK
    DSYNC = os.O_DSYNC
    DIRECT = os.O_DIRECT
    DIRECTORY = os.O_DIRECTORY
    NOFOLLOW = os.O_NOFOLLOW
    NOATIME = os.O_NOATIME
    CLOEXEC = os.O_CLOEXEC
    SYNC = os.O_SYNC
    PATH = os.O_PATH
    TMPFILE = os.O_TMPFILE


# linux/fcntl.h


class AT(Flags):
    SYMLINK_NOFOLLOW = 0x100
    REMOVEDIR = 0x200
    SYMLINK_FOLLOW = 0x400
    NO_AUTOMOUNT = 0x800
    EMPTY_PATH = 0x1000
    RECURSIVE = 0x8000


class AT_FD(Constants):
    __prefix__ = "AT_"

    FDCWD = -100


# linux/openat2.h


class RESOLVE(Flags):
    NO_XDEV = 0x01
    NO_MAGICLINKS = 0x02
    NO_SYMLINKS = 0x04
    BENEATH = 0x08
    IN_ROOT = 0x10
    CACHED = 0x20


# linux/stat.h


class S_IF(Flags):
    """The kind of a file, in the mode of mknodat; the permissions follow in octal."""

    __prefix__ = "S_IF"

    IFO = 0o010000
    CHR = 0o020000
    DIR = 0o040000
    BLK = 0o060000
    REG = 0o100000
    LNK = 0o120000
    SOCK = 0o140000

    @classmethod
    def unnamed(cls, bits: int) -> str:
        return f"{bits:#05o}".replace("0o", "0")


# linux/close_range.h


class CLOSE_RANGE(Flags):
    UNSHARE = 2
    CLOEXEC = 4
