"""The loop as an executor: the child shares the creator's memory and runs the table as machine code until its execve."""

import ctypes
import platform

from kernel_lab.kernel import loop, rules
from kernel_lab.kernel.calls import executable, function, futex_wait
from kernel_lab.kernel.errors import UsageError
from kernel_lab.kernel.memory import CLONE_WORDS, DONE, Image
from kernel_lab.kernel.program import Buffer

_EVERY_SIGNAL = ctypes.c_uint64(2**64 - 1)


class Child:
    """A process that runs an image's table: its pid, and a descriptor for it (pidfd_open(2)) that the creator closes."""

    def __init__(self, image: Image, pid: int, pidfd: int) -> None:
        self.image, self.pid, self.pidfd = image, pid, pidfd

    def wait_execed(self, done: Buffer = DONE) -> None:
        """Returns once the process has called execve, or ended: only then does it no longer use the image.

        The kernel clears the word and wakes who sleeps on it when a process lets go of memory that it shares (CLONE_CHILD_CLEARTID, clone(2)).
        """
        address = self.image.buffer(done)
        word = ctypes.c_uint32.from_address(address)
        while word.value:
            futex_wait(address, word.value, 1.0)

    def close(self) -> None:
        """After its end: nothing of what made it is left."""


class Loop:
    """Runs tables by machine code. Raises UsageError on a processor that has no loop, KernelError where executable memory is refused."""

    name = "loop"
    shared = False

    def __init__(self) -> None:
        machine = platform.machine()
        if machine not in loop.MACHINES:
            raise UsageError(f"no loop for {machine}: there is one for {' and '.join(loop.MACHINES)}")
        address = executable(loop.code(machine))
        # Called with the interpreter's lock released: making a network namespace takes long enough for others to run.
        self._start = function(address + loop.START[machine], ctypes.c_long, *[ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_void_p] * 3])
        self._signals = ctypes.addressof(_EVERY_SIGNAL)

    def start(self, image: Image) -> Child:
        """Starts the child; raises KernelError when the kernel refuses the clone."""
        pid = self._start(image.clone_args, 8 * CLONE_WORDS, image.address, self._signals, image.old_mask)
        if pid < 0:
            raise rules.clone_refused(-pid, image.layout.flags)
        return Child(image, pid, image.pidfd)
