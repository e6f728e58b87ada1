"""The lab VM for real: its image made or found, up, a look around, a lab, down; and the same image as a box that Vagrant brings up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernel_lab.machines import image, labvm

ROOT = Path(__file__).parents[2]
# Emulated on a busy machine; and the image may have to be made first.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.needs("root", "qemu-system-x86_64", "mmdebstrap", "rsync")]
LOOK = """
stat -fc %T /sys/fs/cgroup
grep -c ' - cgroup ' /proc/self/mountinfo
systemctl is-system-running --wait
python3 -c 'import fcntl, os; print(fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR), 0xAE00))'
awk -F: '$2 !~ /^[!*]/ { print "a password of", $1 }' /etc/shadow
ss -Hltn | awk '{ print $4 }' | grep -v '^127\\|^\\[::1\\]' | sort -u
"""
SEEN = "cgroup2fs\n0\nrunning\n12\n0.0.0.0:22\n[::]:22\n"


def lab_vm(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-P", "-m", "kernel_lab.course.vm", *words]
    return subprocess.run(command, cwd="/", env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)


@pytest.fixture(autouse=True)
def made() -> None:
    """The image: making it needs the packages' and Python's registries, as they are reached from a system of its own."""
    build = lab_vm("build")
    if build.returncode:
        print(build.stderr)
        pytest.skip("the lab VM's image cannot be made here (./lab vm build says why)")


def test_the_lab_vm_comes_up_runs_a_lab_and_goes() -> None:
    up = lab_vm("up")
    assert up.returncode == 0, up.stderr
    machine = labvm.find()
    assert machine
    try:
        assert lab_vm("ssh", LOOK).stdout == SEEN
        assert "runs already" in lab_vm("up").stderr
        run = lab_vm("run", "02")
        assert (run.returncode, "02_uts" in run.stdout) == (0, True), run.stderr
        # What was written in it stays for the next time, and the image is as it was.
        assert lab_vm("ssh", "echo kept >/root/kept; sync").returncode == 0
    finally:
        assert lab_vm("down").returncode == 0
    assert not machine.qemu.alive()
    assert not machine.folder.exists()
    assert labvm.find() is None


@pytest.mark.needs("vagrant", "libvirtd", "dnsmasq", "iptables", "ip")
def test_vagrant_brings_it_up_and_a_lab_runs_in_it(tmp_path: Path) -> None:
    made = lab_vm("box", "--emulated", str(tmp_path / "lab.box"))
    assert made.returncode == 0, made.stderr
    isolated = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    done = subprocess.run([*isolated, "sh", ROOT / "tests/vagrant_up.sh", ROOT, tmp_path], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if "Progress:" not in line and not line.startswith("\tfrom ")]
    assert done.returncode == 0, "\n".join(said)
    server, wrong_token, groups, *report = done.stdout.splitlines()
    assert '"path": "labs/00_start.ipynb"' in server
    assert "403" in wrong_token
    assert groups == "cgroup2fs"
    assert '"result": "ok"' in "".join(report)
    assert image.current().disk.exists()


def test_a_disk_that_fills_up_is_one_line_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "klab-small", tmp_path], check=True)
    try:
        monkeypatch.setenv("KERNEL_LAB_DATA", str(tmp_path / "data"))
        monkeypatch.setattr(image, "NEEDED", 0)
        with pytest.raises(RuntimeError, match=r"^\S+/vm: the disk is full; making the image takes 6 GB: make room, .*$"):
            image.build()
        assert sorted(path.name for path in (tmp_path / "data/vm").iterdir()) == ["build.log", "lock"]
    finally:
        subprocess.run(["umount", tmp_path], check=True)
