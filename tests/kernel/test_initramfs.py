"""The archive that a kernel unpacks first, as another program reads it; and a Linux that boots from it."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from kernel_lab import rootfs, state
from kernel_lab.kernel.errors import UsageError
from kernel_lab.machines import initramfs
from kernel_lab.machines.console import Line
from kernel_lab.machines.drivers import drivers
from kernel_lab.machines.initramfs import Stage, archive, boot_times, stock_kernel
from kernel_lab.machines.qemu import Qemu


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root/bin").mkdir(parents=True)
    (tmp_path / "root/bin/tool").write_bytes(b"\x00odd\xff")
    (tmp_path / "root/bin/tool").chmod(0o750)
    (tmp_path / "root/link").symlink_to("bin/tool")
    (tmp_path / "root/empty").touch()
    return tmp_path / "root"


@pytest.mark.needs("busybox")
def test_another_program_unpacks_the_same(root: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    subprocess.run(["busybox", "cpio", "-id"], cwd=there, input=archive(root, "echo hello"), check=True, capture_output=True)
    assert sorted(str(path.relative_to(there)) for path in there.rglob("*")) == ["bin", "bin/tool", "empty", "init", "link"]
    assert (there / "bin/tool").read_bytes() == b"\x00odd\xff" and (there / "empty").read_bytes() == b""
    assert stat.S_IMODE((there / "bin/tool").stat().st_mode) == 0o750 and os.readlink(there / "link") == "bin/tool"
    assert os.access(there / "init", os.X_OK) and (there / "init").read_text().endswith("echo hello\n")


def test_everything_is_roots_and_without_a_time(root: Path) -> None:
    os.utime(root / "empty", (1, 1))
    first = archive(root, "")
    os.utime(root / "empty", (2, 2))
    assert archive(root, "") == first and len(first) % 4 == 0


@pytest.mark.needs("busybox")
def test_drivers_are_loaded_in_their_order_before_anything_else(root: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    made = archive(root, "echo hello", [bytes([number]) for number in range(11)])
    subprocess.run(["busybox", "cpio", "-id"], cwd=there, input=made, check=True, capture_output=True)
    inside = there / "init"
    inside.write_text(inside.read_text().replace("mount ", "true ").replace("/driver*", "driver*").replace("insmod ", "cat "))
    said = subprocess.run(["busybox", "sh", "init"], cwd=there, check=True, capture_output=True).stdout
    assert said == bytes(range(11)) + b"hello\n"


CONSOLE = (Line(1.0, "[    0.100000] Linux version 6"), Line(3.5, "[    2.500000] Run /init as init process"), Line(3.75, "ready"))


def test_the_stages_of_a_boot() -> None:
    assert boot_times(CONSOLE, "ready") == [Stage("firmware", 1.0), Stage("kernel", 2.5), Stage("userspace", 0.25)]


@pytest.mark.parametrize(("lines", "words"), [(CONSOLE[:2], "'ready'"), (CONSOLE[2:], "Run /init")])
def test_a_console_that_lacks_a_line(lines: tuple[Line, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        boot_times(lines, "ready")


@pytest.fixture
def nothing_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory that is new, and a /boot without a kernel."""
    monkeypatch.setenv("KERNEL_LAB_DATA", str(tmp_path))
    monkeypatch.setattr(initramfs, "BOOT", tmp_path)
    return tmp_path


def test_without_a_kernel_it_says_why_and_leaves_nothing(nothing_stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match=r"(?s)no kernel to boot.*apt-cache.*apt-get update"):
        stock_kernel()
    assert [path.name for path in (nothing_stored / "kernels").iterdir()] == ["lock"]


def test_a_package_that_is_not_to_be_had_is_told(nothing_stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = nothing_stored / "tools"
    tools.mkdir()
    for name, said in {"apt-cache": "exit 0", "apt-get": "echo 'E: Unable to locate package' >&2; exit 100"}.items():
        (tools / name).write_text(f"#!/bin/sh\n{said}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    with pytest.raises(UsageError, match="Unable to locate package"):
        stock_kernel()


@pytest.mark.slow
@pytest.mark.needs("apt-get", "dpkg-deb")
def test_a_kernel_is_unpacked_once(nothing_stored: Path) -> None:
    kernel = stock_kernel()
    assert kernel.is_relative_to(state.data_dir() / "kernels") and kernel.read_bytes()[0x202:][:4] != b"\0\0\0\0"
    assert all(module.startswith(b"\x7fELF") for module in drivers(kernel, "virtio_blk", "virtio_net"))
    kernel.write_bytes(b"kept")
    assert stock_kernel().read_bytes() == b"kept"


def test_a_kernel_of_the_machines_own_is_taken(nothing_stored: Path) -> None:
    for name in ("vmlinuz-6.1", "vmlinuz-6.12", "initrd.img-6.12"):
        (nothing_stored / name).touch()
    assert stock_kernel() == nothing_stored / "vmlinuz-6.12"


here = pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="needs qemu-system-x86_64: not on the PATH")


@here
@pytest.mark.slow
@pytest.mark.needs("busybox")
def test_a_linux_boots_and_its_shell_answers(tmp_path: Path) -> None:
    (tmp_path / "root.cpio").write_bytes(archive(rootfs.busybox(), "echo ready: $$; exec sh"))
    with Qemu(kernel=stock_kernel(), initrd=tmp_path / "root.cpio") as linux:
        linux.console.wait("^ready: 1$", 120)
        linux.console.write("echo $((6 * 7)); ls /proc/1/exe\n")
        linux.console.wait("^42$", 60)
        linux.console.wait("^/proc/1/exe$", 60)
        stages = boot_times(linux.console.lines, "ready")
    assert [stage.name for stage in stages] == ["firmware", "kernel", "userspace"] and all(stage.seconds > 0 for stage in stages)
    assert stages[1].seconds > stages[2].seconds
