"""Why a namespace is not made or entered, and what may not be done in it (namespaces(7), user_namespaces(7))."""

import posixpath
from errno import EACCES, EAGAIN, EBADF, EBUSY, EINVAL, ENODEV, ENOMEM, ENOSPC, ENOSYS, EOPNOTSUPP, EPERM, ESRCH, EUSERS

from kernel_lab.kernel.errors import Asked
from kernel_lab.kernel.flags import CAP, CLONE, shown
from kernel_lab.kernel.rules.machine import Context, value
from kernel_lab.kernel.rules.rule import Rule, When, Why, found, says

MAKERS = "clone3 clone unshare"
LIMITS = {
    CLONE.NEWUSER: "user",
    CLONE.NEWPID: "pid",
    CLONE.NEWNS: "mnt",
    CLONE.NEWNET: "net",
    CLONE.NEWIPC: "ipc",
    CLONE.NEWUTS: "uts",
    CLONE.NEWCGROUP: "cgroup",
    CLONE.NEWTIME: "time",
}
FORBIDDEN = (
    (CLONE.NEWNS | CLONE.FS, "a new mount namespace cannot share its root and working directory"),
    (CLONE.NEWUSER | CLONE.FS, "a new user namespace cannot share its root and working directory"),
    (CLONE.NEWUSER | CLONE.THREAD, "a thread cannot be in another user namespace than its process"),
    (CLONE.NEWPID | CLONE.THREAD, "a thread cannot be in another PID namespace than its process"),
    (CLONE.NEWIPC | CLONE.SYSVSEM, "a new IPC namespace cannot share the undo list of System V semaphores"),
    (CLONE.CLEAR_SIGHAND | CLONE.SIGHAND, "signal handlers cannot be shared and cleared at once"),
)
NEEDS = ((CLONE.SIGHAND, CLONE.VM, "CLONE_SIGHAND needs CLONE_VM"), (CLONE.THREAD, CLONE.SIGHAND, "CLONE_THREAD needs CLONE_SIGHAND"))


def asked_for(row: Asked, context: Context) -> CLONE:
    """The namespaces that the row itself asks for."""
    return context.flags if row.call == "clone3" else CLONE(value(row, 0))


def makes_user(row: Asked, context: Context) -> bool:
    return CLONE.NEWUSER in asked_for(row, context)


def file_is(*names: str) -> When:
    """Whether the row is about such a file below /proc/PID."""
    return lambda row, context: posixpath.basename(context.file(row)) in names


MAPS = file_is("uid_map", "gid_map")
DENY = file_is("setgroups")


def _apparmor(row: Asked, context: Context) -> Why | None:
    restricted = context.machine.setting("kernel/apparmor_restrict_unprivileged_userns") == 1
    user = context.made(CLONE.NEWUSER) or (row.call in MAKERS.split() and makes_user(row, context)) or MAPS(row, context)
    if not (restricted and user) or context.machine.capable(CAP.SYS_ADMIN):
        return None
    return Why(
        "AppArmor leaves an ordinary user's new user namespace without capabilities: kernel.apparmor_restrict_unprivileged_userns is 1,"
        " as on Ubuntu 24.04.",
        "As root: sysctl kernel.apparmor_restrict_unprivileged_userns=0, or give this program an AppArmor profile with `userns,`;"
        " or run the kit as root.",
    )


def _debian(row: Asked, context: Context) -> bool:
    closed = context.machine.setting("kernel/unprivileged_userns_clone") == 0
    return closed and makes_user(row, context) and not context.machine.capable(CAP.SYS_ADMIN)


def _no_privilege(row: Asked, context: Context) -> bool:
    return not makes_user(row, context) and not context.mapped and not context.machine.capable(CAP.SYS_ADMIN)


def _filtered(row: Asked, context: Context) -> bool:
    return context.machine.filtered


