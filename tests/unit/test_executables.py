"""Why a program does not start: the reason found afterwards must be the errno that execve itself gives."""

import errno
import os
import platform
import struct
import subprocess
import sys

import pytest

from kernel_lab.kernel.elf import read_elf
from kernel_lab.kernel.executables import exists, opened, reason
from kernel_lab.kernel.flags import O

NOBODYS = 0xFFF0  # no qemu-user registers itself for it
OWN = {"x86_64": 62, "aarch64": 183, "riscv64": 243}.get(platform.machine(), 62)


def elf(machine: int = OWN, kind: int = 2, interpreter: str | None = None) -> bytes:
    """A minimal 64-bit ELF file: a header, one PT_LOAD, and a PT_INTERP when asked."""
    name = (interpreter or "").encode() + b"\0"
    count = 2 if interpreter else 1
    header = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9) + struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, 0x400000, 64, 0, 0, 64, 56, count, 64, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, 4096, 4096, 4096)
    interp = struct.pack("<IIQQQQQQ", 3, 4, 64 + 56 * count, 0x4000E0, 0x4000E0, len(name), len(name), 1)
    return (header + (interp if interpreter else b"") + load + name).ljust(4096, b"\0")


def make(path, content: bytes | str, mode: int = 0o755):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return str(path)


