"""The tables of numbers, against the kernel's own headers where they are installed."""

import ctypes
import os
import platform
import re
from pathlib import Path

import pytest

from kernel_lab.kernel.errors import UsageError
from kernel_lab.kernel.syscalls import number, table

INCLUDE = Path("/usr/include")


def numbers_in(header: Path) -> dict[str, int]:
    defined = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", header.read_text(), re.MULTILINE)
    return {name: int(nr) for name, nr in defined}


def test_x86_64_has_every_number_of_the_header():
    headers = list(INCLUDE.glob("x86_64-linux-gnu/asm/unistd_64.h"))
    if not headers:
        pytest.skip("no asm/unistd_64.h: the C library's headers for x86-64 are not installed")
    for name, nr in numbers_in(headers[0]).items():
        assert table("x86_64").get(name, nr) == nr, name
    assert not [name for name, nr in numbers_in(headers[0]).items() if nr <= 450 and name not in table("x86_64")]


def test_aarch64_has_every_number_of_the_header():
    header = INCLUDE / "asm-generic/unistd.h"
    if not header.exists():
        pytest.skip("no asm-generic/unistd.h: the C library's headers are not installed")
    found = numbers_in(header)
    ours = table("aarch64")
    for name, nr in found.items():
        assert ours.get(name, nr) == nr, name
    # What is left out belongs to 32-bit machines, or is another spelling.
    left_out = {name for name in found if name not in ours and found[name] <= 450}
    assert {name for name in left_out if "time" not in name} == {"fstatat", "sync_file_range2", "arch_specific_syscall"}
    assert all(403 <= found[name] <= 423 for name in left_out if "time" in name)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "riscv64"])
def test_no_number_stands_twice(machine):
    numbers = list(table(machine).values())
    assert len(numbers) == len(set(numbers))


def test_the_kernel_agrees():
    libc = ctypes.CDLL(None)
    assert libc.syscall(number("getpid")) == os.getpid()
    assert libc.syscall(number("getppid")) == os.getppid()
    assert libc.syscall(number("getuid")) == os.getuid()


def test_other_spellings_of_a_machine():
    assert number("execve", "amd64") == number("execve", "x86_64") == 59
    assert number("execve", "arm64") == number("execve", "aarch64") == 221
    assert number("execve") == table(platform.machine())["execve"]


@pytest.mark.parametrize(
    ("name", "machine", "said"),
    [
        ("open", "aarch64", "use openat"),
        ("pipe", "aarch64", "use pipe2"),
        ("dup2", "aarch64", "use dup3"),
        ("mkdir", "aarch64", "use mkdirat"),
        ("fork", "aarch64", "use clone3"),
        ("poll", "arm64", "use ppoll"),
        ("renameat", "riscv64", "use renameat2"),
        ("arch_prctl", "aarch64", "x86-64 alone"),
        ("pivotroot", "x86_64", "did you mean pivot_root"),
        ("mont", "aarch64", "mount"),
        ("umount", "x86_64", "the system call is umount2"),
        ("gethostname", "x86_64", "the system call is uname"),
        ("qqqqqq", "x86_64", "no system call is named 'qqqqqq'"),
        ("read", "vax", "no table of system calls for 'vax'"),
    ],
)
def test_an_unknown_name_says_what_to_use(name, machine, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        number(name, machine)


def test_what_is_recommended_exists():
    for name in set(table("x86_64")) - set(table("aarch64")):
        with pytest.raises(UsageError) as caught:
            number(name, "aarch64")
        if recommended := re.search(r"use (\w+)", str(caught.value)):
            assert recommended[1] in table("aarch64"), name
