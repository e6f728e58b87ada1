"""Whether the processor's own virtualisation boots a kernel here, found out by a bounded try.

That /dev/kvm is there says little: its node can stand with nothing behind it, and in a machine of a machine it may run a few instructions
and no operating system.
"""

import os
from pathlib import Path

from kernel_lab import state
from kernel_lab.kernel.errors import UsageError
from kernel_lab.machines.qemu import Qemu

PATIENCE = 10.0  # seconds to a kernel's first line: it takes one
FIRST_LINE = "Linux version"


def accelerator(kernel: Path) -> str:
    """`kvm` where it boots this stock kernel, otherwise `tcg`. What the try has shown is remembered until the next boot."""
    remembered = state.folder("vm") / f"accelerator-{os.uname().release}"
    if not remembered.exists():
        state.write_atomically(remembered, "kvm" if _boots(kernel) else "tcg")
    return remembered.read_text()


def _boots(kernel: Path) -> bool:
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
        with Qemu(accelerator="kvm", kernel=kernel, append="earlyprintk=ttyS0") as machine:
            machine.console.wait(FIRST_LINE, PATIENCE)
    except (OSError, EOFError, UsageError):
        return False
    return True
