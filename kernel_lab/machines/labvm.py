"""The lab VM while it runs: started, reached by ssh, ended. It outlives the command that has started it.

What there is to know about it lies in a folder that carries the stamp of its QEMU: when that has ended, the folder is a leftover.
In it, `ssh_config` says how the machine is reached, and `console` is all that it has said.
"""

import os
import platform
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from kernel_lab import state
from kernel_lab.kernel.errors import UsageError
from kernel_lab.machines import image as images
from kernel_lab.machines.accelerator import accelerator
from kernel_lab.machines.image import Image
from kernel_lab.machines.monitor import Monitor
from kernel_lab.machines.qemu import Qemu
from kernel_lab.state import Creator

KIT = "/kernel_lab"  # where the kit is in the guest
NOT_SENT = (".git", ".venv", ".vagrant", "__pycache__", ".*_cache", ".hypothesis", ".ipynb_checkpoints")
LOOPBACK = "127.0.0.1"
MEMORY = 2 << 30
CPUS = 2
BOOT = 300.0  # seconds; emulated on a busy machine it takes up to 60
SHUTDOWN = 90.0
SHOWN = 5  # lines of its console, when it does not come up
# Nobody attacks it, and emulated, the ways around the processors' faults and the zeroing of pages cost all the more.
# One that panics ends, instead of standing there.
KERNEL_LINE = "root=/dev/vda rw quiet systemd.show_status=no mitigations=off init_on_alloc=0 panic=-1"
# Xen's own: its console is the serial line; where time is emulated, sleeping deeper than HLT only stops it (xen-command-line).
XEN_LINE = "com1=115200,8n1 console=com1 dom0_mem=1536M,max:1536M cpuidle=0 max_cstate=0 mwait-idle=0"
EMULATED = "EPYC"  # has AMD's virtualisation, which QEMU's emulator knows how to nest; qemu64 lacks what numpy wants
WITHOUT = "-smap,-smep"  # as the emulator has these two, Xen's first guest does not start


class LabVM(NamedTuple):
    """One that runs, by its folder."""

    folder: Path

    @property
    def qemu(self) -> Creator:
        creator = Creator.in_name(self.folder.name)
        assert creator
        return creator

    @property
    def console(self) -> list[str]:
        """The lines that it has said so far."""
        text = (self.folder / "console").read_text(errors="replace")
        return [line for line in text.splitlines() if line.strip()]

    def ssh(self, *options: str) -> list[str]:
        """The beginning of a command line that goes on with a command for the guest."""
        return ["ssh", "-F", str(self.folder / "ssh_config"), *options, "lab"]

    def run(self, command: str, user: str = "root", *, capture: bool = False) -> "subprocess.CompletedProcess[str]":
        """Runs a line of shell in the kit's directory."""
        output = subprocess.PIPE if capture else None
        return subprocess.run([*self.ssh("-l", user), f"cd {KIT} && {command}"], stdout=output, text=True, check=False)

    def send(self, project: Path) -> None:
        """Makes the guest's copy of the kit that of `project`; its own Python environment stays."""
        if not shutil.which("rsync"):
            raise UsageError("rsync: not found; install Debian's package rsync")
        transport = f"ssh -F {self.folder}/ssh_config"
        excluded = [f"--exclude={name}" for name in NOT_SENT]
        subprocess.run(["rsync", "-a", "--delete", "--no-owner", "--no-group", *excluded, "-e", transport, f"{project}/", f"lab:{KIT}/"], check=True)

    def stop(self) -> None:
        """Presses the power button, and pulls the plug if that does not help."""
        with suppress(ProcessLookupError):
            process = os.pidfd_open(self.qemu.pid)
            try:
                if self.qemu.alive():
                    self._stop(process)
            finally:
                os.close(process)
        state.discard(self.folder)

    def _stop(self, process: int) -> None:
        with suppress(OSError, EOFError):
            self._press_power_button()
            if select.select([process], [], [], SHUTDOWN)[0]:
                return
        signal.pidfd_send_signal(process, signal.SIGKILL)
        select.select([process], [], [], SHUTDOWN)

    def _press_power_button(self) -> None:
        # By a descriptor, since the path of a socket has 107 bytes at most (unix(7)).
        folder = os.open(self.folder, os.O_PATH | os.O_CLOEXEC)
        try:
            with Monitor.at(f"/proc/self/fd/{folder}/monitor") as monitor:
                monitor.ask("system_powerdown")
        finally:
            os.close(folder)


def find() -> LabVM | None:
    """The one that runs, if there is one."""
    for folder in (state.run_path() / "vm").glob("machine.*"):
        creator = Creator.in_name(folder.name)
        if creator and creator.alive() and (folder / "ssh_config").exists():
            return LabVM(folder)
    return None


def up(image: Image, *, port: int = 0, memory: int = MEMORY, cpus: int = CPUS, xen: bool = False) -> LabVM:
    """Starts it, and waits until it answers. `port` of the loopback leads to its ssh; 0: one that is free. `xen`: below its kernel, a hypervisor.

    `cpus`: of one that is not emulated; that has one.

    Raises UsageError for what is missing or taken, RuntimeError when it does not answer: it is ended then, and nothing is left of it.
    """
    with state.locked(state.folder("vm") / "lock"):
        if running := find():
            raise UsageError(f"the lab VM runs already (process {running.qemu.pid}): ./lab vm ssh, or ./lab vm down first")
        port = _free(port)
        command = _command(image, _disk(image), port, memory, cpus, xen)
        process, machine = _start(command, image, port)
        try:
            _wait(process, machine, port)
        except BaseException:
            _end(process, machine)
            raise
        return machine


