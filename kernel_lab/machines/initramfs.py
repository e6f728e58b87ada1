"""What Linux needs to boot beside its own file: an archive with the first root directory in it, whose `/init` is process 1.

    kernel, root = stock_kernel(), archive(rootfs.busybox(), "echo hello; exec sh")

The kernel unpacks it into memory, and starts /init there (Documentation/driver-api/early-userspace/buffer-format.rst).
"""

import os
import platform
import re
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kernel_lab import state
from kernel_lab.kernel.errors import UsageError
from kernel_lab.machines.console import Line
from kernel_lab.machines.qemu import emulator

PACKAGE = f"linux-image-cloud-{'arm64' if platform.machine() == 'aarch64' else 'amd64'}"  # Debian's for virtual machines
BOOT = Path("/boot")
# Of the package's hundred megabytes, the kernel and the drivers of what virtual machines have.
UNPACKED = ("./boot/vmlinuz-*", *(f"*/kernel/{part}/*" for part in ("drivers/virtio", "drivers/block", "drivers/net", "net/core")))
MAGIC = b"070701"  # the format `newc` of cpio(5)
TRAILER = "TRAILER!!!"  # the name of the entry that ends an archive
SETUP = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
"""
LOAD = "for driver in /driver*; do insmod $driver; done\n"


def archive(root: Path, init: str, drivers: Sequence[bytes] = ()) -> bytes:
    """A directory as an initramfs, with the shell commands `init` as its process 1: when they end, the kernel panics, so let them end the machine.

    `drivers`: modules that are loaded before, in this order.
    """
    entries = [_of_file(path, str(path.relative_to(root))) for path in sorted(root.rglob("*"))]
    entries += [_entry(f"driver{number:02}", stat.S_IFREG | 0o644, driver) for number, driver in enumerate(drivers)]
    commands = f"{SETUP}{LOAD if drivers else ''}{init}\n"
    entries += [_entry("init", stat.S_IFREG | 0o755, commands.encode()), _entry(TRAILER)]
    return b"".join(entries)


def _of_file(path: Path, name: str) -> bytes:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return _entry(name, mode, os.fsencode(os.readlink(path)))
    return _entry(name, mode, path.read_bytes() if stat.S_ISREG(mode) else b"")


def _entry(name: str, mode: int = 0, data: bytes = b"") -> bytes:
    """Thirteen numbers of eight hexadecimal digits, the name with a NUL at its end, the data; everything is root's, and from 1970."""
    coded = os.fsencode(name) + b"\0"
    inode = owner = group = time = major = minor = device_major = device_minor = checksum = 0
    numbers = (inode, mode, owner, group, 1, time, len(data), major, minor, device_major, device_minor, len(coded), checksum)
    return _padded(MAGIC + b"".join(b"%08X" % number for number in numbers) + coded) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def stock_kernel() -> Path:
    """A distribution's own kernel: this machine's, where it may be read, or Debian's package, which is unpacked and kept but for most of its modules.

    Raises UsageError where there is neither.
    """
    for path in sorted(BOOT.glob("vmlinuz-*"), reverse=True):
        if os.access(path, os.R_OK):
            return path
    store = state.data_dir() / "kernels"
    store.mkdir(exist_ok=True)
    with state.locked(store / "lock"):
        return next(store.glob("*/boot/vmlinuz-*"), None) or _unpacked(store)


def missing() -> str:
    """Why no Linux can be booted here, and how to go on; empty where one can."""
    try:
        emulator()
        stock_kernel()
    except UsageError as error:
        return str(error)
    return ""


def _unpacked(store: Path) -> Path:
    with tempfile.TemporaryDirectory(prefix=".half-", dir=store) as half:
        try:
            shown = _run("apt-cache", "show", "--no-all-versions", PACKAGE)
            name = re.search(r"^Depends: (linux-image-\S+)", shown, re.M)
            _run("apt-get", "download", name[1] if name else PACKAGE, cwd=half)
            (package,) = Path(half).glob("*.deb")
            root = Path(half, package.name.split("_")[0])
            root.mkdir()
            _run("sh", "-c", 'dpkg-deb --fsys-tarfile "$0" | tar -x --wildcards "$@"', str(package), *UNPACKED, cwd=str(root))
            (kernel,) = root.rename(store / root.name).glob("boot/*")
        except (OSError, subprocess.CalledProcessError) as error:
            why = str(getattr(error, "stderr", "") or error).strip().splitlines()[-1]
            raise UsageError(
                f"no kernel to boot: /boot has none that may be read, and {PACKAGE} is not to be had ({why}); try apt-get update"
            ) from None
        return kernel


def _run(*command: str, cwd: str | None = None) -> str:
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout


class Stage(NamedTuple):
    """A part of a boot."""

    name: str
    seconds: float


FIRST_PROCESS = re.compile(r"^\[ *(\d+\.\d+)\] Run /init as init process")


def boot_times(lines: Sequence[Line], ready: str) -> list[Stage]:
    """How long firmware, kernel and userspace took until the console said `ready`.

    The kernel stamps its lines with its own clock, which begins with it; so what was before its last line, and is not on that clock, was the firmware
    (with QEMU's own start, and the unpacking of the kernel). Raises UsageError where the console lacks one of the two lines.
    """
    started = next(((line.seconds, float(found[1])) for line in lines if (found := FIRST_PROCESS.search(line.text))), None)
    end = next((line.seconds for line in lines if ready in line.text), None)
    if started is None or end is None:
        raise UsageError(f"no line that says {'Run /init as init process' if started is None else ready!r} on this console")
    at, kernel = started
    return [Stage("firmware", at - kernel), Stage("kernel", kernel), Stage("userspace", end - at)]
