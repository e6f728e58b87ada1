"""The mode in which every 64-bit kernel runs: what firmware, boot loader and the first lines of a kernel do, as writes to memory and registers.

Machine(code, mode=long_mode)       # ring 0, as a kernel
Machine(code, mode=user_mode)       # ring 3, as a program under one
"""

import mmap
import struct
from functools import partial

from kernel_lab.machines.kvm_abi import Segment, SpecialRegisters

PML4, PDPT, PD, GDT = 0x1000, 0x2000, 0x3000, 0x4000  # where in the guest's memory they are; the stack grows down towards them
PRESENT, WRITABLE, USER, HUGE = 1 << 0, 1 << 1, 1 << 2, 1 << 7  # bits of an entry of a page table
CR0_PE, CR0_ET, CR0_NE, CR0_PG = 1 << 0, 1 << 4, 1 << 5, 1 << 31
CR4_PAE = 1 << 5
EFER_LME, EFER_LMA = 1 << 8, 1 << 10
CODE, DATA = 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF  # descriptors of 64-bit code and of data, of ring 0
RING = 45  # the bits of a descriptor that hold its ring
GIGABYTE, TWO_MEGABYTES = 1 << 30, 1 << 21


def long_mode(special: SpecialRegisters, memory: mmap.mmap, ring: int = 0) -> None:
    """Every address up to one gigabyte is translated to itself. No interrupt table: the first fault ends the machine (`shutdown`)."""
    access = PRESENT | WRITABLE | USER
    _put(memory, PML4, PDPT | access)
    _put(memory, PDPT, PD | access)
    _put(memory, PD, *(page | access | HUGE for page in range(0, GIGABYTE, TWO_MEGABYTES)))
    table = [0, CODE, DATA, CODE | 3 << RING, DATA | 3 << RING]
    _put(memory, GDT, *table)
    special.gdt.base, special.gdt.limit, special.idt.limit = GDT, 8 * len(table) - 1, 0
    code, data = (3, 4) if ring else (1, 2)
    special.cs = _segment(code, table[code], ring)
    special.ds = special.es = special.fs = special.gs = special.ss = _segment(data, table[data], ring)
    special.cr3 = PML4
    special.cr4 = CR4_PAE
    special.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_PG
    special.efer = EFER_LME | EFER_LMA


user_mode = partial(long_mode, ring=3)


def _put(memory: mmap.mmap, address: int, *words: int) -> None:
    struct.pack_into(f"<{len(words)}Q", memory, address, *words)


def _segment(index: int, descriptor: int, ring: int) -> Segment:
    """What the processor keeps of entry `index` of the table, once it has loaded it (AMD64 manual 2, 4.8)."""

    def bit(at: int, wide: int = 1) -> int:
        return descriptor >> at & (1 << wide) - 1

    return Segment(
        base=bit(16, 24) | bit(56, 8) << 24,
        limit=(bit(0, 16) | bit(48, 4) << 16) << 12 | 0xFFF,  # counted in pages, as the bit `g` says
        selector=index * 8 | ring,
        type=bit(40, 4),
        s=bit(44),
        dpl=bit(45, 2),
        present=bit(47),
        avl=bit(52),
        l=bit(53),
        db=bit(54),
        g=bit(55),
    )
