"""Processes: namespaces, capabilities, signals, limits, System V IPC."""

import signal

from kernel_lab.kernel.flags.files import S_IF
from kernel_lab.kernel.flags.naming import Constants, Flags

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
    __prefix__ = "SIG"

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
    URG = signal.SIGURG
    XCPU = signal.SIGXCPU
    XFSZ = signal.SIGXFSZ
    VTALRM = signal.SIGVTALRM
    PROF = signal.SIGPROF
    WINCH = signal.SIGWINCH
    IO = signal.SIGIO
    PWR = signal.SIGPWR
    SYS = signal.SIGSYS


class SIG_HOW(Constants):
    """The first argument of rt_sigprocmask."""

    __prefix__ = "SIG_"

    BLOCK = 0
    UNBLOCK = 1
    SETMASK = 2


class SIG_HANDLER(Constants):
    """What stands in a sigaction instead of the address of a handler."""

    __prefix__ = "SIG_"

    DFL = 0
    IGN = 1


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

    __prefix__ = "IPC_"

    RMID = 0
    SET = 1
    STAT = 2
    INFO = 3


class IPC_KEY(Constants):
    __prefix__ = "IPC_"

    PRIVATE = 0


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
