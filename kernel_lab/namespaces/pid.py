"""PID: the command is process 1, sees nobody but its own descendants, and all of them end with it (pid_namespaces(7))."""

from kernel_lab.kernel.flags import CLONE
from kernel_lab.namespaces.part import Part


class PID(Part):
    """A PID namespace. With `init`, process 1 is a reaper of our own that collects orphans and passes signals on, and the command is process 2."""

    flags = CLONE.NEWPID

    def __init__(self, init: bool = False) -> None:
        self.init = init
