"""The modules of a kernel that is booted from a file: found, read, and in an order in which they can be loaded."""

import lzma
import subprocess
from pathlib import Path

import pytest

from kernel_lab.kernel.errors import UsageError
from kernel_lab.machines.drivers import drivers


class Kernel:
    """`…/boot/vmlinuz-6.1`, with modules in `place`."""

    def __init__(self, root: Path, place: str) -> None:
        self.path = root / "boot/vmlinuz-6.1"
        self._modules = root / place / "6.1/kernel"

    def module(self, file: str, depends: str = "") -> bytes:
        text = b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=" + file.encode() + b"\0"
        path = self._modules / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.compress(text) if file.endswith(".xz") else text)
        return text


@pytest.fixture(params=["lib/modules", "usr/lib/modules"])
def kernel(request: pytest.FixtureRequest, tmp_path: Path) -> Kernel:
    return Kernel(tmp_path, request.param)


def test_each_comes_after_all_that_it_needs_and_once(kernel: Kernel) -> None:
    base = kernel.module("virtio/base.ko")
    ring = kernel.module("virtio/ring_of.ko.xz", "base")
    bus = kernel.module("pci-bus.ko", "base,ring-of,built_in")
    card = kernel.module("net/card.ko", "pci_bus,base")
    kernel.module("net/other.ko", "card")
    assert drivers(kernel.path, "pci_bus", "card") == [base, ring, bus, card]


def test_what_is_built_in_needs_no_module(kernel: Kernel) -> None:
    kernel.module("some.ko")
    assert drivers(kernel.path, "built_in") == []


def test_modules_that_are_not_there_are_named(kernel: Kernel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"{kernel.path}: its modules are not at hand, in {tmp_path}/lib/modules/6.1"):
        drivers(kernel.path, "some")


def test_a_compression_that_nobody_here_reads_is_told(kernel: Kernel) -> None:
    kernel.module("some.ko.br")
    with pytest.raises(UsageError, match=r"some\.ko\.br: modules of this compression are not read here"):
        drivers(kernel.path, "some")


@pytest.mark.needs("zstd")
def test_one_by_zstd_is_read(kernel: Kernel) -> None:
    text = kernel.module("some.ko")
    (file,) = kernel.path.parents[1].rglob("some.ko")
    subprocess.run(["zstd", "--quiet", "--rm", file], check=True)
    assert drivers(kernel.path, "some") == [text]