def destroy() -> None:
    """Ends it, and removes images and disks."""
    if machine := find():
        machine.stop()
    with state.locked(images.store() / "lock"):
        for path in images.store().glob("*"):
            if path.name != "lock":
                state.discard(path)


def _free(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except (OSError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else "ports go from 1 to 65535"
            raise UsageError(f"port {port} of {LOOPBACK}: {why}: choose another one, or 0 for one that is free") from None
        chosen: int = probe.getsockname()[1]
        return chosen


def _disk(image: Image) -> Path:
    """What the machine writes goes into a file of its own; the image stays as it was made."""
    disk = image.path / "disk.qcow2"
    if not disk.exists():
        half = images.store() / f"disk.{Creator.this().stamp}"
        if not shutil.which("qemu-img"):
            raise UsageError("qemu-img: not found; install Debian's package qemu-utils")
        try:
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", image.disk, "-F", "raw", half], check=True)
            half.rename(disk)
        finally:
            half.unlink(missing_ok=True)
    return disk


def _below_xen(image: Image) -> list[str]:
    """The hypervisor is what the firmware starts; the kernel is its first guest, dom0, handed to it as a module (multiboot)."""
    if not image.hypervisor.exists():
        raise UsageError("this image has no Xen: Debian has it for x86-64 alone")
    modules = f"{image.kernel} console=hvc0 {KERNEL_LINE},{image.initrd}"
    return ["-kernel", str(image.hypervisor), "-initrd", modules, "-append", XEN_LINE]


def _command(image: Image, disk: Path, port: int, memory: int, cpus: int, xen: bool) -> list[str]:
    kind = accelerator(image.kernel)
    emulated = kind == "tcg"
    machine = Qemu(
        *("-drive", f"file={disk},if=virtio,format=qcow2,cache=unsafe,discard=unmap"),
        *("-netdev", f"user,id=net,hostfwd=tcp:{LOOPBACK}:{port}-:22", "-device", "virtio-net-pci,netdev=net"),
        *("-device", "virtio-rng-pci", "-qmp", "unix:monitor,server=on,wait=off"),
        *(_below_xen(image) if xen else ()),
        memory=memory,
        # Linux patches its own code while other processors run it (static keys). The emulator, with a thread for each, lets one run what is half
        # patched, and the kernel panics, once in some hours; with one thread for all, KVM's guests in it hang.
        cpus=1 if emulated else cpus,
        accelerator=kind,
        cpu=f"{EMULATED},{WITHOUT}" if emulated and platform.machine() == "x86_64" else None,
        kernel=None if xen else image.kernel,
        initrd=None if xen else image.initrd,
        append=KERNEL_LINE,
    )
    return machine.command


def _start(command: Iterable[str], image: Image, port: int) -> "tuple[subprocess.Popen[str], LabVM]":
    # The process waits to be told its folder, which bears its number: at no moment does QEMU run where it cannot be found.
    script = 'read -r folder && cd "$folder" && exec "$@" </dev/null >console 2>messages'
    waiting = ["sh", "-c", script, "sh", *command]
    process = subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True)
    machine = LabVM(state.folder("vm") / f"machine.{Creator.of(process.pid).stamp}")
    try:
        machine.folder.mkdir(mode=0o700)
        (machine.folder / "ssh_config").write_text(_ssh_config(image, port))
        assert process.stdin
        with process.stdin as told:
            told.write(f"{machine.folder}\n")
    except BaseException:
        _end(process, machine)
        raise
    return process, machine


def _end(process: "subprocess.Popen[str]", machine: LabVM) -> None:
    process.kill()
    process.wait()
    state.discard(machine.folder)


def _ssh_config(image: Image, port: int) -> str:
    words = {
        "HostName": LOOPBACK,
        "Port": port,
        "User": "root",
        "IdentityFile": f'"{image.key}"',
        "IdentitiesOnly": "yes",
        "HostKeyAlias": images.HOST,
        "UserKnownHostsFile": f'"{image.known_hosts}"',
        "LogLevel": "ERROR",
        "ServerAliveInterval": 60,  # a machine that hangs is given up after the third
    }
    return "Host lab\n" + "".join(f"  {name} {value}\n" for name, value in words.items())


def _wait(process: "subprocess.Popen[str]", machine: LabVM, port: int) -> None:
    end = time.monotonic() + BOOT
    while not _answers(port):
        if process.poll() is not None:
            said = (machine.folder / "messages").read_text(errors="replace").splitlines() or machine.console or ["nothing"]
            raise RuntimeError(f"the lab VM has ended while it started; it said last: {said[-1]}")
        if time.monotonic() > end:
            said = machine.console[-SHOWN:] or ["nothing"]
            raise RuntimeError(f"the lab VM has not answered in {BOOT:.0f} s, and has been ended; its console said last: {' | '.join(said)}")
        time.sleep(0.2)


def _answers(port: int) -> bool:
    """Whether the guest's ssh says who it is. QEMU itself accepts the connection long before."""
    with suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=2.0) as connection:
        return connection.recv(4) == b"SSH-"
    return False
