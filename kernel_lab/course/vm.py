"""`./lab vm`: the machine that the labs run in where this one is not to be touched, or lacks what they need."""

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from kernel_lab.course import vm_compare
from kernel_lab.course.suite import conclude
from kernel_lab.course.suite import run as finish
from kernel_lab.course.vm_suite import Suite
from kernel_lab.kernel.errors import KernelError, UsageError
from kernel_lab.machines import image as images
from kernel_lab.machines import labvm
from kernel_lab.machines.accelerator import accelerator
from kernel_lab.machines.box import pack
from kernel_lab.machines.labvm import LabVM

REST = {"ignore_unknown_options": True, "help_option_names": ["--help"]}


@click.group(context_settings={"help_option_names": ["--help"], "max_content_width": 120})
def vm() -> None:
    """A Debian of the kit's own in QEMU: systemd, control groups of version 2 alone, nested virtualisation."""


@vm.command()
def build() -> None:
    """Make its image, unless there is one of just these packages, scripts and Python requirements."""
    _image()


@vm.command()
@click.option("--port", default=0, help="The port of the loopback that leads to its ssh; without it, one that is free.")
@click.option("--memory", default=labvm.MEMORY >> 20, show_default=True, help="In MB.")
@click.option("--cpus", default=labvm.CPUS, show_default=True, help="One, where it is emulated.")
@click.option("--xen", is_flag=True, help="Below the hypervisor Xen, as its first guest.")
def up(port: int, memory: int, cpus: int, xen: bool) -> None:
    """Start it, and put the kit as it is here into it."""
    _up(port=port, memory=memory << 20, cpus=cpus, xen=xen)


@vm.command(context_settings=REST)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def ssh(command: tuple[str, ...]) -> None:
    """A shell in it, or a command."""
    words = [*_running().ssh(), *command]
    os.execvp(words[0], words)


@vm.command(context_settings=REST)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(arguments: tuple[str, ...]) -> int:
    """./lab run in it, with the kit as it is here; starts it for that, if it does not run."""
    with _for_a_while() as machine:
        return machine.run(shlex.join(["./lab", "run", *arguments])).returncode


@vm.command()
def test() -> int:
    """In it, the tests and labs that can come out differently there; starts it for that, if it does not run."""
    with tempfile.TemporaryDirectory(prefix="klab-vm-") as scratch, _for_a_while() as machine:
        return conclude(finish(Suite(machine, Path(scratch)).steps()), None)


@vm.command(context_settings=REST)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def compare(file: Path, options: tuple[str, ...]) -> None:
    """Measure lab 17 in it, with KVM's guests, and then with Xen's, into a file. OPTIONS are those of klab bench compare."""
    if labvm.find():
        raise UsageError("the lab VM runs already, and this starts one of its own: ./lab vm down first")
    emulated = accelerator(_image().kernel) == "tcg"

    rows = vm_compare.compare(lambda xen: _booted(memory=vm_compare.MEMORY, cpus=1, xen=xen), options, ", emulated by QEMU" if emulated else "")
    vm_compare.write(rows, file)


@vm.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--emulated", is_flag=True, help="For a libvirt without KVM.")
def box(file: Path, emulated: bool) -> None:
    """Make a box for Vagrant's libvirt out of the image: vagrant box add --name kernel-lab FILE; KERNEL_LAB_BOX=kernel-lab vagrant up."""
    pack(_image(), file, emulated=emulated)


@vm.command()
def down() -> None:
    """End it; what was written in it stays."""
    if machine := labvm.find():
        machine.stop()
        _say("it is down")
    else:
        _say("it does not run")


@vm.command()
def destroy() -> None:
    """End it, and remove its image and all that was written in it."""
    labvm.destroy()


def _say(text: str) -> None:
    print(f"kernel_lab: {text}", file=sys.stderr, flush=True)


def _image() -> images.Image:
    wanted = images.current()
    if not wanted.path.is_dir():
        _say(f"making the lab VM's image, Debian {images.SUITE} (once: two minutes, and the download of 400 MB)")
    image = images.build()
    if not labvm.find():  # one that runs may have been started from an older one
        images.discard_others(image)
    return image


def _up(**how: Any) -> LabVM:
    image = _image()
    begun = time.monotonic()
    machine = labvm.up(image, **how)
    machine.send(images.ROOT)
    _say(f"the lab VM is up after {time.monotonic() - begun:.0f} s: ./lab vm ssh, ./lab vm run 02, ./lab vm down")
    return machine


@contextmanager
def _for_a_while() -> Iterator[LabVM]:
    """The machine that runs, with the kit as it is here; or one that is ended again."""
    if machine := labvm.find():
        machine.send(images.ROOT)
        yield machine
        return
    with _booted() as machine:
        yield machine


@contextmanager
def _booted(**how: Any) -> Iterator[LabVM]:
    machine = _up(**how)
    try:
        yield machine
    finally:
        machine.stop()


def _running() -> LabVM:
    if machine := labvm.find():
        return machine
    raise UsageError("the lab VM does not run: ./lab vm up")


def main(argv: list[str] | None = None) -> None:
    """The command line; ends the process."""
    try:
        sys.exit(vm.main(argv, prog_name="lab vm", standalone_mode=False) or 0)
    except click.exceptions.Abort:
        code, text = 130, "interrupted"
    except UsageError as error:
        code, text = 2, str(error)
    except (KernelError, OSError, RuntimeError) as error:
        code, text = 1, str(error)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    _say(text)
    sys.exit(code)


if __name__ == "__main__":
    main()
