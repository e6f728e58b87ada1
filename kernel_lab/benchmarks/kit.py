"""This kit, as a user holds it: a Container that is run again and again, and one that is made for each run."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kernel_lab.benchmarks.contestant import LIMITS, Ground, Run, Start
from kernel_lab.cgroups.part import Cgroup
from kernel_lab.container import Container
from kernel_lab.namespaces.ipc import IPC
from kernel_lab.namespaces.mnt import Mount
from kernel_lab.namespaces.net import Net
from kernel_lab.namespaces.part import Part
from kernel_lab.namespaces.pid import PID
from kernel_lab.namespaces.user import User
from kernel_lab.namespaces.uts import UTS
from kernel_lab.unionfs.overlay import Overlay


def container(ground: Ground) -> Container:
    """What the floor makes: of the mounts, the root and /proc."""
    return Container(*parts(ground), *((Cgroup(**LIMITS),) if ground.layered else ()))


def parts(ground: Ground) -> tuple[Part, ...]:
    """Its six namespaces, and the root."""
    net = Net(ground.network.bridge) if ground.network else Net()
    root = Overlay(ground.root) if ground.layered else ground.root
    return User(), UTS(ground.hostname), IPC(), PID(), net, Mount(root, sys=False, dev=False)


class Kit:
    who = "kit"
    includes = "what the floor makes, by Container.run from this large process; the Container was made before"

    def version(self) -> str | None:
        return None

    @contextmanager
    def ready(self, ground: Ground) -> Iterator[Run]:
        box = container(ground)
        yield lambda: _timed(lambda: box, ground)


class KitAnew:
    who = "kit, built anew"
    includes = "the same, with the making of the Container"

    def version(self) -> str | None:
        return None

    @contextmanager
    def ready(self, ground: Ground) -> Iterator[Run]:
        yield lambda: _timed(lambda: container(ground), ground)


def _timed(made: Callable[[], Container], ground: Ground) -> Start:
    begin = time.perf_counter()
    result = made().run(*ground.command)
    return Start(time.perf_counter() - begin, result.code, result.stdout, result.stderr)
