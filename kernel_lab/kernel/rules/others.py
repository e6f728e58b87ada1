"""Files, device nodes, cgroups, IPC and network interfaces; and what any call may be refused for."""

from errno import (
    EACCES,
    EADDRINUSE,
    EADDRNOTAVAIL,
    EAFNOSUPPORT,
    EBUSY,
    EDQUOT,
    EEXIST,
    EINTR,
    EINVAL,
    EIO,
    EISDIR,
    ELOOP,
    EMFILE,
    ENAMETOOLONG,
    ENETUNREACH,
    ENFILE,
    ENODEV,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENOSYS,
    ENOTDIR,
    EOVERFLOW,
    EPERM,
    EROFS,
)

from kernel_lab.kernel.errors import Asked
from kernel_lab.kernel.flags import S_IF
from kernel_lab.kernel.rules.machine import Context, value
from kernel_lab.kernel.rules.rule import Rule, says

NODES = "mknod mknodat"
SHARED = "shmget msgget semget"


def _device(row: Asked, context: Context) -> bool:
    mode = value(row, 2 if row.call == "mknodat" else 1)
    return mode & 0o170000 in (S_IF.CHR, S_IF.BLK)


def _cgroup(row: Asked, context: Context) -> bool:
    return "cgroup" in context.file(row)


FILES: list[Rule] = [
    says(
        NODES,
        EPERM,
        "device nodes are made only with CAP_MKNOD in the first user namespace, since they open the host's devices (user_namespaces(7)).",
        "Make an empty file, and bind the host's node onto it.",
        lambda row, context: _device(row, context) and context.mapped,
    ),
    says(NODES, EPERM, "making a device node needs CAP_MKNOD (mknod(2)).", "Run as root, or bind the host's node.", _device),
    says(
        "mkdir mkdirat",
        ENOSPC,
        "a hierarchy holds so many cgroups and no more: 65535 with memory accounting, cgroup.max.descendants and cgroup.max.depth (cgroups(7)).",
        "See /proc/cgroups, and remove empty cgroups with rmdir.",
        _cgroup,
    ),
    says(
        "write openat",
        ENOSPC,
        "a process enters a v1 cpuset only when its cpuset.cpus and cpuset.mems are set (cpuset(7)).",
        "Copy both from the parent, or write 1 to its cgroup.clone_children first.",
        _cgroup,
    ),
    says(
        "write openat",
        EBUSY,
        "a v2 cgroup holds processes or hands controllers on to its children, not both (cgroups(7), no internal processes).",
        "Move the processes into a child first.",
        _cgroup,
    ),
]

IPC: list[Rule] = [
    says(
        "mq_open",
        EMFILE,
        "the queue would not fit into RLIMIT_MSGQUEUE, the bytes of this user's message queues (mq_overview(7)), or there are too many descriptors.",
        "See ulimit -q, and unlink queues in /dev/mqueue.",
    ),
    says("mq_open", ENOSPC, "an IPC namespace has at most fs.mqueue.queues_max queues (mq_overview(7)).", "See sysctl fs.mqueue; unlink old ones."),
    says(
        "mq_open",
        EINVAL,
        "a queue's name is /NAME, and its sizes are at most fs.mqueue.msg_max and msgsize_max (mq_overview(7)).",
        "See sysctl fs.mqueue.",
    ),
    says(
        SHARED,
        ENOSPC,
        "an IPC namespace has only so many identifiers: kernel.shmmni, kernel.msgmni, kernel.sem (sysvipc(7)).",
        "See ipcs -l; ipcrm old ones.",
    ),
    says(SHARED, EEXIST, "with IPC_CREAT|IPC_EXCL the key must be new in this IPC namespace (sysvipc(7)).", "See ipcs."),
    says(SHARED, EINVAL, "the size is out of the limits of this namespace, or larger than what exists under the key (shmget(2)).", "See ipcs -l."),
    says(SHARED, ENOENT, "nothing exists under this key in this IPC namespace (sysvipc(7)).", "See ipcs; IPC_CREAT makes it."),
]

