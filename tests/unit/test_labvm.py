"""The lab VM while it runs, with a stand-in for QEMU: its command line, its folder, and what is told when something is in the way."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from waiting import soon

from kernel_lab import cleanup
from kernel_lab.course import vm
from kernel_lab.kernel.errors import UsageError
from kernel_lab.machines import labvm
from kernel_lab.machines.image import Image
from kernel_lab.machines.labvm import LabVM

BANNER = "import socket, sys\ns = socket.create_server(('127.0.0.1', int(sys.argv[1])))\nwhile True: s.accept()[0].sendall(b'SSH-2.0-here')"
Starts = Callable[..., LabVM]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("RUN", "DATA"):
        monkeypatch.setenv(f"KERNEL_LAB_{name}", str(tmp_path / name.lower()))
    yield tmp_path
    if machine := labvm.find():
        machine.stop()


@pytest.fixture
def image(tmp_path: Path) -> Image:
    folder = tmp_path / "image"
    folder.mkdir()
    made = Image(folder)
    for path in (made.disk, made.kernel, made.initrd, made.key, made.known_hosts):
        path.write_text("")
    return made


@pytest.fixture
def starts(image: Image, monkeypatch: pytest.MonkeyPatch) -> Starts:
    """Starts what it is given in the place of QEMU; PORT in it is the port."""

    def start(*command: str, port: int = 0) -> LabVM:
        monkeypatch.setattr(labvm, "_disk", lambda image: image.disk)
        monkeypatch.setattr(labvm, "_command", lambda image, disk, port, *_: [str(port) if word == "PORT" else word for word in command])
        return labvm.up(image, port=port)

    return start


def folders(place: Path) -> list[str]:
    return [path.name for path in (place / "run/vm").glob("*") if path.name != "lock"]


@pytest.mark.needs("qemu-system-x86_64", "x86_64")
def test_qemu_is_asked_for_what_the_labs_need(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labvm, "accelerator", lambda kernel: "tcg")
    command = " ".join(labvm._command(image, Path("/a/disk"), 2222, 1 << 30, 2, xen=False))
    assert "hostfwd=tcp:127.0.0.1:2222-:22" in command
    assert "file=/a/disk,if=virtio,format=qcow2" in command
    assert "-accel tcg -cpu EPYC," in command  # svm, for machines in the machine
    assert "-smp 1 " in command  # of two, one runs what the other is just patching
    assert f"-kernel {image.kernel} -initrd {image.initrd}" in command
    assert str(image.disk) not in command


@pytest.mark.needs("qemu-system-x86_64", "x86_64")
def test_below_xen_the_kernel_is_the_hypervisors_first_module(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labvm, "accelerator", lambda kernel: "tcg")
    with pytest.raises(UsageError, match="this image has no Xen"):
        labvm.up(image, xen=True)
    image.hypervisor.write_text("")
    command = labvm._command(image, Path("/a/disk"), 2222, 1 << 30, 1, xen=True)
    assert command[command.index("-kernel") + 1] == str(image.hypervisor)
    kernel, initrd = command[command.index("-initrd") + 1].split(",")
    assert kernel.split()[:2] == [str(image.kernel), "console=hvc0"] and "root=/dev/vda" in kernel and initrd == str(image.initrd)
    assert command[command.index("-cpu") + 1] == "EPYC,-smap,-smep"


@pytest.mark.needs("qemu-img")
def test_what_the_machine_writes_goes_beside_the_image(image: Image) -> None:
    disk = labvm._disk(image)
    told = subprocess.run(["qemu-img", "info", disk], capture_output=True, text=True, check=True).stdout
    assert f"backing file: {image.disk}" in told
    disk.write_text("written to")
    assert labvm._disk(image).read_text() == "written to"


def test_it_outlives_the_one_that_starts_it_and_is_found_again(starts: Starts, place: Path) -> None:
    machine = starts("python3", "-c", BANNER, "PORT")
    assert labvm.find() == machine
    assert os.getsid(machine.qemu.pid) != os.getsid(0)
    with pytest.raises(UsageError, match=rf"runs already \(process {machine.qemu.pid}\): ./lab vm ssh, or ./lab vm down first"):
        starts("true")
    machine.stop()
    assert labvm.find() is None
    assert folders(place) == []


def test_a_port_that_is_taken_is_one_line_and_nothing_is_made(starts: Starts, place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"^port {port} of 127.0.0.1: Address already in use: choose another one"):
            starts("true", port=port)
    with pytest.raises(UsageError, match=r"^port 70000 of 127.0.0.1: ports go from 1 to 65535"):
        starts("true", port=70000)
    assert folders(place) == []


def test_one_that_never_answers_is_ended_and_its_last_words_are_told(starts: Starts, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labvm, "BOOT", 0.5)
    with pytest.raises(RuntimeError, match=r"has not answered in 0 s, and has been ended; its console said last: Booting \| Kernel panic") as raised:
        starts("sh", "-c", "echo Booting; echo; echo Kernel panic; echo $$ >../pid; exec sleep 100")
    assert "\n" not in str(raised.value)
    assert folders(place) == ["pid"]
    assert not os.path.exists(f"/proc/{(place / 'run/vm/pid').read_text().strip()}")


def test_one_that_ends_at_once_says_why(starts: Starts, place: Path) -> None:
    with pytest.raises(RuntimeError, match=r"the lab VM has ended while it started; it said last: no such disk$"):
        starts("sh", "-c", "echo starting; echo no such disk >&2; exit 1")
    assert folders(place) == []


def test_cleanup_finds_the_folder_of_one_that_was_killed(starts: Starts) -> None:
    machine = starts("python3", "-c", BANNER, "PORT")
    assert [left for left in cleanup.leftovers() if str(machine.folder) in left.name] == []
    os.kill(machine.qemu.pid, signal.SIGKILL)
    assert soon(lambda: not machine.qemu.alive())
    assert labvm.find() is None
    (left,) = [left for left in cleanup.leftovers() if str(machine.folder) in left.name]
    left.remove()
    assert not machine.folder.exists()


def test_destroy_leaves_nothing(starts: Starts, place: Path) -> None:
    machine = starts("python3", "-c", BANNER, "PORT")
    for name in ("image-1", "image-2/inside", "build.log"):
        (place / "data/vm" / name).mkdir(parents=True, exist_ok=True)
    labvm.destroy()
    assert not machine.qemu.alive()
    assert [path.name for path in (place / "data/vm").iterdir()] == ["lock"]


@pytest.mark.parametrize("command", [["ssh"], ["ssh", "true"]])
def test_what_wants_a_machine_says_how_to_get_one(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        vm.main(command)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "kernel_lab: the lab VM does not run: ./lab vm up\n"


def test_down_without_one_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        vm.main(["down"])
    assert (ended.value.code, capsys.readouterr().err) == (0, "kernel_lab: it does not run\n")


def test_arguments_reach_the_machine_as_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[list[str]] = []
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(labvm, "find", lambda: LabVM(tmp_path))
        patch.setattr(LabVM, "send", lambda self, project: None)
        patch.setattr(subprocess, "run", lambda words, **how: asked.append(list(map(str, words))) or subprocess.CompletedProcess(words, 3))
        vm.main(["run", "02", "--json"])
    assert ended.value.code == 3
    assert asked[-1][-1] == "cd /kernel_lab && ./lab run 02 --json"


@pytest.mark.needs("rsync")
def test_what_is_sent_is_the_kit_without_what_is_made_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit, guest, folder = tmp_path / "kit", tmp_path / "guest", tmp_path / "folder"
    for path in (kit / "kernel_lab", kit / ".venv", kit / ".git", guest / ".venv", folder):
        path.mkdir(parents=True)
    for file in (kit / "lab", kit / "kernel_lab/a.py", kit / ".venv/ours", kit / ".git/HEAD", guest / ".venv/theirs", guest / "gone"):
        file.write_text("")
    (tmp_path / "bin").mkdir()
    # An ssh that is already there: it forgets the host, and runs the command here.
    (tmp_path / "bin/ssh").write_text('#!/bin/sh\nshift 3\nexec "$@"\n')
    (tmp_path / "bin/ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(labvm, "KIT", str(guest))
    LabVM(folder).send(kit)
    assert sorted(str(path.relative_to(guest)) for path in guest.rglob("*") if path.is_file()) == [".venv/theirs", "kernel_lab/a.py", "lab"]
