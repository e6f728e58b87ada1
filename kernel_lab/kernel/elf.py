"""What the kernel and the loader read from an ELF program: machine, loader, needed libraries (elf(5))."""

import os
import struct
from dataclasses import dataclass

PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
DT_NEEDED, DT_STRTAB, DT_STRSZ = 1, 5, 10
MOST = 1 << 20  # no header or table of an honest program is larger


@dataclass(frozen=True)
class Elf:
    """`program`: whether execve takes it at all; an object file is none."""

    machine: int
    program: bool
    interpreter: str | None = None
    needed: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


def read_elf(file: int) -> Elf | None:
    """The ELF header and tables of an open file; None when they are cut short or make no sense."""
    try:
        return _read(file)
    except (struct.error, ValueError, IndexError):
        return None


def _bytes(file: int, offset: int, size: int) -> bytes:
    if not 0 <= size <= MOST:
        raise ValueError(f"a table of {size} bytes")
    return os.pread(file, size, offset)


def _read(file: int) -> Elf:
    ident = _bytes(file, 0, 16)
    wide, order = ident[4] == 2, "<" if ident[5] == 1 else ">"
    header = f"{order}HHI{'QQQ' if wide else 'III'}IHHH"
    kind, machine, _, _, table, _, _, _, entry, count = struct.unpack(header, _bytes(file, 16, struct.calcsize(header)))
    segments = [_segment(_bytes(file, table + number * entry, entry), wide, order) for number in range(count)]
    interpreter = next((_bytes(file, s.offset, s.size).rstrip(b"\0").decode() for s in segments if s.kind == PT_INTERP), None)
    # ET_EXEC is 2, ET_DYN 3; a library is ET_DYN too, and the kernel would take it.
    return Elf(machine, kind in (2, 3) and any(s.kind == PT_LOAD for s in segments), interpreter, tuple(_needed(file, segments, wide, order)))


def _segment(data: bytes, wide: bool, order: str) -> _Segment:
    if wide:
        kind, _, offset, address, _, size = struct.unpack_from(f"{order}IIQQQQ", data)
    else:
        kind, offset, address, _, size = struct.unpack_from(f"{order}IIIII", data)
    return _Segment(kind, offset, address, size)


def _needed(file: int, segments: list[_Segment], wide: bool, order: str) -> list[str]:
    dynamic = next((s for s in segments if s.kind == PT_DYNAMIC), None)
    if dynamic is None:
        return []
    form = f"{order}{'qQ' if wide else 'iI'}"
    data = _bytes(file, dynamic.offset, dynamic.size)
    entries = list(struct.iter_unpack(form, data[: len(data) // struct.calcsize(form) * struct.calcsize(form)]))
    values = dict(entries)
    if DT_STRTAB not in values:
        return []
    names = _bytes(file, _offset(values[DT_STRTAB], segments), values.get(DT_STRSZ, 0))
    return [names[at : names.index(b"\0", at)].decode() for tag, at in entries if tag == DT_NEEDED]


def _offset(address: int, segments: list[_Segment]) -> int:
    """Where in the file the byte lies that is loaded at `address`."""
    holding = [s for s in segments if s.kind == PT_LOAD and s.address <= address < s.address + s.size]
    return address - holding[0].address + holding[0].offset
