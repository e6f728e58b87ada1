"""Draws the README's picture from a living container: what it has of its own, and what it shares with the host, as /proc says.

./lab python docs/picture.py > docs/picture.svg
"""

import os

from kernel_lab import IPC, PID, UTS, Container, Mount, Net, User, rootfs
from kernel_lab.course.pictures import Box, Link, rows
from kernel_lab.kernel.procfs import namespaces

WORDS = {"uts": "host name", "mnt": "files", "ipc": "queues", "user": "users", "pid": "processes", "net": "network", "cgroup": "limits"}

with Container(UTS("box"), Mount(rootfs.busybox()), IPC(), User(), PID(), Net()).start("sleep 1000") as box:
    host, inside = namespaces(os.getpid()), namespaces(box.pid)

theirs = [f"{word:<10} {kind}:[A]" for kind, word in WORDS.items()]
own = [f"{word:<10} {kind}:[{'A' if host[kind] == inside[kind] else 'B'}]" for kind, word in WORDS.items()]
picture = rows(
    [Box("a process of the host", theirs), Box("a process in a container", own, [line for line in own if "[B]" in line])],
    [Box("one kernel", ["system calls; nothing is emulated"])],
    links=[Link("a process of the host", "one kernel"), Link("a process in a container", "one kernel")],
)
print(picture._repr_svg_())
