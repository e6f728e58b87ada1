"""A virtual machine in a page of Python: some memory of ours, a processor that the kernel lends us, and the reasons why it comes back.

    with Machine(bytes.fromhex("b0 2a e6 10 f4")) as vm:    # mov al, 42; out 0x10, al; hlt
        print(vm.run())

The requests are those of Documentation/virt/kvm/api.rst. There is no firmware, no disk, no screen, and no interrupt: the guest's one way
out of its memory is a port, or an address where nothing is.
"""

import ctypes
import errno
import mmap
import os
import platform
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from kernel_lab.kernel.calls import syscall
from kernel_lab.kernel.errors import KernelError, UsageError
from kernel_lab.kernel.interrupts import Deferred
from kernel_lab.kernel.structs import sigset
from kernel_lab.kernel.table import Table
from kernel_lab.machines import kvm_abi as kvm
from kernel_lab.machines.kvm_code import START, check
from kernel_lab.machines.kvm_exits import Device, Exit, Hex, Registers, access, nobody

DEVICE = "/dev/kvm"
LARGEST = 1 << 30
TSS = 0xFFFBD000  # three pages that KVM wants for itself on Intel's processors, where no memory of ours may be (KVM_SET_TSS_ADDR)
KICK = signal.SIGRTMAX - 1

Mode = Callable[[kvm.SpecialRegisters, mmap.mmap], None]


def real_mode(special: kvm.SpecialRegisters, memory: mmap.mmap) -> None:
    """As a PC starts: 16 bits, and no translation of addresses. Without an interrupt table, the first fault ends the machine."""
    special.cs.base = special.cs.selector = 0
    special.idt.limit = 0


