"""Why a program is not started, and what a process may not change about itself (execve(2), credentials(7), capabilities(7))."""

import resource
from errno import E2BIG, EACCES, EAGAIN, EBADF, EFAULT, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOEXEC, ENOTDIR, EPERM, ETXTBSY

from kernel_lab.kernel.errors import Asked
from kernel_lab.kernel.executables import reason
from kernel_lab.kernel.rules.machine import Context, text
from kernel_lab.kernel.rules.rule import Rule, Why, found, says

LONGEST = 32 * resource.getpagesize()  # MAX_ARG_STRLEN, linux/binfmts.h
STARTS = "execve execveat"
IDS = "setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid"


def _cannot_start(errno: int) -> Rule:
    """What is wrong with the file, if that explains the errno."""

    def why(row: Asked, context: Context) -> Why | None:
        path = text(row, 0 if row.call == "execve" else 1)
        root, cwd = context.tree()
        found_out = reason(path, root=root, cwd=cwd) if path else None
        return Why(found_out.rule, found_out.look) if found_out and found_out.errno == errno else None

    return found(STARTS, errno, why)


def _strings(row: Asked, position: int) -> list[bytes]:
    items = getattr(row.args[position], "items", ()) if position < len(row.args) else ()
    return [item.encode() if isinstance(item, str) else item for item in items]


def _too_long(row: Asked, context: Context) -> Why:
    first = 1 if row.call == "execve" else 2
    words = [(f"argument {number}", item) for number, item in enumerate(_strings(row, first))]
    words += [(f"the variable {item.partition(b'=')[0].decode(errors='replace')}", item) for item in _strings(row, first + 1)]
    for name, item in words:
        if len(item) >= LONGEST:
            return Why(
                f"{name} has {len(item)} bytes, and a single string is shorter than {LONGEST} (execve(2), MAX_ARG_STRLEN).",
                "Pass it through a file or standard input.",
            )
    total = sum(len(item) + 1 + 8 for _, item in words)
    return Why(
        f"arguments and environment have {total} bytes, and together they may fill a quarter of the stack limit, at most 6 MiB (execve(2)).",
        "See ulimit -s; pass less, or through a file.",
    )


PROGRAMS: list[Rule] = [
    *(_cannot_start(errno) for errno in (ENOENT, ENOEXEC, EACCES, ENOTDIR, ELOOP)),
    found(STARTS, E2BIG, _too_long),
    says(
        STARTS,
        EACCES,
        "starting a program needs the x permission on the file for this user, on its interpreter, and on every directory above (execve(2)).",
        "See namei -l, and whether the file system is mounted noexec.",
    ),
    says(STARTS, ENOENT, "the file, or the interpreter that it names, does not exist in the process's root (execve(2)).", "See file(1) and ls -l."),
    says(STARTS, ENOEXEC, "the file is no program that this kernel can start (execve(2)).", "See file(1) and uname -m."),
    says(STARTS, ETXTBSY, "a program file is not started while somebody has it open for writing (execve(2)).", "See fuser -v on it; close it first."),
    says(STARTS, ENAMETOOLONG, "a path has fewer than 4096 bytes, and each name in it at most 255 (path_resolution(7)).", "Use a shorter path."),
    says(
        STARTS,
        EAGAIN,
        "since its user changed, the process is above RLIMIT_NPROC of the new one (execve(2)).",
        "See ulimit -u, and how many processes that user has.",
    ),
    says(
        STARTS,
        EPERM,
        "a set-user-ID program is not started by a traced process, nor a file on which a security module is set (execve(2)).",
        "See dmesg.",
    ),
    says(STARTS, EFAULT, "an address among the arguments is outside the process's memory (execve(2)).", "Build argv and envp with Strings."),
    says(
        IDS,
        EINVAL,
        "the id does not exist in this user namespace: no line of its map has it (user_namespaces(7)).",
        "See /proc/self/uid_map and gid_map; map it with User(uids=…, gids=…).",
    ),
    says(
        IDS, EPERM, "only a process with CAP_SETUID or CAP_SETGID takes an id that it does not have (credentials(7)).", "Run as root, or add User()."
    ),
    says(
        IDS,
        EAGAIN,
        "the new user is at its limit of processes, RLIMIT_NPROC, or a map was not written yet (setuid(2)).",
        "See ulimit -u.",
    ),
    says(
        "setgroups",
        EINVAL,
        "at most 65536 groups, each of which the gid_map of this user namespace has (setgroups(2)).",
        "See /proc/self/gid_map.",
    ),
    says(
        "prctl",
        EINVAL,
        "this kernel does not know the option, or the value is out of its range (prctl(2)).",
        "See prctl(2) for its arguments; unused ones are 0.",
    ),
    says(
        "prctl",
        EPERM,
        "PR_CAPBSET_DROP, PR_SET_SECUREBITS and the ambient set need CAP_SETPCAP or the capability itself (prctl(2)).",
        "See CapEff: in /proc/self/status.",
    ),
    says(
        "prctl seccomp",
        EACCES,
        "a seccomp filter is set by a process with CAP_SYS_ADMIN, or with no_new_privs (seccomp(2)).",
        "Before it: prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).",
    ),
    says("capset", EPERM, "a capability is taken only from the permitted set (capabilities(7)).", "See CapPrm: in /proc/self/status."),
    says(
        "prlimit64 setrlimit",
        EPERM,
        "only a process with CAP_SYS_RESOURCE in the first user namespace raises a hard limit (getrlimit(2)).",
        "Ask for no more than ulimit -H shows.",
    ),
    says("prlimit64 setrlimit", EINVAL, "a soft limit is not above its hard limit (getrlimit(2)).", "Swap or raise them."),
    says("setsid", EPERM, "the leader of a process group cannot make a session (setsid(2)).", "Make a child first."),
    says("close_range dup3 close", EBADF, "this descriptor is not open.", "See ls -l /proc/self/fd."),
]
