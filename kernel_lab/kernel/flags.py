"""The kernel's flags and constants, printed by the names that its headers give them: MS_REC|MS_PRIVATE."""

import os
import signal
from enum import IntEnum, IntFlag
from typing import Final


class Flags(IntFlag):
    """Bits that may be joined by |. A class MS with a member REC prints MS_REC."""

    @classmethod
    def header_name(cls, name: str) -> str:
        return f"{cls.__name__}_{name}"

    @classmethod
    def unnamed(cls, bits: int) -> str:
        return hex(bits)

    def __str__(self) -> str:
        return shown(self)

    def __repr__(self) -> str:
        return shown(self)


class Constants(IntEnum):
    """Values of which one is chosen."""

    @classmethod
    def header_name(cls, name: str) -> str:
        return f"{cls.__name__}_{name}"

    def __str__(self) -> str:
        return shown(self)

    def __repr__(self) -> str:
        return shown(self)


def shown(value: int) -> str:
    """A flag as a C programmer writes it; unknown bits in hexadecimal."""
    if isinstance(value, Flags):
        return _shown_flags(value)
    if isinstance(value, Constants):
        return value.header_name(value.name)
    if isinstance(value, IntEnum):  # signal.SIGTERM and the like
        return value.name
    return str(int(value))


def _shown_flags(flags: Flags) -> str:
    kind, left, names = type(flags), int(flags), list[tuple[int, str]]()
    if left == 0:
        return next((kind.header_name(name) for name, member in kind.__members__.items() if member == 0), "0")
    # Widest first: SOCK_RAW is 3, and not SOCK_STREAM|SOCK_DGRAM.
    for name, member in sorted(kind.__members__.items(), key=lambda item: -int(item[1]).bit_count()):
        bits = int(member)
        if bits and left & bits == bits:
            names.append((bits, kind.header_name(name)))
            left &= ~bits
    named = [name for _, name in sorted(names)]
    return "|".join([*named, kind.unnamed(left)] if left else named)


# linux/sched.h


class CLONE(Flags):
    NEWTIME = 0x00000080
    VM = 0x00000100
    FS = 0x00000200
    FILES = 0x00000400
    SIGHAND = 0x00000800
    PIDFD = 0x00001000
    PTRACE = 0x00002000
    VFORK = 0x00004000
    PARENT = 0x00008000
    THREAD = 0x00010000
    NEWNS = 0x00020000
    SYSVSEM = 0x00040000
    SETTLS = 0x00080000
    PARENT_SETTID = 0x00100000
    CHILD_CLEARTID = 0x00200000
    UNTRACED = 0x00800000
    CHILD_SETTID = 0x01000000
    NEWCGROUP = 0x02000000
    NEWUTS = 0x04000000
    NEWIPC = 0x08000000
    NEWUSER = 0x10000000
    NEWPID = 0x20000000
    NEWNET = 0x40000000
    IO = 0x80000000
    CLEAR_SIGHAND = 0x100000000
    INTO_CGROUP = 0x200000000


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
    CWD = -100

    @classmethod
    def header_name(cls, name: str) -> str:
        return f"AT_FD{name}"


AT_FDCWD: Final = AT_FD.CWD


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

    IFO = 0o010000
    CHR = 0o020000
    DIR = 0o040000
    BLK = 0o060000
    REG = 0o100000
    LNK = 0o120000
    SOCK = 0o140000

    @classmethod
    def header_name(cls, name: str) -> str:
        return f"S_IF{name}"

    @classmethod
    def unnamed(cls, bits: int) -> str:
        return f"{bits:#05o}".replace("0o", "0")


# linux/prctl.h


class PR(Constants):
    SET_PDEATHSIG = 1
    GET_PDEATHSIG = 2
    GET_DUMPABLE = 3
    SET_DUMPABLE = 4
    GET_KEEPCAPS = 7
    SET_KEEPCAPS = 8
    SET_NAME = 15
    GET_NAME = 16
    GET_SECCOMP = 21
    SET_SECCOMP = 22
    CAPBSET_READ = 23
    CAPBSET_DROP = 24
    GET_SECUREBITS = 27
    SET_SECUREBITS = 28
    SET_CHILD_SUBREAPER = 36
    GET_CHILD_SUBREAPER = 37
    SET_NO_NEW_PRIVS = 38
    GET_NO_NEW_PRIVS = 39
    CAP_AMBIENT = 47


class PR_CAP_AMBIENT(Constants):
    IS_SET = 1
    RAISE = 2
    LOWER = 3
    CLEAR_ALL = 4


# linux/capability.h


class CAP(Constants):
    CHOWN = 0
    DAC_OVERRIDE = 1
    DAC_READ_SEARCH = 2
    FOWNER = 3
    FSETID = 4
    KILL = 5
    SETGID = 6
    SETUID = 7
    SETPCAP = 8
    LINUX_IMMUTABLE = 9
    NET_BIND_SERVICE = 10
    NET_BROADCAST = 11
    NET_ADMIN = 12
    NET_RAW = 13
    IPC_LOCK = 14
    IPC_OWNER = 15
    SYS_MODULE = 16
    SYS_RAWIO = 17
    SYS_CHROOT = 18
    SYS_PTRACE = 19
    SYS_PACCT = 20
    SYS_ADMIN = 21
    SYS_BOOT = 22
    SYS_NICE = 23
    SYS_RESOURCE = 24
    SYS_TIME = 25
    SYS_TTY_CONFIG = 26
    MKNOD = 27
    LEASE = 28
    AUDIT_WRITE = 29
    AUDIT_CONTROL = 30
    SETFCAP = 31
    MAC_OVERRIDE = 32
    MAC_ADMIN = 33
    SYSLOG = 34
    WAKE_ALARM = 35
    BLOCK_SUSPEND = 36
    AUDIT_READ = 37
    PERFMON = 38
    BPF = 39
    CHECKPOINT_RESTORE = 40