class Machine:
    """A virtual machine with one processor, which begins at address 0x7c00, where `code` has been put; the stack is below.

    `memory` is in bytes. Constructing checks: UsageError for code or memory that cannot be, or where there is no KVM. Entering makes it,
    leaving takes all of it away.
    """

    def __init__(self, code: bytes, memory: int = 1 << 16, mode: Mode = real_mode) -> None:
        check(code, memory, mmap.PAGESIZE, LARGEST)
        if why := missing():
            raise UsageError(why)
        self.code, self.size, self.mode = code, memory, mode

    def __enter__(self) -> "Machine":
        with Deferred(), ExitStack() as made:
            device = _closed(made, os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
            self._vm = _closed(made, _ioctl(device, kvm.CREATE_VM))
            _ioctl(self._vm, kvm.SET_TSS_ADDR, TSS)
            self.memory = made.enter_context(mmap.mmap(-1, self.size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
            address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
            _ioctl(self._vm, kvm.SET_USER_MEMORY_REGION, kvm.MEMORY_REGION.pack(0, 0, 0, self.size, address))
            self._cpu = _closed(made, _ioctl(self._vm, kvm.CREATE_VCPU))
            # Which modes the processor knows: without them all, newer kernels let it into none but the first (SET_SREGS).
            features = ctypes.create_string_buffer(struct.pack("<II", kvm.FEATURES, 0), 8 + kvm.FEATURES * kvm.FEATURE)
            _ioctl(device, kvm.GET_SUPPORTED_CPUID, features)
            _ioctl(self._cpu, kvm.SET_CPUID2, features)
            self._run = made.enter_context(mmap.mmap(self._cpu, _ioctl(device, kvm.GET_VCPU_MMAP_SIZE)))
            self._prepare()
            self._made = made.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with Deferred():
            self._made.close()

    def _prepare(self) -> None:
        self.memory[START : START + len(self.code)] = self.code
        special = self.special
        self.mode(special, self.memory)
        self.special, self.registers = special, Registers()

    @property
    def registers(self) -> Registers:
        """The processor's registers. To change one: `vm.registers = vm.registers._replace(rax=1)`."""
        buffer = ctypes.create_string_buffer(kvm.REGISTERS.size)
        _ioctl(self._cpu, kvm.GET_REGS, buffer)
        return Registers(*map(Hex, kvm.REGISTERS.unpack(buffer)))

    @registers.setter
    def registers(self, new: Registers) -> None:
        for name, value in new._asdict().items():
            if not 0 <= value < 2**64:
                raise UsageError(f"{name} = {value}: a register has 64 bits")
        _ioctl(self._cpu, kvm.SET_REGS, kvm.REGISTERS.pack(*new))

    @property
    def special(self) -> kvm.SpecialRegisters:
        """Segments, descriptor tables and control registers."""
        special = kvm.SpecialRegisters()
        _ioctl(self._cpu, kvm.GET_SREGS, ctypes.byref(special))
        return special

    @special.setter
    def special(self, new: kvm.SpecialRegisters) -> None:
        _ioctl(self._cpu, kvm.SET_SREGS, ctypes.byref(new))

    def run(self, device: Device = nobody, *, exits: int = 1000, seconds: float = 5.0) -> Table[Exit]:
        """Lends the guest the processor until it halts or fails, or has come out `exits` times, or for `seconds` (it then ends with `intr`).

        `device` is called at each access to a port or to an address without memory; what it returns is what the guest reads.
        Can be called again: the guest goes on where it was.
        """
        seen: list[Exit] = []
        with Deferred() as interrupts, _kicked_after(seconds) as blocked:
            _ioctl(self._cpu, kvm.SET_SIGNAL_MASK, struct.pack("<I", 8) + sigset(blocked - {KICK}).data)
            try:
                while len(seen) < exits and (not seen or seen[-1].direction):
                    interrupts.allow()
                    seen += self._enter(device)
            finally:
                interrupts.forbid()
            seen += self._settled(device)
        return Table(seen)

    def _settled(self, device: Device) -> list[Exit]:
        """Lets KVM finish the instruction that it came out for, with what more that accesses, and go no further.

        Only then are registers and memory as after it (KVM_RUN in api.rst).
        """
        self._run[kvm.IMMEDIATE_EXIT] = 1
        try:
            seen: list[Exit] = []
            while (more := self._enter(device)) and more[-1].direction:
                seen += more
            return seen
        finally:
            self._run[kvm.IMMEDIATE_EXIT] = 0

    def _enter(self, device: Device) -> list[Exit]:
        """One KVM_RUN, and what it says; several exits where one instruction (`rep outsb`) accesses a port several times."""
        try:
            _ioctl(self._cpu, kvm.RUN)
        except KernelError as error:
            if error.errno != errno.EINTR:
                raise
            return [Exit("intr")] if KICK in signal.sigpending() else []
        (number,) = struct.unpack_from("<I", self._run, kvm.REASON)
        reason = kvm.EXITS.get(number, f"exit {number}")
        if reason == "io":
            out, size, port, count, data = kvm.IO.unpack_from(self._run, kvm.DETAILS)
            return [self._access(device, reason, out, port, slice(at, at + size)) for at in range(data, data + count * size, size)]
        if reason == "mmio":
            address, _, size, out = kvm.MMIO.unpack_from(self._run, kvm.DETAILS)
            data = kvm.DETAILS + 8
            return [self._access(device, reason, out, address, slice(data, data + size))]
        if reason in kvm.REPORTS:
            return [Exit(reason, value=Hex(*kvm.REPORTS[reason].unpack_from(self._run, kvm.DETAILS)))]
        return [Exit(reason)]

    def _access(self, device: Device, reason: str, out: int, address: int, data: slice) -> Exit:
        """Asks the device, and leaves its answer in the shared page, from where the next KVM_RUN takes it."""
        happened = access(device, reason, bool(out), address, self._run[data])
        if not out:
            self._run[data] = int(happened.value).to_bytes(int(happened.size), "little")
        return happened


def missing() -> str:
    """Why there is no virtual machine of this kind here, and how to go on; empty where there is one."""
    if platform.machine() != "x86_64":
        return f"the code is for x86-64, and this processor is {platform.machine()}: run it by Emulated of kernel_lab.machines.kvm_emulator"
    try:
        # A node may stand there with no driver behind it: only opening it tells.
        with open(DEVICE, "r+b", buffering=0) as device:
            version = _ioctl(device.fileno(), kvm.GET_API_VERSION)
    except OSError as error:
        return f"{DEVICE}: {error.strerror}: {_REMEDIES.get(error.errno or 0, 'see dmesg')}"
    return "" if version == kvm.API_VERSION else f"{DEVICE}: it speaks version {version} of the interface, and {kvm.API_VERSION} is wanted"


_MODULE = "load the driver (modprobe kvm_intel or kvm_amd); it wants virtualisation (VT-x or AMD-V) turned on in the firmware, or nested, in a VM"
_MEMBER = "be a member of the group kvm (usermod -aG kvm NAME, then log in again), or root"
_REMEDIES = dict.fromkeys((errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTTY), _MODULE) | dict.fromkeys((errno.EACCES, errno.EPERM), _MEMBER)


def _ioctl(file: int, request: int, argument: Any = 0) -> int:
    try:
        return syscall("ioctl", file, request, argument)
    except KernelError as error:
        raise KernelError(error.errno or 0, f"ioctl({kvm.NAMES[request]})", look="See Documentation/virt/kvm/api.rst, and dmesg.") from None


def _closed(made: ExitStack, file: int) -> int:
    """`file`, to be closed with the rest."""
    made.callback(os.close, file)
    return file


@contextmanager
def _kicked_after(seconds: float) -> Iterator[set[int]]:
    """A signal for this thread after so long. It stays blocked but in the guest: it cannot come too early and be lost, and needs no handler.

    The value is what else is blocked. Nothing but a signal gets a processor back from a guest that never exits (KVM_SET_SIGNAL_MASK).
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {KICK})
    timer = threading.Timer(seconds, signal.pthread_kill, (threading.get_ident(), KICK))
    timer.start()
    try:
        yield before
    finally:
        timer.cancel()
        timer.join()
        signal.sigtimedwait({KICK}, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
