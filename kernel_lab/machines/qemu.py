"""A machine by QEMU, as a process: it ends with the block that it is started in, and at the latest with the process that started it."""

import os
import platform
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple

from kernel_lab.keeper import lastingly
from kernel_lab.kernel.errors import UsageError
from kernel_lab.kernel.interrupts import Deferred
from kernel_lab.machines.console import Console
from kernel_lab.machines.monitor import Monitor

PATIENCE = 20.0  # seconds from asking a machine to end until its plug is pulled
SMALLEST = 1 << 20


class Emulator(NamedTuple):
    """QEMU for one kind of processor: the program, Debian's package, the kind of machine, and its first serial line."""

    program: str
    package: str
    machine: str
    console: str


EMULATORS = {
    "x86_64": Emulator("qemu-system-x86_64", "qemu-system-x86", "pc", "ttyS0"),
    "aarch64": Emulator("qemu-system-aarch64", "qemu-system-arm", "virt", "ttyAMA0"),
}


def emulator() -> Emulator:
    """The one for machines like this one. Raises UsageError where it is not installed."""
    found = EMULATORS.get(platform.machine(), EMULATORS["x86_64"])
    if not shutil.which(found.program):
        raise UsageError(f"{found.program}: not found; install Debian's package {found.package}")
    return found


class Qemu:
    """A machine with a serial console, and with what `options` add to it (qemu(1)).

    `memory`: bytes. `accelerator`: `tcg`, the emulator, or `kvm`. `kernel`, `initrd`, `append`: a Linux that is loaded without a boot loader, and its
    command line. Entering starts it; raises UsageError for what QEMU refuses. Leaving ends it, at once.
    """

    def __init__(
        self,
        *options: str,
        memory: int = 256 << 20,
        cpus: int = 1,
        accelerator: str = "tcg",
        cpu: str | None = None,
        kernel: Path | None = None,
        initrd: Path | None = None,
        append: str = "",
    ) -> None:
        if memory < SMALLEST or cpus < 1:
            raise UsageError(f"memory={memory}, cpus={cpus}: a machine has at least {SMALLEST} bytes and one processor")
        for file in (kernel, initrd):
            if file and not os.access(file, os.R_OK):
                raise UsageError(f"{file}: no file that can be read here")
        found = emulator()
        self.command = [
            *(found.program, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
            *("-machine", found.machine, "-accel", accelerator, "-cpu", cpu or ("host" if accelerator == "kvm" else "max")),
            *("-m", f"{memory}b", "-smp", str(cpus)),
            *(("-kernel", str(kernel)) if kernel else ()),
            *(("-initrd", str(initrd)) if initrd else ()),
            *(("-append", f"console={found.console} {append}".rstrip()) if kernel else ()),
            *options,
        ]

    def __enter__(self) -> "Qemu":
        ours, theirs = socket.socketpair()
        with theirs, tempfile.TemporaryFile() as messages:
            monitor = ("-chardev", f"socket,id=monitor,fd={theirs.fileno()},server=off", "-mon", "chardev=monitor,mode=control")
            with Deferred():
                self._process = lastingly(_start, ([*self.command, *monitor], messages, theirs.fileno()))
            theirs.close()
            try:
                assert self._process.stdout and self._process.stdin
                self.console = Console(self._process.stdout, self._process.stdin)
                self.monitor = Monitor(ours)
            except BaseException as error:
                self.kill()
                ours.close()
                if isinstance(error, EOFError):
                    messages.seek(0)
                    raise UsageError(f"QEMU does not start: {_last(messages)}") from None
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()
        self.monitor.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, timeout: float) -> int:
        """The exit status of QEMU, once the machine has turned itself off. Raises TimeoutError after so many seconds."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the machine still runs after {timeout:.0f} s; it said last:\n{str(self.console)[-400:]}") from None
        self.console.join(timeout)
        return code

    def stop(self) -> None:
        """Presses the power button, and pulls the plug if that does not help."""
        with suppress(EOFError, TimeoutError):
            self.monitor.ask("system_powerdown")
            self.wait(PATIENCE)
        self.kill()

    def kill(self) -> None:
        """Pulls the plug."""
        self._process.kill()
        self._process.wait()
        self.console.join(PATIENCE)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream
            with suppress(BrokenPipeError):
                stream.close()


def _start(what: tuple[Sequence[str], IO[bytes], int]) -> "subprocess.Popen[bytes]":
    command, messages, monitor = what
    # Not left alone when we are killed; in a session of its own, so that a terminal's Ctrl-C is for us alone.
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=messages,
        pass_fds=(monitor,),
        start_new_session=True,
        bufsize=0,
    )


def _last(messages: IO[bytes]) -> str:
    """What QEMU has complained about, without its name before it."""
    lines = messages.read().decode(errors="replace").strip().splitlines() or ["it says nothing"]
    return lines[-1].split(": ", 1)[-1]
