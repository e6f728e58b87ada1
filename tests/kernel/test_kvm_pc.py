"""The same bytes in a whole PC by QEMU, and what an instruction costs by each who carries it out."""

import platform

import pytest

from kernel_lab.benchmarks import instructions
from kernel_lab.kernel.errors import UsageError
from kernel_lab.machines import kvm, kvm_pc
from kernel_lab.machines.kvm_code import code
from kernel_lab.machines.kvm_emulator import Emulated
from kernel_lab.machines.kvm_pc import boot_sector, computer

here = pytest.mark.skipif(bool(kvm_pc.missing()), reason=kvm_pc.missing())

TELLS = code("""
ba f8 03  mov dx, 0x3f8
b8 05 00  mov ax, 5
b9 33 00  mov cx, 0x33
01 c8     add ax, cx
ee        out dx, al
b0 0a     mov al, 10
ee        out dx, al
f4        hlt
""")


@here
def test_a_pc_says_what_our_machines_say() -> None:
    with Emulated(TELLS) as vm:
        said = bytes(int(one.value) for one in vm.run()[:-1])
    with computer(TELLS) as pc:
        assert pc.console.wait("^8$", 60).text.encode() + b"\n" == said == b"8\n"


def test_a_sector_has_its_mark_and_its_room() -> None:
    assert boot_sector(b"\xf4" * 510)[-4:] == b"\xf4\xf4\x55\xaa" and len(boot_sector(b"\xf4")) == 512
    with pytest.raises(UsageError, match=r"code of 511 bytes: .* room for 510"):
        boot_sector(bytes(511))


def test_a_line_that_is_no_bytes_is_named() -> None:
    assert code("b0 2a  mov al, 42\n\n  f4  hlt\n") == b"\xb0\x2a\xf4"
    with pytest.raises(UsageError, match="'mov al, 42': bytes in hexadecimal"):
        code("mov al, 42")


def test_what_a_pc_lacks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        assert "not found; install" in kvm_pc.missing()
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "is one of aarch64" in kvm_pc.missing()


@here
@pytest.mark.slow
def test_each_way_is_timed_and_translating_is_faster_than_one_by_one() -> None:
    took = instructions.everybody(pc=True)
    assert took[instructions.PYTHON] > 10 * took[instructions.EMULATOR]
    assert set(took) == {instructions.PYTHON, instructions.EMULATOR, instructions.OUTSIDE} | (
        set() if kvm.missing() else {instructions.KERNEL, instructions.PROGRAM}
    )
    assert instructions.picture(took).startswith(b"\x89PNG")
