"""The lab VM as a box for Vagrant's libvirt: `vagrant up` needs no network with it, and no other box."""

import json
import shutil
import subprocess
from pathlib import Path

from kernel_lab import state
from kernel_lab.kernel.errors import UsageError
from kernel_lab.machines.image import GB, SIZE, Image
from kernel_lab.machines.labvm import EMULATED, KERNEL_LINE

# There is no boot loader on its disk; and its key is ours already, so that Vagrant need not put in another.
VAGRANTFILE = """Vagrant.configure("2") do |config|
  place = File.dirname(File.expand_path(__FILE__))
  config.ssh.username = "root"
  config.ssh.private_key_path = File.join(place, "key")
  config.ssh.insert_key = false
  config.vm.provider "libvirt" do |machine|
    machine.kernel, machine.initrd = File.join(place, "vmlinuz"), File.join(place, "initrd.img")
    machine.cmd_line = "console=ttyS0 %(line)s"
    %(emulated)s
  end
end
"""
EMULATION = f"""machine.driver, machine.cpu_mode, machine.cpu_model = "qemu", "custom", "{EMULATED}"
    machine.cpu_fallback = "allow" """


def pack(image: Image, target: Path, *, emulated: bool) -> None:
    """Writes the box file. `emulated`: without KVM. Raises UsageError where qemu-img is not installed."""
    if not shutil.which("qemu-img"):
        raise UsageError("qemu-img: not found; install Debian's package qemu-utils")
    made = image.path.parent / f"box.{state.Creator.this().stamp}"
    half = target.with_name(f".{target.name}.{state.Creator.this().stamp}")
    made.mkdir(mode=0o700)
    try:
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", image.disk, made / "box.img"], check=True)
        (made / "metadata.json").write_text(json.dumps({"provider": "libvirt", "format": "qcow2", "virtual_size": SIZE // GB}))
        (made / "Vagrantfile").write_text(VAGRANTFILE % {"line": KERNEL_LINE, "emulated": EMULATION.strip() if emulated else ""})
        for file in (image.kernel, image.initrd, image.key):
            shutil.copy(file, made)
        subprocess.run(["tar", "--create", "--sparse", "--file", half, "--directory", made, "."], check=True)
        half.rename(target)
    finally:
        half.unlink(missing_ok=True)
        state.discard(made)