NETWORK: list[Rule] = [
    says(
        "socket",
        EPERM,
        "raw and packet sockets need CAP_NET_RAW in the owner of the network namespace (packet(7)).",
        "Add User() and Net(), or run as root.",
    ),
    says(
        "connect sendto sendmsg",
        ENETUNREACH,
        "no route leads there, and a new network namespace has none but its loopback's (network_namespaces(7)).",
        "Give it a way out: Net(Bridge()), or Net(Usermode()) without root.",
    ),
    says("socket", EAFNOSUPPORT, "this kernel has no such address family (socket(2)).", "See modprobe."),
    says(
        "ioctl",
        EPERM,
        "an interface is changed with CAP_NET_ADMIN in the user namespace that owns the network namespace (network_namespaces(7)).",
        "Add Net(), beside User() when you are not root.",
    ),
    says("ioctl", ENODEV, "there is no interface of that name in this network namespace (netdevice(7)).", "See ip link inside it."),
    says("ioctl", ENETUNREACH, "a gateway must be in the network of an interface that is up (rtnetlink(7)).", "Set address and IFF_UP first."),
    says("bind", EADDRINUSE, "another socket of this network namespace has this address and port (ip(7)).", "See ss -ltnp."),
    says("bind", EADDRNOTAVAIL, "no interface of this network namespace has that address (ip(7)).", "See ip address."),
    says("bind", EACCES, "ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE (ip(7)).", "Take one from 1024 on."),
]

PATHS = (
    "openat openat2 mkdirat mknodat symlinkat linkat unlinkat renameat2 fchmodat fchownat chdir chroot"
    " open_tree move_mount mount_setattr umount2 pivot_root execve execveat"
)
ANY: list[Rule] = [
    says(PATHS, ENOENT, "a part of the path does not exist in this process's root (path_resolution(7)).", "Make it, or check the path."),
    says(PATHS, ENOTDIR, "a part of the path that must be a directory is none (path_resolution(7)).", "Look at each part with ls -ld."),
    says(PATHS, ELOOP, "the symbolic links of the path lead in a circle, or O_NOFOLLOW met one (path_resolution(7)).", "Follow them with ls -l."),
    says(PATHS, EEXIST, "the name is taken (open(2)).", "Remove it, or tolerate EEXIST."),
    says(PATHS, EACCES, "the user lacks a permission on the file or on a directory above it (path_resolution(7)).", "See namei -l."),
    says(
        f"{PATHS} mq_open",
        EOVERFLOW,
        "a file is made by a user and a group that the file system's user namespace knows, and this process's ids are not mapped"
        " (user_namespaces(7)).",
        "Write uid_map and gid_map first: User() does.",
    ),
    says(PATHS, EISDIR, "a directory cannot be opened for writing (open(2)).", "Name a file in it."),
    says(
        "", EROFS, "the file system or this mount of it is read-only (mount(2)).", "See ro in /proc/self/mountinfo; mount a tmpfs or a volume there."
    ),
    says("", ENAMETOOLONG, "a name has at most 255 bytes, and a path fewer than 4096 (path_resolution(7)).", "Use a shorter one."),
    says("", EDQUOT, "the user's quota on this file system, or of keys, is used up (quotactl(2), keyrings(7)).", "See quota(1) and /proc/key-users."),
    says(
        "",
        ENOMEM,
        "the kernel has no memory for it: the machine's, or the limit of a cgroup (cgroups(7)).",
        "See free -m, and memory.max of the cgroup.",
    ),
    says("", ENOSPC, "no space or no inodes are left there.", "See df and df -i."),
    says("", EMFILE, "the process has RLIMIT_NOFILE descriptors open (getrlimit(2)).", "See ulimit -n and ls /proc/self/fd."),
    says("", ENFILE, "the whole machine has fs.file-max files open (proc(5)).", "See sysctl fs.file-nr."),
    says(
        "",
        ENOSYS,
        "a seccomp filter, probably a surrounding container's, hides this call (seccomp(2)).",
        "See Seccomp: in /proc/self/status; start the outer container with --security-opt seccomp=unconfined.",
        lambda row, context: context.machine.filtered,
    ),
    says(
        "",
        ENOSYS,
        "this kernel does not have the call, or was built without it (syscalls(2)).",
        "See uname -r, and syscalls(2) for the version that brought it.",
    ),
    says("", EINTR, "a signal came before the call was done (signal(7)).", "Call again."),
    says("", EIO, "the device or the file system behind it failed.", "See dmesg."),
    says(
        "",
        EPERM,
        "this process lacks a capability for it in the user namespace that owns what it touches (capabilities(7), user_namespaces(7)).",
        "See CapEff: in /proc/self/status.",
    ),
    says("", EACCES, "a permission is missing, or a security module says no.", "See ls -l and dmesg."),
]

OTHERS = [*FILES, *IPC, *NETWORK, *ANY]