def _no_space(row: Asked, context: Context) -> Why:
    names = [name for flag, name in LIMITS.items() if flag in asked_for(row, context)] or ["user"]
    limits = {name: context.machine.setting(f"user/max_{name}_namespaces") for name in names}
    zero = [name for name, limit in limits.items() if limit == 0]
    if zero:
        setting = f"user.max_{zero[0]}_namespaces"
        return Why(f"{setting} is 0, so that nobody may make such a namespace (namespaces(7)).", f"As root: sysctl {setting}=15000.")
    shows = ", ".join(f"user.max_{name}_namespaces is {limit}" for name, limit in limits.items())
    return Why(
        f"a user may have only so many namespaces, and user and PID namespaces nest at most 32 deep (namespaces(7)); {shows}.",
        "See what is still running with lsns, end it, or raise the setting with sysctl.",
    )


def _flags(row: Asked, context: Context) -> Why:
    asked = asked_for(row, context)
    for pair, reason in FORBIDDEN:
        if pair in asked:
            return Why(f"{shown(pair)}: {reason} (clone(2)).", "Leave one of the two out.")
    for flag, other, reason in NEEDS:
        if flag in asked and other not in asked:
            return Why(f"{reason} (clone(2)).", f"Add {shown(other)}.")
    if row.call == "unshare" and CLONE.NEWPID in asked and any(before.call in ("unshare", "setns") for before in context.before):
        return Why(
            "a process whose children are to be born into another PID namespace cannot choose again; only those children can (pid_namespaces(7)).",
            "Clone a child first, and call unshare there.",
        )
    if row.call == "unshare" and asked & (CLONE.NEWUSER | CLONE.THREAD):
        return Why(
            "a process with more than one thread may not change its user namespace (unshare(2)), and a notebook has many.",
            "Make a new process in it with clone3, as Container(User()) does; see Threads: in /proc/self/status.",
        )
    return Why(
        f"{shown(asked)} is no combination that this kernel knows, or its exit signal or stack is not valid (clone(2)).",
        "Compare the flags with clone(2); CLONE_NEWTIME needs Linux 5.6, CLONE_INTO_CGROUP 5.7.",
    )


