"""What is used of a machine's memory, where a hypervisor has a part of it."""

from pathlib import Path

import pytest

from kernel_lab.benchmarks import accounts
from kernel_lab.benchmarks.accounts import MEGABYTE, Memory


@pytest.fixture
def dom0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine below whose kernel is Xen; its `xl` says what is written into the file `said`."""
    (tmp_path / "type").write_text("xen\n")
    monkeypatch.setattr(accounts, "HYPERVISOR", tmp_path / "type")
    (tmp_path / "xl").write_text(f'#!/bin/sh\ntest "$1" = info && cat {tmp_path}/said\n')
    (tmp_path / "xl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


def says(total: int, free: int) -> str:
    return f"host : box\ntotal_memory           : {total}\nfree_memory            : {free}\nsharing_freed_memory   : 7\n"


def test_what_another_guest_gets_is_used(dom0: Path) -> None:
    (dom0 / "said").write_text(says(400_000, 300_000))
    before = Memory.now()
    (dom0 / "said").write_text(says(400_000, 299_872))
    after = Memory.now()
    assert before.used + before.available == 400_000 * MEGABYTE == after.used + after.available
    # To a few megabytes, which others may have taken meanwhile.
    assert after.kernel - before.kernel == pytest.approx(128 * MEGABYTE, abs=16 * MEGABYTE)
    assert before.available - after.available == pytest.approx(128 * MEGABYTE, abs=64 * MEGABYTE)


@pytest.mark.parametrize(("kind", "said"), [("xen", "no permission\n"), ("kvm", says(1, 1))])
def test_without_a_word_of_xen_it_is_the_kernels_own(dom0: Path, kind: str, said: str) -> None:
    (dom0 / "type").write_text(kind)
    (dom0 / "said").write_text(said)
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
    now = Memory.now()
    assert now.used + now.available == int(total.split()[1]) << 10