def execve_errno(path: str) -> int:
    try:
        subprocess.run([path], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    except OSError as error:
        return error.errno or 0
    return 0


def dangling(folder):
    (folder / "link").symlink_to("/no/such/target")
    return str(folder / "link")


def circle(folder):
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    return str(folder / "a")


def chain(folder):
    make(folder / "s0", "#!/bin/sh\n")
    for depth in range(1, 8):
        make(folder / f"s{depth}", f"#!{folder}/s{depth - 1}\n")
    return str(folder / "s7")


CASES = {
    "missing": (lambda d: str(d / "nothing"), errno.ENOENT, "does not exist"),
    "missing directory": (lambda d: str(d / "no" / "where"), errno.ENOENT, "there is no"),
    "dangling link": (dangling, errno.ENOENT, "symbolic link to /no/such/target"),
    "circle": (circle, errno.ELOOP, "in a circle"),
    "through a file": (lambda d: make(d / "file", "x") + "/x", errno.ENOTDIR, "is no directory"),
    "directory": (lambda d: str(d), errno.EACCES, "is a directory"),
    "fifo": (lambda d: os.mkfifo(d / "fifo", 0o755) or str(d / "fifo"), errno.EACCES, "not a regular file"),
    "no x": (lambda d: make(d / "plain", "#!/bin/sh\n", 0o644), errno.EACCES, "no execute permission"),
    "of another system": (lambda d: make(d / "program.exe", "MZ"), errno.ENOEXEC, "neither an ELF program"),
    "empty": (lambda d: make(d / "empty", ""), errno.ENOEXEC, "neither an ELF program"),
    "text": (lambda d: make(d / "text", "echo hello\n"), errno.ENOEXEC, "only a shell"),
    "script without interpreter": (lambda d: make(d / "s", "#!\n"), errno.ENOEXEC, "without an interpreter"),
    "script, interpreter missing": (lambda d: make(d / "s", "#!/no/such/sh -e\n"), errno.ENOENT, "the interpreter /no/such/sh"),
    "script from Windows": (lambda d: make(d / "s", "#!/bin/sh\r\necho\r\n"), errno.ENOENT, "carriage return"),
    "script, interpreter without x": (lambda d: make(d / "s", f"#!{make(d / 'i', 'x', 0o644)}\n"), errno.EACCES, "no execute permission"),
    "scripts of scripts": (chain, errno.ELOOP, "more than 5 scripts"),
    "loader missing": (lambda d: make(d / "e", elf(interpreter="/lib/ld-nowhere.so.1")), errno.ENOENT, "/lib/ld-nowhere.so.1"),
    "other machine": (lambda d: make(d / "e", elf(machine=NOBODYS)), errno.ENOEXEC, "is a program for machine 65520"),
    "object file": (lambda d: make(d / "e", elf(kind=1)), errno.ENOEXEC, "is no program"),
    "cut short": (lambda d: make(d / "e", elf()[:40]), errno.ENOEXEC, "is no program"),
    "good script": (lambda d: make(d / "s", "#! /bin/sh\n"), 0, None),
    "good program": (lambda d: "/bin/true", 0, None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_reason_is_the_kernel_s_errno(case, tmp_path):
    build, number, said = CASES[case]
    path = build(tmp_path)
    found = reason(path)
    assert execve_errno(path) == number
    if said is None:
        assert found is None
    else:
        assert found is not None
        assert found.errno == number
        assert said in found.rule
        assert found.look


def test_a_missing_loader_names_the_libraries_as_well(tmp_path):
    program = os.path.realpath(sys.executable)
    with opened("/", program, O.RDONLY) as file:
        read = read_elf(file)
    assert read is not None and read.interpreter is not None and read.needed
    with open(program, "rb") as source:
        make(tmp_path / "bin/python", source.read())
    found = reason("/bin/python", root=str(tmp_path))
    assert found is not None
    assert found.errno == errno.ENOENT
    assert read.interpreter in found.rule
    assert all(name in found.look for name in read.needed)
    make(tmp_path / read.interpreter.lstrip("/"), "the loader stands here now")
    assert reason("/bin/python", root=str(tmp_path)) is None


def test_another_machine_is_named(tmp_path):
    number, name = (183, "aarch64") if platform.machine() == "x86_64" else (62, "x86_64")
    found = reason(make(tmp_path / "e", elf(machine=number)))
    assert found is not None
    assert f"a program for {name}, and this machine is {platform.machine()}" in found.rule


def test_symlinks_do_not_lead_out_of_the_root(tmp_path):
    make(tmp_path / "inside/etc/name", "inside")
    make(tmp_path / "outside", "outside")
    root = tmp_path / "inside"
    (root / "absolute").symlink_to("/etc/name")
    (root / "climbing").symlink_to("../../../../../../../../../../outside")
    (root / "up").symlink_to("../outside")
    with opened(str(root), "/absolute", O.RDONLY) as file:
        assert os.read(file, 20) == b"inside"
    assert not exists("/climbing", str(root))
    assert not exists("/up", str(root))
    assert not exists(f"{tmp_path}/outside", str(root))
    assert exists("/../etc/name", str(root))


def test_interpreters_are_looked_for_inside_the_root(tmp_path):
    make(tmp_path / "run", "#!/bin/sh\n")  # which the machine has, and this root has not
    found = reason("/run", root=str(tmp_path))
    assert found is not None
    assert (found.errno, "/bin/sh does not exist" in found.rule, str(tmp_path) in found.rule) == (errno.ENOENT, True, True)


def test_a_relative_path_starts_at_the_working_directory(tmp_path):
    make(tmp_path / "work/tool", elf())
    assert reason("./tool", root=str(tmp_path), cwd="/work") is None
    found = reason("./tool", root=str(tmp_path))
    assert found is not None and found.errno == errno.ENOENT


def test_a_root_that_is_gone_gives_no_reason(tmp_path):
    assert reason("/bin/sh", root=str(tmp_path / "gone")) is None


@pytest.mark.parametrize("size", [0, 3, 16, 63, 64, 100, 120, 200])
def test_a_damaged_elf_file_raises_nothing(size, tmp_path):
    path = make(tmp_path / "e", elf(interpreter="/lib/x")[:size])
    with opened("/", path, O.RDONLY) as file:
        assert read_elf(file) is None or size >= 120


def test_sizes_in_a_hostile_header_are_not_believed(tmp_path):
    hostile = bytearray(elf(interpreter="/lib/x"))
    struct.pack_into("<Q", hostile, 64 + 32, 1 << 60)  # p_filesz of PT_INTERP
    found = reason(make(tmp_path / "e", bytes(hostile)))
    assert found is not None and found.errno == errno.ENOEXEC


def test_no_descriptor_stays_open(tmp_path):
    before = os.listdir("/proc/self/fd")
    for build, _, _ in CASES.values():
        folder = tmp_path / str(len(os.listdir(tmp_path)))
        folder.mkdir()
        reason(build(folder))
    assert os.listdir("/proc/self/fd") == before
