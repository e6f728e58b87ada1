"""A whole PC around a few bytes of code, by QEMU: its firmware reads one sector from a disk, and jumps there."""

import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from kernel_lab.kernel.errors import UsageError
from kernel_lab.machines.qemu import Qemu, emulator

ROOM = 510  # bytes of a sector, before the two that mark it as one to boot from


def boot_sector(code: bytes) -> bytes:
    """A disk of one sector: a PC's firmware puts `code` to 0x7c00, and starts it in real mode. Raises UsageError where it does not fit."""
    if len(code) > ROOM:
        raise UsageError(f"code of {len(code)} bytes: the boot sector of a PC has room for {ROOM}")
    return code.ljust(ROOM, b"\0") + b"\x55\xaa"


@contextmanager
def computer(code: bytes, *options: str, accelerator: str = "tcg") -> Iterator[Qemu]:
    """A PC that boots from `code`; what that writes to port 0x3f8 comes to its console. Raises UsageError as Qemu does."""
    with tempfile.NamedTemporaryFile() as disk:
        disk.write(boot_sector(code))
        disk.flush()
        with Qemu("-drive", f"file={disk.name},format=raw", *options, accelerator=accelerator) as machine:
            yield machine


def missing() -> str:
    """Why there is no such PC here, and how to go on; empty where there is one."""
    if platform.machine() != "x86_64":
        return f"the code is for a PC, and the emulator for this machine is one of {platform.machine()}"
    try:
        emulator()
    except UsageError as error:
        return str(error)
    return ""