NAMESPACES: list[Rule] = [
    found("", (EPERM, EACCES), _apparmor),
    says(
        MAKERS,
        EPERM,
        "this Debian kernel lets only root make user namespaces: kernel.unprivileged_userns_clone is 0.",
        "As root: sysctl kernel.unprivileged_userns_clone=1.",
        _debian,
    ),
    says(
        MAKERS,
        (EPERM, ENOSYS),
        "a seccomp filter, probably a surrounding container's, refuses to make processes or namespaces this way (seccomp(2)).",
        "See Seccomp: in /proc/self/status; start the outer container with --security-opt seccomp=unconfined (docker, podman).",
        _filtered,
    ),
    says(
        MAKERS,
        EPERM,
        "every namespace but a user namespace needs CAP_SYS_ADMIN (namespaces(7)).",
        "Add User(), in which you have all capabilities, or run as root; see CapEff: in /proc/self/status.",
        _no_privilege,
    ),
    says(
        MAKERS,
        EPERM,
        "a user namespace is not made from inside a chroot, nor by a user or group that its own user namespace does not map (user_namespaces(7)).",
        "See whether /proc/self/root is /, and whether /proc/self/uid_map has your id.",
        makes_user,
    ),
    says(MAKERS, EPERM, "this needs CAP_SYS_ADMIN in the user namespace that owns the process (namespaces(7)).", "See CapEff: in /proc/self/status."),
    found(MAKERS, (ENOSPC, EUSERS), _no_space),
    found(MAKERS, EINVAL, _flags),
    says(MAKERS, ENOSYS, "this kernel does not know the call; clone3 came with Linux 5.3.", "See uname -r."),
    says(
        MAKERS,
        EAGAIN,
        "there may be no more processes: RLIMIT_NPROC of this user, pids.max of the cgroup, or kernel.threads-max (clone(2)).",
        "See ulimit -u, pids.max and pids.current of your cgroup, and sysctl kernel.threads-max kernel.pid_max.",
    ),
    says(
        MAKERS,
        ENOMEM,
        "process 1 of the PID namespace has ended, and nothing can be started in it any more (pid_namespaces(7)), or memory is short.",
        "Make a new PID namespace; see free -m.",
    ),
    says(
        "clone3",
        EBUSY,
        "the cgroup hands controllers on to its children, so that it may hold no process itself (cgroups(7), no internal processes).",
        "Start into a child of it that has none; see its cgroup.subtree_control.",
    ),
    says(
        "clone3",
        EOPNOTSUPP,
        "the cgroup is `domain invalid`: below a threaded cgroup (cgroups(7)).",
        "See its cgroup.type, and write `threaded` there or use another.",
    ),
    says("clone3", EACCES, "starting into a cgroup needs the right to write its cgroup.procs (clone(2)).", "See who owns the cgroup, with ls -l."),
    says(
        "clone3",
        (EBADF, ENODEV),
        "CLONE_INTO_CGROUP takes an open directory of a v2 hierarchy, which still exists (clone(2)).",
        "See cgroup2 in /proc/mounts.",
    ),
    says(
        "setns",
        EINVAL,
        "the namespace is of another kind than asked, or it is the user namespace that the process is in already, or a PID namespace"
        " that is not below its own; and a process with several threads cannot change its user or time namespace (setns(2)).",
        "Compare readlink /proc/PID/ns/* of the two, and see Threads: in /proc/self/status.",
    ),
    says("setns", EBADF, "it takes an open descriptor of a namespace or a process, not a pid (setns(2)).", "Open it: pidfd_open, or /proc/PID/ns/*."),
    says(
        "setns",
        EPERM,
        "joining needs CAP_SYS_ADMIN in the user namespace that owns the target and in one's own, and CAP_SYS_CHROOT for a mount namespace"
        " (setns(2)).",
        "Join the container's user namespace first, or run as the user who started it.",
    ),
    says("setns pidfd_send_signal pidfd_getfd kill", ESRCH, "that process has ended.", "See klab ps."),
    says(
        "write openat",
        EPERM,
        "the map of a user namespace is written once; without CAP_SETUID outside by its creator alone, as one line that maps the writer's own id, and"
        " a gid_map only after `deny` has been written to setgroups (user_namespaces(7)).",
        "Map yourself alone with User(), or give ranges to newuidmap through /etc/subuid and /etc/subgid.",
        MAPS,
    ),
    says(
        "write",
        EINVAL,
        "a map has 1 to 340 lines of `inside outside count`: no line overlaps another on either side, none is empty, and no id reaches"
        " 2^32 - 1 (user_namespaces(7)).",
        "Check the three numbers of each line.",
        MAPS,
    ),
    says(
        "openat",
        EACCES,
        "the files of a process that is not dumpable belong to root, so that it may not even write its own maps (proc(5), prctl(2) PR_SET_DUMPABLE).",
        "Make it dumpable until the maps are written, or write them from outside as root.",
        lambda row, context: MAPS(row, context) or DENY(row, context),
    ),
    says(
        "write",
        EPERM,
        "setgroups cannot be allowed again once denied, nor denied once a gid_map is written (user_namespaces(7)).",
        "Write `deny` before the gid_map.",
        DENY,
    ),
    says(
        "setgroups",
        EPERM,
        "in a user namespace groups may be changed only when a gid_map is written and setgroups is `allow` (user_namespaces(7)).",
        "See /proc/self/setgroups; `allow` needs a map written by root or newgidmap: User.subordinate().",
        lambda row, context: context.mapped,
    ),
    says("setgroups", EPERM, "changing groups needs CAP_SETGID (setgroups(2)).", "Run as root, or add User()."),
    says(
        "sethostname setdomainname",
        EPERM,
        "the name belongs to a UTS namespace whose owner is not this user namespace (uts_namespaces(7)).",
        "Add UTS(), so that the container has a name of its own.",
        lambda row, context: context.mapped and not context.made(CLONE.NEWUTS),
    ),
    says("sethostname setdomainname", EPERM, "renaming needs CAP_SYS_ADMIN (sethostname(2)).", "Run as root, or add User() and UTS()."),
    says("sethostname setdomainname", EINVAL, "a name has at most 64 bytes (sethostname(2)).", "Choose a shorter one."),
]
