"""Virtual machines as boxes: a stock kernel with the ground's root as its first and only one, and the program as the child of its process 1.

One has a disk where the ground has it, a file of the host's with a file system; and a network card where there is a bridge, plugged into that.
"""

import itertools
import json
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from kernel_lab.benchmarks.accounts import below_is_xen
from kernel_lab.benchmarks.contestant import Absent, Ground
from kernel_lab.benchmarks.runners import IDLE, Boxes, Stop, named, started
from kernel_lab.kernel.errors import UsageError
from kernel_lab.machines.accelerator import accelerator
from kernel_lab.machines.drivers import drivers
from kernel_lab.machines.initramfs import archive, stock_kernel
from kernel_lab.machines.qemu import Qemu, emulator

BEGIN, END = "klab-begin", "klab-end"
MEMORY, DISK = 128 << 20, 64 << 20
BOOT, WORK = 120.0, 300.0  # seconds of patience: under emulation, on a busy machine
LOOK = 0.0005
QUIET = "loglevel=1 panic=-1"  # with 0, not even a panic says a word (console_verbose)


class Devices(NamedTuple):
    """What a kind of guest calls its disk, and the modules of its disk and of its network card."""

    disk: str
    for_disk: tuple[str, ...]
    for_network: tuple[str, ...]


VIRTIO = Devices("/dev/vda", ("virtio_pci", "virtio_blk"), ("virtio_pci", "virtio_net"))
XEN = Devices("/dev/xvda", ("xen-blkfront",), ("xen-netfront",))


def initrd(ground: Ground, number: int, kernel: Path, devices: Devices, init: str) -> Path:
    """A guest's first root: its process 1 makes the ground's devices ready, and does what `init` says."""
    modules: list[bytes] = []
    setup = ""
    if ground.disk:
        modules += drivers(kernel, *devices.for_disk)
        setup += f"until test -b {devices.disk}; do sleep 0.1; done; mkdir -p /mnt; mount -t ext4 {devices.disk} /mnt; cd /mnt\n"
    if ground.network:
        modules += drivers(kernel, *devices.for_network)
        setup += f"until ip link set eth0 up; do sleep 0.1; done; ip address add {ground.network.address} dev eth0\n"
    file = ground.folder / f"initrd{number}"
    file.write_bytes(archive(ground.root, setup + init, modules))
    return file


def disk(ground: Ground, number: int) -> Path:
    """A new one, with a file system in it."""
    file = ground.layers / f"disk{number}"
    file.unlink(missing_ok=True)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", file, f"{DISK >> 10}k"], check=True, capture_output=True)
    return file


class GuestBoxes:
    """A machine for each. It is ended by its plug: it has nothing to lose."""

    def __init__(self, ground: Ground, kernel: Path, accelerator: str) -> None:
        self.ground, self.kernel, self.accelerator = ground, kernel, accelerator

    def machine(self, number: int, init: str) -> Qemu:
        """One that is not started yet; `init`: what its process 1 does."""
        first_root = initrd(self.ground, number, self.kernel, VIRTIO, init)
        options = [*self._disk(number), *self._network()]
        return Qemu(*options, memory=MEMORY, accelerator=self.accelerator, kernel=self.kernel, initrd=first_root, append=QUIET)

    def _disk(self, number: int) -> list[str]:
        # Past the host's page cache, as containers' files are written here, too.
        return ["-drive", f"file={disk(self.ground, number)},if=virtio,format=raw,cache=none"] if self.ground.disk else []

    def _network(self) -> list[str]:
        """A tap(4) that QEMU makes, and that goes with it."""
        if not self.ground.network:
            return []
        script = self.ground.folder / "plug"
        script.write_text(f'#!/bin/sh\nexec ip link set "$1" master {self.ground.network.bridge} up\n')
        script.chmod(0o755)
        return ["-netdev", f"tap,id=net,script={script},downscript=no", "-device", "virtio-net-pci,netdev=net,romfile="]

    def idle(self, number: int) -> Stop:
        with ExitStack() as made:
            machine = made.enter_context(self.machine(number, f"echo {BEGIN}; exec {shlex.join(IDLE)}"))
            machine.console.wait(BEGIN, BOOT)
            return made.pop_all().close

    @contextmanager
    def output(self, *words: str) -> Iterator[Iterator[str]]:
        # A moment for the console to say all, since the power goes at once.
        with self.machine(0, f"echo {BEGIN}; {shlex.join(words)}; echo {END}; sleep 1; poweroff -f") as machine:
            yield _said(machine)


def _said(machine: Qemu) -> Iterator[str]:
    """The lines between the two marks, as they come. Raises TimeoutError for a machine that does not boot, or does not come to an end."""
    machine.console.wait(BEGIN, BOOT)
    return between(_lines(machine))


def between(lines: Iterator[str]) -> Iterator[str]:
    """What a guest's program has printed, of all that was on the console."""
    for line in lines:
        if BEGIN in line:
            break
    return itertools.takewhile(lambda line: END not in line, lines)


def _lines(machine: Qemu) -> Iterator[str]:
    lines, end = machine.console.lines, time.monotonic() + WORK
    for number in itertools.count():
        # Whether it has ended is asked first: what it said last may still come before the answer, and not after it.
        while not (ended := machine.console.closed) and number == len(lines):
            if time.monotonic() > end:
                raise TimeoutError(f"the machine's program has not ended in {WORK:.0f} s")
            time.sleep(LOOK)
        if ended and number == len(lines):
            return
        yield f"{lines[number].text}\n"


