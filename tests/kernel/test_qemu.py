"""Machines by QEMU: a boot sector is enough of a guest."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import soon

from kernel_lab import UsageError
from kernel_lab.machines.qemu import Qemu

pytestmark = pytest.mark.needs("qemu-system-x86_64", "setpriv", "x86_64")
SMALL = 16 << 20
EXIT = ("-device", "isa-debug-exit,iobase=0xf4")


def boot(folder: Path, text: bytes, code: int | None = None) -> tuple[str, ...]:
    """The options for a machine that says `text` and ends with a code (odd, as isa-debug-exit has it), or stands still."""
    said = b"".join(b"\xb0%c\xba\xf8\x03\xee" % letter for letter in text)  # mov al, letter; mov dx, 0x3f8; out dx, al
    end = b"\xb0%c\xba\xf4\x00\xee" % (code >> 1) if code is not None else b""
    sector = folder / "boot.img"
    sector.write_bytes((said + end + b"\xf4").ljust(510, b"\0") + b"\x55\xaa")
    return "-drive", f"file={sector},format=raw,if=floppy", *EXIT


def test_a_machine_says_something_and_ends(tmp_path: Path) -> None:
    with Qemu(*boot(tmp_path, b"hello\n", 11), memory=SMALL) as machine:
        assert machine.console.wait("hello", 30).text == "hello"
        assert machine.wait(30) == 11


def test_leaving_ends_it(tmp_path: Path) -> None:
    with Qemu(*boot(tmp_path, b"here\n"), memory=SMALL) as machine:
        machine.console.wait("here", 30)
        assert Path(f"/proc/{machine.pid}/comm").read_text().startswith("qemu")
    assert not Path(f"/proc/{machine.pid}").exists()


def test_one_that_does_not_hear_its_power_button(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernel_lab.machines.qemu.PATIENCE", 0.1)
    with Qemu(*boot(tmp_path, b"deaf\n"), memory=SMALL) as machine:
        machine.console.wait("deaf", 30)
        machine.stop()
        assert not Path(f"/proc/{machine.pid}").exists()


def test_one_that_never_ends(tmp_path: Path) -> None:
    with Qemu(*boot(tmp_path, b"busy\n"), memory=SMALL) as machine:
        machine.console.wait("busy", 30)
        with pytest.raises(TimeoutError, match=r"still runs after 0 s; it said last:\n(.*\n)*busy"):
            machine.wait(0)


def test_its_monitor_answers() -> None:
    with Qemu("-S", memory=SMALL) as machine:
        assert machine.monitor.ask("query-status")["status"] == "prelaunch"
        with pytest.raises(UsageError, match="QEMU refuses nonsense"):
            machine.monitor.ask("nonsense")
        machine.kill()
        with pytest.raises(EOFError, match="QEMU has ended"):
            machine.monitor.ask("query-status")


def test_it_dies_with_its_creator() -> None:
    script = "from kernel_lab.machines.qemu import Qemu\nwith Qemu('-S') as machine: print(machine.pid, flush=True); input()"
    creator = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert creator.stdout and creator.stdin
    pid = int(creator.stdout.readline())
    os.kill(creator.pid, signal.SIGKILL)
    creator.wait()
    soon(lambda: not Path(f"/proc/{pid}").exists())
    creator.stdin.close()
    creator.stdout.close()


def test_what_qemu_refuses_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"QEMU does not start: -bogus: invalid option"), Qemu("-bogus"):
        pass


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UsageError, match=f"127.0.0.1:{port}"), Qemu("-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22"):
            pass


@pytest.mark.parametrize("wrong", [{"memory": 0}, {"cpus": 0}])
def test_a_machine_without_memory_or_processor(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least"):
        Qemu(**wrong)  # type: ignore[arg-type]


def test_a_kernel_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file that can be read"):
        Qemu(kernel=tmp_path / "vmlinuz")


def test_without_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match=r"qemu-system-x86_64: not found; install Debian's package qemu-system-x86"):
        Qemu()
