"""A device program handed to the kernel: loaded and checked, and attached to a group of version 2 (bpf(2))."""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from kernel_lab.cgroups.device_program import DeviceProgram
from kernel_lab.kernel.calls import syscall
from kernel_lab.kernel.errors import KernelError

# linux/bpf.h
PROG_LOAD, PROG_ATTACH, PROG_GET_FD_BY_ID, PROG_QUERY = 5, 8, 13, 16
TYPE_CGROUP_DEVICE = 15  # BPF_PROG_TYPE_CGROUP_DEVICE
AT_CGROUP_DEVICE = 6  # BPF_CGROUP_DEVICE
F_ALLOW_MULTI, F_REPLACE = 2, 4
NAME = b"klab_devices"
LOG = 1 << 16
LOOK = "See what it says above, and dmesg; loading needs root of the machine (CAP_BPF or CAP_SYS_ADMIN, capabilities(7))."


def attach(directory: str, program: DeviceProgram) -> None:
    """The group gets this program, in place of the one that it has had. It goes with the group.

    Those of the groups above are asked as well (BPF_F_ALLOW_MULTI), so that none of them can be got round. Raises KernelError.
    """
    with _opened(directory) as group, _loaded(program) as new, _attached(group) as old:
        flags = F_ALLOW_MULTI | (F_REPLACE if old else 0)
        _bpf(PROG_ATTACH, struct.pack("<5I", group, new, AT_CGROUP_DEVICE, flags, old))


@contextmanager
def _opened(directory: str) -> Iterator[int]:
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def _loaded(program: DeviceProgram) -> Iterator[int]:
    instructions, licence = ctypes.create_string_buffer(program.data), ctypes.create_string_buffer(b"MIT")
    log = ctypes.create_string_buffer(LOG)
    addresses = ctypes.addressof(instructions), ctypes.addressof(licence)
    try:
        head = struct.pack("<IIQQ", TYPE_CGROUP_DEVICE, len(program), *addresses)
        file = _bpf(PROG_LOAD, head + struct.pack("<IIQII16s", 1, LOG, ctypes.addressof(log), 0, 0, NAME))
    except KernelError as error:
        error.rule = f"the kernel does not take the program. {log.value.decode(errors='replace').strip()}".rstrip()
        raise
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def _attached(group: int) -> Iterator[int]:
    """A descriptor of the program that the group itself has; 0 where it has none."""
    number = ctypes.c_uint32()
    query = ctypes.create_string_buffer(struct.pack("<IIIIQI", group, AT_CGROUP_DEVICE, 0, 0, ctypes.addressof(number), 1), 64)
    _bpf(PROG_QUERY, query)
    if not number.value:
        yield 0
        return
    file = _bpf(PROG_GET_FD_BY_ID, struct.pack("<I", number.value))
    try:
        yield file
    finally:
        os.close(file)


def _bpf(command: int, attributes: "bytes | ctypes.Array[ctypes.c_char]") -> int:
    size = len(attributes)
    memory = attributes if isinstance(attributes, ctypes.Array) else ctypes.create_string_buffer(attributes, size)
    try:
        return syscall("bpf", command, memory, size)
    except KernelError as error:
        raise KernelError(error.errno or 0, f"bpf({NAMES[command]})", look=LOOK) from None


NAMES = {PROG_LOAD: "BPF_PROG_LOAD", PROG_ATTACH: "BPF_PROG_ATTACH", PROG_GET_FD_BY_ID: "BPF_PROG_GET_FD_BY_ID", PROG_QUERY: "BPF_PROG_QUERY"}
