"""The kinds of namespaces: their names in /proc/PID/ns, and the flags that make them (namespaces(7))."""

from kernel_lab.kernel.flags import CLONE

KINDS = {
    "user": CLONE.NEWUSER,
    "mnt": CLONE.NEWNS,
    "uts": CLONE.NEWUTS,
    "ipc": CLONE.NEWIPC,
    "pid": CLONE.NEWPID,
    "net": CLONE.NEWNET,
    "cgroup": CLONE.NEWCGROUP,
    "time": CLONE.NEWTIME,
}