# asm-generic/signal.h: the numbers of x86-64, aarch64 and riscv64 are the same.


class SIG(Constants):
    HUP = signal.SIGHUP
    INT = signal.SIGINT
    QUIT = signal.SIGQUIT
    ILL = signal.SIGILL
    TRAP = signal.SIGTRAP
    ABRT = signal.SIGABRT
    BUS = signal.SIGBUS
    FPE = signal.SIGFPE
    KILL = signal.SIGKILL
    USR1 = signal.SIGUSR1
    SEGV = signal.SIGSEGV
    USR2 = signal.SIGUSR2
    PIPE = signal.SIGPIPE
    ALRM = signal.SIGALRM
    TERM = signal.SIGTERM
    CHLD = signal.SIGCHLD
    CONT = signal.SIGCONT
    STOP = signal.SIGSTOP
    TSTP = signal.SIGTSTP
    TTIN = signal.SIGTTIN
    TTOU = signal.SIGTTOU
    WINCH = signal.SIGWINCH
    SYS = signal.SIGSYS

    @classmethod
    def header_name(cls, name: str) -> str:
        return f"SIG{name}"


class SIG_HOW(Constants):
    """The first argument of rt_sigprocmask."""

    BLOCK = 0
    UNBLOCK = 1
    SETMASK = 2

    @classmethod
    def header_name(cls, name: str) -> str:
        return f"SIG_{name}"


class SIG_HANDLER(Constants):
    """What stands in a sigaction instead of the address of a handler."""

    DFL = 0
    IGN = 1

    @classmethod
    def header_name(cls, name: str) -> str:
        return f"SIG_{name}"


class SA(Flags):
    NOCLDSTOP = 0x1
    NOCLDWAIT = 0x2
    SIGINFO = 0x4
    RESTORER = 0x04000000
    ONSTACK = 0x08000000
    RESTART = 0x10000000
    NODEFER = 0x40000000
    RESETHAND = 0x80000000


# linux/wait.h


class WAIT(Flags):
    NOHANG = 0x1
    STOPPED = 0x2
    EXITED = 0x4
    CONTINUED = 0x8
    NOWAIT = 0x01000000
    NOTHREAD = 0x20000000
    ALL = 0x40000000
    CLONE = 0x80000000

    @classmethod
    def header_name(cls, name: str) -> str:
        return f"__W{name}" if name in ("NOTHREAD", "ALL", "CLONE") else f"W{name}"


class P(Constants):
    """Whom waitid waits for."""

    ALL = 0
    PID = 1
    PGID = 2
    PIDFD = 3


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

    @classmethod
    def header_name(cls, name: str) -> str:
        return f"SIOC{name}"


class RTF(Flags):
    UP = 0x1
    GATEWAY = 0x2
    HOST = 0x4


# asm-generic/poll.h


class POLL(Flags):
    IN = 0x1
    PRI = 0x2
    OUT = 0x4
    ERR = 0x8
    HUP = 0x10
    NVAL = 0x20

    @classmethod
    def header_name(cls, name: str) -> str:
        return f"POLL{name}"


# asm-generic/resource.h


class RLIMIT(Constants):
    CPU = 0
    FSIZE = 1
    DATA = 2
    STACK = 3
    CORE = 4
    RSS = 5
    NPROC = 6
    NOFILE = 7
    MEMLOCK = 8
    AS = 9
    LOCKS = 10
    SIGPENDING = 11
    MSGQUEUE = 12
    NICE = 13
    RTPRIO = 14
    RTTIME = 15


# linux/close_range.h


class CLOSE_RANGE(Flags):
    UNSHARE = 2
    CLOEXEC = 4


# linux/ipc.h, linux/shm.h, linux/msg.h, linux/sem.h


class IPC(Flags):
    """The flags of shmget, msgget and semget; the permissions follow in octal."""

    CREAT = 0o1000
    EXCL = 0o2000
    NOWAIT = 0o4000

    @classmethod
    def unnamed(cls, bits: int) -> str:
        return S_IF.unnamed(bits)


class IPC_DO(Constants):
    """The commands of shmctl, msgctl and semctl."""

    RMID = 0
    SET = 1
    STAT = 2
    INFO = 3

    @classmethod
    def header_name(cls, name: str) -> str:
        return f"IPC_{name}"


class IPC_KEY(Constants):
    PRIVATE = 0

    @classmethod
    def header_name(cls, name: str) -> str:
        return f"IPC_{name}"


class SHM(Flags):
    RDONLY = 0o10000
    RND = 0o20000
    REMAP = 0o40000
    EXEC = 0o100000


# linux/time.h


class CLOCK(Constants):
    REALTIME = 0
    MONOTONIC = 1
    BOOTTIME = 7