class Emulated:
    """By QEMU's emulator: every instruction is translated."""

    who = "QEMU, emulation"
    includes = "QEMU and its firmware, a stock kernel, busybox; one processor, 128 MB, a serial console; a disk and a network card for their columns"
    networks = True

    def version(self) -> str | None:
        try:
            program = emulator().program
        except UsageError:
            return None
        words = subprocess.run([program, "--version"], capture_output=True, text=True).stdout.split()
        return next((word for word in words if word[0].isdigit()), None)

    @contextmanager
    def ready(self, ground: Ground) -> Iterator[Boxes]:
        try:
            emulator()
            kernel = stock_kernel()
        except UsageError as error:
            raise Absent(str(error)) from None
        yield GuestBoxes(ground, kernel, self.accelerator(kernel))

    def accelerator(self, kernel: Path) -> str:
        if _is_emulated():
            raise Absent("this processor is emulated itself, and an emulator in an emulator takes minutes to boot a kernel")
        return "tcg"


class Kvm(Emulated):
    """The same with the processor's own virtualisation."""

    who = "KVM"
    includes = "as QEMU by emulation, but the guest's instructions run on the processor"

    def accelerator(self, kernel: Path) -> str:
        if accelerator(kernel) != "kvm":
            raise Absent("no KVM that boots a kernel here: it needs a processor with virtualisation, or the lab's virtual machine (./lab vm)")
        return "kvm"


def _is_emulated() -> bool:
    """What systemd-detect-virt(1) calls `qemu`; with KVM it would say so."""
    program = shutil.which("systemd-detect-virt")
    return program is not None and subprocess.run([program, "--vm"], capture_output=True, text=True).stdout.strip() == "qemu"


def quickest() -> Emulated:
    """KVM, where it boots a kernel here, and else the emulator."""
    kvm = Kvm()
    try:
        kvm.accelerator(stock_kernel())
    except (Absent, UsageError):
        return Emulated()
    return kvm


class XenBoxes:
    """By xl(1): guests of a kind, `pv` or `pvh`, whose console is read."""

    def __init__(self, ground: Ground, kernel: Path, kind: str) -> None:
        self.ground, self.kernel, self.kind = ground, kernel, kind

    def idle(self, number: int) -> Stop:
        config = self._config(number, f"echo {BEGIN}; exec {shlex.join(IDLE)}")
        with ExitStack() as made:
            lines = made.enter_context(self._created(number, config))
            next(line for line in lines if BEGIN in line)
            return made.pop_all().close

    @contextmanager
    def output(self, *words: str) -> Iterator[Iterator[str]]:
        with self._created(0, self._config(0, f"echo {BEGIN}; {shlex.join(words)}; echo {END}; sleep 1; poweroff -f")) as lines:
            yield between(lines)

    @contextmanager
    def _created(self, number: int, config: Path) -> Iterator[IO[str]]:
        """A guest that runs, and its console."""
        with started(["xl", "create", "-c", "-q", str(config)]) as process:
            assert process.stdout
            try:
                yield process.stdout
            finally:
                subprocess.run(["xl", "destroy", named(number)], stdin=subprocess.DEVNULL, capture_output=True)
                process.kill()

    def _config(self, number: int, init: str) -> Path:
        """Its description for xl.cfg(5)."""
        values: dict[str, str | int | list[str]] = {
            "name": named(number),
            "type": self.kind,
            "kernel": str(self.kernel),
            "ramdisk": str(initrd(self.ground, number, self.kernel, XEN, init)),
            "extra": f"console=hvc0 {QUIET}",
            "memory": MEMORY >> 20,
            "vcpus": 1,
            "on_crash": "destroy",
            # Where the hypervisor reads the clock for its guests, emulated processors do not tell it how long that instruction was.
            "tsc_mode": "native",
        }
        if self.ground.disk:
            values["disk"] = [f"format=raw,vdev=xvda,access=w,target={disk(self.ground, number)}"]
        if self.ground.network:
            values["vif"] = [f"bridge={self.ground.network.bridge}"]
        config = self.ground.folder / f"xl{number}.cfg"
        config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
        return config


class Xen:
    """A guest of a hypervisor's of its own, which must have booted this machine: one that is para-virtualised, and asks it for everything."""

    who = "Xen"
    includes = "xl and a para-virtualised guest of the hypervisor under this kernel; else as QEMU by emulation"
    kind = "pv"
    networks = True

    def version(self) -> str | None:
        major, minor = (Path("/sys/hypervisor/version", part) for part in ("major", "minor"))
        return f"{major.read_text().strip()}.{minor.read_text().strip()}" if major.exists() else None

    @contextmanager
    def ready(self, ground: Ground) -> Iterator[Boxes]:
        if not shutil.which("xl"):
            raise Absent("not installed: xl (Debian's xen-utils)")
        if not below_is_xen():
            raise Absent("no Xen hypervisor under this kernel")
        yield XenBoxes(ground, stock_kernel(), self.kind)


class XenPvh(Xen):
    """One that asks it for devices alone, and runs on the processor's own virtualisation."""

    who = "Xen, PVH"
    includes = "the same, but the guest's instructions and addresses are the processor's concern"
    kind = "pvh"
