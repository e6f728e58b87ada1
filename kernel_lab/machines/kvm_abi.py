"""What <linux/kvm.h> and <asm/kvm.h> of x86-64 lay down: numbers of requests, the layout of structures, the names of exits."""

import ctypes
import struct

GET_API_VERSION, CREATE_VM, GET_VCPU_MMAP_SIZE, CREATE_VCPU, SET_TSS_ADDR, RUN = 0xAE00, 0xAE01, 0xAE04, 0xAE41, 0xAE47, 0xAE80
SET_USER_MEMORY_REGION, SET_SIGNAL_MASK = 0x4020AE46, 0x4004AE8B
GET_SUPPORTED_CPUID, SET_CPUID2 = 0xC008AE05, 0x4008AE90
GET_REGS, SET_REGS, GET_SREGS, SET_SREGS = 0x8090AE81, 0x4090AE82, 0x8138AE83, 0x4138AE84
NAMES = {number: f"KVM_{name}" for name, number in list(globals().items()) if name.isupper()}
API_VERSION = 12  # the only one there has ever been; a program is to refuse another (Documentation/virt/kvm/api.rst)

MEMORY_REGION = struct.Struct("<IIQQQ")  # slot, flags, the guest's physical address, size, our address
REGISTERS = struct.Struct("<18Q")
FEATURES, FEATURE = 256, 40  # struct kvm_cpuid2: room for so many answers of the instruction cpuid, of so many bytes

# struct kvm_run, the page that kernel and VMM share: whether to come out before the guest goes on, why it came out, and what more there is to say.
IMMEDIATE_EXIT, REASON, DETAILS = 1, 8, 32
IO = struct.Struct("<BBHIQ")  # direction, size, port, count, where in the page the data are
MMIO = struct.Struct("<Q8sIB")  # physical address, data, size, whether it is a write
EXITS = {2: "io", 5: "hlt", 6: "mmio", 7: "irq window open", 8: "shutdown", 9: "fail entry", 10: "intr", 17: "internal error", 24: "system event"}
REPORTS = {"fail entry": struct.Struct("<Q"), "internal error": struct.Struct("<I")}  # the processor's own reason; KVM_INTERNAL_ERROR_…


class Segment(ctypes.Structure):
    """A segment register: the selector, and what the processor has read about it in the descriptor table."""

    _fields_ = [
        ("base", ctypes.c_uint64),
        ("limit", ctypes.c_uint32),
        ("selector", ctypes.c_uint16),
        *((name, ctypes.c_uint8) for name in ("type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable", "padding")),
    ]


class Table(ctypes.Structure):
    """GDTR or IDTR."""

    _fields_ = [("base", ctypes.c_uint64), ("limit", ctypes.c_uint16), ("padding", ctypes.c_uint16 * 3)]


class SpecialRegisters(ctypes.Structure):
    """struct kvm_sregs: which mode the processor is in, and how it translates addresses."""

    _fields_ = [
        *((name, Segment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
        ("gdt", Table),
        ("idt", Table),
        *((name, ctypes.c_uint64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
        ("interrupt_bitmap", ctypes.c_uint64 * 4),
    ]
